//! Keeping the books of a ring, whoever asks for it: what has come, from whom, and who is gone.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use ttalloc_ring::ring::{Consumer, KNOWN_PROCESSES, RingOptions};

use super::door::Door;
use super::heirs::Heirs;
use super::watch::{Row, Watch};
use crate::ledger::{Ledger, Limits};

/// How long to wait for records: from the first, at the start and when many are coming, to the last.
const IDLE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(10)];
/// Many records at once: with as many again in the same time, the ring would still be far from full.
const BUSY: usize = 1 << 13;
/// Records taken at a time, before signals and the program's end are looked for again.
const BATCH: usize = 1 << 16;
/// How long a record may be due, with a writer that may live, before it is passed by: when nobody waits for
/// room, and when somebody does.
const DUE: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(50)];
/// How far apart the numbers may be of processes that say at the same time who they are.
const AT_ONCE: u32 = 1024;
/// In this time, whatever was in the ring when it begins has been read.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How long to wait until it is known how those ended that have.
const SETTLE: Duration = Duration::from_millis(100);

/// A ring, the books that are kept of it, and the processes that write to it.
pub struct Keeper {
    /// The ring.
    pub ring: Consumer,
    /// The books.
    pub ledger: Ledger,
    /// The processes.
    pub watch: Watch,
    /// The processes that were seen to have ended before the last round.
    ended: Vec<u32>,
    door: Option<Door>,
    /// Since when a record has been due.
    due: Option<Instant>,
    idle: Duration,
}

impl Keeper {
    /// Makes a ring, and new books.
    pub fn new(options: &RingOptions, limits: Limits) -> io::Result<Keeper> {
        let ring = Consumer::create(options)?;
        // Without it, those that don't see /proc as we do are not tracked.
        let door = Door::open(ring.id()).ok();
        let watch = Watch::new(ring.file().metadata()?.ino());
        let ledger = Ledger::new(limits);
        let ended = Vec::new();
        Ok(Keeper { ring, ledger, watch, ended, door, due: None, idle: IDLE[0] })
    }

    /// Enters what has come, and sees who has come and gone. Returns how many records there were.
    pub fn round(&mut self) -> usize {
        let ledger = &mut self.ledger;
        let count = self.ring.drain(BATCH, |record| ledger.enter(record));
        // What they had written has come, unless there was too much at once.
        if count < BATCH && !self.ring.is_waiting() {
            self.ended.drain(..).for_each(|number| ledger.end(number));
        }
        if let Some(door) = &self.door {
            door.answer(self.ring.file());
        }
        let rows = self.ring.processes();
        let rows = rows.map(|(number, pid, start_ticks)| Row { number, pid, start_ticks });
        // Where the ring's table ends, what they say themselves has to do.
        let newest = self.ledger.processes.keys().next_back().copied().unwrap_or_default();
        let untold = (KNOWN_PROCESSES as u32).max(newest.saturating_sub(AT_ONCE))..;
        let told = self.ledger.processes.range(untold).filter_map(|(&number, books)| {
            let identity = books.identity.as_ref()?;
            Some(Row { number, pid: identity.pid, start_ticks: identity.start_ticks })
        });
        let rows = rows.chain(told);
        let announced = |number| {
            self.ledger.processes.get(&number).is_some_and(|books| books.identity.is_some())
        };
        self.watch.look(rows, announced);
        self.ended.extend(self.watch.take_ended());
        // Of those that have no row in the ring, only the books' are remembered.
        let ledger = &self.ledger;
        self.watch.forget(|number| {
            number >= KNOWN_PROCESSES as u32 && !ledger.processes.contains_key(&number)
        });
        self.mend(count);
        count
    }

    /// Waits for more, unless there is more already. `count` is what [`Keeper::round`] returned.
    pub fn rest(&mut self, count: usize) {
        if count >= BATCH {
            return;
        }
        // The fewer times it wakes, the less it takes from the program.
        self.idle = if count > BUSY { IDLE[0] } else { (self.idle * 2).min(IDLE[1]) };
        self.watch.wait(self.door.as_ref().map(AsFd::as_fd), self.idle);
    }

    /// Enters everything that was written until now.
    pub fn catch_up(&mut self) {
        let begun = Instant::now();
        while self.round() >= BATCH || self.ring.is_waiting() {
            // Others may go on writing.
            if begun.elapsed() > CATCH_UP {
                break;
            }
            if self.ring.is_waiting() {
                thread::sleep(IDLE[0]);
            }
        }
    }

    /// Waits a little until no tracked process runs, nor any of `heirs`; returns which of either do.
    pub fn until_gone(&mut self, time: Duration, heirs: &mut Heirs) -> (Vec<u32>, Vec<u32>) {
        let begun = Instant::now();
        loop {
            let count = self.round();
            let running = self.watch.running();
            let is_over = begun.elapsed() > time;
            if running.is_empty() || is_over {
                let heirs = heirs.running();
                if heirs.is_empty() || is_over {
                    return (running, heirs);
                }
            }
            self.rest(count);
        }
    }

    /// Ends the ring, with what was written until now, and learns how the processes ended.
    pub fn finish(&mut self) {
        self.ring.close();
        // No more than was in the ring, and what was being written: however long that takes.
        let mut since = Instant::now();
        while since.elapsed() <= CATCH_UP {
            if self.round() > 0 {
                since = Instant::now();
            } else if self.ring.is_waiting() {
                thread::sleep(IDLE[0]);
            } else {
                break;
            }
        }
        self.ring.abandon();
        self.settle();
    }

    /// Waits a little until it is known of all that have ended how.
    pub fn settle(&mut self) {
        let begun = Instant::now();
        while self.watch.is_unsettled() && begun.elapsed() < SETTLE {
            thread::sleep(IDLE[0]);
            self.round();
        }
    }

    /// Takes lanes from writers that can't come back, and passes by what does not come.
    fn mend(&mut self, count: usize) {
        let dead = self.ring.held().filter(|held| self.watch.is_dead(held.process));
        let lanes: Vec<_> = dead.map(|held| held.lane).collect();
        for lane in lanes {
            self.ring.recover(lane);
        }
        if count > 0 || !self.ring.is_waiting() {
            self.due = None;
            return;
        }
        let since = *self.due.get_or_insert_with(Instant::now);
        if since.elapsed() > DUE[usize::from(self.ring.is_full())] {
            self.ring.pass();
            self.due = None;
        }
    }
}
