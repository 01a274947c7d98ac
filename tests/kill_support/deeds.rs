//! What clients do, and what a store must hold when they have done it.
//!
//! The nth deed of a client follows from the seed. So the parent needs no record of what its child
//! was about to do: it knows what a store holds after n deeds of each client, whichever n that is.
//! Every deed leaves its number in the client's journal, as a count, a sum and a list of the latest:
//! one that is missing, doubled or out of order shows there, however much is written over it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) const CLIENTS: usize = 8;

/// How many numbers of deeds a journal keeps.
pub(crate) const LATEST: usize = 32;

/// How many keys a client writes to, ends the session of, and takes again.
const KEYS: u64 = 12;

pub(crate) type Attributes = BTreeMap<String, Value>;
pub(crate) type Sessions = BTreeMap<String, Attributes>;

/// What a client does in one transaction, besides writing its journal.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    /// Writes to a session of its own, which it makes if it must.
    Write { key: String, text: String },
    /// Ends a session of its own, if it is there.
    End { key: String },
    /// Ends one and writes to another, at once.
    Move { from: String, to: String },
    /// Makes a session that expires by itself, within two seconds.
    Pass { key: String },
    /// Reads a number that all clients change, and writes what comes after it.
    Update,
    /// Changes the settings of a container. Only the first client does.
    Limit { limit: u64 },
    /// Makes a session that is bound to the client, as its principal.
    LogIn { key: String },
    /// Gives the oldest of those another key, if there is one.
    Rotate { key: String },
    /// Ends all of those.
    LogOut,
}

/// The nth deed of a client.
pub(crate) fn deed(seed: u64, client: usize, n: u64) -> Deed {
    let chance = scatter(scatter(scatter(seed) ^ client as u64) ^ n);
    let [kind, one, other, length, ..] = chance.to_be_bytes();
    let key = |byte: u8| format!("{client}-{}", u64::from(byte) % KEYS);
    let fresh = || format!("{client}-{n:08}");
    match kind % 20 {
        0..7 => {
            // Mostly short; now and then longer than a page, and rarely longer than several.
            let length = match length {
                0 => 12_000,
                1..16 => 5_000,
                _ => usize::from(length),
            };
            let number = format!("{n} ");
            Deed::Write { key: key(one), text: number.repeat(length / number.len()) }
        }
        7..9 => Deed::End { key: key(one) },
        9..12 => Deed::Move { from: key(one), to: key(one.wrapping_add(1 + other % 7)) },
        12..13 => Deed::Pass { key: format!("{client}-{n}") },
        13..14 if client == 0 => Deed::Limit { limit: 10_000 + n },
        16..18 => Deed::LogIn { key: fresh() },
        18 => Deed::Rotate { key: fresh() },
        19 => Deed::LogOut,
        _ => Deed::Update,
    }
}

/// A number that looks like chance and follows from another (splitmix64).
fn scatter(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// What a process finds in the store when it has just opened it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// From the start of the program to its first commit.
    pub restart_micros: u64,
    /// How many processes have written that they opened this store, this one included.
    pub starts: u64,
    /// The store's time before the sessions were read, and after.
    pub now: (u64, u64),
    /// The sessions of the clients, which they share with nobody.
    pub own: Sessions,
    pub own_len: u64,
    pub own_limit: u64,
    /// What each client did.
    pub journals: Sessions,
    pub journals_len: u64,
    /// How many deeds all clients did.
    pub total: u64,
    /// The number that all clients change.
    pub hot: u64,
    /// The sessions that expire by themselves, with the time when they do.
    pub passing: BTreeMap<String, u64>,
    pub passing_len: u64,
    /// The numbers in the sessions that only lie there, if they were looked at.
    pub still: Option<Vec<u64>>,
    pub still_len: u64,
    /// The keys of the sessions that are bound to clients, and the same by client.
    pub bound: BTreeSet<String>,
    pub bound_to: BTreeMap<String, BTreeSet<String>>,
}

/// Ends by the key of the session, and why. No key is used twice.
pub(crate) type Ends = BTreeMap<String, String>;

/// What a client has done, and what the store holds of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    /// The number of its last deed that is known to be in the store.
    pub done: u64,
    own: Sessions,
    updates: u64,
    limit: u64,
    /// When they expire; `None` if the client died before it could tell.
    passing: BTreeMap<String, Option<u64>>,
    bound: BTreeSet<String>,
    /// Sessions that were bound to it and have ended.
    pub ended: Ends,
}

impl Client {
    /// Takes note of its next deed.
    pub(crate) fn does(&mut self, seed: u64, client: usize, expires: Option<u64>) {
        self.done += 1;
        let n = self.done;
        match deed(seed, client, n) {
            Deed::Write { key, text } => {
                let session = self.own.entry(key).or_default();
                let writes = session.get("writes").and_then(Value::as_u64).unwrap_or(0);
                session.insert("n".to_owned(), json!(n));
                session.insert("text".to_owned(), json!(text));
                session.insert("writes".to_owned(), json!(writes + 1));
            }
            Deed::End { key } => {
                self.own.remove(&key);
            }
            Deed::Move { from, to } => {
                self.own.remove(&from);
                self.own.entry(to).or_default().insert("moved".to_owned(), json!(n));
            }
            Deed::Pass { key } => {
                self.passing.insert(key, expires);
            }
            Deed::Update => self.updates += 1,
            Deed::Limit { limit } => self.limit = limit,
            Deed::LogIn { key } => drop(self.bound.insert(key)),
            Deed::Rotate { key } => {
                if let Some(from) = self.bound.pop_first() {
                    self.ended.insert(from, "Rotated".to_owned());
                    self.bound.insert(key);
                }
            }
            Deed::LogOut => {
                let ended = std::mem::take(&mut self.bound).into_iter();
                self.ended.extend(ended.map(|key| (key, "Invalidated".to_owned())));
            }
        }
    }

    fn journal(&self) -> Attributes {
        let n = self.done;
        let latest: Vec<_> = (1..=n).skip((n as usize).saturating_sub(LATEST)).collect();
        let sum = n * (n + 1) / 2;
        [("count", json!(n)), ("sum", json!(sum)), ("latest", json!(latest))]
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }
}

/// What is wrong with a store.
#[derive(Debug, Default)]
pub(crate) struct Wrong {
    /// Acknowledged deeds that are not there.
    pub lost: u64,
    /// Deeds that are there although nobody can have tried them.
    pub phantom: u64,
    /// Everything that is not as it should be, in words.
    pub complaints: Vec<String>,
}

/// Compares what a process found with what the clients know, and makes it what they know. A deed
/// that was under way when the process before it died may be there or not.
pub(crate) fn compare(clients: &mut [Client], seed: u64, seen: &Seen) -> Wrong {
    let mut wrong = Wrong::default();
    let mut complain = |what: String| wrong.complaints.push(what);
    let Client { limit, .. } = clients[0];
    for (number, client) in clients.iter_mut().enumerate() {
        let journal = seen.journals.get(&number.to_string());
        let count = journal.and_then(|it| it.get("count")?.as_u64()).unwrap_or(0);
        if count == client.done + 1 {
            client.does(seed, number, None);
        }
        wrong.lost += client.done.saturating_sub(count);
        wrong.phantom += count.saturating_sub(client.done);
        let wanted = (client.done > 0).then(|| client.journal());
        if journal != wanted.as_ref() {
            complain(format!("the journal of client {number} is {journal:?}, not {wanted:?}"));
        }
    }
    let limit = limit.max(clients[0].limit);
    if seen.own_limit != limit {
        complain(format!("the limit is {}, not {limit}", seen.own_limit));
    }

    let wanted: Sessions = clients.iter().flat_map(|client| client.own.clone()).collect();
    for key in wanted.keys().chain(seen.own.keys().filter(|key| !wanted.contains_key(*key))) {
        let (found, wanted) = (seen.own.get(key), wanted.get(key));
        if found != wanted {
            complain(format!("session {key} is {found:?}, not {wanted:?}"));
        }
    }
    for (what, found, wanted) in [
        ("sessions of clients", seen.own_len, wanted.len() as u64),
        ("journals", seen.journals_len, clients.iter().filter(|it| it.done > 0).count() as u64),
        ("deeds of all clients", seen.total, clients.iter().map(|client| client.done).sum()),
        ("updates of all clients", seen.hot, clients.iter().map(|client| client.updates).sum()),
    ] {
        if found != wanted {
            complain(format!("{found} {what}, not {wanted}"));
        }
    }

    // Of a session that was rotated exactly one key is valid, and nobody has come back who logged out.
    let bound: BTreeSet<_> = clients.iter().flat_map(|client| client.bound.clone()).collect();
    if let Some(key) = bound.symmetric_difference(&seen.bound).next() {
        complain(match bound.contains(key) {
            true => format!("session {key} is not there"),
            false => format!("session {key} is there, which has ended"),
        });
    }
    for (number, client) in clients.iter().enumerate() {
        let found = seen.bound_to.get(&number.to_string());
        if found.cloned().unwrap_or_default() != client.bound {
            complain(format!("client {number} has {found:?}, not {:?}", client.bound));
        }
    }

    // Time goes on between the two readings: what expires then may be there or not.
    let mut known = BTreeMap::new();
    for client in clients {
        // Who died before it could tell when they expire has it told by the store.
        for (key, expires) in &mut client.passing {
            *expires = expires.or(seen.passing.get(key).copied());
        }
        client.passing.retain(|_, expires| expires.is_some_and(|expires| expires > seen.now.0));
        known.extend(client.passing.clone());
    }
    for (key, expires) in &known {
        let (found, wanted) = (seen.passing.get(key).copied(), *expires);
        let over = wanted.is_some_and(|expires| expires <= seen.now.1);
        if found != wanted && !(over && found.is_none()) {
            complain(format!("session {key} expires at {found:?}, not {wanted:?}"));
        }
    }
    for (key, expires) in seen.passing.iter().filter(|(key, _)| !known.contains_key(*key)) {
        complain(format!("session {key}, which expired at {expires}, or nobody made, is there"));
    }
    if seen.passing_len < seen.passing.len() as u64 || seen.passing_len > known.len() as u64 {
        complain(format!("{} sessions expire by themselves", seen.passing_len));
    }
    wrong
}

/// Compares the ends that listeners were told of with those that have happened, by now to the last.
/// `told` has a gap for each process that was started.
pub(crate) fn compare_ends(clients: &[Client], told: &[Option<(String, String)>]) -> Vec<String> {
    let mut complaints = Vec::new();
    let (mut all, mut heard) = (Ends::new(), BTreeSet::new());
    for told in told {
        let Some((key, reason)) = told else {
            heard.clear();
            continue;
        };
        if !heard.insert(key) {
            complaints.push(format!("the end of {key} was told twice by one process"));
        }
        let before = all.insert(key.clone(), reason.clone());
        if before.is_some_and(|before| before != *reason) {
            complaints.push(format!("the end of {key} was told for two reasons"));
        }
    }
    let ended: Ends = clients.iter().flat_map(|client| client.ended.clone()).collect();
    for (key, reason) in ended.iter().filter(|(key, _)| !all.contains_key(*key)) {
        complaints.push(format!("nobody was told of the end of {key}: {reason}"));
    }
    for (key, reason) in all.iter().filter(|(key, reason)| ended.get(*key) != Some(reason)) {
        complaints.push(format!("the end of {key} was told, and it was not {reason}"));
    }
    complaints
}
