//! What a transaction wants of one session: plain writes, merging writes, a clear, a timeout.
//!
//! A plain write remembers whether it was *checked*, that is, whether the transaction had read the
//! attribute before it wrote. Only those can conflict.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::attributes::{Attributes, Stamped};
use crate::model::clock::Time;
use crate::model::policy::Rule;
use crate::model::session::{Extras, Name, Record, Revision, Size};
use crate::model::value::{Op, Value};

/// Which attributes of one session a transaction has read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reads {
    pub names: BTreeSet<Name>,
    /// The set of names was read: counts as a read of whatever is written.
    pub all: bool,
}

impl Reads {
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.all || self.names.contains(name)
    }

    pub(crate) fn extend(&mut self, other: &Reads) {
        self.names.extend(other.names.iter().cloned());
        self.all |= other.all;
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    /// Sets the attribute, or removes it.
    Put {
        value: Option<Value>,
        checked: bool,
        /// Goes before the policy's.
        rule: Option<Rule>,
        /// When it is gone, if it does not last as long as the session.
        until: Option<Time>,
    },
    /// Merges with what is stored, in this order.
    Merge(Vec<Op>),
}

/// All that one transaction changes of one session.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Every attribute stored at commit goes; the reads tell which of them were read before.
    pub clear: Option<Reads>,
    /// On top of that.
    pub writes: BTreeMap<Name, Write>,
    /// The time of the last writing call.
    pub modified: Option<Time>,
    /// Another timeout of the session's own; within, `None`: that of the policy.
    pub timeout: Option<Option<u64>>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.modified.is_none() && self.timeout.is_none()
    }

    /// Whether the transaction sees only its own doing under `name`, so that looking is no read.
    pub(crate) fn owns(&self, name: &str) -> bool {
        match self.writes.get(name) {
            Some(Write::Put { .. }) => true,
            // What is seen is what was stored, changed: a read.
            Some(Write::Merge(_)) | None => self.clear.is_some(),
        }
    }

    pub(crate) fn put(&mut self, name: &str, value: Option<Value>, reads: &Reads, now: Time) {
        let (checked, rule) = match self.writes.get(name) {
            Some(Write::Put { checked, rule, .. }) => (*checked, rule.clone()),
            // A clear has written this attribute already, and remembers whether it was read.
            Some(Write::Merge(_)) | None => (self.clear.is_none() && reads.contains(name), None),
        };
        self.writes.insert(name.into(), Write::Put { value, checked, rule, until: None });
        self.modified = Some(now);
    }

    /// Has a plain write merge by this rule, if it comes to that, and not by the policy's.
    pub(crate) fn rule(&mut self, name: &str, wanted: &Rule) {
        if let Some(Write::Put { rule, .. }) = self.writes.get_mut(name) {
            *rule = Some(wanted.clone());
        }
    }

    /// Lets what a plain write sets last until then only, if that is not for ever.
    pub(crate) fn last(&mut self, name: &str, wanted: Option<Time>) {
        if let Some(Write::Put { until, .. }) = self.writes.get_mut(name) {
            *until = wanted;
        }
    }

    /// Adds a merging write; false, with nothing done, if what the transaction sees under the name
    /// is of the wrong kind.
    pub(crate) fn merge(&mut self, name: &str, op: Op, base: &Attributes, now: Time) -> bool {
        let Some(result) = op.apply(self.value(base, name).as_ref()) else { return false };
        match self.writes.get_mut(name) {
            Some(Write::Put { value, .. }) => *value = Some(result),
            Some(Write::Merge(ops)) => {
                if !ops.last_mut().is_some_and(|last| last.absorb(&op)) {
                    ops.push(op);
                }
            }
            None => {
                self.writes.insert(name.into(), Write::Merge(vec![op]));
            }
        }
        self.modified = Some(now);
        true
    }

    pub(crate) fn clear(&mut self, reads: &Reads, now: Time) {
        self.writes.clear();
        match &mut self.clear {
            Some(checked) => checked.extend(reads),
            None => self.clear = Some(reads.clone()),
        }
        self.modified = Some(now);
    }

    /// What the session would weigh if nobody else changed it.
    pub(crate) fn size(&self, base: &Attributes) -> Size {
        let written = self.writes.keys().map(|name| (name, self.value(base, name)));
        match self.clear {
            Some(_) => written.filter_map(|(name, value)| Some(Size::of(name, &value?))).sum(),
            None => written.fold(base.size(), |size, (name, value)| {
                let before = base.get(name).map(|before| Size::of(name, &before.value));
                size.changed(before, value.map(|value| Size::of(name, &value)))
            }),
        }
    }

    /// Takes a write back, to what it was before.
    pub(crate) fn undo(&mut self, name: &str, before: Option<Write>, modified: Option<Time>) {
        match before {
            Some(write) => self.writes.insert(name.into(), write),
            None => self.writes.remove(name),
        };
        self.modified = modified;
    }

    /// What the transaction sees under `name`.
    pub(crate) fn value(&self, base: &Attributes, name: &str) -> Option<Value> {
        let stored = match self.clear {
            Some(_) => None,
            None => base.get(name).map(|attribute| attribute.value),
        };
        match self.writes.get(name) {
            Some(write) => write.apply(stored),
            None => stored,
        }
    }

    /// Until when what the transaction sees under `name` lasts, if not as long as the session.
    pub(crate) fn until(&self, base: &Record, name: &str) -> Option<Time> {
        match (self.writes.get(name), &self.clear) {
            (Some(Write::Put { until, .. }), _) => *until,
            (Some(Write::Merge(_)) | None, Some(_)) => None,
            (Some(Write::Merge(_)) | None, None) => base.until(name),
        }
    }

    /// What this makes of a session that nobody else changes.
    pub(crate) fn apply_to(&self, record: &mut Record, revision: Revision) {
        record.attributes = self.apply(&record.attributes, revision);
        record.last_modified = record.last_modified.max(self.modified);
        record.set_extras(|extras| {
            self.apply_extras(extras);
            if self.clear.is_some() {
                extras.lapses.clear();
            }
            for (name, write) in &self.writes {
                if let Write::Put { until, .. } = write {
                    extras.set_lapse(name, *until);
                }
            }
        });
    }

    /// What the later commit decides, whatever others have done.
    pub(crate) fn apply_extras(&self, extras: &mut Extras) {
        if let Some(timeout) = self.timeout {
            extras.timeout_secs = timeout;
        }
    }

    /// All attributes that the transaction sees: `base`, with its own writes at this revision.
    pub(crate) fn apply(&self, base: &Attributes, revision: Revision) -> Attributes {
        let base = match self.clear {
            Some(_) => Attributes::new(),
            None => base.clone(),
        };
        let edit = |(name, write): (&Name, &Write)| {
            let value = write.apply(base.get(name).map(|attribute| attribute.value));
            (Arc::clone(name), value.map(|value| Stamped { value, revision }))
        };
        base.edited(&self.writes.iter().map(edit).collect())
    }
}

impl Write {
    /// What this write makes of what is stored. A merging write that fits it no more leaves it.
    fn apply(&self, stored: Option<Value>) -> Option<Value> {
        match self {
            Write::Put { value, .. } => value.clone(),
            Write::Merge(ops) => merge_all(ops, stored.as_ref()).unwrap_or(stored),
        }
    }
}

/// What merging writes make of what is stored; the outer `None` if one of them does not fit it.
pub(crate) fn merge_all(ops: &[Op], stored: Option<&Value>) -> Option<Option<Value>> {
    let mut value = stored.cloned();
    for op in ops {
        value = Some(op.apply(value.as_ref())?);
    }
    Some(value)
}
