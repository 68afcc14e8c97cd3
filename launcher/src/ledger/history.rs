//! Tests: what comes and goes leaves nothing behind that grows, and what comes late is put right.

use proptest::prelude::*;
use ttalloc_ring::record::{self, TraceStep};

use super::tests::{ALLOCATOR, MESH, PROGRAM, Story, WORKLOAD};
use super::*;

impl Story {
    fn announce(&mut self, process: u32, pid: u32) {
        self.process = process;
        let body = record::Process { pid, parent_pid: 1, ..bytemuck::Zeroable::zeroed() };
        self.tell(&body, b"python3\0");
    }

    fn books(&self) -> &Process {
        &self.ledger.processes[&self.process]
    }

    /// Tells something as if it had come at a time.
    fn at(&mut self, time_ns: u64, tell: impl FnOnce(&mut Story)) {
        let now = std::mem::replace(&mut self.time_ns, time_ns - 1);
        tell(self);
        self.time_ns = now;
    }

    fn counts(&self) -> [u64; 4] {
        let dram = self.dram(0);
        [dram.live.buffers, dram.allocations, dram.frees, dram.released]
    }
}

#[test]
fn a_long_history_takes_no_more_than_a_short_one() {
    let mut story = Story::with_mesh(8);
    let mut weights = Vec::new();
    for turn in 0..6000_u64 {
        // Meshes, their allocators, buffers, traces, plans.
        let (mesh, allocator) = (0x10_0000 + turn * 16, 0x90_0000 + turn * 16);
        story.mesh(mesh, 1 + turn as i32, &[turn as i32 % 8]);
        story.allocator(allocator, mesh);
        story.allocate(allocator, turn, 0, turn * 64, 64);
        let (device, buffer) = (mesh, turn);
        let body = record::Planned {
            device,
            buffer,
            bytes: 1,
            bytes_per_bank: 1,
            buffer_type: 0,
            reserved: 0,
        };
        story.tell(&body, b"");
        story.close(mesh);
        story.release(allocator, 1);
        // Buffers let go whose objects never ask, and frees of what nobody knows.
        story.allocate(ALLOCATOR, turn, 0, turn * 64, 64);
        story.release(ALLOCATOR, 0);
        story.free(ALLOCATOR, turn, 1);
        // Programs that are all different, and traces of them.
        story.enlist(PROGRAM, WORKLOAD, 0, 7);
        story.lay_out(PROGRAM, turn, &[(1024, 32 * (turn + 1))]);
        let step = |step| record::Trace { device: MESH, trace: turn as u32, step: step as u32 };
        story.tell(&step(TraceStep::Begin), b"");
        story.run(WORKLOAD);
        story.tell(&step(TraceStep::End), b"");
        story.tell(&step(TraceStep::Replay), b"");
        story.tell(&record::ProgramEnd { program: PROGRAM }, b"");
        story.tell(&step(TraceStep::Release), b"");
        if [2999, 5999].contains(&turn) {
            story.ledger.limits.programs = 100;
            weights.push(story.books().weight());
        }
        story.ledger.limits.programs = 100;
    }
    // Of what is let go, more may be known.
    let released = 3000 * 2 * size_of::<((u64, u64), MemoryType, u64)>();
    assert!(weights[1] <= weights[0] + released + 50_000, "{weights:?}");
    let books = story.books();
    assert!(books.meshes.len() <= 513 && books.meshes[0].id == 0, "{}", books.meshes.len());
    assert_eq!(books.meshes.len() as u64 + books.left_out.meshes, 6001);
    assert!(books.devices.len() <= 1 + bounds::MOST_CLOSED);
    assert_eq!((books.allocators.len(), books.planned.len()), (1, 0));
    assert!(books.programs.len() <= 100 + 25 + 64 + 16, "{}", books.programs.len());
    assert_eq!(books.programs.objects(), 6000);
    assert_eq!(books.programs.traces().len() as u64 + books.programs.traces_left_out, 6000);
    assert!(books.programs.traces().len() <= 513);
    let chip = &books.chips[&7];
    assert_eq!((chip.programs.programs, chip.programs.runs), (6000, 6000));
    assert_eq!(chip.programs.largest.map(|reach| reach.end), Some(1024 + 32 * 6000));
    let dram = chip.memory(MemoryType::Dram);
    assert_eq!((dram.allocations, dram.released, dram.planned.count), (6000 + 750, 6750, 750));
}

#[test]
fn of_many_processes_that_ended_the_largest_are_kept_and_the_others_summed() {
    let ledger = Ledger::new(Limits { processes: 10, buffers: 20, programs: 30 });
    let mut story = Story { ledger, ..Story::default() };
    for process in 0..500_u32 {
        story.announce(process, 1000 + process % 250);
        story.mesh(MESH, 0, &[0, 1]);
        story.allocator(ALLOCATOR, MESH);
        for buffer in 0..10 {
            let address = buffer * 65536;
            story.allocate(ALLOCATOR, buffer, 0, address, 32 * u64::from(process % 400 + 1));
        }
        story.free(ALLOCATOR, 0, 0);
        story.enlist(PROGRAM, WORKLOAD, 0, 1);
        story.lay_out(PROGRAM, 1, &[(1024, 32 * u64::from(process + 1))]);
        story.run(WORKLOAD);
        if process % 2 == 0 {
            story.ledger.end(process);
        }
        story.ledger.end(process);
    }
    let ledger = &story.ledger;
    let numbers: Vec<u32> = ledger.processes.keys().copied().collect();
    assert_eq!(numbers, std::iter::once(0).chain(390..400).collect::<Vec<_>>());
    let kept = || ledger.processes.values();
    assert!(kept().map(|books| books.live().count()).sum::<usize>() <= 20 + 5 + 64);
    let sum = |figure: &dyn Fn(&Memory) -> u64| -> u64 {
        let chips = kept().flat_map(|books| books.chips.iter());
        chips.map(|(_, chip)| figure(chip.memory(MemoryType::Dram))).sum()
    };
    let folded = &ledger.folded.memory[0];
    assert_eq!(sum(&|dram| dram.allocations) + folded.allocations, 500 * 2 * 10);
    assert_eq!(sum(&|dram| dram.frees) + folded.frees, 500 * 2);
    assert_eq!(sum(&|dram| dram.live.buffers) + folded.live.buffers, 500 * 2 * 9);
    assert_eq!(folded.peak.bytes_per_bank, 32 * 390 * 10, "of one chip of one process");
    let buffers: u64 =
        kept().map(|books| books.live().count() as u64 + books.left_out.buffers).sum();
    assert_eq!(buffers + ledger.folded.buffers, 500 * 9);
    let programs: u64 = kept().map(|books| books.programs.objects()).sum();
    assert_eq!(programs + ledger.folded.programs, 500);
    assert_eq!((ledger.folded.processes, ledger.folded.runs), (489, 489 * 2));
    assert_eq!(ledger.folded.troubled, 489, "none told its runtime");
    // One that has ended, and is gone, says something after all.
    story.process = 5;
    story.free(ALLOCATOR, 1, 65536);
    assert_eq!(story.ledger.anomalies.after_end, 1);
    assert_eq!(story.ledger.processes.len(), 11);
}

#[test]
fn a_process_that_takes_anothers_pid_ends_it() {
    let mut story = Story::with_mesh(1);
    story.announce(0, 7);
    story.allocate(ALLOCATOR, 1, 0, 0, 64);
    story.announce(1, 8);
    story.announce(2, 7);
    let has_ended = |story: &Story, process| story.ledger.processes[&process].has_ended;
    assert_eq!([0, 1, 2].map(|process| has_ended(&story, process)), [true, false, false]);
    // What it held is still known, and what it should not say any more harms nobody.
    let first = &story.ledger.processes[&0];
    assert_eq!((first.live().count(), first.chips[&0].memory[0].live.buffers), (1, 1));
    story.process = 0;
    story.allocate(ALLOCATOR, 2, 0, 64, 64);
    story.free(ALLOCATOR, 1, 0);
    story.close(MESH);
    assert_eq!(story.ledger.anomalies.unattributed, 0);
}

#[test]
fn buffers_of_one_object_are_found_however_many_there_are() {
    let mut story = Story::with_mesh(1);
    for at in 0..50_000 {
        story.allocate(ALLOCATOR, 7, 0, 64, 32 * (at % 3 + 1));
    }
    for _ in 0..49_999 {
        story.free(ALLOCATOR, 7, 64);
    }
    assert_eq!(story.counts(), [1, 50_000, 49_999, 0]);
    assert_eq!(story.dram(0).live.bytes_per_bank, 32, "the oldest");
}

#[test]
fn overlaps_cost_no_more_the_more_there_are() {
    let mut story = Story::with_mesh(1);
    story.mesh(0x3000, 1, &[0]);
    story.allocator(0x4000, 0x3000);
    for at in 0..20_000 {
        story.allocate(ALLOCATOR, at, 0, at * 32, 32);
    }
    let start = std::time::Instant::now();
    for at in 0..2_000 {
        story.allocate(0x4000, at, 0, 0, 32 * 20_000);
    }
    // It would be 40 million otherwise, and take minutes here.
    assert_eq!(story.books().overlap_count, 2000 * MOST_OVERLAPS_OF_ONE);
    assert_eq!(story.books().overlaps.len(), MOST_OVERLAPS);
    assert!(start.elapsed().as_secs() < 60);
}

#[test]
fn full_books_take_nothing_in_but_let_go() {
    let mut story = Story::with_mesh(1);
    let empty = story.books().weight();
    for at in 0..1000 {
        story.allocate(ALLOCATOR, at, 0, at * 32, 32);
    }
    let full = story.books().weight();
    assert!(full > empty + 1000 * size_of::<Allocation>(), "{empty} {full}");
    story.ledger.is_crowded = true;
    story.allocate(ALLOCATOR, 1000, 0, 1000 * 32, 32);
    story.process = 1;
    story.mesh(MESH, 0, &[0]);
    assert_eq!((story.ledger.anomalies.crowded, story.ledger.processes.len()), (2, 1));
    story.process = 0;
    for at in 0..1000 {
        story.free(ALLOCATOR, at, at * 32);
    }
    assert_eq!(story.counts(), [0, 1000, 1000, 0]);
    assert!(story.books().weight() < full / 2);
    // They are weighed anew after some time.
    for _ in 0..4096 {
        story.free(0, 0, 0);
    }
    story.allocate(ALLOCATOR, 1, 0, 0, 32);
    assert_eq!(story.dram(0).live.buffers, 1);
}

#[test]
fn the_largest_are_exactly_as_many_as_are_wanted() {
    let sizes = vec![5, 1, 5, 3, 5, 2];
    for (most, expected) in [
        (0, vec![]),
        (1, vec![5]),
        (2, vec![5, 5]),
        (4, vec![5, 5, 3, 5]),
        (6, sizes.clone()),
        (usize::MAX, sizes.clone()),
    ] {
        let mut largest = Largest::of(sizes.clone(), most);
        let kept: Vec<_> = sizes.iter().copied().filter(|size| largest.keeps(size)).collect();
        assert_eq!(kept, expected, "{most}");
    }
}

#[test]
fn an_allocation_that_comes_after_its_free_is_no_leak() {
    let mut story = Story::with_mesh(1);
    let made = story.time_ns + 1;
    story.time_ns = made;
    story.free(ALLOCATOR, 1, 64);
    assert_eq!(story.ledger.anomalies.unknown_frees, 1);
    // The next one of the same object and address came after it, and is not meant.
    story.allocate(ALLOCATOR, 1, 0, 64, 32);
    story.at(made, |story| story.allocate(ALLOCATOR, 1, 0, 64, 96));
    assert_eq!(story.counts(), [1, 2, 1, 0]);
    assert_eq!(story.dram(0).live.bytes_per_bank, 32);
    assert_eq!(story.ledger.anomalies, Anomalies::default());
}

#[test]
fn what_was_let_go_before_its_allocation_came_is_gone() {
    let mut story = Story::with_mesh(1);
    let made = story.time_ns + 1;
    story.time_ns = made;
    story.release(ALLOCATOR, 0);
    story.at(made, |story| story.allocate(ALLOCATOR, 1, 0, 64, 96));
    assert_eq!(story.counts(), [0, 1, 0, 1]);
    // Its free, which is later still, had come in between.
    story.free(ALLOCATOR, 1, 64);
    assert_eq!(story.counts(), [0, 1, 0, 1]);
    assert_eq!(story.ledger.anomalies, Anomalies::default());
}

#[test]
fn a_late_free_close_or_end_leaves_alone_what_has_come_since() {
    let mut story = Story::with_mesh(1);
    story.allocate(ALLOCATOR, 1, 0, 64, 96);
    let then = story.time_ns;
    story.time_ns += 1;
    story.allocate(ALLOCATOR, 1, 0, 64, 32);
    story.at(then, |story| story.free(ALLOCATOR, 1, 64));
    assert_eq!(story.dram(0).live.bytes_per_bank, 32);
    // The device was closed and opened again, at the same address.
    let then = story.time_ns;
    story.mesh(MESH, 9, &[0]);
    story.allocator(ALLOCATOR, MESH);
    story.allocate(ALLOCATOR, 5, 0, 640, 64);
    story.at(then, |story| story.close(MESH));
    story.at(then, |story| story.release(ALLOCATOR, 1));
    assert_eq!(story.dram(0).live_at_close, None);
    assert_eq!(story.counts(), [1, 3, 1, 1], "the end lets go of what was there before it");
    story.free(ALLOCATOR, 5, 640);
    assert_eq!(story.ledger.anomalies, Anomalies::default());
}

#[test]
fn descriptions_that_come_late_are_made_up_for() {
    let mut story = Story { time_ns: 10, ..Story::default() };
    story.allocate(ALLOCATOR, 1, 0, 0, 64);
    story.allocate(ALLOCATOR, 2, 0, 64, 64);
    story.free(ALLOCATOR, 1, 0);
    assert_eq!(story.ledger.anomalies.unattributed, 2);
    story.at(3, |story| story.allocator(ALLOCATOR, MESH));
    story.at(2, |story| story.mesh(MESH, 0, &[0, 1]));
    assert_eq!(story.counts(), [1, 2, 1, 0]);
    assert_eq!(story.dram(1).live.buffers, 1);
    assert_eq!(story.dram(1).banks, 12);
    assert_eq!(story.ledger.anomalies, Anomalies::default());
}

#[test]
fn chips_with_the_same_history_part_when_it_differs() {
    let mut story = Story::with_mesh(8);
    story.allocate(ALLOCATOR, 1, 0, 0, 64);
    assert_eq!(story.books().chips.figures().count(), 1);
    story.mesh(0x3000, 1, &[5, 2]);
    story.allocator(0x4000, 0x3000);
    story.allocate(0x4000, 2, 0, 4096, 32);
    assert_eq!(story.books().chips.figures().count(), 2);
    story.mesh(0x5000, 2, &[2, 3]);
    story.allocator(0x6000, 0x5000);
    story.allocate(0x6000, 3, 0, 8192, 96);
    let live = |story: &Story| {
        let chips: Vec<_> = story.books().chips.iter().map(|(&id, _)| id).collect();
        assert_eq!(chips, (0..8).collect::<Vec<_>>());
        chips.into_iter().map(|chip| story.dram(chip).live.bytes_per_bank).collect::<Vec<_>>()
    };
    assert_eq!(live(&story), [64, 64, 64 + 32 + 96, 64 + 96, 64, 64 + 32, 64, 64]);
    story.free(ALLOCATOR, 1, 0);
    assert_eq!(live(&story), [0, 0, 32 + 96, 96, 0, 32, 0, 0]);
    // A chip that comes twice counts once.
    story.mesh(0x7000, 3, &[6, 6]);
    story.allocator(0x8000, 0x7000);
    story.allocate(0x8000, 4, 0, 0, 64);
    assert_eq!(live(&story)[6], 64);
}

/// An allocation, with the object and address that it has, or what ends one or all of them.
#[derive(Clone, Debug)]
enum Step {
    Allocate { allocator: u64, object: u64, per_bank: u64 },
    Free(prop::sample::Index),
    Release(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2_u64, 0..4_u64, 1..500_u64).prop_map(|(allocator, object, per_bank)| {
            Step::Allocate { allocator, object, per_bank }
        }),
        5 => any::<prop::sample::Index>().prop_map(Step::Free),
        1 => (0..2_u64).prop_map(Step::Release),
    ]
}

proptest! {
    /// However late a record comes, one at a time, the figures are in the end those of a plain list that
    /// had all of them in order.
    #[test]
    fn what_comes_late_makes_no_difference_in_the_end(
        steps in prop::collection::vec((step(), prop_oneof![4 => Just(0_u64), 1 => 1..40_u64]), 1..150),
    ) {
        let mut story = Story::default();
        let meshes: [&[i32]; 2] = [&[0, 1], &[1]];
        for (at, chips) in (0_u64..).zip(meshes) {
            story.mesh(MESH + at, at as i32, chips);
            story.allocator(ALLOCATOR + at, MESH + at);
        }
        let start = story.time_ns + 1;
        // What is live, and how many were allocated, freed and released, by a plain list.
        let mut live: Vec<(u64, u64, u64)> = Vec::new();
        let mut counts = [[0_u64; 3]; 2];
        let mut records = Vec::new();
        let mut late_until = 0;
        for (at, (step, delay)) in (0_u64..).zip(steps) {
            let delay = if at < late_until { 0 } else { delay };
            late_until = late_until.max(at + delay + 1);
            match &step {
                Step::Allocate { allocator, object, per_bank } => {
                    // One object has one buffer at a time.
                    if live.iter().any(|one| (one.0, one.1) == (*allocator, *object)) {
                        continue;
                    }
                    live.push((*allocator, *object, per_bank.next_multiple_of(32)));
                    counts[*allocator as usize][0] += 1;
                    records.push((at + delay, at, step));
                }
                Step::Free(_) if live.is_empty() => {}
                Step::Free(index) => {
                    let (allocator, object, _) = live.remove(index.index(live.len()));
                    counts[allocator as usize][1] += 1;
                    let step = Step::Allocate { allocator, object, per_bank: 0 };
                    records.push((at + delay, at, step));
                }
                Step::Release(allocator) => {
                    let before = live.len();
                    live.retain(|one| one.0 != *allocator);
                    counts[*allocator as usize][2] += (before - live.len()) as u64;
                    records.push((at + delay, at, step));
                }
            }
        }
        records.sort_by_key(|(when, at, _)| (*when, *at));
        for (_, at, step) in records {
            story.at(start + at, |story| match step {
                Step::Allocate { allocator, object, per_bank: 0 } => {
                    story.free(ALLOCATOR + allocator, object, object * 4096);
                }
                Step::Allocate { allocator, object, per_bank } => {
                    story.allocate(ALLOCATOR + allocator, object, 0, object * 4096, per_bank);
                }
                Step::Release(allocator) => story.release(ALLOCATOR + allocator, 0),
                Step::Free(_) => {}
            });
        }
        for chip in 0..2 {
            let over = || (0_u64..2).filter(|&at| meshes[at as usize].contains(&chip));
            let sum = |figure: usize| over().map(|at| counts[at as usize][figure]).sum::<u64>();
            let there = live.iter().filter(|one| meshes[one.0 as usize].contains(&chip));
            let dram = story.dram(chip);
            prop_assert_eq!(dram.live.bytes_per_bank, there.map(|one| one.2).sum::<u64>());
            prop_assert_eq!([dram.allocations, dram.frees, dram.released], [sum(0), sum(1), sum(2)]);
        }
        prop_assert_eq!(story.ledger.anomalies, Anomalies::default());
    }
}
