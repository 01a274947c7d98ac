//! Sessions under one policy, and how many of them there are.

use std::sync::Arc;

use crate::model::key::Key;
use crate::model::policy::Policy;
use crate::model::session::Revision;

/// The number of a container within its store; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ContainerId(pub u32);

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
    /// The timeout was shortened, so buckets may be later than expiries: from this key on they have
    /// still to be filed anew. Until that is done, who wants to be exact walks the records.
    pub refile_from: Option<Key>,
}

impl ContainerState {
    /// Takes in a new policy.
    pub(crate) fn set_policy(&mut self, policy: Arc<Policy>, revision: Revision) {
        if policy.lifetime_secs() < self.policy.lifetime_secs() {
            self.refile_from = Some(Key::from(""));
        }
        self.policy = policy;
        self.policy_revision = revision;
    }
}
