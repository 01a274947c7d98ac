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
use crate::model::key::Key;
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
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::embedded::backup::{Backup, Origin};
    use crate::engine::embedded::disk::LocalDisk;
    use crate::engine::{Found, View};
    use crate::model::container::{ContainerId, ContainerState, Place};
    use crate::model::policy::Policy;
    use crate::model::session::{Record, Revision, SessionId};

    /// A store in which the records are these, and its container says that it has `count`.
    fn store(records: &[(&str, u64)], count: u64) -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let backup = Backup::begin(Arc::new(LocalDisk), &path, 1).unwrap();
        let row = |&(key, bucket): &(&str, u64)| {
            let (slice_end, id) = (Time::from_secs(4_000_000_000), SessionId(bucket.into()));
            let record = Record { id, slice_end, bucket, ..Record::default() };
            ((ContainerId(1), Key::from(key)), Arc::new(record))
        };
        backup.put(&records.iter().map(row).collect::<Vec<_>>()).unwrap();
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
