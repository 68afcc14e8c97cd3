//! Records that come after those that they should come before.
//!
//! The ring delivers records in order, but does not wait for ever for a writer that was stopped in the
//! middle of one: such a record is passed, and comes late if it comes at all. What was read meanwhile may
//! not have made sense without it. It is kept here for a while, so that the figures can be put right:
//!
//! * a free of what is not known to be allocated: its allocation may come;
//! * the description of an allocator whose device is not known: that may come;
//! * an allocation by an allocator that is not known: that may come.
//!
//! The records' times tell which came late. A free that is late ends what was there at its time, and a
//! release lets go of that alone; the close of a device, or the end of an allocator, does not touch what
//! has come to its address since. Only the peaks stay as they were when the late record came. Of several
//! late records about one object, the figures may be those of the wrong one.

use std::collections::VecDeque;

use hashbrown::HashMap;
use ttalloc_ring::record;

/// How much of each sort is kept.
const MOST: usize = 1024;

/// An allocator, a Buffer object, and its address.
type Object = (u64, u64, u64);

/// A free whose allocation may come yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct EarlyFree {
    pub(super) time_ns: u64,
    /// What it was taken for.
    pub(super) taken_for: TakenFor,
}

/// What a free is, if no allocation of its object and address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TakenFor {
    /// One of memory that was not known to be allocated.
    Unknown,
    /// One of what a parent had allocated.
    Inherited,
    /// One of what the runtime had let go at this time.
    Stale { let_go_ns: u64 },
}

impl EarlyFree {
    /// Whether it can be of an allocation that was made at a time.
    fn may_be_of(&self, made_ns: u64) -> bool {
        let is_later = match self.taken_for {
            TakenFor::Stale { let_go_ns } => made_ns > let_go_ns,
            TakenFor::Unknown | TakenFor::Inherited => true,
        };
        is_later && self.time_ns >= made_ns
    }
}

/// What may make sense yet.
#[derive(Debug, Default)]
pub(super) struct Late {
    frees: HashMap<Object, Vec<EarlyFree>>,
    order: VecDeque<Object>,
    allocators: VecDeque<(u64, record::Allocator)>,
    allocations: VecDeque<(u64, record::Allocate)>,
}

impl Late {
    pub(super) fn keep_free(&mut self, object: Object, free: EarlyFree) {
        self.frees.entry(object).or_default().push(free);
        self.order.push_back(object);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.remove(oldest, 0);
        }
    }

    fn remove(&mut self, object: Object, at: usize) -> Option<EarlyFree> {
        let frees = self.frees.get_mut(&object).filter(|frees| at < frees.len())?;
        let free = frees.remove(at);
        if frees.is_empty() {
            self.frees.remove(&object);
        }
        Some(free)
    }

    /// The free of an object's allocation that was made at a time, if that free has come already.
    pub(super) fn take_free(&mut self, object: Object, time_ns: u64) -> Option<EarlyFree> {
        if self.frees.is_empty() {
            return None;
        }
        let frees = self.frees.get(&object)?.iter().enumerate();
        let after = frees.filter(|(_, free)| free.may_be_of(time_ns));
        let (at, _) = after.min_by_key(|(_, free)| free.time_ns)?;
        let place = self.order.iter().position(|other| *other == object)?;
        self.order.remove(place);
        self.remove(object, at)
    }

    pub(super) fn keep_allocator(&mut self, time_ns: u64, body: record::Allocator) {
        self.allocators.retain(|(_, other)| other.allocator != body.allocator);
        keep(&mut self.allocators, (time_ns, body));
    }

    /// The allocators of a device that were described before it, but not before `time_ns`.
    pub(super) fn take_allocators(
        &mut self,
        device: u64,
        time_ns: u64,
    ) -> Vec<(u64, record::Allocator)> {
        take(&mut self.allocators, |one| one.device == device, time_ns)
    }

    pub(super) fn keep_allocation(&mut self, time_ns: u64, body: record::Allocate) {
        keep(&mut self.allocations, (time_ns, body));
    }

    /// What an allocator gave before it was described, but not before `time_ns`.
    pub(super) fn take_allocations(
        &mut self,
        allocator: u64,
        time_ns: u64,
    ) -> Vec<(u64, record::Allocate)> {
        take(&mut self.allocations, |one| one.allocator == allocator, time_ns)
    }
}

fn keep<T>(all: &mut VecDeque<(u64, T)>, one: (u64, T)) {
    if all.len() == MOST {
        all.pop_front();
    }
    all.push_back(one);
}

fn take<T: Copy>(
    all: &mut VecDeque<(u64, T)>,
    is_wanted: impl Fn(&T) -> bool,
    from_ns: u64,
) -> Vec<(u64, T)> {
    let is_it = |(time_ns, one): &(u64, T)| *time_ns >= from_ns && is_wanted(one);
    if !all.iter().any(is_it) {
        return Vec::new();
    }
    let (taken, rest) = std::mem::take(all).into_iter().partition(|one| is_it(one));
    *all = rest;
    VecDeque::into(taken)
}
