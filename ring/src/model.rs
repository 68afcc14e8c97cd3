//! The protocol, run by a model checker: loom tries all that can happen within bounds, shuttle many more
//! steps at random.

use std::cell::Cell;
use std::collections::VecDeque;

#[cfg(loom)]
use loom::{
    sync::{Arc, Condvar, Mutex},
    thread,
};
#[cfg(all(shuttle, not(loom)))]
use shuttle::{
    sync::{Arc, Condvar, Mutex},
    thread,
};

use crate::lane::{Lane, Memory, Reader, Refused, Step, Writer};
use crate::room::{Room, Ticket};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// How many words each lane has. A record of [`write`] takes 3, so that the third one wraps around.
const WORDS: usize = 8;
/// So that positions wrap around after the first record.
const START: u64 = (1 << 40) - 3;

/// Checks `model` in all executions, or very many.
fn check(model: impl Fn() + Send + Sync + 'static) {
    #[cfg(loom)]
    {
        let mut builder = loom::model::Builder::new();
        // LOOM_MAX_PREEMPTIONS overrides it.
        builder.preemption_bound.get_or_insert(2);
        builder.max_branches = 20_000;
        builder.check(model);
    }
    #[cfg(all(shuttle, not(loom)))]
    {
        let times = std::env::var("SHUTTLE_ITERATIONS").ok().and_then(|text| text.parse().ok());
        shuttle::check_pct(model, times.unwrap_or(2_000), 3);
    }
}

struct Shared {
    order: AtomicU64,
    lanes: Vec<(AtomicU64, AtomicU64, Vec<AtomicU64>)>,
    room: Room,
    /// Stands for the kernel's futexes.
    futex: (Mutex<()>, Condvar),
}

impl Shared {
    fn new(lanes: usize) -> Arc<Shared> {
        let zeros = || (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let lane = || (AtomicU64::new(START), AtomicU64::new(START), zeros());
        Arc::new(Shared {
            order: AtomicU64::new(0),
            lanes: (0..lanes).map(|_| lane()).collect(),
            room: Room::new(),
            futex: (Mutex::new(()), Condvar::new()),
        })
    }

    fn wake(&self, _: &AtomicU32) {
        let _guard = self.futex.0.lock().unwrap();
        self.futex.1.notify_all();
    }

    /// Until room was made since the ticket.
    fn wait(&self, ticket: Ticket) {
        let mut guard = self.futex.0.lock().unwrap();
        while self.room.made().load(Ordering::Relaxed) == ticket.0 {
            guard = self.futex.1.wait(guard).unwrap();
        }
    }
}

impl Memory for Shared {
    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn lane(&self, index: usize) -> Lane<'_> {
        let (state, head, words) = &self.lanes[index];
        Lane { state, head, words }
    }

    fn order(&self) -> &AtomicU64 {
        &self.order
    }

    fn freed(&self) {
        self.room.tell(|word| self.wake(word));
    }
}

fn reader(shared: &Shared) -> Reader {
    Reader::new(shared.lanes.len(), START)
}

/// Writes a record of one word, trying every lane once.
fn write(shared: &Shared, writer: Writer, hint: &Cell<u32>, value: u64) -> Result<(), Refused> {
    writer.write(shared, hint, &[value], &[])
}

/// Writes a record, waiting until it can.
fn write_waiting(shared: &Shared, writer: Writer, hint: &Cell<u32>, value: u64) {
    loop {
        let Err(_) = write(shared, writer, hint, value) else { return };
        let ticket = shared.room.announce();
        match write(shared, writer, hint, value) {
            Ok(()) => return,
            Err(Refused::NoRoom { held: true }) => thread::yield_now(),
            Err(_) => shared.wait(ticket),
        }
    }
}

/// Reads what is there.
fn read(reader: &mut Reader, shared: &Shared) -> Vec<u64> {
    let mut values = Vec::new();
    while let Some(bytes) = reader.read(shared) {
        values.push(u64::from_le_bytes(bytes.try_into().unwrap()));
    }
    reader.publish_all(shared);
    values
}

/// Every writer's records are all there, in order. Values are 10 * writer + count.
fn assert_all(values: &[u64], writers: u64, each: u64) {
    let mut left: Vec<VecDeque<u64>> =
        (0..writers).map(|writer| (0..each).map(|count| 10 * writer + count).collect()).collect();
    for value in values {
        assert_eq!(left[(value / 10) as usize].pop_front(), Some(*value), "{values:?}");
    }
    assert!(left.iter().all(VecDeque::is_empty), "{values:?}");
}

/// Writers that need no room to be made, and a reader that reads meanwhile and afterwards.
fn writers_with_room(lanes: usize, writers: u32) {
    let shared = Shared::new(lanes);
    let threads: Vec<_> = (0..writers)
        .map(|number| {
            let shared = shared.clone();
            thread::spawn(move || {
                let hint = Cell::new(number);
                while write(&shared, Writer::new(number), &hint, 10 * u64::from(number)).is_err() {
                    thread::yield_now();
                }
            })
        })
        .collect();
    let mut reader = reader(&shared);
    let mut values = read(&mut reader, &shared);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    values.extend(read(&mut reader, &shared));
    assert_all(&values, writers.into(), 1);
    assert_eq!((reader.torn(), reader.late(), reader.spoiled()), (0, 0, 0));
    assert_eq!(Reader::held(&*shared).count(), 0);
}

/// Writers that wait for room, and a reader that makes it.
fn writers_and_reader(lanes: usize, writers: u64, each: u64) {
    let shared = Shared::new(lanes);
    let threads: Vec<_> = (0..writers)
        .map(|number| {
            let shared = shared.clone();
            thread::spawn(move || {
                let hint = Cell::new(number as u32);
                for count in 0..each {
                    write_waiting(&shared, Writer::new(number as u32), &hint, 10 * number + count);
                }
            })
        })
        .collect();
    let mut reader = reader(&shared);
    let mut values = Vec::new();
    while values.len() < (writers * each) as usize {
        values.extend(read(&mut reader, &shared));
        thread::yield_now();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_all(&values, writers, each);
    assert_eq!((reader.torn(), reader.late(), reader.spoiled()), (0, 0, 0));
    assert_eq!(Reader::held(&*shared).count(), 0);
}

#[test]
fn two_writers_of_one_lane_lose_nothing() {
    check(|| writers_with_room(1, 2));
}

#[test]
fn two_writers_of_two_lanes_lose_nothing() {
    check(|| writers_with_room(2, 2));
}

/// The lane has room for two records, so the third waits for the reader, and wraps around.
#[test]
fn a_writer_that_waits_for_room_is_woken() {
    check(|| writers_and_reader(1, 1, 3));
}

#[cfg(shuttle)]
#[test]
fn many_writers_wait_for_room_in_few_lanes() {
    check(|| writers_and_reader(2, 4, 8));
}

#[cfg(shuttle)]
#[test]
fn many_writers_of_many_lanes_lose_nothing() {
    check(|| writers_and_reader(8, 5, 9));
}

/// What one thread knows of when it writes is read before what it writes.
#[test]
fn a_record_comes_after_those_that_its_writer_knew_of() {
    check(|| {
        let shared = Shared::new(2);
        let flag = Arc::new(AtomicU32::new(0));
        let freeing = {
            let (shared, flag) = (shared.clone(), flag.clone());
            thread::spawn(move || {
                write(&shared, Writer::new(0), &Cell::new(0), 1).unwrap();
                flag.store(1, Ordering::Release);
            })
        };
        let allocating = {
            let (shared, flag) = (shared.clone(), flag.clone());
            thread::spawn(move || {
                if flag.load(Ordering::Acquire) == 1 {
                    write(&shared, Writer::new(1), &Cell::new(1), 2).unwrap();
                }
            })
        };
        let mut reader = reader(&shared);
        let mut values = read(&mut reader, &shared);
        freeing.join().unwrap();
        allocating.join().unwrap();
        values.extend(read(&mut reader, &shared));
        assert!(values == [1] || values == [1, 2], "{values:?}");
        assert_eq!(reader.spoiled(), 0);
    });
}

/// Another writer's records come, and all that the dead one completed.
fn a_writer_stops(step: Step) {
    check(move || {
        let shared = Shared::new(2);
        let dying = {
            let shared = shared.clone();
            thread::spawn(move || {
                let mut writer = Writer::new(0);
                let hint = Cell::new(0);
                write(&shared, writer, &hint, 0).unwrap();
                writer.stop = Some(step);
                assert_eq!(write(&shared, writer, &hint, 1), Err(Refused::Stopped));
            })
        };
        let living = {
            let shared = shared.clone();
            thread::spawn(move || write(&shared, Writer::new(1), &Cell::new(0), 10).unwrap())
        };
        let mut reader = reader(&shared);
        let mut values = read(&mut reader, &shared);
        dying.join().unwrap();
        living.join().unwrap();
        values.extend(read(&mut reader, &shared));
        let held: Vec<_> = Reader::held(&*shared).collect();
        assert!(held.iter().all(|held| held.process == 0));
        let stays_held = !matches!(step, Step::Picked | Step::Committed);
        assert_eq!(held.len(), usize::from(stays_held));
        held.iter().for_each(|held| reader.recover(&*shared, held.lane));
        values.extend(read(&mut reader, &shared));
        assert!(!reader.is_waiting());
        values.sort_unstable();
        let all = if step == Step::Committed { vec![0, 1, 10] } else { vec![0, 10] };
        assert_eq!(values, all);
        assert_eq!(reader.torn(), u64::from(stays_held));
        assert_eq!((reader.late(), reader.spoiled()), (0, 0));
        // The lane serves again.
        write(&shared, Writer::new(1), &Cell::new(0), 11).unwrap();
        write(&shared, Writer::new(1), &Cell::new(1), 12).unwrap();
        assert_eq!(read(&mut reader, &shared), [11, 12]);
    });
}

#[test]
fn a_writer_dies_before_it_holds_a_lane() {
    a_writer_stops(Step::Picked);
}

#[test]
fn a_writer_dies_with_a_lane() {
    a_writer_stops(Step::Held);
}

#[test]
fn a_writer_dies_with_a_number() {
    a_writer_stops(Step::Numbered);
}

#[test]
fn a_writer_dies_after_the_frame() {
    a_writer_stops(Step::Framed);
}

#[test]
fn a_writer_dies_after_the_words() {
    a_writer_stops(Step::Filled);
}

#[test]
fn a_writer_dies_after_the_commit() {
    a_writer_stops(Step::Committed);
}

/// Taken for dead at any moment, a writer's record is either there or lost: never both, never neither.
#[test]
fn a_living_writers_lane_is_recovered() {
    check(|| {
        let shared = Shared::new(2);
        let writing = {
            let shared = shared.clone();
            thread::spawn(move || write(&shared, Writer::new(0), &Cell::new(0), 1))
        };
        let mut reader = reader(&shared);
        for held in Reader::held(&*shared).collect::<Vec<_>>() {
            reader.recover(&*shared, held.lane);
        }
        let mut values = read(&mut reader, &shared);
        let written = writing.join().unwrap();
        values.extend(read(&mut reader, &shared));
        match written {
            Ok(()) => assert_eq!((values, reader.torn()), (vec![1], 0)),
            Err(why) => {
                assert_eq!(why, Refused::Lost);
                assert_eq!((values, reader.torn()), (vec![], 1));
            }
        }
        assert_eq!((reader.is_waiting(), reader.spoiled()), (false, 0));
    });
}

/// A record that the reader didn't wait for is late, and not lost.
#[test]
fn the_reader_goes_on_without_a_slow_writer() {
    check(|| {
        let shared = Shared::new(2);
        let threads = [0, 1].map(|number| {
            let shared = shared.clone();
            thread::spawn(move || {
                write(&shared, Writer::new(number), &Cell::new(number), u64::from(number) * 10)
                    .unwrap();
            })
        });
        let mut reader = reader(&shared);
        let mut values = read(&mut reader, &shared);
        reader.pass();
        values.extend(read(&mut reader, &shared));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        values.extend(read(&mut reader, &shared));
        values.sort_unstable();
        assert_eq!(values, [0, 10]);
        assert_eq!((reader.torn(), reader.spoiled()), (0, 0));
        assert!(!reader.is_waiting());
    });
}
