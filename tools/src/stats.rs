//! `sessile stats`: how a store stands.
//!
//! Every session is looked at once, at one state of the store; of each only a few numbers are kept.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value as Json, json};
use sessile::{
    AtLimit, Durability, Error, Policy, Rule, Time, ViewedContainer, ViewedStore, Viewer,
};

use crate::Answer;
use crate::format::{json_line, plural, relative, size, span, thousands, utc};
use crate::store::{self, Source};
use crate::table::{self, Cell};
use crate::terminal::Page;

pub(crate) const HELP: &str = "\
Sessions that have expired and await the sweep are counted apart; AGE and SIZE are those of live
sessions, and LAG is how long ago the oldest of the expired ones should have been swept. COUNT is
how many sessions the container itself says it has, expired ones included.

Examples:
  sessile stats ./sessions
  sessile stats ./sessions --json | jq .total.live";

pub(crate) fn run(page: &mut Page, source: &Source) -> Result<Answer> {
    let stats = source.look(Stats::read)?;
    match source.json {
        true => page.lines([json_line(&stats.json(source))])?,
        false => stats.print(page, source)?,
    }
    Ok(Answer::Yes)
}

struct Stats {
    store: ViewedStore,
    now: Time,
    containers: Vec<(ViewedContainer, Figures)>,
    total: Figures,
    damaged: u64,
}

/// The sessions of a container, or of all.
#[derive(Default)]
struct Figures {
    live: u64,
    /// Expired, and not swept yet.
    expired: u64,
    /// Those of the live ones that never expire.
    never: u64,
    /// Of all attributes, those of expired sessions too.
    bytes: u64,
    /// When the first of the expired ones expired.
    oldest_expiry: Option<Time>,
    /// Of live sessions.
    ages: Vec<u64>,
    sizes: Vec<u64>,
}

/// Of so many numbers, the one that half of them do not exceed, nineteen of twenty, and all.
#[derive(Clone, Copy)]
struct Spread {
    p50: u64,
    p95: u64,
    max: u64,
}

impl Stats {
    fn read(viewer: &Viewer) -> Result<Self, Error> {
        let store = viewer.store().clone();
        let now = viewer.now();
        let mut total = Figures::default();
        let mut containers = Vec::new();
        for container in viewer.containers() {
            let mut figures = Figures::default();
            for session in viewer.sessions(&container.name)? {
                let session = session?;
                let bytes = session.bytes() as u64;
                figures.bytes += bytes;
                if session.is_expired(now) {
                    figures.expired += 1;
                    let oldest = figures.oldest_expiry.into_iter().chain(session.expires());
                    figures.oldest_expiry = oldest.min();
                    continue;
                }
                figures.live += 1;
                figures.never += u64::from(session.expires().is_none());
                figures.ages.push(now.since(session.created()).as_secs());
                figures.sizes.push(bytes);
            }
            total.add(&figures);
            containers.push((container, figures));
        }
        Ok(Stats { damaged: viewer.damaged(), store, now, containers, total })
    }

    fn print(&self, page: &mut Page, source: &Source) -> Result<()> {
        let store = &self.store;
        let number = |n: u64| Cell::both(thousands(n), n);
        let disk: u64 = store.files.iter().map(|(_, len)| len).sum();
        let log = format!(
            "{} in {} of the log, {}",
            size(store.log_bytes),
            plural(store.log_batches, "batch", "batches"),
            plural(store.log_sessions, "session", "sessions"),
        );
        let mut facts = vec![
            ("store", Cell::text(&source.path.to_string_lossy())),
            ("state", Cell::text(&store::state(store.state))),
            ("format", number(store.format.into())),
            ("last_commit", Cell::both(store.revision, store.revision.get())),
            ("last_time", Cell::both(relative(store.time, self.now), utc(store.time))),
            ("in_tables", Cell::both(store.folded, store.folded.get())),
            ("not_in_tables", Cell::both(log, store.log_bytes)),
            ("epoch", number(store.epoch)),
            ("on_disk", Cell::both(size(disk), disk)),
        ];
        if self.damaged > 0 {
            facts.push(("damaged_sessions", number(self.damaged)));
        }
        table::print_facts(page, &facts)?;
        page.lines([String::new()])?;
        const NAMES: [&str; 13] = [
            "container",
            "live",
            "expired",
            "never_expire",
            "bytes",
            "age_p50",
            "age_p95",
            "age_max",
            "size_p50",
            "size_p95",
            "size_max",
            "lag",
            "count",
        ];
        let counts = self.containers.iter().map(|(container, _)| container.count);
        let total = ("(all)", &self.total, counts.sum());
        let containers = self.containers.iter();
        let all = containers.map(|(c, figures)| (c.name.as_str(), figures, c.count)).chain([total]);
        let row =
            |(name, figures, count): (&str, &Figures, u64)| figures.cells(name, count, self.now);
        table::print(page, &NAMES, all.map(row))?;
        page.lines([String::new()])?;
        const SETTINGS: [&str; 13] = [
            "container",
            "timeout",
            "absolute",
            "period",
            "limit",
            "durability",
            "session_bytes_max",
            "attributes_max",
            "key_bytes_max",
            "rules",
            "resolver",
            "on_start",
            "on_end",
        ];
        let settings = |(container, _): &(ViewedContainer, Figures)| {
            settings_cells(&container.name, &container.policy)
        };
        table::print(page, &SETTINGS, self.containers.iter().map(settings))?;
        Ok(())
    }

    fn json(&self, source: &Source) -> Json {
        let store = &self.store;
        let files = store.files.iter().map(|(name, len)| json!({ "name": name, "bytes": len }));
        let container = |(container, figures): &(ViewedContainer, Figures)| {
            let mut json = figures.json(self.now);
            json["name"] = container.name.clone().into();
            json["count"] = container.count.into();
            json["settings"] = settings_json(&container.policy);
            json
        };
        json!({
            "store": store::path_json(&source.path),
            "state": store::state_json(store.state),
            "format": store.format,
            "revision": store.revision.get(),
            "folded": store.folded.get(),
            "epoch": store.epoch,
            "time": utc(store.time),
            "log": {
                "batches": store.log_batches,
                "bytes": store.log_bytes,
                "sessions": store.log_sessions,
            },
            "files": files.collect::<Json>(),
            "at": utc(self.now),
            "containers": self.containers.iter().map(container).collect::<Json>(),
            "total": self.total.json(self.now),
            "damaged": self.damaged,
        })
    }
}

impl Figures {
    fn add(&mut self, other: &Figures) {
        self.live += other.live;
        self.expired += other.expired;
        self.never += other.never;
        self.bytes += other.bytes;
        let oldest = self.oldest_expiry.into_iter().chain(other.oldest_expiry);
        self.oldest_expiry = oldest.min();
        self.ages.extend(&other.ages);
        self.sizes.extend(&other.sizes);
    }

    /// How long ago the oldest of the expired sessions expired.
    fn lag(&self, now: Time) -> Option<Duration> {
        self.oldest_expiry.map(|expiry| now.since(expiry))
    }

    fn cells(&self, name: &str, count: u64, now: Time) -> Vec<Cell> {
        let number = |n: u64| Cell::figure(thousands(n), n);
        let spread = |numbers: &[u64], show: fn(u64) -> String| match Spread::of(numbers) {
            Some(Spread { p50, p95, max }) => [p50, p95, max].map(|n| Cell::figure(show(n), n)),
            None => [(); 3].map(|()| Cell::none()),
        };
        let lag = self.lag(now).map(|lag| Cell::figure(span(lag), lag.as_secs()));
        let mut cells = vec![
            Cell::text(name),
            number(self.live),
            number(self.expired),
            number(self.never),
            Cell::figure(size(self.bytes), self.bytes),
        ];
        cells.extend(spread(&self.ages, |secs| span(Duration::from_secs(secs))));
        cells.extend(spread(&self.sizes, size));
        cells.extend([lag.unwrap_or_else(Cell::none), number(count)]);
        cells
    }

    fn json(&self, now: Time) -> Json {
        let spread = |numbers: &[u64]| {
            let json =
                |spread: Spread| json!({ "p50": spread.p50, "p95": spread.p95, "max": spread.max });
            Spread::of(numbers).map(json)
        };
        json!({
            "live": self.live,
            "expired": self.expired,
            "never_expire": self.never,
            "bytes": self.bytes,
            "age_secs": spread(&self.ages),
            "size_bytes": spread(&self.sizes),
            "sweep_lag_secs": self.lag(now).map(|lag| lag.as_secs()),
        })
    }
}

impl Spread {
    fn of(numbers: &[u64]) -> Option<Self> {
        let mut numbers = numbers.to_vec();
        let last = numbers.len().checked_sub(1)?;
        let mut rank = |percent: usize| {
            // The smallest number that so many percent do not exceed.
            let at = (numbers.len() * percent).div_ceil(100) - 1;
            *numbers.select_nth_unstable(at).1
        };
        let (p50, p95) = (rank(50), rank(95));
        Some(Spread { p50, p95, max: *numbers.select_nth_unstable(last).1 })
    }
}

fn settings_cells(name: &str, policy: &Policy) -> Vec<Cell> {
    let secs = |secs: u64| Cell::figure(span(Duration::from_secs(secs)), secs);
    let number = |n: u64| Cell::figure(thousands(n), n);
    let unless_zero = |n: u64, cell: &dyn Fn(u64) -> Cell| match n {
        0 => Cell::both("none", 0),
        n => cell(n),
    };
    let text = |text: &Option<String>| text.as_deref().map_or(Cell::none(), Cell::text);
    let rules = policy.rules.iter().map(|(name, rule)| format!("{name}={}", rule_name(rule)));
    let rules = rules.chain([format!("*={}", rule_name(&policy.default_rule))]);
    vec![
        Cell::text(name),
        unless_zero(policy.timeout_secs, &secs),
        unless_zero(policy.absolute_timeout_secs, &secs),
        secs(policy.period_secs),
        unless_zero(policy.limit, &number),
        Cell::text(durability(policy)),
        Cell::figure(size(policy.session_bytes_max as u64), policy.session_bytes_max),
        number(policy.attributes_max as u64),
        number(policy.key_bytes_max as u64),
        Cell::text(&rules.collect::<Vec<_>>().join(" ")),
        text(&policy.resolver),
        text(&policy.on_start),
        text(&policy.on_end),
    ]
}

fn settings_json(policy: &Policy) -> Json {
    let rules = policy.rules.iter().map(|(name, rule)| (name.clone(), Json::from(rule_name(rule))));
    json!({
        "timeout_secs": policy.timeout_secs,
        "absolute_timeout_secs": policy.absolute_timeout_secs,
        "warn_secs": policy.warn_secs,
        "period_secs": policy.period_secs,
        "limit": policy.limit,
        "evicts_at_limit": policy.at_limit == AtLimit::EvictOldest,
        "principal_limit": policy.principal_limit,
        "evicts_at_principal_limit": policy.at_principal_limit == AtLimit::EvictOldest,
        "rotation_grace_secs": policy.rotation_grace_secs,
        "durability": durability(policy),
        "session_bytes_max": policy.session_bytes_max,
        "attributes_max": policy.attributes_max,
        "depth_max": policy.depth_max,
        "key_bytes_max": policy.key_bytes_max,
        "rules": rules.collect::<Json>(),
        "default_rule": rule_name(&policy.default_rule),
        "resolver": policy.resolver,
        "on_start": policy.on_start,
        "on_end": policy.on_end,
    })
}

fn durability(policy: &Policy) -> &'static str {
    match policy.durability {
        Durability::Immediate => "immediate",
        Durability::Relaxed => "relaxed",
    }
}

fn rule_name(rule: &Rule) -> String {
    match rule {
        Rule::Append(cap) => format!("Append({cap})"),
        Rule::Resolver(name) => format!("Resolver({name})"),
        // The others are their names.
        rule => format!("{rule:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_numbers_that_are_there() {
        let spread = |numbers: &[u64]| Spread::of(numbers).map(|s| (s.p50, s.p95, s.max));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[7]), Some((7, 7, 7)));
        assert_eq!(spread(&[2, 1]), Some((1, 2, 2)));
        let numbers: Vec<_> = (1..=100).rev().collect();
        assert_eq!(spread(&numbers), Some((50, 95, 100)));
    }
}
