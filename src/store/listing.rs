//! Walks through the sessions that a transaction sees, a page at a time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::Error;
use crate::model::container::ContainerId;
use crate::model::key::Key;
use crate::model::session::{Record, SessionId};
use crate::store::filter::Filter;
use crate::store::pinned::Pinned;
use crate::store::session::Session;
use crate::store::workspace::Workspace;

const PAGE: usize = 256;

/// A walk through one container. Holds a view of the tables for as long as it lives.
pub(crate) struct Listing {
    workspace: Arc<Workspace>,
    container: ContainerId,
    /// `None`: every live session is meant.
    filter: Option<Filter>,
    pinned: Pinned,
    /// What the snapshot holds, if anything, of the keys that come next.
    page: VecDeque<(Key, Option<Arc<Record>>)>,
    /// Where the next page begins; `None` once the walk has ended.
    next: Option<Key>,
}

impl Listing {
    pub(crate) fn new(workspace: &Arc<Workspace>, container: ContainerId) -> Result<Self, Error> {
        let pinned = workspace.door.versions.pin(container, workspace.scanned()?);
        workspace.check()?;
        let (page, next) = (VecDeque::new(), Some(Key::from("")));
        let workspace = Arc::clone(workspace);
        Ok(Listing { workspace, container, filter: None, pinned, page, next })
    }

    /// Walks through those that pass a filter only.
    pub(crate) fn passing(self, filter: Filter) -> Self {
        Listing { filter: Some(filter), ..self }
    }

    /// How many of the snapshot's sessions have expired by now, without those that this
    /// transaction has touched.
    pub(crate) fn expired(&mut self) -> Result<u64, Error> {
        let state = self.workspace.container(self.container)?;
        let policy = self.workspace.policy(self.container)?;
        let drafted = self.workspace.drafted(self.container)?;
        let now = self.workspace.door.now();
        let container = self.container;
        self.pinned.look(&self.workspace.core().versions, |pinned| {
            let mut expired = 0;
            pinned.suspects(&state, &policy, now, |key| {
                if !drafted.contains(&key) {
                    let record = pinned.read(container, &key)?;
                    let is_expired = record.is_some_and(|record| record.is_expired(&policy, now));
                    expired += u64::from(is_expired);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(expired)
        })
    }

    fn fill(&mut self) -> Result<(), Error> {
        let Some(from) = self.next.take() else { return Ok(()) };
        let (container, versions) = (self.container, &self.workspace.core().versions);
        let scan = |pinned: &Pinned| pinned.scan(container, &from, PAGE);
        let (rows, next) = self.pinned.look(versions, scan)?;
        let mut page: BTreeMap<_, _> =
            rows.into_iter().map(|(key, record)| (key, Some(record))).collect();
        for key in self.workspace.drafted(self.container)? {
            if key >= from && next.as_ref().is_none_or(|next| key < *next) {
                page.entry(key).or_insert(None);
            }
        }
        (self.page, self.next) = (page.into_iter().collect(), next);
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<(Key, SessionId)>, Error> {
        loop {
            let Some((key, base)) = self.page.pop_front() else {
                if self.next.is_none() {
                    return Ok(None);
                }
                self.fill()?;
                continue;
            };
            let place = (self.container, key);
            let seen = match &self.filter {
                Some(filter) => self.workspace.sees_passing(&place, base.as_ref(), filter)?,
                None => self.workspace.sees(&place, base.as_ref())?,
            };
            if let Some(id) = seen {
                return Ok(Some((place.1, id)));
            }
        }
    }

    /// The next live session. An error ends the walk.
    fn step(&mut self) -> Option<Result<(Key, SessionId), Error>> {
        let step = self.try_next().transpose();
        if let None | Some(Err(_)) = step {
            self.page.clear();
            self.next = None;
        }
        step
    }
}

/// The keys of a container's live sessions; see [`Transaction::keys`](crate::Transaction::keys).
pub struct Keys(pub(crate) Listing);

impl Iterator for Keys {
    type Item = Result<Key, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.step()?.map(|(key, _)| key))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// A container's live sessions; see [`Transaction::iter`](crate::Transaction::iter).
pub struct Sessions(pub(crate) Listing);

impl Iterator for Sessions {
    type Item = Result<Session, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.0.step()?;
        let Listing { workspace, container, .. } = &self.0;
        Some(step.map(|(key, id)| Session::new(Arc::clone(workspace), (*container, key), id)))
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}
