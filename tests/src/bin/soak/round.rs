//! One round: a ring, its writers, and the reader that holds what comes out against what went in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use ttalloc_ring::ring::{Consumer, OnFull, RingOptions};
use ttalloc_tests::random::Random;

use crate::Options;
use crate::books::{Books, WRITERS};
use crate::writer::{self, Content};

/// How long anything may take that waits for nothing, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A kill comes every so often on average, where there are kills.
const KILL_EVERY: Duration = Duration::from_millis(20);

/// What a round is like.
#[derive(Clone, Debug)]
pub struct Plan {
    seed: u64,
    ring: RingOptions,
    processes: u64,
    /// At most so many threads in each process.
    pub threads: u64,
    /// Whether writers fork.
    pub forks: bool,
    /// Whether writers rest now and then.
    pub pauses: bool,
    kills: bool,
    /// At most how long the reader rests before it reads again.
    rest: Duration,
    time: Duration,
    hostile: bool,
    lose_one: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(options: &Options, seed: u64) -> Plan {
        let mut random = Random::new(seed);
        let mut one_of = |count: u64| random.below(count);
        let lanes = 1 << one_of(7);
        // Most rings are so small that they are full all the time.
        let lane_bytes = [16 << 10, 16 << 10, 32 << 10, 128 << 10][one_of(4) as usize];
        let on_full = if one_of(4) == 0 { OnFull::Drop } else { OnFull::Wait };
        let rests = [0, 0, 100, 3000, 30_000];
        Plan {
            seed,
            ring: RingOptions { lanes, lane_bytes, on_full, ..RingOptions::default() },
            processes: 1 + one_of(options.processes),
            threads: options.threads,
            forks: one_of(2) == 0,
            pauses: one_of(2) == 0,
            kills: one_of(4) != 0,
            rest: Duration::from_micros(rests[one_of(5) as usize]),
            time: Duration::from_millis(50 + one_of(450)),
            hostile: options.hostile,
            lose_one: options.lose_one,
        }
    }

    /// The options that have this round come again.
    pub fn arguments(&self, options: &Options) -> String {
        let Options { processes, threads, .. } = options;
        let hostile = if self.hostile { " --hostile" } else { "" };
        format!("--seed {} --processes {processes} --threads {threads}{hostile}", self.seed)
    }
}

/// What rounds came to.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// How many there were.
    pub rounds: u64,
    records: u64,
    processes: u64,
    forks: u64,
    kills: u64,
    torn: u64,
    dropped: u64,
    spoiled: u64,
}

impl Figures {
    /// Adds those of other rounds.
    pub fn add(&mut self, other: &Figures) {
        self.rounds += other.rounds;
        self.records += other.records;
        self.processes += other.processes;
        self.forks += other.forks;
        self.kills += other.kills;
        self.torn += other.torn;
        self.dropped += other.dropped;
        self.spoiled += other.spoiled;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} rounds, {} records", self.rounds, self.records)?;
        write!(f, " from {} processes and {} forked", self.processes, self.forks)?;
        write!(f, ", {} killed, {} records torn", self.kills, self.torn)?;
        write!(f, ", {} dropped on purpose", self.dropped)?;
        if self.spoiled > 0 {
            write!(f, ", {} places found spoiled", self.spoiled)?;
        }
        Ok(())
    }
}

/// Runs a round; or what did not add up.
pub fn run(plan: &Plan) -> Result<Figures, String> {
    let system = |what: &'static str| move |why: io::Error| format!("{what}: {why}");
    // A reader that hangs must not hang for ever.
    // SAFETY: plain system calls. Children of children that were killed come to this process.
    let _ = unsafe { libc::alarm(4 * PATIENCE.as_secs() as u32) };
    // SAFETY: as above.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } != 0 {
        return Err(system("orphans can't be taken")(io::Error::last_os_error()));
    }
    let books = Books::new().map_err(system("no memory for the books"))?;
    let ring = Consumer::create(&plan.ring).map_err(system("no ring"))?;
    let mut round = Round {
        plan,
        random: Random::new(plan.seed ^ 0x5eed),
        books: &books,
        variable: ring.variable(),
        ring,
        reader: Reader::new(plan.lose_one),
        running: BTreeSet::new(),
        dead: BTreeSet::new(),
        figures: Figures { rounds: 1, ..Figures::default() },
    };
    let result = round.run();
    // Whatever was wrong, nobody is left behind.
    books.stop();
    round.kill_all();
    result?;
    Ok(round.figures)
}

struct Round<'a> {
    plan: &'a Plan,
    random: Random,
    books: &'a Books,
    variable: String,
    ring: Consumer,
    reader: Reader,
    /// The processes that were started here and not waited for yet.
    running: BTreeSet<i32>,
    /// The processes that have ended, by their numbers in the ring.
    dead: BTreeSet<u32>,
    figures: Figures,
}

impl Round<'_> {
    fn run(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        if self.plan.hostile {
            self.start(|round, seed| writer::spoil(round.books, &round.variable, seed))?;
        }
        let mut next_kill = self.next_kill();
        while begun.elapsed() < self.plan.time {
            while (self.running.len() as u64) < self.plan.processes {
                self.figures.processes += 1;
                self.start(|round, seed| {
                    writer::run(round.plan, round.books, &round.variable, seed)
                })?;
            }
            if self.plan.kills && Instant::now() > next_kill {
                self.kill_one();
                next_kill = self.next_kill();
            }
            self.reap()?;
            self.read()?;
            if !self.plan.rest.is_zero() {
                thread::sleep(self.random.time_below(self.plan.rest));
            }
        }
        self.books.stop();
        self.wait_for_all()?;
        self.read_the_rest()?;
        if self.plan.hostile {
            self.figures.records = self.reader.next.values().sum();
            self.figures.torn = self.ring.torn();
            self.figures.spoiled = self.ring.spoiled();
            return Ok(());
        }
        self.check()
    }

    fn next_kill(&mut self) -> Instant {
        Instant::now() + self.random.time_below(2 * KILL_EVERY)
    }

    /// Starts a process that does `work` with a seed, and ends with what that returns.
    fn start(&mut self, work: fn(&Round, u64) -> i32) -> Result<(), String> {
        let seed = self.random.number();
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            0 => {
                let code = catch_unwind(AssertUnwindSafe(|| work(self, seed)));
                writer::exit(code.unwrap_or(3))
            }
            -1 => Err(format!("fork: {}", io::Error::last_os_error())),
            pid => {
                self.running.insert(pid);
                Ok(())
            }
        }
    }

    fn kill_one(&mut self) {
        let at = self.random.below(self.running.len().max(1) as u64) as usize;
        if let Some(&pid) = self.running.iter().nth(at) {
            // SAFETY: a child that was not waited for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            self.figures.kills += 1;
        }
    }

    /// Notes which processes have ended, and how; false if there are none any more.
    fn reap(&mut self) -> Result<bool, String> {
        loop {
            let mut status = 0;
            // SAFETY: a place for the status.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            if pid <= 0 {
                return Ok(pid == 0);
            }
            self.running.remove(&pid);
            let of_pid = self.ring.processes().filter(|&(_, its, _)| its == pid as u32);
            self.dead.extend(of_pid.map(|(number, ..)| number));
            let is_killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
            let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
            // What is spoiled need not be a ring any more.
            let is_done = code == Some(0) || self.plan.hostile && code == Some(writer::NO_RING);
            if !is_killed && !is_done {
                return Err(format!("process {pid} ended with the status {status:#x}"));
            }
        }
    }

    fn read(&mut self) -> Result<usize, String> {
        let (reader, books, hostile) = (&mut self.reader, self.books, self.plan.hostile);
        let mut wrong = None;
        let count = self.ring.drain(1 << 16, |record| {
            if let Err(why) = reader.take(record, books)
                && !hostile
            {
                wrong.get_or_insert(why);
            }
        });
        if let Some(why) = wrong {
            return Err(why);
        }
        let held: Vec<_> = self.ring.held().collect();
        for held in held {
            if self.dead.contains(&held.process) {
                self.ring.recover(held.lane);
            }
        }
        Ok(count)
    }

    /// Reads on until all processes have ended.
    fn wait_for_all(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while self.reap()? {
            self.read()?;
            if self.plan.hostile && begun.elapsed() > Duration::from_millis(200) {
                // What they wait for may never come.
                self.kill_all();
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let held: Vec<_> = self.ring.held().collect();
                return Err(format!(
                    "{:?} and perhaps others don't end; held: {held:?}, waiting: {}, full: {}",
                    self.running,
                    self.ring.is_waiting(),
                    self.ring.is_full()
                ));
            }
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Kills all that are left, also those that others forked.
    fn kill_all(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            for &pid in &self.running {
                // SAFETY: a child that was not waited for.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            // Those that were forked end by themselves, or are in the ring's table.
            for (number, pid, _) in self.ring.processes() {
                if !self.dead.contains(&number) && is_child(pid) {
                    // SAFETY: a child of this process, which nobody else waits for.
                    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
                }
            }
            let mut status = 0;
            loop {
                // SAFETY: a place for the status.
                match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
                    0 => break,
                    pid if pid > 0 => {
                        self.running.remove(&pid);
                    }
                    _ => return,
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// All writers are dead: takes out what they left.
    fn read_the_rest(&mut self) -> Result<(), String> {
        let mut has_waited = false;
        for _ in 0..100_000 {
            let count = self.read()?;
            let held: Vec<_> = self.ring.held().collect();
            if count == 0 && held.is_empty() {
                match self.ring.is_waiting() {
                    false => return Ok(()),
                    true if has_waited => return Err("a record is due that nobody holds".into()),
                    // For a lane that was held then, and has been freed since.
                    true => has_waited = true,
                }
            }
            for held in held {
                self.ring.recover(held.lane);
            }
        }
        Err("the ring does not become empty, though nobody writes".into())
    }

    /// Holds what came out against what the writers say.
    fn check(&mut self) -> Result<(), String> {
        let (mut in_flight, mut refused, mut records) = (0, 0, 0);
        for (number, writer) in self.books.begun().iter().enumerate() {
            let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Acquire);
            let (begun, done) = (load(&writer.begun), load(&writer.done));
            let has_ended = load(&writer.ended) != 0;
            let out = self.reader.next.get(&(number as u64)).copied().unwrap_or(0);
            refused += load(&writer.refused);
            records += out;
            in_flight += u64::from(!has_ended && begun > done);
            let at_most = if has_ended { done } else { begun };
            if out < done || out > at_most {
                return Err(format!(
                    "{out} records of writer {number} came out, which wrote {done} of {begun} that it \
                     began, and {}",
                    if has_ended { "ended" } else { "was killed" }
                ));
            }
        }
        let (torn, dropped) = (self.ring.torn(), self.ring.dropped());
        let others = (self.ring.late(), self.ring.spoiled());
        let most_dropped = match self.plan.ring.on_full {
            OnFull::Wait => 0,
            OnFull::Drop => refused + in_flight,
        };
        if torn > in_flight || dropped < refused || dropped > most_dropped || others != (0, 0) {
            return Err(format!(
                "{torn} torn, {dropped} dropped, {others:?} late and spoiled, with {in_flight} in flight \
                 when killed, and {refused} refused"
            ));
        }
        self.figures.records = records;
        self.figures.forks = self.books.forks();
        self.figures.torn = torn;
        self.figures.dropped = dropped;
        Ok(())
    }
}

/// Whether the process of that pid is a child of this one.
fn is_child(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state and the parent follow the name, which may hold anything (proc_pid_stat(5)).
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
    parent.is_some_and(|parent| parent == std::process::id().to_string())
}

/// What came out so far.
struct Reader {
    /// The number that is next, for each writer.
    next: BTreeMap<u64, u64>,
    expected: Content,
    lose_one: bool,
}

impl Reader {
    fn new(lose_one: bool) -> Reader {
        Reader { next: BTreeMap::new(), expected: Content::new(), lose_one }
    }

    /// Takes a record; or why it can't be right.
    fn take(&mut self, record: &[u8], books: &Books) -> Result<(), String> {
        if std::mem::take(&mut self.lose_one) {
            return Ok(());
        }
        let Some((writer, number)) = writer::name(record) else {
            return Err(format!("a record of {} bytes came out", record.len()));
        };
        if writer >= books.begun().len().min(WRITERS) as u64 {
            return Err(format!("a record of writer {writer} came out, which there is not"));
        }
        let next = self.next.entry(writer).or_default();
        if number != *next {
            return Err(format!("record {number} of writer {writer} came out instead of {next}"));
        }
        *next += 1;
        self.expected.set(writer, number);
        if record != self.expected.bytes() {
            return Err(format!("record {number} of writer {writer} has other bytes"));
        }
        Ok(())
    }
}
