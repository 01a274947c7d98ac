//! What a rotation does at commit: the session leaves one place and arrives at another, and the place
//! that it has left says where it has gone.
//!
//! ```text
//!   one commit      sessions  A: gone    B: session 2
//!                   notes     A: session 1 is B's session 2 now      (model/forward.rs)
//!                   ends      A's session 1, rotated
//! ```
//!
//! It is judged where it lies until then, as a change (`judge.rs`): what others have written there
//! meanwhile is merged, and who has ended or rotated it first wins. A transaction that comes later and
//! has still found session 1 is *forwarded* before it is judged: what it wants of session 1 it wants of
//! session 2, wherever that lies by now. So a save is not lost, a logout ends the session, and an access
//! lengthens its life, while no transaction that begins after the commit finds anything under A.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{ConflictReason, Error};
use crate::model::container::{ContainerId, Kind, Place};
use crate::model::draft::{Draft, Life};
use crate::model::forward::{self, Forward};
use crate::model::session::{Record, SessionId};
use crate::store::judge::{Departure, conflict};
use crate::store::listeners::EndReason;
use crate::store::pinned::Row;
use crate::store::round::{Outcome, Round};

impl Round<'_> {
    /// What transactions want of sessions that were rotated since, put where those lie now; `None` if
    /// there is nothing of it.
    pub(super) fn forwarded(
        &mut self,
        drafts: &BTreeMap<Place, Draft>,
    ) -> Result<Option<BTreeMap<Place, Draft>>, Error> {
        if !self.core.has_forwards() {
            return Ok(None);
        }
        let mut gone = Vec::new();
        for (place, draft) in drafts {
            // Of two rotations the first one wins.
            let found = |life: &&Life| !life.created_here && life.rotated.is_none();
            let Some(life) = draft.lives.first().filter(found) else { continue };
            if let Some(now) = self.gone_to(place, life.base.id)? {
                gone.push((place, now));
            }
        }
        if gone.is_empty() {
            return Ok(None);
        }
        let mut drafts = drafts.clone();
        let leave = |(from, (to, id)): (&Place, (Place, SessionId))| {
            let life = drafts.get_mut(from).expect("it is one of them").lives.remove(0);
            let base = Arc::new(Record { id, ..Record::clone(&life.base) });
            (to, Life { base, ..life })
        };
        // All leave before anybody arrives: one may go where another has left.
        let left: Vec<_> = gone.into_iter().map(leave).collect();
        for (to, life) in left {
            drafts.entry(to).or_insert(Draft::new(None)).lives.insert(0, life);
        }
        Ok(Some(drafts))
    }

    /// Where a session lies now, and as which, if it was rotated away and still lives.
    fn gone_to(
        &mut self,
        place: &Place,
        id: SessionId,
    ) -> Result<Option<(Place, SessionId)>, Error> {
        let (mut place, mut id) = (place.clone(), id);
        for hop in 0..=forward::HOPS_MAX {
            if self.session(&place)?.is_some_and(|record| record.id == id) {
                return Ok((hop > 0).then_some((place, id)));
            }
            let note = self.session(&(place.0.of(Kind::Rotated), place.1))?;
            let forward = note.and_then(|note| Forward::of(&note));
            let Some(forward) = forward.filter(|forward| forward.from == id) else { break };
            (place, id) = ((place.0, forward.key), forward.id);
        }
        Ok(None)
    }

    /// Whether a key was given up, so that nobody may take it yet.
    pub(super) fn is_given_up(&mut self, place: &Place) -> Result<bool, Error> {
        if !self.core.has_forwards() {
            return Ok(false);
        }
        let note = self.session(&(place.0.of(Kind::Rotated), place.1.clone()))?;
        Ok(note.is_some_and(|note| forward::is_kept(&note, self.now)))
    }

    /// Files a session under its new key, and notes under the old one where it has gone.
    pub(super) fn arrive(
        &mut self,
        from: Place,
        departure: Departure,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let Departure { key, record, left, base } = departure;
        let before = Arc::clone(&self.containers[&from.0]);
        let policy = outcome.containers.get(&from.0).unwrap_or(&before).policy.clone();
        let to = (from.0, key);

        let grace = self.now.plus_secs(policy.rotation_grace_secs);
        let (since, key) = (self.now, to.1.clone());
        let forward = Forward { from: left.id, key, id: record.id, since, grace };
        let note = forward.record(&left, &policy);
        let notes = (from.0.of(Kind::Rotated), from.1);
        self.session(&notes)?;
        // Before anybody can see it.
        self.core.forwards.store(true, Ordering::Release);
        outcome.sessions.push((notes, Some(Arc::new(note))));

        let exists = |stored: Option<&Arc<Record>>| {
            Err(conflict(ConflictReason::Exists, base, stored, &to.1, &before))
        };
        if self.is_given_up(&to)? {
            return exists(None);
        }
        let stored = self.session(&to)?;
        let changed = outcome.sessions.iter().position(|(place, _)| *place == to);
        let lies = changed.map_or(stored, |at| outcome.sessions[at].1.clone());
        match lies {
            Some(other) if !other.is_expired(&before.policy, self.now) => {
                return exists(Some(&other));
            }
            Some(other) => outcome.ends.push((to.clone(), other, EndReason::Expired)),
            None => {}
        }
        match changed {
            Some(at) => outcome.sessions[at].1 = Some(Arc::new(record)),
            None => outcome.sessions.push((to, Some(Arc::new(record)))),
        }
        Ok(())
    }

    /// Forgets where sessions have gone, if nobody need know it any more.
    pub(super) fn prune(&mut self, notes: ContainerId, rows: &[Row]) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        for (bucket, key) in rows {
            let place = (notes, key.clone());
            let note = self.session(&place)?.filter(|note| note.bucket == *bucket);
            if note.is_some_and(|note| !forward::is_kept(&note, self.now)) {
                outcome.sessions.push((place, None));
            }
        }
        Ok(outcome)
    }
}
