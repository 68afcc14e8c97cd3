//! The protocol of the ring's lanes: how a writer puts a record into one, and how the reader takes the
//! records out of all of them in one order.
//!
//! A lane is a power of two of words, into which records go one after the other, around and around. Its
//! *state*, one word, says who holds it and up to where its records are complete; its *head* says up to
//! where the reader has read. Positions count words, and wrap around at 2^40. To write a record, a writer
//!
//! 1. picks a lane that nobody holds and that has room, first of all the one that it used last, and takes
//!    it: (nobody, position) becomes (its process, position). Without such a lane it holds nothing, and
//!    waits or gives up, which is not this module's;
//! 2. takes the next number, of a counter that all lanes share: the record's place in the order;
//! 3. writes a frame, of length, number and a check of both and the position, and then the record's words;
//! 4. completes the record and gives the lane back, at once: (its process, position) becomes (nobody,
//!    position + words). If that fails, the reader has taken it for dead, and the record is lost.
//!
//! The numbers in a lane ascend, since they are taken while it is held. The reader delivers the records by
//! their numbers, and so never a record before one that was written earlier, by the same thread or by one
//! that knew of it. A number that isn't there is waited for while some lane stays held that was held when
//! this was found. Once there is none, nobody can deliver it, and the reader goes on.
//!
//! # Where a writer can die
//!
//! | It dies after | Its lane | What the reader sees |
//! |---|---|---|
//! | picking a lane ([`Step::Picked`]) | is free | nothing: no record was begun |
//! | taking it ([`Step::Held`]) | stays held | all other records in time; the lane among [`Reader::held`] |
//! | taking a number ([`Step::Numbered`]) | stays held | the records before it; then it waits ([`Reader::is_waiting`]) |
//! | writing the frame ([`Step::Framed`]) | stays held | the same: no complete record goes as far |
//! | writing the words ([`Step::Filled`]) | stays held | the same |
//! | completing it ([`Step::Committed`]) | is free | the record |
//! | finding no room | is free | nothing: it holds nothing while it waits |
//!
//! Wherever it was, a lane that stays held has all the records before, and other writers pass it by. Whoever
//! knows that the writer is dead frees the lane with [`Reader::recover`], which costs that record and no
//! other one. Without knowing, [`Reader::pass`] goes on after a while: if the writer was only slow, its record
//! is late, and not lost. A signal handler that interrupts a writer finds its lane held, and takes another.
//!
//! Nothing that the reader reads is trusted: it copies before it looks, and what makes no sense empties the lane
//! up to the position that it has, and is counted.

use std::cell::Cell;

use crate::record::MAX_BYTES;
use crate::sync::{AtomicU64, Ordering};

/// A position in a lane, in words of 8 bytes since its beginning, takes this many bits of its state,
/// and wraps around.
const POSITION_BITS: u32 = 40;
const POSITION: u64 = (1 << POSITION_BITS) - 1;
/// The owner in a state: a process's number plus one. The largest stands for all from there on.
const OWNERS: u32 = (1 << (u64::BITS - POSITION_BITS)) - 1;
/// Words before a record's own: its length with a check, and its place in the order.
pub const FRAME: usize = 2;
/// A frame's length takes this many bits; the check takes the others.
const LENGTH_BITS: u32 = 16;
/// The front of a lane that has no record. No record has this number, nor the one before.
const EMPTY: u64 = u64::MAX;

/// How often the reader looks at all lanes for one record. Three times are enough, unless somebody keeps
/// changing the order.
const MOST_LOOKS: usize = 8;

const _: () = assert!(MAX_BYTES < 1 << LENGTH_BITS);

/// Words that a record of `bytes` bytes takes in a lane.
pub const fn words_for(bytes: usize) -> usize {
    FRAME + bytes.div_ceil(8)
}

/// What writers and the reader share.
pub trait Memory {
    /// How many lanes there are: a power of two.
    fn lanes(&self) -> usize;
    /// The lane at `index`, which is less than [`Memory::lanes`].
    fn lane(&self, index: usize) -> Lane<'_>;
    /// The number that the next record takes.
    fn order(&self) -> &AtomicU64;
    /// Called by the reader when it made room in a lane.
    fn freed(&self);
}

/// One lane.
#[derive(Clone, Copy)]
pub struct Lane<'a> {
    /// A [`State`].
    pub state: &'a AtomicU64,
    /// Up to where the reader has read: a position.
    pub head: &'a AtomicU64,
    /// The records. A power of two of words.
    pub words: &'a [AtomicU64],
}

/// Who holds a lane, and up to where its records are complete.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u64);

impl State {
    fn new(owner: u32, position: u64) -> State {
        State(u64::from(owner) << POSITION_BITS | position & POSITION)
    }

    /// The process that holds the lane, plus one; 0 if none does.
    fn owner(self) -> u32 {
        (self.0 >> POSITION_BITS) as u32
    }

    fn position(self) -> u64 {
        self.0 & POSITION
    }
}

/// Words from `start` on to `end`.
fn distance(start: u64, end: u64) -> u64 {
    end.wrapping_sub(start) & POSITION
}

/// What precedes a record of `length` bytes: no other position, number and length give the same, but by
/// accident.
#[inline]
pub fn frame(position: u64, order: u64, length: usize) -> [u64; FRAME] {
    let length = length as u64;
    let mixed = order ^ (position & POSITION) << 20 ^ length << 44;
    let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [(mixed ^ mixed >> 32) << LENGTH_BITS | length, order]
}

/// Why a record was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no lane with room for it that could be held.
    NoRoom {
        /// Whether some lane was held by another writer: it may be free in a moment.
        held: bool,
    },
    /// The lane was taken away while it was written.
    Lost,
    /// A test stops the writer here, as death would.
    #[cfg(test)]
    Stopped,
}

/// What a writer has done when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It has found a lane that is free and has room.
    Picked,
    /// It holds the lane.
    Held,
    /// It has the record's number.
    Numbered,
    /// It has written the frame.
    Framed,
    /// It has written the whole record.
    Filled,
    /// It has completed the record and given the lane back.
    Committed,
}

/// Stops a test's writer after a step. In what is shipped, it is nothing.
macro_rules! reach {
    ($writer:expr, $step:ident) => {
        #[cfg(test)]
        if $writer.stop == Some(Step::$step) {
            return Err(Refused::Stopped);
        }
    };
}

/// Who writes.
#[derive(Clone, Copy)]
pub struct Writer {
    owner: u32,
    /// The last step that is taken.
    #[cfg(test)]
    pub stop: Option<Step>,
}

impl Writer {
    /// A writer of the process of that number.
    #[inline]
    pub fn new(process: u32) -> Writer {
        Writer {
            owner: process.saturating_add(1).min(OWNERS),
            #[cfg(test)]
            stop: None,
        }
    }

    /// Writes a record of `head` and `tail`, at most [`MAX_BYTES`] together. `hint` is the lane to try
    /// first, modulo their count, and becomes the one that was used, not less than their count.
    ///
    /// # Errors
    /// Why it was not written.
    #[inline]
    pub fn write(
        self,
        memory: &impl Memory,
        hint: &Cell<u32>,
        head: &[u64],
        tail: &[u8],
    ) -> Result<(), Refused> {
        let words = words_for(size_of_val(head) + tail.len());
        let lanes = memory.lanes();
        let mut held = false;
        for step in 0..lanes {
            let index = (hint.get() as usize).wrapping_add(step) & (lanes - 1);
            let lane = memory.lane(index);
            match lane.pick(words) {
                Ok(position) => {
                    reach!(self, Picked);
                    if lane.hold(self.owner, position) {
                        if step > 0 {
                            hint.set((index + lanes) as u32);
                        }
                        return self.fill(memory, &lane, position, head, tail);
                    }
                    held = true;
                }
                Err(is_held) => held |= is_held,
            }
        }
        Err(Refused::NoRoom { held })
    }

    /// Writes a record to a lane that is held and has room, and gives the lane back.
    #[inline]
    fn fill(
        self,
        memory: &impl Memory,
        lane: &Lane<'_>,
        position: u64,
        head: &[u64],
        tail: &[u8],
    ) -> Result<(), Refused> {
        reach!(self, Held);
        let length = size_of_val(head) + tail.len();
        let words = words_for(length);
        // Release pairs with the acquire in `Reader::look`: who knows this number, or a later one, sees
        // that the lane is held. Acquire, so that it also sees this of the earlier ones.
        let order = memory.order().fetch_add(1, Ordering::AcqRel);
        reach!(self, Numbered);
        let start = lane.index(position);
        let frame = frame(position, order, length);
        if let Some(place) = lane.words[start..].get(..words) {
            let (frame_place, place) = place.split_at(FRAME);
            let (head_place, tail_place) = place.split_at(head.len());
            // Relaxed, here and below: the commit publishes them.
            for (word, value) in frame_place.iter().zip(frame) {
                word.store(value, Ordering::Relaxed);
            }
            reach!(self, Framed);
            for (word, value) in head_place.iter().zip(head) {
                word.store(*value, Ordering::Relaxed);
            }
            for (word, value) in tail_place.iter().zip(tail.chunks(8)) {
                word.store(to_word(value), Ordering::Relaxed);
            }
        } else {
            lane.fill_around(start, &frame);
            reach!(self, Framed);
            lane.fill_around(lane.index(position + FRAME as u64), head);
            for (value, at) in tail.chunks(8).zip(position + (FRAME + head.len()) as u64..) {
                lane.words[lane.index(at)].store(to_word(value), Ordering::Relaxed);
            }
        }
        reach!(self, Filled);
        if !lane.commit(self.owner, position, words) {
            return Err(Refused::Lost);
        }
        reach!(self, Committed);
        Ok(())
    }
}

impl Lane<'_> {
    /// Which word is at a position.
    #[inline]
    fn index(&self, position: u64) -> usize {
        position as usize & (self.words.len() - 1)
    }

    /// The position at which so many words can be written, if the lane is free and has room; else
    /// whether it is held.
    #[inline]
    fn pick(&self, words: usize) -> Result<u64, bool> {
        // Relaxed: `hold` finds out whether it still is so.
        let state = State(self.state.load(Ordering::Relaxed));
        if state.owner() != 0 {
            return Err(true);
        }
        // Acquire pairs with the release in `Reader::publish`: what will be overwritten was read before.
        let used = distance(self.head.load(Ordering::Acquire), state.position());
        let capacity = self.words.len() as u64;
        if used + words as u64 > capacity {
            // More than all of it: the state is older than the head, so others are using the lane.
            return Err(used > capacity);
        }
        Ok(state.position())
    }

    /// Takes the lane, if it is as it was picked. The reader may have gone on since then, which only makes
    /// more room.
    #[inline]
    fn hold(&self, owner: u32, position: u64) -> bool {
        let (free, held) = (State::new(0, position), State::new(owner, position));
        // Acquire pairs with the release in `commit`: the record before has a lower number.
        self.state.compare_exchange(free.0, held.0, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Writes words of which some are at the lane's end, and the next at its beginning.
    #[cold]
    fn fill_around(&self, start: usize, values: &[u64]) {
        let places = self.words[start..].iter().chain(self.words);
        for (word, value) in places.zip(values) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    /// Completes a record and gives the lane back; false if it was taken away.
    #[inline]
    fn commit(&self, owner: u32, position: u64, words: usize) -> bool {
        let held = State::new(owner, position);
        let free = State::new(0, position + words as u64);
        // Release pairs with the acquire in `Reader::look`, for the words, and in `hold`.
        self.state.compare_exchange(held.0, free.0, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

#[inline]
fn to_word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// A lane that a writer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The lane.
    pub lane: usize,
    /// The writer's process; `u32::MAX` for those beyond the first 2^24 - 2, which have no name here.
    pub process: u32,
}

/// What the reader knows of a lane.
#[derive(Clone, Copy, Default)]
struct Place {
    /// Where it goes on reading.
    head: u64,
    /// Where the writers know it to be.
    published: u64,
    /// Up to where there are complete records.
    end: u64,
    /// The state when the reader last looked.
    state: u64,
    /// The state when the wait for a record began.
    before: u64,
    /// The state of a writer that is not waited for any more; 0 if there is none.
    given_up: u64,
}

/// The reader's side: everything it has to know, none of which others can change.
pub struct Reader {
    /// The number of the record that is due.
    next: u64,
    /// The number of each lane's first record.
    fronts: Vec<u64>,
    places: Vec<Place>,
    /// The lane that had the last record.
    current: usize,
    /// The highest number known to be taken, plus one, when the reader last looked, or when the wait for a
    /// record began.
    order: u64,
    /// Whether it waits for a record: for one of the writers that held a lane when the wait began.
    waiting: bool,
    /// Numbers that may be missing, since their writers' lanes were recovered.
    missing: u64,
    torn: u64,
    late: u64,
    spoiled: u64,
    words: Vec<u64>,
}

impl Reader {
    /// A reader of new lanes, which begin at `start`.
    pub fn new(lanes: usize, start: u64) -> Reader {
        let start = start & POSITION;
        let place = Place { head: start, published: start, end: start, ..Place::default() };
        Reader {
            next: 0,
            fronts: vec![EMPTY; lanes],
            places: vec![place; lanes],
            current: 0,
            order: 0,
            waiting: false,
            missing: 0,
            torn: 0,
            late: 0,
            spoiled: 0,
            words: vec![0; MAX_BYTES / 8],
        }
    }

    /// The next record, if it is there.
    #[inline]
    pub fn read(&mut self, memory: &impl Memory) -> Option<&[u8]> {
        if self.fronts[self.current] != self.next {
            self.current = self.find(memory)?;
        }
        let length = self.take(memory);
        Some(&bytemuck::cast_slice(&self.words)[..length])
    }

    /// The lane with the record that is due, or with one that comes late.
    #[inline(never)]
    fn find(&mut self, memory: &impl Memory) -> Option<usize> {
        for _ in 0..MOST_LOOKS {
            let found = self.fronts.iter().position(|&front| front <= self.next);
            if found.is_some() {
                self.waiting = false;
                return found;
            }
            if !self.look(memory) {
                break;
            }
        }
        None
    }

    /// Copies the first record of the current lane, and leaves it behind; returns its length.
    #[inline]
    fn take(&mut self, memory: &impl Memory) -> usize {
        let index = self.current;
        let lane = memory.lane(index);
        let place = &mut self.places[index];
        let start = place.head as usize & (lane.words.len() - 1);
        // Read again, and so checked again: whoever spoils the memory may do it at any time.
        let length = lane.words[start].load(Ordering::Relaxed) as usize & ((1 << LENGTH_BITS) - 1);
        let length = length
            .min(MAX_BYTES)
            .min((distance(place.head, place.end) as usize).saturating_sub(FRAME) * 8);
        let words = words_for(length);
        let to = &mut self.words[..words - FRAME];
        if let Some(from) = lane.words[start..].get(FRAME..words) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.load(Ordering::Relaxed);
            }
        } else {
            let from = lane.words[start..].iter().chain(lane.words).skip(FRAME);
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.load(Ordering::Relaxed);
            }
        }
        place.head = (place.head + words as u64) & POSITION;
        let full_enough = distance(place.published, place.head) >= lane.words.len() as u64 / 4;
        let order = self.fronts[index];
        if order < self.next {
            self.late += 1;
        } else {
            self.next = order + 1;
        }
        self.load_front(index, &lane);
        if full_enough {
            self.publish(index, &lane);
            memory.freed();
        }
        length
    }

    /// Reads the frame of a lane's first record, if it has one.
    #[inline]
    fn load_front(&mut self, index: usize, lane: &Lane<'_>) {
        let place = &mut self.places[index];
        let there = distance(place.head, place.end) as usize;
        if there == 0 {
            self.fronts[index] = EMPTY;
            return;
        }
        let word =
            |at: u64| lane.words[at as usize & (lane.words.len() - 1)].load(Ordering::Relaxed);
        let (first, order) = (word(place.head), word(place.head + 1));
        let length = first as usize & ((1 << LENGTH_BITS) - 1);
        let is_sound = there >= FRAME
            && length <= MAX_BYTES
            && words_for(length) <= there
            && [first, order] == frame(place.head, order, length)
            && order < EMPTY - 1;
        if is_sound {
            self.fronts[index] = order;
        } else {
            // Where the next record begins can't be known, so all of them are left.
            self.spoiled += 1;
            place.head = place.end;
            self.fronts[index] = EMPTY;
        }
    }

    /// Looks for new records in all lanes; whether there may be one to read now. Goes on without those
    /// that nobody can deliver any more.
    #[cold]
    fn look(&mut self, memory: &impl Memory) -> bool {
        // Acquire pairs with the release in `Writer::fill`: of every writer that took a number below this
        // one, either the lane is seen held from here on, or the record.
        let order = memory.order().load(Ordering::Acquire).min(EMPTY - 1);
        let is_due = order > self.next || self.fronts.iter().any(|&front| front != EMPTY);
        let (mut found, mut held, mut given_up, mut freed) = (false, false, false, false);
        for index in 0..self.places.len() {
            let lane = memory.lane(index);
            // Acquire pairs with the commit's release: the words up to the position are there.
            let state = State(lane.state.load(Ordering::Acquire));
            let place = &mut self.places[index];
            place.state = state.0;
            if state.owner() != 0 && state.0 == place.given_up {
                given_up = true;
            } else {
                place.given_up = 0;
                // Who took a lane after the wait began has another number.
                held |= state.owner() != 0 && (!self.waiting || state.0 == place.before);
            }
            if distance(place.head, state.position()) > lane.words.len() as u64 {
                // No writer goes that far.
                self.spoiled += 1;
                place.head = state.position();
                self.fronts[index] = EMPTY;
            }
            place.end = state.position();
            if self.fronts[index] == EMPTY {
                self.load_front(index, &lane);
                found |= self.fronts[index] <= self.next;
            }
            let place = &self.places[index];
            // Also if someone else changed it.
            if place.head != place.published || lane.head.load(Ordering::Relaxed) != place.head {
                self.publish(index, &lane);
                freed = true;
            }
        }
        if freed {
            memory.freed();
        }
        if !self.waiting {
            self.order = order;
        }
        if found {
            return true;
        }
        if is_due && held {
            if !self.waiting {
                self.waiting = true;
                for place in &mut self.places {
                    place.before = place.state;
                }
            }
            return false;
        }
        self.waiting = false;
        if !is_due {
            // Records that are there without a number having been taken: somebody else changed it.
            return self.fronts.iter().any(|&front| front != EMPTY);
        }
        let before = self.next;
        self.go_on();
        let lost = self.next - before;
        let explained = lost.min(self.missing);
        self.missing -= explained;
        // Who was given up may have the number, and be late with it.
        self.spoiled += u64::from(lost > explained && !given_up);
        lost > 0
    }

    /// Goes on to the next record that is there, but not beyond the numbers that were taken when the
    /// reader looked, or began to wait: those after them may yet come.
    fn go_on(&mut self) {
        let front = self.fronts.iter().copied().min().unwrap_or(EMPTY);
        let next = if self.order > self.next { front.min(self.order) } else { front };
        if next != EMPTY {
            self.next = next.max(self.next);
        }
    }

    fn publish(&mut self, index: usize, lane: &Lane<'_>) {
        let place = &mut self.places[index];
        place.published = place.head;
        // Release pairs with the acquire in `Lane::pick`: the words before were read.
        lane.head.store(place.head, Ordering::Release);
    }

    /// Tells writers how far the reader is, in every lane.
    pub fn publish_all(&mut self, memory: &impl Memory) {
        let mut freed = false;
        for index in 0..self.places.len() {
            if self.places[index].head != self.places[index].published {
                self.publish(index, &memory.lane(index));
                freed = true;
            }
        }
        if freed {
            memory.freed();
        }
    }

    /// Whether, when last looked, a record was due that some writer may yet deliver.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Goes on without the record that is due. If it comes after all, it is late.
    pub fn pass(&mut self) {
        if self.waiting {
            self.waiting = false;
            for place in &mut self.places {
                let is_stuck = State(place.state).owner() != 0 && place.state == place.before;
                place.given_up = if is_stuck { place.state } else { place.given_up };
            }
            self.go_on();
        }
    }

    /// The lanes that are held now.
    pub fn held(memory: &impl Memory) -> impl Iterator<Item = Held> {
        (0..memory.lanes()).filter_map(|lane| {
            let state = State(memory.lane(lane).state.load(Ordering::Relaxed));
            let process = match state.owner() {
                0 => return None,
                OWNERS => u32::MAX,
                owner => owner - 1,
            };
            Some(Held { lane, process })
        })
    }

    /// Frees a lane whose writer is dead. What it was writing is lost, and counted as torn.
    pub fn recover(&mut self, memory: &impl Memory, lane: usize) {
        if lane >= memory.lanes() {
            return;
        }
        let state = memory.lane(lane).state;
        let held = State(state.load(Ordering::Relaxed));
        let free = State::new(0, held.position());
        // Release pairs with the acquire in `Lane::hold`: what the dead writer wrote, whose death the caller
        // knows of, is before what the next one writes to the same place. If it fails, the writer was alive,
        // and has completed its record.
        let recovered = held.owner() != 0
            && state.compare_exchange(held.0, free.0, Ordering::Release, Ordering::Relaxed).is_ok();
        if recovered {
            self.torn += 1;
            self.missing += 1;
        }
    }

    /// Whether there is no lane that a writer could take for a record of any length.
    pub fn is_full(memory: &impl Memory) -> bool {
        (0..memory.lanes()).all(|index| {
            let lane = memory.lane(index);
            let state = State(lane.state.load(Ordering::Relaxed));
            let used = distance(lane.head.load(Ordering::Relaxed), state.position());
            state.owner() != 0 || used + words_for(MAX_BYTES) as u64 > lane.words.len() as u64
        })
    }

    /// Counts what was begun and not finished as torn, and what was not read as one more.
    pub fn abandon(&mut self, memory: &impl Memory) {
        let left = (0..memory.lanes()).any(|index| {
            let state = State(memory.lane(index).state.load(Ordering::Relaxed));
            state.position() != self.places[index].head
        });
        self.torn += Reader::held(memory).count() as u64 + u64::from(left);
        self.waiting = false;
    }

    /// Records that were begun and never finished.
    pub fn torn(&self) -> u64 {
        self.torn
    }

    /// Records that came after the reader had gone on without them.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// How often a lane or the order made no sense.
    pub fn spoiled(&self) -> u64 {
        self.spoiled
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
