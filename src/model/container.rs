//! Sessions under one policy, and how many of them there are.

use std::sync::Arc;

use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::Revision;

/// The number of a container within its store; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ContainerId(pub u32);

/// What lies under a number: the highest bits of it say so. All but sessions are the store's own
/// notes, in records of the same form, so that they are committed, recovered and checked alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Where a session has gone whose key was rotated.
    Rotated = 1,
    /// The sessions of a principal.
    Principals = 2,
    /// Ends of which the listener was not told yet.
    Ends = 3,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Rotated, Kind::Principals, Kind::Ends];
}

impl ContainerId {
    const BITS: u32 = 28;

    /// No container has this number: what lies beside it is about all of them.
    pub(crate) const STORE: ContainerId = ContainerId(0);

    /// The number of the store's own notes beside this container.
    pub(crate) const fn of(self, kind: Kind) -> ContainerId {
        ContainerId(self.container().0 | (kind as u32) << Self::BITS)
    }

    /// The container that this, or what this is beside, is.
    pub(crate) const fn container(self) -> ContainerId {
        ContainerId(self.0 & ((1 << Self::BITS) - 1))
    }

    /// Whether sessions lie here.
    pub(crate) fn is_container(self) -> bool {
        self == self.container()
    }
}

/// Where a session lies.
pub(crate) type Place = (ContainerId, Key);

/// A container as one commit left it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerState {
    pub id: ContainerId,
    pub name: Arc<str>,
    pub policy: Arc<Policy>,
    /// The commit that last changed the policy.
    pub policy_revision: Revision,
    /// Sessions that have not ended. Some of them may have expired and await the sweep.
    pub count: u64,
    /// A timeout was shortened, so buckets may be later than expiries: from this key on they have
    /// still to be filed anew. Until that is done, who wants to be exact walks the records.
    pub refile_from: Option<Key>,
}

impl ContainerState {
    /// Takes in a new policy.
    pub(crate) fn set_policy(&mut self, policy: Arc<Policy>, revision: Revision) {
        let warns_elsewhere = policy.warn_secs != self.policy.warn_secs;
        if policy.is_outlived_under(&self.policy) || warns_elsewhere {
            self.refile_from = Some(Key::from(""));
        }
        self.policy = policy;
        self.policy_revision = revision;
    }
}
