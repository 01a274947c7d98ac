//! What one transaction has done to one key so far.
//!
//! A key may live several lives in one transaction: the one that the snapshot holds is ended, a new
//! one is created, ended, created again. A *draft* is the list of them; only the last can live.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::attributes::{Attributes, Stamped};
use crate::model::change::{Changes, Reads};
use crate::model::clock::Time;
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::{Name, Principal, Record, Revision, SessionId};
use crate::model::timeslice::{self, Touch};
use crate::model::value::Value;

/// One generation of a key, as a transaction wants it.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// What the changes were made on: the snapshot's record; an empty one if created here.
    pub base: Arc<Record>,
    pub created_here: bool,
    pub changes: Changes,
    pub reads: Reads,
    /// What must not have changed at commit although it was not written.
    pub required: BTreeSet<Name>,
    pub touch: Option<Touch>,
    pub ended: bool,
    /// The attribute that was not what the application expects, if it ended because of that.
    pub unreadable: Option<Name>,
    /// It has ended with the others of this principal: if it has ended by itself meanwhile, or is not
    /// theirs any more, so be it.
    pub ended_with: Option<Name>,
    /// Whose session it is from now on; within, `None`: nobody's.
    pub principal: Option<Option<Principal>>,
    /// The other sessions of this principal end.
    pub ends_others: Option<Name>,
    /// It goes on under another key. Until the transaction commits, all that is to change of it is in
    /// a life there, and this one has ended.
    pub rotated: Option<Rotation>,
    /// The key under which the snapshot holds it, if this transaction has rotated that.
    pub came_from: Option<Key>,
}

/// Where a session goes on whose key is rotated.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    pub key: Key,
    pub id: SessionId,
}

impl Life {
    pub(crate) fn found(base: Arc<Record>) -> Self {
        Life {
            base,
            created_here: false,
            changes: Changes::default(),
            reads: Reads::default(),
            required: BTreeSet::new(),
            touch: None,
            ended: false,
            unreadable: None,
            ended_with: None,
            principal: None,
            ends_others: None,
            rotated: None,
            came_from: None,
        }
    }

    pub(crate) fn created(id: SessionId, now: Time, policy: &Policy) -> Self {
        let base = Record {
            id,
            revision: Revision::default(),
            created: now,
            last_accessed: now,
            last_modified: None,
            slice_end: timeslice::slice_end(now, policy),
            bucket: timeslice::NEVER,
            attributes: Attributes::new(),
            extras: None,
        };
        Life { created_here: true, ..Life::found(Arc::new(base)) }
    }

    /// A session that comes from elsewhere: `record`, as a generation of its own.
    pub(crate) fn taken_in(id: SessionId, record: &Record) -> Self {
        let mut changes = Changes::default();
        for (name, Stamped { value, .. }) in record.attributes.iter() {
            changes.put(name, Some(value), &Reads::default(), Time::default());
            changes.last(name, record.until(name));
        }
        changes.modified = record.last_modified;
        let (attributes, revision) = (Attributes::new(), Revision::default());
        let base = Record { id, revision, bucket: timeslice::NEVER, attributes, ..record.clone() };
        // It counts as bound to its principal by this transaction.
        let principal = base.principal().cloned().map(Some);
        Life { created_here: true, changes, principal, ..Life::found(Arc::new(base)) }
    }

    /// The session as it was found, with this transaction's own accesses and principal, and no attributes.
    fn found_times(&self) -> Record {
        let extras = self.base.extras.clone();
        let mut times = Record { attributes: Attributes::new(), extras, ..*self.base };
        if let Some(touch) = self.touch {
            times.touch(touch);
        }
        if let Some(principal) = &self.principal {
            times.set_extras(|extras| extras.principal.clone_from(principal));
        }
        times
    }

    /// The same with this transaction's own changes.
    pub(crate) fn times(&self) -> Record {
        let mut times = self.found_times();
        times.last_modified = times.last_modified.max(self.changes.modified);
        if self.changes.timeout.is_some() {
            times.set_extras(|extras| self.changes.apply_extras(extras));
        }
        times
    }

    pub(crate) fn is_live(&self, policy: &Policy, now: Time) -> bool {
        // A longer timeout holds from the commit on: what has expired must not become valid again.
        let had_expired = || {
            let is_changed = self.changes.timeout.is_some() && !self.created_here;
            is_changed && self.found_times().is_expired(policy, now)
        };
        !self.ended && !self.times().is_expired(policy, now) && !had_expired()
    }

    /// Notes an access: it lengthens the life.
    pub(crate) fn access(&mut self, policy: &Policy, now: Time) {
        if let Some(touch) = timeslice::access(&self.times(), policy, now) {
            self.touch = Some(touch);
        }
    }

    /// Notes a use for show: it lengthens nothing.
    pub(crate) fn touch(&mut self, now: Time) {
        let times = self.times();
        let last_accessed = timeslice::last_accessed(times.last_accessed, now);
        if last_accessed != times.last_accessed {
            self.touch = Some(Touch { slice_end: times.slice_end, last_accessed });
        }
    }

    pub(crate) fn last_accessed(&self) -> Time {
        self.times().last_accessed
    }

    pub(crate) fn last_modified(&self) -> Option<Time> {
        self.times().last_modified
    }

    pub(crate) fn expires(&self, policy: &Policy) -> Option<Time> {
        self.times().expiry(policy)
    }

    /// The timeout of its own, if it has one.
    pub(crate) fn timeout_secs(&self) -> Option<u64> {
        self.changes.timeout.unwrap_or(self.base.timeout_secs())
    }

    /// Reads one attribute.
    pub(crate) fn read(&mut self, name: &str) -> Option<Value> {
        if !self.changes.owns(name) {
            self.reads.names.insert(name.into());
        }
        self.changes.value(&self.base.attributes, name)
    }

    /// Reads which attributes there are.
    pub(crate) fn read_names(&mut self) -> BTreeSet<Name> {
        self.read_all().names().map(Name::from).collect()
    }

    /// Reads all attributes.
    pub(crate) fn read_all(&mut self) -> Attributes {
        // After a clear there is nothing to be seen but this transaction's own doing.
        self.reads.all |= self.changes.clear.is_none();
        self.changes.apply(&self.base.attributes, self.base.revision)
    }

    /// The session as it would be stored if nobody else had changed it.
    pub(crate) fn proposed(&self, revision: Revision) -> Record {
        let mut record = self.found_times();
        record.attributes = self.base.attributes.clone();
        record.revision = revision;
        self.changes.apply_to(&mut record, revision);
        record
    }

    /// Takes over what was read, and required, of the same session.
    pub(crate) fn keep_reads(&mut self, later: &Life) {
        self.reads.extend(&later.reads);
        self.required.extend(later.required.iter().cloned());
    }

    /// Whether it matters to this transaction that the session still lives at commit.
    pub(crate) fn demands(&self) -> bool {
        let ends = (self.ended && self.ended_with.is_none()) || self.ends_others.is_some();
        let changes = !self.changes.is_empty() || self.principal.is_some();
        ends || changes || self.rotated.is_some() || !self.required.is_empty()
    }

    fn has_effect(&self) -> bool {
        self.created_here || self.touch.is_some() || self.ended || self.demands()
    }
}

/// All that one transaction has done to one key.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// The first one is the snapshot's, if it holds one, live or expired.
    pub lives: Vec<Life>,
}

impl Draft {
    /// `base` is without the attributes that have lapsed.
    pub(crate) fn new(base: Option<Arc<Record>>) -> Self {
        Draft { lives: base.into_iter().map(Life::found).collect() }
    }

    /// Whether the snapshot holds an unended session here.
    pub(crate) fn has_base(&self) -> bool {
        self.lives.first().is_some_and(|life| !life.created_here)
    }

    /// The session that the transaction sees here.
    pub(crate) fn live(&self, policy: &Policy, now: Time) -> Option<&Life> {
        self.lives.last().filter(|life| life.is_live(policy, now))
    }

    pub(crate) fn live_mut(&mut self, policy: &Policy, now: Time) -> Option<&mut Life> {
        self.lives.last_mut().filter(|life| life.is_live(policy, now))
    }

    /// Takes the session `id` out, for it to go on elsewhere. Of what the snapshot holds a life stays
    /// behind that says so; of what this transaction has put here, nothing.
    pub(crate) fn depart(&mut self, id: SessionId, from: &Key, to: Rotation) -> Option<Life> {
        let at = self.lives.iter().position(|life| life.base.id == id)?;
        let mut life = self.lives.remove(at);
        let base = Arc::new(Record { id: to.id, ..Record::clone(&life.base) });
        if !life.created_here {
            let base = Arc::clone(&life.base);
            let stays = Life { ended: true, rotated: Some(to), ..Life::found(base) };
            self.lives.insert(at, stays);
            life.came_from = Some(from.clone());
        }
        // What is under the new key is no session that the snapshot holds there.
        Some(Life { base, created_here: true, ..life })
    }

    /// Takes all that is to change of a session that has come from here.
    pub(crate) fn take_back(&mut self, life: Life) {
        let stayed = self.lives.iter_mut().find(|life| life.rotated.is_some());
        let stayed = stayed.expect("what comes from here has left a life behind");
        let rotated = stayed.rotated.take().filter(|_| !life.ended);
        let base = Arc::clone(&stayed.base);
        let mut whole = Life { base, created_here: false, came_from: None, rotated, ..life };
        // After a rollback behind the rotation some of it is here.
        whole.keep_reads(stayed);
        *stayed = whole;
    }

    pub(crate) fn generation(&mut self, id: SessionId) -> Option<&mut Life> {
        self.lives.iter_mut().find(|life| life.base.id == id)
    }

    /// Whether the transaction has created a session here.
    pub(crate) fn creates(&self) -> bool {
        self.lives.iter().any(|life| life.created_here)
    }

    /// Whether more than touches are wanted.
    pub(crate) fn demands(&self) -> bool {
        self.creates() || self.lives.iter().any(Life::demands)
    }

    pub(crate) fn has_effect(&self) -> bool {
        self.lives.iter().any(Life::has_effect)
    }

    /// Takes over what was read after a savepoint that is rolled back to: reads stay reads.
    pub(crate) fn keep_reads(&mut self, later: &Draft) {
        for life in &mut self.lives {
            if let Some(later) = later.lives.iter().find(|l| l.base.id == life.base.id) {
                life.keep_reads(later);
            }
        }
    }
}
