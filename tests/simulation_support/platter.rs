//! What a power cut leaves: the durable state of a disk, the versions of every sector since, and
//! images of it that differ in what the cache had written back by then.
//!
//! A platter walks through the record of a [`SimDisk`](super::disk::SimDisk), operation by
//! operation. The workload runs once, and every point of its record is a power cut:
//!
//! ```text
//!   record    write a   write b   sync   write a   write a   |  power cut
//!   sector a  1         1         1      1 2       1 2 3     |  shows 1, 2, 3 or a cut write
//!   sector b  0         0 1       1      1         1         |  shows 1
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::chance::Chance;
use super::content::{Content, PAGE, SECTOR, Sector};
use super::disk::{Held, Image, Node, Op, ROOT};

/// What became of that which was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing of it was written.
    Nothing,
    /// All of it was.
    Everything,
    /// Each sector shows any of its versions.
    Sectors,
    /// Each page does.
    Pages,
    /// The first page of each file was written, and nothing else; or everything else.
    Header,
    /// Everything was but one sector or page.
    OneLost,
    /// Everything before one write was, in order, and that one up to a byte, or from it on.
    Torn,
    /// As `Sectors`, and some that were written to are zeros or garbage.
    Garbage,
}

impl Cut {
    pub(crate) const ALL: [Cut; 8] = [
        Cut::Nothing,
        Cut::Everything,
        Cut::Sectors,
        Cut::Pages,
        Cut::Header,
        Cut::OneLost,
        Cut::Torn,
        Cut::Garbage,
    ];
}

/// When something happened: the number of the operation.
type At = u64;

/// A sector as one operation left it.
#[derive(Clone, Debug)]
struct Version {
    at: At,
    /// It was cut off with the end of its file.
    is_cut_off: bool,
    /// The whole of it was written, or may be spoilt.
    is_whole: bool,
    sector: Arc<Sector>,
}

#[derive(Clone, Debug, Default)]
struct FileState {
    /// A write that covers a part of a sector may spoil the rest of it. redb counts on the opposite for
    /// the first bytes of its file, so this is for the files of the log.
    spoils: bool,
    durable: Content,
    /// What reads show.
    cache: Content,
    /// What was written since, by sector.
    dirty: BTreeMap<u64, Vec<Version>>,
    lens: Vec<(At, u64)>,
}

#[derive(Clone, Debug)]
enum Change {
    Make { name: OsString, node: Node },
    Rename { from: OsString, to: OsString, node: Node },
    Remove { name: OsString, node: Node },
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<OsString, Node>) {
        let unname = |names: &mut BTreeMap<OsString, Node>, name, node| {
            if names.get(name) == Some(node) {
                names.remove(name);
            }
        };
        match self {
            Change::Make { name, node } => {
                names.insert(name.clone(), *node);
            }
            Change::Rename { from, to, node } => {
                unname(names, from, node);
                names.insert(to.clone(), *node);
            }
            Change::Remove { name, node } => unname(names, name, node),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct DirectoryState {
    durable: BTreeMap<OsString, Node>,
    changes: Vec<(At, Change)>,
}

#[derive(Clone, Debug)]
enum State {
    File(FileState),
    Directory(DirectoryState),
}

fn is_log(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("log-")
}

/// See above.
#[derive(Clone, Debug)]
pub(crate) struct Platter {
    nodes: Vec<State>,
    at: At,
    /// How many of the last syncs have lied.
    lies: usize,
    synced: VecDeque<(At, Node)>,
}

impl Platter {
    /// A platter on which all of an image is durable.
    pub(crate) fn new(image: &Image) -> Self {
        let state = |held: &Held| match held {
            Held::File(content) => State::File(FileState {
                durable: content.clone(),
                cache: content.clone(),
                ..FileState::default()
            }),
            Held::Directory(names) => State::Directory(DirectoryState {
                durable: names.clone(),
                ..DirectoryState::default()
            }),
        };
        let mut nodes: Vec<_> = image.nodes.iter().map(state).collect();
        let names = image.nodes.iter().filter_map(|held| match held {
            Held::Directory(names) => Some(names.iter().filter(|(name, _)| is_log(name))),
            Held::File(_) => None,
        });
        for (_, node) in names.flatten() {
            if let State::File(file) = &mut nodes[*node] {
                file.spoils = true;
            }
        }
        Platter { nodes, at: 0, lies: 0, synced: VecDeque::new() }
    }

    /// The last `lies` syncs before each point made nothing durable, although they said so.
    pub(crate) fn lies(mut self, lies: usize) -> Self {
        self.lies = lies;
        self
    }

    /// Takes the next operation of a record.
    pub(crate) fn apply<M>(&mut self, op: &Op<M>) {
        self.at += 1;
        let at = self.at;
        match op {
            Op::Make { directory, name, node, is_directory } => {
                assert_eq!(*node, self.nodes.len(), "nodes are numbered");
                self.nodes.push(match is_directory {
                    true => State::Directory(DirectoryState::default()),
                    false => {
                        let spoils = is_log(name);
                        State::File(FileState { spoils, ..FileState::default() })
                    }
                });
                let change = Change::Make { name: name.clone(), node: *node };
                self.directory(*directory).changes.push((at, change));
            }
            Op::Rename { directory, from, to, node } => {
                let change = Change::Rename { from: from.clone(), to: to.clone(), node: *node };
                self.directory(*directory).changes.push((at, change));
            }
            Op::Remove { directory, name, node } => {
                let change = Change::Remove { name: name.clone(), node: *node };
                self.directory(*directory).changes.push((at, change));
            }
            Op::Write { file, offset, bytes } => self.file(*file).write(at, *offset, bytes),
            Op::SetLen { file, len } => self.file(*file).set_len(at, *len),
            Op::Sync { node } => {
                self.synced.push_back((at, *node));
                while self.synced.len() > self.lies {
                    let (until, node) = self.synced.pop_front().expect("there are more than lies");
                    match &mut self.nodes[node] {
                        State::File(file) => file.sync(until),
                        State::Directory(directory) => directory.sync(until),
                    }
                }
            }
            Op::SyncFailed { node, kept, seed } => {
                let chance = &mut Chance::new(*seed);
                match &mut self.nodes[*node] {
                    State::File(file) => file.sync_failed(*kept, chance),
                    State::Directory(directory) => directory.sync_failed(*kept, chance),
                }
            }
            Op::Mark(_) => {}
        }
    }

    /// What one power cut leaves.
    pub(crate) fn image(&self, cut: Cut, chance: &mut Chance) -> Image {
        let names = |directory: &DirectoryState, until, chance: &mut Chance| {
            let mut names = directory.durable.clone();
            for (at, change) in &directory.changes {
                let has_happened = match cut {
                    Cut::Nothing => false,
                    Cut::Everything => true,
                    Cut::Torn => *at < until,
                    Cut::OneLost => !chance.one_in(4),
                    Cut::Sectors | Cut::Pages | Cut::Header | Cut::Garbage => chance.one_in(2),
                };
                if has_happened {
                    change.apply(&mut names);
                }
            }
            names
        };
        // The write that is cut, if one is.
        let torn = match cut {
            Cut::Torn => self.pick_torn(chance),
            _ => None,
        };
        let until = torn.as_ref().map_or(At::MAX, |torn| torn.at);
        let mut nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|state| match state {
                State::Directory(directory) => Held::Directory(names(directory, until, chance)),
                // Those that can be reached follow.
                State::File(_) => Held::File(Content::default()),
            })
            .collect();
        let mut reachable = vec![ROOT];
        let mut files = Vec::new();
        while let Some(node) = reachable.pop() {
            match &nodes[node] {
                Held::Directory(names) => reachable.extend(names.values()),
                Held::File(_) => files.push(node),
            }
        }
        // Which of them misses a sector.
        let lost = chance.index(files.iter().map(|node| self.as_file(*node).dirty.len()).sum());
        let mut before = 0;
        for node in files {
            let file = self.as_file(node);
            let lost = lost.checked_sub(before).filter(|lost| *lost < file.dirty.len());
            before += file.dirty.len();
            nodes[node] = Held::File(file.image(cut, torn.as_ref(), lost, chance));
        }
        Image { nodes }
    }

    fn pick_torn(&self, chance: &mut Chance) -> Option<Torn> {
        let mut writes: BTreeMap<At, (Node, u64, u64)> = BTreeMap::new();
        for (node, state) in self.nodes.iter().enumerate() {
            let State::File(file) = state else { continue };
            for (sector, versions) in &file.dirty {
                for version in versions.iter().filter(|version| !version.is_cut_off) {
                    let write = writes.entry(version.at).or_insert((node, *sector, *sector));
                    write.1 = write.1.min(*sector);
                    write.2 = write.2.max(*sector);
                }
            }
        }
        let nth = chance.index(writes.len());
        let (at, (_, first, last)) = writes.into_iter().nth(nth)?;
        let sectors = (last - first + 1) * SECTOR as u64;
        let byte = first * SECTOR as u64 + chance.below(sectors + 1);
        Some(Torn { at, byte, is_head_lost: chance.one_in(3) })
    }

    fn file(&mut self, node: Node) -> &mut FileState {
        match &mut self.nodes[node] {
            State::File(file) => file,
            State::Directory(_) => panic!("a directory has no bytes"),
        }
    }

    fn as_file(&self, node: Node) -> &FileState {
        match &self.nodes[node] {
            State::File(file) => file,
            State::Directory(_) => panic!("a directory has no bytes"),
        }
    }

    fn directory(&mut self, node: Node) -> &mut DirectoryState {
        match &mut self.nodes[node] {
            State::Directory(directory) => directory,
            State::File(_) => panic!("a file has no names"),
        }
    }
}

/// The write that a power cut fell into.
struct Torn {
    at: At,
    /// What lies before this byte was written, what lies behind it was not; or the other way round.
    byte: u64,
    is_head_lost: bool,
}

impl DirectoryState {
    fn sync(&mut self, until: At) {
        let count = self.changes.partition_point(|(at, _)| *at <= until);
        for (_, change) in self.changes.drain(..count) {
            change.apply(&mut self.durable);
        }
    }

    /// File systems keep a journal of names: what did not make it stays to be written.
    fn sync_failed(&mut self, kept: u64, chance: &mut Chance) {
        let count = if chance.below(8) < kept { chance.index(self.changes.len() + 1) } else { 0 };
        for (_, change) in self.changes.drain(..count) {
            change.apply(&mut self.durable);
        }
    }
}

impl FileState {
    fn write(&mut self, at: At, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let size = SECTOR as u64;
        let sectors = offset / size..end.div_ceil(size);
        let before: Vec<_> = sectors.clone().map(|sector| self.cache.sector(sector)).collect();
        let len = self.cache.len();
        self.cache.write(offset, bytes);
        if self.cache.len() > len {
            self.lens.push((at, self.cache.len()));
        }
        for (sector, before) in sectors.zip(before) {
            let now = self.cache.sector(sector);
            // Nobody can tell whether the same bytes were written again, except where an earlier
            // write of them was lost.
            let is_dirty = self.dirty.contains_key(&sector);
            if now == before && !is_dirty && self.durable.sector(sector) == now {
                continue;
            }
            let is_whole = self.spoils || offset <= sector * size && (sector + 1) * size <= end;
            let version = Version { at, is_cut_off: false, is_whole, sector: Arc::new(now) };
            self.dirty.entry(sector).or_default().push(version);
        }
    }

    fn set_len(&mut self, at: At, len: u64) {
        let (size, before) = (SECTOR as u64, self.cache.len());
        if len == before {
            return;
        }
        self.cache.set_len(len);
        self.lens.push((at, len));
        for sector in len / size..before.div_ceil(size) {
            let now = self.cache.sector(sector);
            if self.dirty.contains_key(&sector) || self.durable.sector(sector) != now {
                let sector_now = Arc::new(now);
                let version = Version { at, is_cut_off: true, is_whole: false, sector: sector_now };
                self.dirty.entry(sector).or_default().push(version);
            }
        }
    }

    fn sync(&mut self, until: At) {
        let count = self.lens.partition_point(|(at, _)| *at <= until);
        if let Some((_, len)) = self.lens.drain(..count).next_back() {
            self.durable.set_len(len);
        }
        self.dirty.retain(|sector, versions| {
            let count = versions.partition_point(|version| version.at <= until);
            if let Some(version) = versions.drain(..count).next_back() {
                // A length that was lost with a failed sync grows again with what is written.
                let end = ((sector + 1) * SECTOR as u64).min(self.cache.len());
                if end > self.durable.len() && !version.is_cut_off {
                    self.durable.set_len(end);
                }
                self.durable.set_sector(*sector, &version.sector);
            }
            !versions.is_empty()
        });
    }

    fn sync_failed(&mut self, kept: u64, chance: &mut Chance) {
        if let Some((_, len)) = self.lens.drain(..).next_back()
            && chance.below(8) < kept
        {
            self.durable.set_len(len);
        }
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            if chance.below(8) < kept {
                self.durable.set_sector(sector, &chance.pick(&versions).sector);
            }
        }
    }

    fn image(
        &self,
        cut: Cut,
        torn: Option<&Torn>,
        lost: Option<usize>,
        chance: &mut Chance,
    ) -> Content {
        let mut content = self.durable.clone();
        if self.dirty.is_empty() && self.lens.is_empty() {
            return content;
        }
        // How much was written back: little, half, or nearly all of it.
        let eighths = *chance.pick(&[1, 4, 7]);
        let is_random = matches!(cut, Cut::Sectors | Cut::Pages | Cut::Garbage);
        let is_header = chance.one_in(2);
        let len = match cut {
            Cut::Nothing => None,
            Cut::Torn => {
                let until = torn.map_or(At::MAX, |torn| torn.at);
                self.lens.iter().rfind(|(at, _)| *at <= until)
            }
            _ if is_random || cut == Cut::Header => {
                let nth = chance.index(self.lens.len() + 1);
                nth.checked_sub(1).map(|nth| &self.lens[nth])
            }
            _ => self.lens.last(),
        };
        let len_at = len.map_or(0, |(at, _)| *at);
        if let Some((_, len)) = len {
            content.set_len(*len);
        }
        // What the page that was looked at last shows.
        let mut page = (u64::MAX, 0);
        for (nth, (sector, versions)) in self.dirty.iter().enumerate() {
            let is_there = |version: &&Version| !version.is_cut_off || version.at <= len_at;
            let versions: Vec<_> = versions.iter().filter(is_there).collect();
            let Some(last) = versions.last() else { continue };
            let pick = |chance: &mut Chance| match chance.below(8) < eighths {
                true => versions.len(),
                false => chance.index(versions.len() + 1),
            };
            // Up to which version it was written.
            let written = match cut {
                Cut::Nothing => 0,
                Cut::Everything => versions.len(),
                Cut::Header => {
                    let in_header = *sector < (PAGE / SECTOR) as u64;
                    if in_header == is_header { versions.len() } else { 0 }
                }
                Cut::OneLost if lost == Some(nth) => chance.index(versions.len()),
                Cut::OneLost => versions.len(),
                Cut::Sectors | Cut::Garbage => pick(chance),
                Cut::Pages => {
                    let number = sector * SECTOR as u64 / PAGE as u64;
                    if page.0 != number {
                        // All of a page is of one moment.
                        let nth = pick(chance);
                        page = (number, nth.checked_sub(1).map_or(0, |nth| versions[nth].at));
                    }
                    versions.partition_point(|version| version.at <= page.1)
                }
                Cut::Torn => {
                    let until = torn.map_or(At::MAX, |torn| torn.at);
                    versions.partition_point(|version| version.at < until)
                }
            };
            let mut shown = match written.checked_sub(1) {
                Some(nth) => *versions[nth].sector,
                None => self.durable.sector(*sector),
            };
            match (cut, torn) {
                (Cut::Torn, Some(torn)) => {
                    let next = versions.get(written).filter(|version| version.at == torn.at);
                    if let Some(next) = next {
                        torn.cut(*sector, &mut shown, &next.sector);
                    }
                }
                (Cut::Sectors, _) if written < versions.len() && chance.one_in(8) => {
                    let byte = chance.index(SECTOR);
                    shown[..byte].copy_from_slice(&versions[written].sector[..byte]);
                }
                (Cut::Garbage, _) if last.is_whole && chance.one_in(8) => match chance.one_in(2) {
                    true => shown.fill(0),
                    false => shown.fill_with(|| chance.number() as u8),
                },
                _ => {}
            }
            content.set_sector(*sector, &shown);
        }
        content
    }
}

impl Torn {
    /// Puts what was written of `new` over `old`.
    fn cut(&self, sector: u64, old: &mut Sector, new: &Sector) {
        let start = sector * SECTOR as u64;
        let within = usize::try_from(self.byte.saturating_sub(start)).unwrap_or(SECTOR);
        let within = within.min(SECTOR);
        match self.is_head_lost {
            false => old[..within].copy_from_slice(&new[..within]),
            true => old[within..].copy_from_slice(&new[within..]),
        }
    }
}
