//! Does everything that an open store says agree?
//!
//! What is checked of files without opening them is in `engine/embedded/check.rs`. Here one committed
//! state is walked as transactions see it, whatever lies beneath, while others commit: each record with
//! the expiry index, each row of the index with its record, the counts; and what the records mean.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::process;

use crate::engine::embedded::check::{Checked, Problem};
use crate::engine::embedded::viewing::StoreState;
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, Kind};
use crate::model::key::Key;
use crate::model::principals;
use crate::model::session::Record;
use crate::model::timeslice::NEVER;
use crate::store::Store;
use crate::store::pinned::{Pinned, Row, first_row, walk};
use crate::store::whole::{Still, Whole};

impl Store {
    /// Checks what is committed now, while others commit: every record against its checksum, the expiry
    /// index against the sessions and the sessions against the index, and the counts of the containers.
    /// It reads all of the store and changes nothing.
    ///
    /// The files themselves are checked from outside: see [`Viewer::check`](crate::Viewer::check), which
    /// can do so at the same time.
    ///
    /// ```
    /// # use sessile::Store;
    /// # let store = Store::memory()?;
    /// let checked = store.check()?;
    /// assert!(checked.problems.is_empty());
    /// # Ok::<(), sessile::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What keeps from checking: [`Error::Closed`], [`Error::Storage`]. What is damaged is a
    /// [problem](Checked::problems).
    pub fn check(&self) -> Result<Checked, Error> {
        let still = Still::of(&self.core)?;
        let containers = still.containers();
        let mut checked = Checked {
            state: Some(StoreState::InUse { process: Some(process::id()) }),
            containers: containers.len() as u64,
            ..Checked::default()
        };
        for pinned in still.pinned() {
            let id = pinned.container;
            let state = containers.iter().find(|state| state.id == id.container());
            let name = state.map_or("", |state| &state.name);
            let found = check_index(pinned, name, &mut checked)?;
            // The store's own notes are not counted.
            if let Some(state) = state.filter(|state| state.id == id && state.count != found) {
                let (container, noted) = (name.to_owned(), state.count);
                checked.note(Problem::Count { container, noted, found });
            }
        }
        check_meaning(&still, &mut checked)?;
        Ok(checked)
    }
}

const PAGE: usize = 512;

/// Compares the records under one number with their index, both ways; how many there are.
fn check_index(pinned: &Pinned, name: &str, checked: &mut Checked) -> Result<u64, Error> {
    let id = pinned.container;
    let (mut sound, mut filed) = (0, 0);
    let mut damaged = BTreeSet::new();
    let rows = |from: &Key| {
        let (found, next) = pinned.rows(id, from, PAGE)?;
        Ok((found.into_iter().collect(), next))
    };
    walk(Key::from(""), rows, |(key, record)| {
        match record {
            Some(_) => sound += 1,
            None => {
                let session = key.fingerprint();
                checked.note(Problem::Record { container: name.to_owned(), session });
                damaged.insert(key);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    // Each record has one bucket. So if as many rows of the index agree with one as there are, all of
    // those are filed.
    let index = |from: &Row| pinned.due(id, NEVER, from, PAGE);
    walk(first_row(), index, |(bucket, key)| {
        checked.index_rows += 1;
        if pinned.read(id, &key)?.is_some_and(|record| record.bucket == bucket) {
            filed += 1;
        } else if !damaged.contains(&key) {
            let session = key.fingerprint();
            checked.note(Problem::Stray { container: name.to_owned(), session });
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if filed < sound {
        let mut missing = BTreeSet::new();
        walk(
            Key::from(""),
            |from| pinned.scan(id, from, PAGE),
            |(key, record)| {
                missing.insert((record.bucket, key));
                Ok(ControlFlow::Continue(()))
            },
        )?;
        walk(first_row(), index, |row| {
            missing.remove(&row);
            Ok(ControlFlow::Continue(()))
        })?;
        for (_, key) in missing {
            let session = key.fingerprint();
            checked.note(Problem::Unfiled { container: name.to_owned(), session });
        }
    }
    checked.records += sound;
    Ok(sound + damaged.len() as u64)
}

/// Checks what the records mean: that everybody who has to be found is.
pub(crate) fn check_meaning(whole: &impl Whole, checked: &mut Checked) -> Result<(), Error> {
    for state in whole.containers() {
        let name = || state.name.to_string();
        whole.each(state.id, &mut |key, record| {
            // Those that are still to be filed anew after a shorter timeout may be late.
            let expiry = record.expiry(&state.policy).map_or(NEVER, Time::as_secs);
            if record.bucket > expiry && state.refile_from.is_none() {
                let session = key.fingerprint();
                checked.note(Problem::Late { container: name(), session });
            }
            Ok(ControlFlow::Continue(()))
        })?;
        check_principals(whole, state.id, &name(), checked)?;
    }
    Ok(())
}

/// Compares sessions with the rows of their principals, both ways.
fn check_principals(
    whole: &impl Whole,
    id: ContainerId,
    name: &str,
    checked: &mut Checked,
) -> Result<(), Error> {
    let is_of = |record: &Record, principal: &[u8]| {
        record.principal().is_some_and(|p| p.name.as_bytes() == principal)
    };
    // A session is in one row at the most that is its own. So if as many are as have a principal, all
    // are.
    let (mut bound, mut listed) = (0, 0);
    whole.each(id.of(Kind::Principals), &mut |principal, row| {
        for (key, session) in principals::sessions(&row) {
            let stored = whole.read(&(id, key.clone()))?.filter(|stored| stored.id == session);
            if stored.is_some_and(|stored| is_of(&stored, principal.as_bytes())) {
                listed += 1;
            } else {
                let (container, session) = (name.to_owned(), key.fingerprint());
                checked.note(Problem::Mislisted { container, session });
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    whole.each(id, &mut |_, record| {
        bound += u64::from(record.principal().is_some());
        Ok(ControlFlow::Continue(()))
    })?;
    if bound == listed {
        return Ok(());
    }
    whole.each(id, &mut |key, record| {
        let Some(principal) = record.principal() else { return Ok(ControlFlow::Continue(())) };
        let row = whole.read(&principals::place(id, &principal.name))?;
        let mut sessions = row.iter().flat_map(|row| principals::sessions(row));
        if !sessions.any(|session| session == (key.clone(), record.id)) {
            let (container, session) = (name.to_owned(), key.fingerprint());
            checked.note(Problem::Unlisted { container, session });
        }
        Ok(ControlFlow::Continue(()))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::embedded::backup::{Backup, Origin};
    use crate::engine::embedded::disk::LocalDisk;
    use crate::engine::{Found, View};
    use crate::model::container::{ContainerState, Place};
    use crate::model::policy::Policy;
    use crate::model::session::{Principal, Revision, SessionId};

    /// A store in which the records are these, and its container says that it has `count`.
    fn store(records: &[(&str, u64)], count: u64) -> (tempfile::TempDir, Store) {
        let row = |&(key, bucket): &(&str, u64)| {
            let (slice_end, id) = (Time::from_secs(4_000_000_000), SessionId(bucket.into()));
            let record = Record { id, slice_end, bucket, ..Record::default() };
            ((ContainerId(1), Key::from(key)), Arc::new(record))
        };
        made(&records.iter().map(row).collect::<Vec<_>>(), count)
    }

    fn made(rows: &[(Place, Arc<Record>)], count: u64) -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let backup = Backup::begin(Arc::new(LocalDisk), &path, 1).unwrap();
        backup.put(rows).unwrap();
        let state = ContainerState {
            id: ContainerId(1),
            name: "visitors".into(),
            policy: Arc::new(Policy::new().timeout_secs(1_000)),
            policy_revision: Revision(1),
            count,
            refile_from: None,
        };
        let origin = Origin { revision: Revision(1), time: Time::default(), epoch: 1 };
        backup.finish(&[Arc::new(state)], origin).unwrap();
        let store = crate::store::Options::new().sweep_every(None).open(&path).unwrap();
        (directory, store)
    }

    #[test]
    fn what_does_not_agree_is_found_from_inside_and_from_outside() {
        let container = || "visitors".to_owned();
        let late =
            |key| Problem::Late { container: container(), session: Key::from(key).fingerprint() };
        let (soon, later) = (4_000_001_000, 4_000_001_001);
        for (records, count, problems) in [
            (&[("a", 5), ("b", soon)][..], 2, vec![]),
            (&[("a", 5), ("b", later)], 2, vec![late("b")]),
            (
                &[("a", NEVER)],
                3,
                vec![Problem::Count { container: container(), noted: 3, found: 1 }, late("a")],
            ),
        ] {
            let (directory, store) = store(records, count);
            let checked = store.check().unwrap();
            assert_eq!((checked.problems, checked.more_problems), (problems.clone(), 0));
            let rows = records.len() as u64;
            assert_eq!((checked.records, checked.index_rows, checked.containers), (rows, rows, 1));
            let outside = crate::Viewer::check(directory.path().join("store")).unwrap();
            assert_eq!(outside.problems, problems);
        }
    }

    #[test]
    fn rows_of_principals_that_do_not_agree_are_found() {
        let id = ContainerId(1);
        let session = |key: &str, number, principal: Option<&str>| {
            let slice_end = Time::from_secs(4_000_000_000);
            let mut record =
                Record { id: SessionId(number), slice_end, bucket: 5, ..Record::default() };
            record.set_extras(|extras| {
                let of = |name: &str| Principal { name: name.into(), note: "".into() };
                extras.principal = principal.map(of);
            });
            ((id, Key::from(key)), Arc::new(record))
        };
        let row = |principal: &str, sessions: &[(&str, u128)]| {
            let bound = |&(key, number): &(&str, u128)| (key.into(), Some(SessionId(number)));
            let bindings = sessions.iter().map(bound).collect();
            let row = principals::edited(None, bindings, Revision(1), Time::default());
            (principals::place(id, principal), Arc::new(row.expect("it has sessions")))
        };
        let sessions = || {
            let (a, b) = (session("a", 1, Some("ada")), session("b", 2, Some("ada")));
            vec![a, b, session("c", 3, None)]
        };
        let of = |key| ("visitors".to_owned(), Key::from(key).fingerprint());
        let unlisted = |(container, session)| Problem::Unlisted { container, session };
        let mislisted = |(container, session)| Problem::Mislisted { container, session };
        for (rows, problems) in [
            (vec![row("ada", &[("a", 1), ("b", 2)])], vec![]),
            (vec![row("ada", &[("a", 1)])], vec![unlisted(of("b"))]),
            (vec![row("ada", &[("a", 1), ("b", 4)])], vec![mislisted(of("b")), unlisted(of("b"))]),
            (vec![row("ada", &[("a", 1), ("b", 2), ("c", 3)])], vec![mislisted(of("c"))]),
            (
                vec![row("ada", &[("a", 1), ("b", 2)]), row("bob", &[("b", 2), ("x", 1)])],
                vec![mislisted(of("b")), mislisted(of("x"))],
            ),
        ] {
            let rows: Vec<_> = sessions().into_iter().chain(rows).collect();
            let (directory, store) = made(&rows, 3);
            assert_eq!(store.check().unwrap().problems, problems);
            let outside = crate::Viewer::check(directory.path().join("store")).unwrap();
            assert_eq!(outside.problems, problems);
        }
    }

    /// A view whose index has a row too many, one in the wrong place, and none for `c`.
    #[derive(Debug)]
    struct Twisted(Arc<dyn View>);

    impl View for Twisted {
        fn read(&self, place: &Place) -> Result<Option<Arc<Record>>, Error> {
            self.0.read(place)
        }

        fn scan(&self, id: ContainerId, from: &Key, max: usize) -> Result<Vec<Found>, Error> {
            self.0.scan(id, from, max)
        }

        fn due(
            &self,
            id: ContainerId,
            until: u64,
            from: &(u64, Key),
            max: usize,
        ) -> Result<Vec<(u64, Key)>, Error> {
            let mut rows = self.0.due(id, until, from, max)?;
            rows.retain(|(_, key)| *key != Key::from("c"));
            rows.iter_mut().filter(|(_, key)| *key == Key::from("b")).for_each(|row| row.0 = 9);
            rows.push((10, Key::from("nobody")));
            Ok(rows)
        }
    }

    #[test]
    fn an_index_that_does_not_agree_is_found() {
        let (_directory, store) = store(&[("a", 5), ("b", 6), ("c", 7)], 3);
        let snapshot = store.core.hold().unwrap();
        let mut pinned = store.core.versions.pin(ContainerId(1), snapshot.revision());
        pinned.view = Arc::new(Twisted(pinned.view));
        let mut checked = Checked::default();
        assert_eq!(check_index(&pinned, "visitors", &mut checked).unwrap(), 3);
        let of = |key| ("visitors".to_owned(), Key::from(key).fingerprint());
        let stray = |(container, session)| Problem::Stray { container, session };
        let unfiled = |(container, session)| Problem::Unfiled { container, session };
        let problems = [stray(of("b")), stray(of("nobody")), unfiled(of("b")), unfiled(of("c"))];
        assert_eq!(checked.problems, problems);
    }
}
