//! A value that is not what the application expects: written by an older release of it, or by mistake.
//!
//! It breaks neither the session nor the transaction. The policy says what happens
//! ([`OnMismatch`]): the call fails and says what is there, or the attribute goes, or the session ends
//! and its visitor begins anew. Each is a change of this transaction like any other: it conflicts if
//! somebody has written something better meanwhile, and is gone if the transaction is dropped.
//!
//! With one exception: a closure that is left with [`Error::Ended`] because the session ended *so* would
//! find the same session whenever it ran again. [`Store::transact`](crate::Store::transact) commits such
//! an end by itself, and runs the closure again, which then finds no session or creates one.

use std::any::type_name;

use serde::de::DeserializeOwned;

use crate::error::{Conflict, ConflictReason, Error};
use crate::model::draft::Life;
use crate::model::policy::OnMismatch;
use crate::model::session::Revision;
use crate::model::value::Value;
use crate::store::outcome::Report;
use crate::store::session::Session;

impl Session {
    /// Reads an attribute as a `T`, and with it the value that it was decoded from.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<(T, Value)>, Error> {
        loop {
            let read = self.with_policy(|life, policy, _| (life.read(name), policy.on_mismatch))?;
            let (Some(stored), on_mismatch) = read else { return Ok(None) };
            // The application's code, which must not run under the lock.
            if let Some(value) = stored.to() {
                return Ok(Some((value, stored)));
            }
            match on_mismatch {
                // serde's own message would quote the value.
                OnMismatch::Error => {
                    return Err(Error::Type {
                        attribute: name.to_owned(),
                        found: stored.kind(),
                        expected: type_name::<T>(),
                    });
                }
                OnMismatch::Drop => {
                    if self.remove_read(name, &stored, |_| {})? {
                        return Ok(None);
                    }
                }
                OnMismatch::NewSession => {
                    if self.end_read(name, &stored)? {
                        return Err(Error::Ended);
                    }
                }
            }
            // Another thread that has a handle, too, has written something else meanwhile.
        }
    }

    /// Removes an attribute if it still is what was read.
    pub(crate) fn remove_read(
        &self,
        name: &str,
        read: &Value,
        before: impl FnOnce(&mut Life),
    ) -> Result<bool, Error> {
        self.with(|life, now| {
            let same = is_still(life, name, read);
            if same {
                before(life);
                life.changes.put(name, None, &life.reads, now);
            }
            same
        })
    }

    /// Ends the session if the attribute still is what was read.
    fn end_read(&self, name: &str, read: &Value) -> Result<bool, Error> {
        self.with(|life, _| {
            let same = is_still(life, name, read);
            if same {
                life.required.insert(name.into());
                life.unreadable = Some(name.into());
                life.ended = true;
            }
            same
        })
    }
}

/// What a closure is told that was left with [`Error::Ended`], after the sessions that ended because of
/// what they held have been ended for good: a conflict if there are any, so that it runs again.
pub(crate) fn ended(report: Result<Report, Error>, snapshot: Revision) -> Error {
    match report {
        Ok(report) => match report.ended.first() {
            Some(ended) => Error::Conflict(Conflict {
                reason: ConflictReason::Ended,
                container: ended.container.clone(),
                session: ended.key.fingerprint(),
                base: snapshot,
                stored: None,
            }),
            None => Error::Ended,
        },
        Err(error) => error,
    }
}

fn is_still(life: &Life, name: &str, read: &Value) -> bool {
    life.changes.value(&life.base.attributes, name).as_ref() == Some(read)
}
