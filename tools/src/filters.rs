//! Which sessions are meant, for all commands that take some of them.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use sessile::{Filter, Value};

/// Those that all of it is true of.
#[derive(Args)]
#[command(next_help_heading = "Which sessions")]
pub(crate) struct Filters {
    /// Only the sessions of this container.
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,

    /// Only those that are bound to this principal.
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,

    /// Only those created longer ago than this: `30m`, `12h`, `2d 6h`.
    #[arg(long, value_name = "TIME", value_parser = time)]
    older: Option<Duration>,

    /// Only those not used for longer than this.
    #[arg(long, value_name = "TIME", value_parser = time)]
    idle: Option<Duration>,

    /// Only those that expire within this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    expires_in: Option<Duration>,

    /// Only new ones: nobody has come back to them since they were created.
    #[arg(long)]
    new: bool,

    /// Only those that have this attribute.
    #[arg(long, value_name = "ATTRIBUTE")]
    has: Vec<String>,

    /// Only those of which this attribute has this value: JSON, or a text.
    #[arg(long = "where", value_name = "ATTRIBUTE=VALUE", value_parser = condition)]
    conditions: Vec<(String, Value)>,

    /// Those that have expired and are not swept yet, instead of the live ones.
    #[arg(long)]
    expired: bool,
}

impl Filters {
    pub(crate) fn filter(&self) -> Filter {
        let mut filter = Filter::new();
        if self.expired {
            filter = filter.expired();
        }
        if self.new {
            filter = filter.unvisited();
        }
        if let Some(name) = &self.principal {
            filter = filter.principal(name);
        }
        if let Some(age) = self.older {
            filter = filter.older_than(age);
        }
        if let Some(time) = self.idle {
            filter = filter.idle_for(time);
        }
        if let Some(time) = self.expires_in {
            filter = filter.expires_within(time);
        }
        filter = self.has.iter().fold(filter, Filter::has);
        let is = |filter: Filter, (name, value): &(String, Value)| {
            filter.equals_value(name, value.clone())
        };
        self.conditions.iter().fold(filter, is)
    }
}

fn time(text: &str) -> Result<Duration> {
    let span: jiff::Span = text.parse().context("a time is written like `30m` or `2d 6h`")?;
    // A day is one of 24 hours here.
    let length = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours())?;
    Ok(Duration::try_from(length)?)
}

fn condition(text: &str) -> Result<(String, Value)> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| anyhow!("it is written ATTRIBUTE=VALUE"))?;
    let value = match serde_json::from_str::<serde_json::Value>(value) {
        Ok(json) => Value::of(&json),
        Err(_) => Value::of(value),
    };
    Ok((name.to_owned(), value.ok_or_else(|| anyhow!("it cannot be stored"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_conditions_are_read_as_they_are_meant() {
        for (text, secs) in [("30m", 1_800), ("12h", 43_200), ("2d 6h", 194_400), ("90s", 90)] {
            assert_eq!(time(text).unwrap(), Duration::from_secs(secs), "{text}");
        }
        for text in ["", "soon", "-1h", "1 month"] {
            assert!(time(text).is_err(), "{text}");
        }
        let value = |text| condition(text).unwrap().1;
        assert_eq!(value("n=5"), Value::of(&5).unwrap());
        assert_eq!(value("n=\"5\""), Value::of("5").unwrap());
        assert_eq!(value("n=dark"), Value::of("dark").unwrap());
        assert_eq!(value("n=a=b"), Value::of("a=b").unwrap());
        assert_eq!(value("n=[1,null]"), Value::of(&(1, ())).unwrap());
        assert!(condition("n").is_err());
    }
}
