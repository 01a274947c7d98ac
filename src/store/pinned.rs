//! What a scan sees: one view of the tables, and the sessions in memory that it does not show as the
//! snapshot should see them.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::engine::{View, successor};
use crate::error::Error;
use crate::model::clock::Time;
use crate::model::container::{ContainerId, ContainerState};
use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::{Record, Revision};
use crate::store::versions::{Session, Versions};

/// A row of the expiry index: bucket and key.
pub(crate) type Row = (u64, Key);

/// Some of what a walk finds, and where it goes on, if anywhere.
pub(crate) type Page<T, From> = (Vec<T>, Option<From>);

/// A consistent state to scan: a view, and what must be taken from elsewhere.
pub(crate) struct Pinned {
    pub container: ContainerId,
    pub snapshot: Revision,
    pub view: Arc<dyn View>,
    /// The sessions of one container that the view does not show as the snapshot should see them.
    pub sessions: BTreeMap<Key, Session>,
}

impl Pinned {
    /// Looks at what is pinned; if its view has ended, at the same in another one.
    pub(crate) fn look<T>(
        &mut self,
        versions: &Versions,
        mut look: impl FnMut(&Pinned) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match look(self) {
            Err(_) if versions.is_exchanged(&self.view) => {
                *self = versions.pin(self.container, self.snapshot);
                look(self)
            }
            looked => looked,
        }
    }

    /// The session under a key as the snapshot sees it.
    pub(crate) fn read(&self, container: ContainerId, key: &Key) -> Result<Session, Error> {
        match self.sessions.get(key) {
            Some(session) => Ok(session.clone()),
            None => self.view.read(&(container, key.clone())),
        }
    }

    /// Some sessions from `from` on, in the order of their keys, and where to go on, if anywhere.
    pub(crate) fn scan(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<Page<(Key, Arc<Record>), Key>, Error> {
        let (found, next) = self.rows(container, from, max)?;
        let found = found.into_iter().filter_map(|(key, session)| Some((key, session?)));
        Ok((found.collect(), next))
    }

    /// The keys of those, whether their records can be read or not.
    pub(crate) fn keys(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<Page<Key, Key>, Error> {
        let (found, next) = self.rows(container, from, max)?;
        Ok((found.into_keys().collect(), next))
    }

    /// The same with what there is of their records.
    pub(crate) fn rows(
        &self,
        container: ContainerId,
        from: &Key,
        max: usize,
    ) -> Result<(BTreeMap<Key, Session>, Option<Key>), Error> {
        let rows = self.view.scan(container, from, max)?;
        let next = rows.get(max - 1).map(|(last, _)| successor(last));
        let until = next.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let mut found: BTreeMap<_, _> = rows.into_iter().collect();
        let here = self.sessions.range((Bound::Included(from.clone()), until));
        for (key, session) in here {
            match session {
                Some(_) => found.insert(key.clone(), session.clone()),
                None => found.remove(key),
            };
        }
        Ok((found, next))
    }

    /// Sessions in buckets up to `until`: the rows of the index that hold, and where to go on. The
    /// first call gives those in memory too, so that together nothing is missing or twice.
    pub(crate) fn due(
        &self,
        container: ContainerId,
        until: u64,
        from: &Row,
        max: usize,
    ) -> Result<Page<Row, Row>, Error> {
        let mut rows = self.view.due(container, until, from, max)?;
        let next = rows.get(max - 1).map(|(bucket, key)| (*bucket, successor(key)));
        rows.retain(|(_, key)| !self.sessions.contains_key(key));
        if *from == first_row() {
            let bucket = |(key, session): (&Key, &Session)| {
                Some((session.as_ref()?.bucket, key.clone())).filter(|(bucket, _)| *bucket <= until)
            };
            rows.extend(self.sessions.iter().filter_map(bucket));
            rows.sort();
        }
        Ok((rows, next))
    }

    /// Shows every key of a container whose session may have expired under `policy`, until `visit`
    /// has seen enough. The index tells, unless buckets may be too late: then it is every key.
    pub(crate) fn suspects(
        &self,
        state: &ContainerState,
        policy: &Policy,
        now: Time,
        mut visit: impl FnMut(Key) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        const PAGE: usize = 256;
        if state.refile_from.is_some() || policy.is_outlived_under(&state.policy) {
            let page = |from: &Key| self.keys(state.id, from, PAGE);
            walk(Key::from(""), page, visit)
        } else {
            let page = |from: &Row| self.due(state.id, now.as_secs(), from, PAGE);
            walk(first_row(), page, |(_, key)| visit(key))
        }
    }
}

/// Goes through page after page, until `visit` has seen enough.
pub(crate) fn walk<T, From>(
    first: From,
    page: impl Fn(&From) -> Result<Page<T, From>, Error>,
    mut visit: impl FnMut(T) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let mut from = Some(first);
    while let Some(start) = from {
        let (found, next) = page(&start)?;
        for one in found {
            if visit(one)?.is_break() {
                return Ok(());
            }
        }
        from = next;
    }
    Ok(())
}

/// Where the expiry index begins.
pub(crate) fn first_row() -> Row {
    (0, Key::from(""))
}
