//! Where transactions meet: conflicts and merges, counted by attribute.
//!
//! A commit that meets another at one attribute either merges with it or conflicts. Which attributes
//! these are says what to do about it: give one a rule, write it with a merging call, or take it apart.
//! The counts are those of this process; they are bounded, and names that come when there are too many
//! are counted together.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::error::{Conflict, ConflictReason, Error};
use crate::store::lock;
use crate::store::outcome::Report;
use crate::sync::Mutex;

/// How often transactions met at an attribute: see [`Store::heat`](crate::Store::heat).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct AttributeHeat {
    /// The name of the container.
    pub container: String,
    /// The name of the attribute; `None` for all those of the container that came after the first 1,000
    /// of the store.
    pub attribute: Option<String>,
    /// Commits that were refused because it had changed.
    pub conflicts: u64,
    /// Commits that were merged with another that had changed it.
    pub merges: u64,
}

/// How many names are told apart.
const NAMES_MAX: usize = 1_000;

/// What is counted for one attribute: conflicts and merges.
type Counts = (u64, u64);

#[derive(Default)]
pub(crate) struct Heat(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    containers: BTreeMap<String, ByName>,
    /// How many names there are in all of them.
    names: usize,
}

#[derive(Default)]
struct ByName {
    names: BTreeMap<String, Counts>,
    others: Counts,
}

impl Heat {
    /// Counts what became of a commit. Most meet nobody, and cost nothing.
    pub(crate) fn count(&self, verdict: &Result<Report, Error>) {
        match verdict {
            Ok(report) => {
                for merged in report.merged.iter().filter(|merged| !merged.contended.is_empty()) {
                    let names = merged.contended.iter();
                    names.for_each(|name| self.add(&merged.container, name, (0, 1)));
                }
            }
            Err(Error::Conflict(Conflict {
                reason: ConflictReason::Attribute(name),
                container,
                ..
            })) => self.add(container, name, (1, 0)),
            Err(_) => {}
        }
    }

    fn add(&self, container: &str, name: &str, (conflicts, merges): Counts) {
        let Counted { containers, names } = &mut *lock(&self.0);
        // Looked up by what is lent: the committer does this for every commit that meets another.
        let by_name = match containers.get_mut(container) {
            Some(by_name) => by_name,
            None => containers.entry(container.to_owned()).or_default(),
        };
        let counts = match by_name.names.get_mut(name) {
            Some(counts) => counts,
            None if *names < NAMES_MAX => {
                *names += 1;
                by_name.names.entry(name.to_owned()).or_default()
            }
            None => &mut by_name.others,
        };
        *counts = (counts.0 + conflicts, counts.1 + merges);
    }

    /// The hottest first.
    pub(crate) fn show(&self) -> Vec<AttributeHeat> {
        let mut shown = Vec::new();
        for (container, ByName { names, others }) in &lock(&self.0).containers {
            let names = names.iter().map(|(name, counts)| (Some(name.clone()), counts));
            for (attribute, (conflicts, merges)) in names.chain([(None, others)]) {
                let (container, conflicts, merges) = (container.clone(), *conflicts, *merges);
                shown.push(AttributeHeat { container, attribute, conflicts, merges });
            }
        }
        shown.retain(|heat| (heat.conflicts, heat.merges) != (0, 0));
        // Of equals the first by name: the sort is stable.
        shown.sort_by_key(|heat| Reverse((heat.conflicts, heat.merges)));
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_bound_are_counted_together() {
        let heat = Heat::default();
        for n in 0..NAMES_MAX + 5 {
            heat.add("shop", &format!("{n:04}"), (1, 0));
        }
        heat.add("shop", "0007", (1, 3));
        heat.add("attic", "late", (0, 1));
        let shown = heat.show();
        assert_eq!(shown.len(), NAMES_MAX + 2);
        let line = |heat: &AttributeHeat| {
            (heat.container.clone(), heat.attribute.clone(), heat.conflicts, heat.merges)
        };
        let name = |text: &str| Some(text.to_owned());
        assert_eq!(line(&shown[0]), ("shop".to_owned(), None, 5, 0));
        assert_eq!(line(&shown[1]), ("shop".to_owned(), name("0007"), 2, 3));
        assert_eq!(line(&shown[2]), ("shop".to_owned(), name("0000"), 1, 0));
        assert_eq!(line(&shown[NAMES_MAX + 1]), ("attic".to_owned(), None, 0, 1));
    }
}
