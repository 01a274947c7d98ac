//! The sessions of a principal at commit: ended all at once, kept within their limit, and written down.
//!
//! "Log out everywhere" must be exact: a session that was bound a moment ago, by a login that the
//! transaction has not seen, is a session of that principal too. So the transaction's drafts end what
//! its snapshot shows, and here, where everything that came before is known, ends what is left. A
//! session that the same transaction binds after that call stays: that is how one begins anew.
//!
//! The rows (`model/principals.rs`) are made of what becomes of the sessions, whatever the reason, in
//! one place: what a commit changes, it changes in both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::engine::SessionChange;
use crate::error::{Error, LimitKind};
use crate::model::clock::Time;
use crate::model::container::{ContainerId, Place};
use crate::model::draft::Draft;
use crate::model::key::Key;
use crate::model::policy::AtLimit;
use crate::model::principals::{self, Bindings};
use crate::model::session::{Name, Record, SessionId};
use crate::store::commit::Intent;
use crate::store::listeners::EndReason;
use crate::store::round::{Outcome, Round};

/// A live session of a principal: see [`Transaction::sessions_of`](crate::Transaction::sessions_of).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrincipalSession {
    /// What it is filed under. `Debug` shows the fingerprint.
    pub key: Key,
    /// Which generation of the key it is.
    pub id: SessionId,
    /// When it was created.
    pub created: Time,
    /// When it was last accessed, to within 30 seconds.
    pub last_accessed: Time,
    /// What the application noted of the device when the session was bound.
    pub note: String,
    /// When its time is over; `None`: never.
    pub expires: Option<Time>,
}

/// Without the note: an application may have noted where its user is.
impl fmt::Debug for PrincipalSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrincipalSession")
            .field("key", &self.key)
            .field("id", &self.id)
            .field("created", &self.created)
            .field("last_accessed", &self.last_accessed)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// How many bytes the name of a principal may have, and a note.
const BYTES_MAX: usize = 1_024;

/// Refuses names and notes that are too long.
pub(super) fn check_bytes(principal: &str, note: &str) -> Result<(), Error> {
    let (limit, max) = (LimitKind::PrincipalBytes, BYTES_MAX as u64);
    match principal.len().max(note.len()) > BYTES_MAX {
        true => Err(Error::Limit { limit, max }),
        false => Ok(()),
    }
}

/// A session as a transaction leaves it, and where that is written down, if the transaction changes it.
type Left = (Place, Arc<Record>, Option<usize>);

impl Round<'_> {
    /// Ends what a transaction ends of principals, and what passes their limit.
    pub(super) fn settle_principals(
        &mut self,
        intent: &Intent,
        drafts: &BTreeMap<Place, Draft>,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let (mut bound, mut gained, mut keepers) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        for ((id, key), draft) in drafts {
            let Some(life) = draft.lives.last().filter(|life| !life.ended) else { continue };
            let lies =
                || (*id, life.rotated.as_ref().map_or(key, |rotation| &rotation.key).clone());
            if let Some(Some(principal)) = &life.principal {
                bound.insert(lies(), Arc::clone(&principal.name));
                let stored = self.session(&(*id, key.clone()))?;
                let before = stored.as_ref().filter(|stored| stored.id == life.base.id);
                let before = before.and_then(|stored| stored.principal());
                if before.is_none_or(|before| before.name != principal.name) {
                    gained.insert((*id, Arc::clone(&principal.name)));
                }
            }
            keepers.extend(life.ends_others.clone().map(|principal| (lies(), principal)));
        }
        for (id, principal) in &intent.principals {
            self.end_bound(*id, principal, None, &bound, outcome)?;
        }
        for (keeper, principal) in keepers {
            self.end_bound(keeper.0, &principal, Some(&keeper), &bound, outcome)?;
        }
        gained.into_iter().try_for_each(|(id, name)| self.make_room_for(id, &name, &bound, outcome))
    }

    /// Ends the sessions of a principal, without `kept` and those that the transaction binds itself.
    fn end_bound(
        &mut self,
        id: ContainerId,
        principal: &Name,
        kept: Option<&Place>,
        bound: &BTreeMap<Place, Name>,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let policy = Arc::clone(&self.containers[&id].policy);
        for left in self.bound_to(id, principal, outcome)? {
            if kept != Some(&left.0) && bound.get(&left.0) != Some(principal) {
                let reason = match left.1.is_expired(&policy, self.now) {
                    true => EndReason::Expired,
                    false => EndReason::Invalidated,
                };
                end(left, reason, outcome);
            }
        }
        Ok(())
    }

    /// Sees to it that a principal to whom the transaction binds sessions has no more than it may.
    fn make_room_for(
        &mut self,
        id: ContainerId,
        principal: &Name,
        bound: &BTreeMap<Place, Name>,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let before = Arc::clone(&self.containers[&id].policy);
        let policy = outcome.containers.get(&id).map_or(&before, |state| &state.policy).clone();
        let max = policy.principal_limit;
        if max == 0 {
            return Ok(());
        }
        let mut sessions = self.bound_to(id, principal, outcome)?;
        let is_over = |(_, record, _): &mut Left| record.is_expired(&before, self.now);
        sessions.extract_if(.., is_over).for_each(|left| end(left, EndReason::Expired, outcome));
        let excess = sessions.len().saturating_sub(usize::try_from(max).unwrap_or(usize::MAX));
        let mut others: Vec<_> =
            sessions.into_iter().filter(|(place, ..)| !bound.contains_key(place)).collect();
        if excess > 0 && (policy.at_principal_limit == AtLimit::Reject || others.len() < excess) {
            return Err(Error::Limit { limit: LimitKind::PrincipalSessions, max });
        }
        let used = |(place, record, _): &Left| {
            (record.slice_end, record.last_accessed, record.created, place.clone())
        };
        others.sort_by_key(used);
        others.into_iter().take(excess).for_each(|left| end(left, EndReason::Evicted, outcome));
        Ok(())
    }

    /// The sessions of a principal as an outcome leaves them, expired ones too.
    fn bound_to(
        &mut self,
        id: ContainerId,
        principal: &Name,
        outcome: &Outcome,
    ) -> Result<Vec<Left>, Error> {
        let mut left = BTreeMap::new();
        if let Some(row) = self.session(&principals::place(id, principal))? {
            for (key, session) in principals::sessions(&row) {
                let place = (id, key);
                let stored = self.session(&place)?.filter(|stored| stored.id == session);
                left.extend(stored.map(|stored| (place, (stored, None))));
            }
        }
        let changed = outcome.sessions.iter().enumerate().filter(|(_, (place, _))| place.0 == id);
        for (at, (place, record)) in changed {
            match record {
                Some(record) => left.insert(place.clone(), (Arc::clone(record), Some(at))),
                None => left.remove(place),
            };
        }
        let is_bound = |record: &Record| record.principal().is_some_and(|p| p.name == *principal);
        let left = left.into_iter().filter(|(_, (record, _))| is_bound(record));
        Ok(left.map(|(place, (record, at))| (place, record, at)).collect())
    }

    /// Writes down what a commit makes of the sessions of principals.
    pub(super) fn note_principals(
        &mut self,
        sessions: &mut Vec<SessionChange>,
    ) -> Result<(), Error> {
        let mut rows: BTreeMap<Place, Bindings> = BTreeMap::new();
        for SessionChange { place, before, after } in &*sessions {
            let (was, is) = (bound(before.as_deref()), bound(after.as_deref()));
            // The store's own notes are nobody's, whatever is noted.
            if was == is || !place.0.is_container() {
                continue;
            }
            let mut note = |principal: &str, id| {
                let row = rows.entry(principals::place(place.0, principal)).or_default();
                row.insert(place.1.clone(), id);
            };
            if let Some((principal, _)) = was {
                note(principal, None);
            }
            if let Some((principal, id)) = is {
                note(principal, Some(id));
            }
        }
        for (place, bindings) in rows {
            let (before, revision) = (self.session(&place)?, self.revision.next());
            let after = principals::edited(before.as_deref(), bindings, revision, self.now);
            sessions.push(SessionChange { place, before, after: after.map(Arc::new) });
        }
        Ok(())
    }
}

/// Whose session a record is, and which.
fn bound(record: Option<&Record>) -> Option<(&str, SessionId)> {
    record.and_then(|record| Some((&*record.principal()?.name, record.id)))
}

fn end((place, record, at): Left, reason: EndReason, outcome: &mut Outcome) {
    match at {
        Some(at) => outcome.sessions[at].1 = None,
        None => outcome.sessions.push((place.clone(), None)),
    }
    outcome.ends.push((place, record, reason));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::clock::ManualClock;
    use crate::model::container::Kind;
    use crate::model::policy::Policy;
    use crate::store::{Container, Options, Session, Store, Transaction};

    #[derive(Clone, Debug)]
    enum Step {
        Client(usize, Action),
        Advance(u64),
        Sweep,
    }

    /// What a client does to one of the sessions that it sees, in the transaction that it has begun or
    /// begins now.
    #[derive(Clone, Debug)]
    enum Action {
        Commit,
        Create,
        Save(usize),
        Bind(usize, usize),
        Unbind(usize),
        Rotate(usize),
        Logout(usize),
        EndAll(usize),
        EndOthers(usize),
    }

    const CLIENTS: usize = 3;
    const PRINCIPALS: [&str; 2] = ["ada", "bob"];
    const LIMIT: u64 = 2;

    fn action() -> impl Strategy<Value = Action> {
        let (session, principal) = (0usize..6, prop_oneof![3 => Just(0), 1 => Just(1usize)]);
        prop_oneof![
            8 => Just(Action::Commit),
            4 => Just(Action::Create),
            2 => session.clone().prop_map(Action::Save),
            8 => (session.clone(), principal.clone()).prop_map(|(s, p)| Action::Bind(s, p)),
            1 => session.clone().prop_map(Action::Unbind),
            3 => session.clone().prop_map(Action::Rotate),
            1 => session.clone().prop_map(Action::Logout),
            2 => principal.prop_map(Action::EndAll),
            2 => session.prop_map(Action::EndOthers),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..CLIENTS, action()).prop_map(|(client, action)| Step::Client(client, action)),
            2 => (1u64..40).prop_map(Step::Advance),
            1 => Just(Step::Sweep),
        ]
    }

    #[derive(Default)]
    struct Client {
        txn: Option<Transaction>,
        /// A principal of whom it has ended all sessions, and bound none since.
        ended: Option<usize>,
        /// A principal of whom one session is to stay, likewise.
        others: Option<String>,
    }

    struct World {
        store: Store,
        shop: Container,
        clock: ManualClock,
        clients: Vec<Client>,
        keys: u64,
        present: BTreeSet<SessionId>,
        gone: BTreeSet<SessionId>,
    }

    impl World {
        fn new(at_limit: AtLimit) -> Self {
            let clock = ManualClock::new(Time::from_secs(1_000_000_000));
            let options = Options::new().clock(clock.clone()).seed(1).sweep_every(None);
            let store = options.memory().unwrap();
            let policy = Policy::new().timeout_secs(60).period_secs(20);
            let policy = policy.principal_limit(LIMIT).at_principal_limit(at_limit).limit(8);
            let shop = store.container_with("shop", policy).unwrap();
            let clients = (0..CLIENTS).map(|_| Client::default()).collect();
            let (present, gone) = Default::default();
            World { store, shop, clock, clients, keys: 0, present, gone }
        }

        fn play(&mut self, step: &Step) {
            match step {
                Step::Advance(secs) => self.clock.advance_secs(*secs),
                Step::Sweep => assert!(self.store.sweep().is_ok()),
                Step::Client(at, action) => {
                    let mut client = std::mem::take(&mut self.clients[*at]);
                    match action {
                        Action::Commit => {
                            let Client { txn, ended, others } = std::mem::take(&mut client);
                            match txn.map(Transaction::commit) {
                                Some(Ok(_)) => self.check_ends(ended, others),
                                Some(Err(error)) => assert!(
                                    error.is_retryable() || matches!(error, Error::Limit { .. }),
                                    "{error}"
                                ),
                                None => {}
                            }
                        }
                        action => self.act(&mut client, action),
                    }
                    self.clients[*at] = client;
                }
            }
            self.check();
        }

        fn act(&mut self, client: &mut Client, action: &Action) {
            let txn = client.txn.get_or_insert_with(|| self.store.begin().unwrap());
            let sessions: Vec<_> = txn.iter(&self.shop).unwrap().map(Result::unwrap).collect();
            let session = |at: &usize| sessions.get(*at % sessions.len().max(1)).cloned();
            let is_limit = |error| assert!(matches!(error, Error::Limit { .. }), "{error}");
            self.keys += 1;
            let key = self.keys.to_string();
            match action {
                Action::Commit => unreachable!("they are done elsewhere"),
                Action::Create => {
                    txn.create(&self.shop, key).map_or_else(is_limit, |_| ());
                }
                Action::EndAll(principal) => {
                    txn.end_all_of(&self.shop, PRINCIPALS[*principal]).unwrap();
                    client.ended = Some(*principal);
                }
                Action::Save(at) | Action::Unbind(at) | Action::Logout(at) => {
                    let work = match action {
                        Action::Save(_) => |session: Session| session.add("n", 1),
                        Action::Unbind(_) => |session: Session| session.unbind(),
                        _ => |session: Session| session.invalidate(),
                    };
                    session(at).into_iter().for_each(|session| work(session).unwrap());
                }
                Action::Rotate(at) => {
                    session(at).into_iter().for_each(|session| {
                        session.rotate(&key).unwrap();
                    });
                }
                Action::Bind(at, principal) => {
                    let bind = |session: Session| session.bind(PRINCIPALS[*principal], "");
                    session(at).into_iter().for_each(|s| bind(s).unwrap_or_else(is_limit));
                    (client.ended, client.others) = (None, None);
                }
                Action::EndOthers(at) => {
                    let Some(session) = session(at) else { return };
                    let principal = session.principal().unwrap();
                    session.end_others().unwrap();
                    client.others = principal;
                }
            }
        }

        /// What was ended has ended, whatever came between.
        fn check_ends(&self, ended: Option<usize>, others: Option<String>) {
            let txn = self.store.begin().unwrap();
            let of = |principal: &str| txn.sessions_of(&self.shop, principal).unwrap();
            if let Some(principal) = ended {
                assert_eq!(of(PRINCIPALS[principal]), []);
            }
            // It may be another generation by now.
            assert!(others.is_none_or(|principal| of(&principal).len() <= 1));
        }

        /// Sessions and rows say the same, both ways; limits hold; nobody comes back.
        fn check(&mut self) {
            let (core, id) = (&self.store.core, self.shop.id);
            let scan = |id| {
                let pinned = core.versions.pin(id, core.snapshots.published());
                pinned.scan(id, &Key::from(""), 1_000).unwrap().0
            };
            let sessions: BTreeMap<_, _> = scan(id).into_iter().collect();
            let bound = sessions.iter().filter_map(|(key, record)| {
                let principal = Key::from(&*record.principal()?.name);
                Some((principal, key.clone(), record.id))
            });
            let rows = scan(id.of(Kind::Principals)).into_iter().flat_map(|(principal, row)| {
                let found: Vec<_> = principals::sessions(&row).collect();
                assert!(!found.is_empty(), "a row without sessions goes");
                found.into_iter().map(move |(key, id)| (principal.clone(), key, id))
            });
            assert_eq!(rows.collect::<BTreeSet<_>>(), bound.collect());

            let txn = self.store.begin().unwrap();
            for principal in PRINCIPALS {
                let found = txn.sessions_of(&self.shop, principal).unwrap();
                assert!(found.len() as u64 <= LIMIT, "{principal} has {}", found.len());
            }
            let present = sessions.values().map(|record| record.id).collect();
            assert!(self.gone.is_disjoint(&present), "a session has come back");
            self.gone.extend(self.present.difference(&present));
            self.present = present;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn sessions_and_rows_agree_and_ends_are_exact(
            evicts in any::<bool>(), steps in proptest::collection::vec(step(), 0..80),
        ) {
            let at_limit = if evicts { AtLimit::EvictOldest } else { AtLimit::Reject };
            let mut world = World::new(at_limit);
            steps.iter().for_each(|step| world.play(step));
        }
    }
}
