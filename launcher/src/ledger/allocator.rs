//! What an allocator gave and has not taken back.
//!
//! An allocation is found by its Buffer object and address, and by the place it has in memory. Several
//! may share either; they are linked, the newest first.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use hashbrown::HashMap;
use slab::Slab;
use ttalloc_ring::record::{Purpose, TYPES};

use super::chips::Place;
use super::{MemoryType, Totals};

/// How many objects that may still ask to be freed are known, at least, after their memory was let go;
/// at most twice as many.
const MOST_RELEASED: usize = 1 << 17;
/// How many allocations of one object, at one address, are looked at for the one that a free is of.
const MOST_LOOKS: usize = 64;

/// One live allocation.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// The Buffer object.
    pub(super) buffer: u64,
    /// Where it is, in each bank.
    pub address: u64,
    /// The type of memory.
    pub kind: MemoryType,
    /// What it takes on each of its chips.
    pub totals: Totals,
    /// What it takes in each of its banks, in bytes.
    pub bytes_per_bank: u64,
    /// If it has an address of its own on each core, how many banks it takes; None if it takes all.
    pub cores: Option<u64>,
    /// What it is for.
    pub purpose: Purpose,
    /// Whether the allocator took it over from another.
    pub adopted: bool,
    /// The page's size in bytes.
    pub page_bytes: u64,
    /// When it was made, in nanoseconds of the records' clock.
    pub time_ns: u64,
}

/// An allocation's key in [`Live`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key(NonZeroU32);

impl Key {
    fn new(place: usize) -> Option<Key> {
        u32::try_from(place).ok()?.checked_add(1).and_then(NonZeroU32::new).map(Key)
    }

    fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Neighbours in a list: the one that came before, and the one that came after.
#[derive(Clone, Copy, Debug, Default)]
struct Links {
    older: Option<Key>,
    newer: Option<Key>,
}

#[derive(Debug)]
struct Entry {
    allocation: Allocation,
    /// In which order they came.
    number: u64,
    of_object: Links,
    at_place: Links,
}

/// What of its memory is allocated, and where.
#[derive(Debug, Default)]
pub(super) struct Live {
    entries: Slab<Entry>,
    /// The newest of each Buffer object and address.
    by_object: HashMap<(u64, u64), Key>,
    /// The newest at each address, by [`MemoryType::ALL`].
    by_place: [BTreeMap<u64, Key>; TYPES],
    next: u64,
}

impl Live {
    /// Takes one in; false if there is no more room.
    fn insert(&mut self, allocation: Allocation) -> bool {
        let Some(key) = Key::new(self.entries.vacant_key()) else { return false };
        let object = (allocation.buffer, allocation.address);
        let place = &mut self.by_place[allocation.kind as usize];
        let of_object = Links { older: self.by_object.insert(object, key), newer: None };
        let at_place = Links { older: place.insert(allocation.address, key), newer: None };
        if let Some(older) = of_object.older.and_then(|older| self.entries.get_mut(older.place())) {
            older.of_object.newer = Some(key);
        }
        if let Some(older) = at_place.older.and_then(|older| self.entries.get_mut(older.place())) {
            older.at_place.newer = Some(key);
        }
        self.next += 1;
        self.entries.insert(Entry { allocation, number: self.next, of_object, at_place });
        true
    }

    fn remove(&mut self, key: Key) -> Option<Allocation> {
        let entry = self.entries.try_remove(key.place())?;
        let allocation = entry.allocation;
        let Links { older, newer } = entry.of_object;
        match newer.and_then(|newer| self.entries.get_mut(newer.place())) {
            Some(newer) => newer.of_object.older = older,
            None => {
                let object = (allocation.buffer, allocation.address);
                match older {
                    Some(older) => self.by_object.insert(object, older),
                    None => self.by_object.remove(&object),
                };
            }
        }
        if let Some(older) = older.and_then(|older| self.entries.get_mut(older.place())) {
            older.of_object.newer = newer;
        }
        let Links { older, newer } = entry.at_place;
        match newer.and_then(|newer| self.entries.get_mut(newer.place())) {
            Some(newer) => newer.at_place.older = older,
            None => {
                let place = &mut self.by_place[allocation.kind as usize];
                match older {
                    Some(older) => place.insert(allocation.address, older),
                    None => place.remove(&allocation.address),
                };
            }
        }
        if let Some(older) = older.and_then(|older| self.entries.get_mut(older.place())) {
            older.at_place.newer = newer;
        }
        Some(allocation)
    }

    /// The allocation of an object that was there at a time: a free that is late does not end what came
    /// after it.
    fn of_object(&self, object: (u64, u64), time_ns: u64) -> Option<Key> {
        let mut next = self.by_object.get(&object).copied();
        for _ in 0..MOST_LOOKS {
            let key = next?;
            let entry = self.entries.get(key.place())?;
            if entry.allocation.time_ns <= time_ns {
                return Some(key);
            }
            next = entry.of_object.older;
        }
        None
    }

    /// The newest at an address, if it was there at a time.
    fn at_place(&self, kind: MemoryType, address: u64, time_ns: u64) -> Option<Key> {
        let key = *self.by_place[kind as usize].get(&address)?;
        let entry = self.entries.get(key.place())?;
        (entry.allocation.time_ns <= time_ns).then_some(key)
    }

    /// All that share a place with the newest there.
    fn sharing_place(&self, newest: Key) -> impl Iterator<Item = &Allocation> {
        let first = self.entries.get(newest.place());
        let older =
            |entry: &&Entry| entry.at_place.older.and_then(|older| self.entries.get(older.place()));
        std::iter::successors(first, older).map(|entry| &entry.allocation)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of them, in no particular order.
    pub(super) fn values(&self) -> impl Iterator<Item = &Allocation> {
        self.entries.iter().map(|(_, entry)| &entry.allocation)
    }

    /// Keeps those that `keep` says, and gives back the room that they and the rest took. What is kept
    /// is no longer found.
    pub(super) fn settle(&mut self, mut keep: impl FnMut(&Allocation) -> bool) {
        let kept = self.entries.drain().filter(|entry| keep(&entry.allocation));
        let kept: Vec<Entry> = kept.collect();
        *self = Live::default();
        self.entries.reserve_exact(kept.len());
        for entry in kept {
            self.entries.insert(Entry {
                of_object: Links::default(),
                at_place: Links::default(),
                ..entry
            });
        }
    }
}

/// The type of an object's memory, and when that was let go.
#[derive(Clone, Copy, Debug)]
struct LetGo {
    kind: MemoryType,
    time_ns: u64,
    /// Whether another object has come to its place since, so that only a late free can be of it.
    is_over: bool,
}

/// Objects whose memory was let go all at once, or by another's free, and that may still ask to free it:
/// by object and address. Of very many, those are forgotten that have not asked for longest.
#[derive(Debug, Default)]
pub(super) struct Released {
    now: HashMap<(u64, u64), LetGo>,
    before: HashMap<(u64, u64), LetGo>,
}

impl Released {
    fn remove(&mut self, object: (u64, u64)) -> Option<LetGo> {
        if self.now.is_empty() && self.before.is_empty() {
            return None;
        }
        let before = self.before.remove(&object);
        self.now.remove(&object).or(before)
    }

    /// Another object has come to the place.
    fn is_over(&mut self, object: (u64, u64)) {
        for known in [&mut self.now, &mut self.before] {
            if !known.is_empty()
                && let Some(let_go) = known.get_mut(&object)
            {
                let_go.is_over = true;
            }
        }
    }

    /// Returns how many were forgotten for it.
    fn insert(&mut self, object: (u64, u64), let_go: LetGo) -> u64 {
        self.remove(object);
        let mut forgotten = 0;
        if self.now.len() >= MOST_RELEASED {
            forgotten = self.before.len() as u64;
            self.before = std::mem::take(&mut self.now);
        }
        self.now.insert(object, let_go);
        forgotten
    }

    fn len(&self) -> usize {
        self.now.len() + self.before.len()
    }
}

/// An allocator, and what it gave and has not taken back.
#[derive(Debug, Default)]
pub(super) struct Allocator {
    pub(super) device: u64,
    pub(super) place: Place,
    pub(super) banks: [u32; TYPES],
    pub(super) alignment: u64,
    /// When it was last described, in nanoseconds of the records' clock.
    pub(super) described_ns: u64,
    /// When it last let go of all that it had given.
    pub(super) released_ns: u64,
    pub(super) live: Live,
    /// What that takes in each bank, by [`MemoryType::ALL`].
    pub(super) bytes_per_bank: [u64; TYPES],
    /// How many records of allocations, frees and releases were read.
    pub(super) operations: u64,
    pub(super) released: Released,
}

/// What a free ended.
#[derive(Default)]
pub(super) struct Freed {
    /// The allocation; None if its memory had been let go before, and nobody has it now.
    pub(super) allocation: Option<Allocation>,
    /// The type of memory that was let go since then, if the free is late: it had been freed before.
    pub(super) was_free: Option<MemoryType>,
    /// When what the object had was let go, if nothing else is known of it.
    pub(super) let_go_ns: Option<u64>,
    /// How many objects were forgotten over it.
    pub(super) forgotten: u64,
}

impl Allocator {
    pub(super) fn chips(&self) -> &[i32] {
        &self.place.chips
    }

    /// What a free of `buffer` at `address` ends; None if the buffer is not known.
    pub(super) fn free(&mut self, buffer: u64, address: u64, time_ns: u64) -> Option<Freed> {
        let object = (buffer, address);
        if let Some(key) = self.live.of_object(object, time_ns) {
            return Some(Freed { allocation: self.take(key), ..Freed::default() });
        }
        let LetGo { kind, time_ns: let_go_ns, is_over } = self.released.remove(object)?;
        if let_go_ns <= time_ns && is_over {
            return None;
        }
        if let_go_ns > time_ns {
            return Some(Freed { was_free: Some(kind), ..Freed::default() });
        }
        // A destructor that runs after `deallocate_buffers`: the runtime frees whatever lies there now.
        let victim = self.live.at_place(kind, address, time_ns);
        let allocation = victim.and_then(|victim| self.take(victim));
        // The one that lay there has its own free yet to come.
        let forgotten = allocation.as_ref().map_or(0, |one| self.let_go(one, time_ns));
        Some(Freed { allocation, was_free: None, let_go_ns: Some(let_go_ns), forgotten })
    }

    fn take(&mut self, key: Key) -> Option<Allocation> {
        let allocation = self.live.remove(key)?;
        let used = &mut self.bytes_per_bank[allocation.kind as usize];
        *used = used.saturating_sub(allocation.totals.bytes_per_bank);
        Some(allocation)
    }

    /// Takes an allocation in; false if there is no more room.
    pub(super) fn insert(&mut self, allocation: Allocation) -> bool {
        self.released.is_over((allocation.buffer, allocation.address));
        let (kind, totals) = (allocation.kind, allocation.totals);
        if !self.live.insert(allocation) {
            return false;
        }
        let used = &mut self.bytes_per_bank[kind as usize];
        *used = used.saturating_add(totals.bytes_per_bank);
        true
    }

    /// Lets go of all that was there at a time. Returns how many objects were forgotten over it.
    pub(super) fn release(&mut self, time_ns: u64, mut each: impl FnMut(&Allocation)) -> u64 {
        let (mut gone, mut later) = (Vec::new(), Vec::new());
        let all = std::mem::take(&mut self.live);
        let next = all.next;
        for (_, entry) in all.entries {
            match entry.allocation.time_ns <= time_ns {
                true => gone.push(entry),
                false => later.push(entry),
            }
        }
        // Oldest first: where several had one object, only the newest's is still there to ask.
        gone.sort_unstable_by_key(|entry| entry.number);
        later.sort_unstable_by_key(|entry| entry.number);
        let mut forgotten = 0;
        self.bytes_per_bank = [0; TYPES];
        for Entry { allocation, .. } in gone {
            forgotten += self.let_go(&allocation, time_ns);
            each(&allocation);
        }
        // They keep their places in the order.
        self.live.next = next;
        for Entry { allocation, .. } in later {
            self.insert(allocation);
        }
        self.released_ns = self.released_ns.max(time_ns);
        forgotten
    }

    /// An allocation's memory was let go, and its object may still ask to free it. Returns how many
    /// others were forgotten over it.
    pub(super) fn let_go(&mut self, allocation: &Allocation, time_ns: u64) -> u64 {
        let object = (allocation.buffer, allocation.address);
        self.released.insert(object, LetGo { kind: allocation.kind, time_ns, is_over: false })
    }

    /// Its process has ended: nothing will be looked for any more.
    pub(super) fn settle(&mut self, keep: impl FnMut(&Allocation) -> bool) {
        self.live.settle(keep);
        self.released = Released::default();
    }

    /// What a buffer takes in a bank: the free list rounds up once more, to the allocator's own alignment.
    pub(super) fn rounded(&self, bytes_per_bank: u64) -> u64 {
        bytes_per_bank.checked_next_multiple_of(self.alignment.max(1)).unwrap_or(u64::MAX)
    }

    /// Whether one of its live allocations has `address` in its memory.
    pub(super) fn covers(&self, kind: MemoryType, address: u64) -> bool {
        let below = self.live.by_place[kind as usize].range(..=address).next_back();
        let mut there = below.into_iter().flat_map(|(_, &key)| self.live.sharing_place(key));
        there.any(|one| address - one.address < one.bytes_per_bank)
    }

    /// Its live allocations that have memory between two addresses.
    pub(super) fn between(
        &self,
        kind: MemoryType,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = &Allocation> {
        let places = &self.live.by_place[kind as usize];
        let below = places.range(..start).next_back();
        let inside = places.range(start..end.max(start));
        let there = below.into_iter().chain(inside);
        there
            .flat_map(|(_, &key)| self.live.sharing_place(key))
            .filter(move |one| one.address.saturating_add(one.bytes_per_bank) > start)
    }

    /// The lowest address that is allocated in L1.
    pub(super) fn lowest_l1(&self) -> Option<u64> {
        let places = &self.live.by_place[MemoryType::L1 as usize];
        places.first_key_value().map(|(&address, _)| address)
    }

    /// About how much it takes to remember it, in bytes.
    pub(super) fn weight(&self) -> usize {
        let each = size_of::<Entry>() + 2 * size_of::<(u64, u64, u64)>();
        let released = 2 * size_of::<((u64, u64), LetGo)>();
        size_of::<Allocator>()
            + self.place.weight()
            + self.live.len().saturating_mul(each)
            + self.released.len().saturating_mul(released)
    }
}
