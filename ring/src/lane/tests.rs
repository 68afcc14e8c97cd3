use super::*;
use proptest::prelude::*;

const WORDS: usize = 16;
const STEPS: [Step; 6] =
    [Step::Picked, Step::Held, Step::Numbered, Step::Framed, Step::Filled, Step::Committed];

struct Shared {
    order: AtomicU64,
    lanes: Vec<(AtomicU64, AtomicU64, Vec<AtomicU64>)>,
    freed: Cell<usize>,
}

impl Shared {
    fn new(lanes: usize, start: u64) -> Shared {
        let position = || AtomicU64::new(start & POSITION);
        let words = || (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        Shared {
            order: AtomicU64::new(0),
            lanes: (0..lanes).map(|_| (position(), position(), words())).collect(),
            freed: Cell::new(0),
        }
    }

    fn state(&self, lane: usize) -> State {
        State(self.lanes[lane].0.load(Ordering::Relaxed))
    }

    /// Puts a sound record into a lane, with a number of the test's choice.
    fn forge(&self, lane: usize, order: u64, value: u64) {
        let position = self.state(lane).position();
        let view = self.lane(lane);
        let [first, second] = frame(position, order, 8);
        for (value, at) in [first, second, value].into_iter().zip(position..) {
            view.words[view.index(at)].store(value, Ordering::Relaxed);
        }
        view.state.store(State::new(0, position + 3).0, Ordering::Relaxed);
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
        self.freed.set(self.freed.get() + 1);
    }
}

fn write(shared: &Shared, process: u32, value: u64, stop: Option<Step>) -> Result<(), Refused> {
    let writer = Writer { stop, ..Writer::new(process) };
    writer.write(shared, &Cell::new(process), &[value], b"")
}

fn read(shared: &Shared, reader: &mut Reader, most: usize) -> Vec<u64> {
    let mut values = Vec::new();
    while values.len() < most
        && let Some(bytes) = reader.read(shared)
    {
        values.push(bytes.get(..8).map_or(0, to_word));
    }
    reader.publish_all(shared);
    values
}

fn counts(reader: &Reader) -> (u64, u64, u64) {
    (reader.torn(), reader.late(), reader.spoiled())
}

#[test]
fn a_state_keeps_owner_and_position_apart() {
    let state = State::new(OWNERS, POSITION + 3);
    assert_eq!((state.owner(), state.position()), (OWNERS, 2));
    assert_eq!(distance(POSITION, 2), 3);
    assert_eq!(Writer::new(u32::MAX).owner, OWNERS);
}

#[test]
fn positions_wrap_around() {
    // Each record takes 3 words of 16, so that it meets every place, and both ends.
    let shared = Shared::new(1, POSITION - 100);
    let mut reader = Reader::new(1, POSITION - 100);
    for value in 0..200 {
        write(&shared, 0, value, None).unwrap();
        assert_eq!(read(&shared, &mut reader, 9), [value]);
    }
    assert_eq!(shared.state(0).position(), 499);
    assert_eq!(counts(&reader), (0, 0, 0));
}

#[test]
fn a_lane_is_full_when_the_next_record_would_reach_what_was_not_read() {
    for start in [0, POSITION - 7] {
        let shared = Shared::new(1, start);
        let mut reader = Reader::new(1, start);
        for value in 0..5 {
            assert_eq!(write(&shared, 0, value, None), Ok(()));
        }
        assert_eq!(write(&shared, 0, 5, None), Err(Refused::NoRoom { held: false }));
        assert_eq!(read(&shared, &mut reader, 2), [0, 1]);
        assert_eq!(write(&shared, 0, 5, None), Ok(()));
        assert_eq!(read(&shared, &mut reader, 9), [2, 3, 4, 5]);
        assert!(shared.freed.get() > 0);
    }
}

#[test]
fn a_writer_that_finds_its_lane_held_or_full_takes_the_next() {
    let shared = Shared::new(2, 0);
    let hint = Cell::new(7);
    assert_eq!(write(&shared, 1, 0, Some(Step::Held)), Err(Refused::Stopped));
    Writer::new(0).write(&shared, &hint, &[1], b"").unwrap();
    assert_eq!((hint.get() & 1, shared.state(0).position()), (0, 3));
    for value in 2..6 {
        Writer::new(0).write(&shared, &hint, &[value], b"").unwrap();
    }
    let full = Writer::new(0).write(&shared, &hint, &[6], b"");
    assert_eq!(full, Err(Refused::NoRoom { held: true }));
    assert!(Reader::held(&shared).eq([Held { lane: 1, process: 1 }]));
}

/// The table in the module's documentation.
#[test]
fn a_writer_may_die_at_every_step() {
    for step in STEPS {
        let shared = Shared::new(2, POSITION - 4);
        let mut reader = Reader::new(2, POSITION - 4);
        write(&shared, 0, 1, None).unwrap();
        assert_eq!(write(&shared, 0, 2, Some(step)), Err(Refused::Stopped));
        write(&shared, 1, 3, None).unwrap();
        write(&shared, 0, 4, None).unwrap();
        let is_held = !matches!(step, Step::Picked | Step::Committed);
        let has_number = matches!(step, Step::Numbered | Step::Framed | Step::Filled);
        let held: Vec<_> = Reader::held(&shared).collect();
        assert_eq!(held, Vec::from_iter(is_held.then_some(Held { lane: 0, process: 0 })));

        let before = read(&shared, &mut reader, 9);
        assert_eq!(reader.is_waiting(), has_number, "{step:?}");
        let expected: &[u64] = match step {
            Step::Committed => &[1, 2, 3, 4],
            _ if has_number => &[1],
            _ => &[1, 3, 4],
        };
        assert_eq!(before, expected, "{step:?}");

        held.iter().for_each(|held| reader.recover(&shared, held.lane));
        let after = read(&shared, &mut reader, 9);
        assert_eq!(after, if has_number { vec![3, 4] } else { vec![] }, "{step:?}");
        assert_eq!(counts(&reader), (is_held.into(), 0, 0), "{step:?}");
        assert!(!reader.is_waiting());
        // The lane serves again, and nothing of the dead one's comes to light.
        for value in 5..9 {
            write(&shared, 0, value, None).unwrap();
        }
        assert_eq!(read(&shared, &mut reader, 9), [5, 6, 7, 8]);
    }
}

#[test]
fn a_record_that_was_passed_is_late() {
    let shared = Shared::new(2, 0);
    let mut reader = Reader::new(2, 0);
    let lane = shared.lane(0);
    assert!(lane.hold(1, 0));
    assert_eq!(shared.order.fetch_add(1, Ordering::Relaxed), 0);
    write(&shared, 1, 11, None).unwrap();
    assert_eq!(read(&shared, &mut reader, 9), []);
    assert!(reader.is_waiting());
    reader.pass();
    assert_eq!(read(&shared, &mut reader, 9), [11]);
    assert!(!reader.is_waiting(), "it was given up");
    // Others are not kept by it any more.
    write(&shared, 1, 12, None).unwrap();
    assert_eq!(read(&shared, &mut reader, 9), [12]);
    for (value, at) in frame(0, 0, 8).into_iter().chain([10]).zip(0..) {
        lane.words[at].store(value, Ordering::Relaxed);
    }
    assert!(lane.commit(1, 0, 3));
    assert_eq!(read(&shared, &mut reader, 9), [10]);
    assert_eq!(counts(&reader), (0, 1, 0));
}

#[test]
fn a_number_that_nobody_can_deliver_is_not_waited_for() {
    let shared = Shared::new(2, 0);
    let mut reader = Reader::new(2, 0);
    shared.forge(0, 5, 5);
    shared.forge(1, 3, 3);
    assert_eq!(read(&shared, &mut reader, 9), [3, 5]);
    assert_eq!(counts(&reader), (0, 0, 2));
    shared.order.store(9, Ordering::Relaxed);
    assert_eq!(read(&shared, &mut reader, 9), []);
    assert!(!reader.is_waiting());
    write(&shared, 0, 9, None).unwrap();
    assert_eq!(read(&shared, &mut reader, 9), [9]);
}

#[test]
fn numbers_at_the_end_of_all_numbers_are_survived() {
    for order in [u64::MAX, u64::MAX - 1, u64::MAX - 2] {
        for held in [false, true] {
            let shared = Shared::new(4, 0);
            let mut reader = Reader::new(4, 0);
            if held {
                assert!(shared.lane(3).hold(1, 0));
            }
            shared.order.store(order, Ordering::Relaxed);
            shared.forge(0, order, 7);
            read(&shared, &mut reader, 9);
            reader.pass();
            read(&shared, &mut reader, 9);
            // The counter wraps around, and what comes is still delivered.
            let mut values = Vec::new();
            for value in 100..120 {
                write(&shared, 1, value, None).unwrap();
                values.extend(read(&shared, &mut reader, 9));
                reader.pass();
            }
            values.extend(read(&shared, &mut reader, 9));
            values.retain(|&value| value >= 100);
            // The one whose number no record can have.
            assert!(values.len() >= 18, "{order:x} {held} {values:?}");
        }
    }
}

#[test]
fn a_counter_that_was_set_back_makes_records_late() {
    let shared = Shared::new(2, 0);
    let mut reader = Reader::new(2, 0);
    for value in 0..4 {
        write(&shared, 0, value, None).unwrap();
    }
    assert_eq!(read(&shared, &mut reader, 9), [0, 1, 2, 3]);
    shared.order.store(0, Ordering::Relaxed);
    write(&shared, 0, 4, None).unwrap();
    assert_eq!(read(&shared, &mut reader, 9), [4]);
    assert_eq!(counts(&reader), (0, 1, 0));
}

#[test]
fn all_lanes_held_by_nobody_are_freed_by_recovering_them() {
    let shared = Shared::new(4, 0);
    let mut reader = Reader::new(4, 0);
    for lane in &shared.lanes {
        lane.0.store(State::new(OWNERS, 0).0, Ordering::Relaxed);
    }
    assert!(Reader::is_full(&shared));
    assert_eq!(write(&shared, 0, 1, None), Err(Refused::NoRoom { held: true }));
    assert_eq!(read(&shared, &mut reader, 9), []);
    let held: Vec<_> = Reader::held(&shared).collect();
    assert_eq!(held.len(), 4);
    assert!(held.iter().all(|held| held.process == u32::MAX));
    held.iter().for_each(|held| reader.recover(&shared, held.lane));
    reader.recover(&shared, 99);
    write(&shared, 0, 1, None).unwrap();
    assert_eq!(read(&shared, &mut reader, 9), [1]);
    assert_eq!(reader.torn(), 4);
}

#[test]
fn a_head_that_somebody_else_changed_is_put_right() {
    let shared = Shared::new(1, 0);
    let mut reader = Reader::new(1, 0);
    shared.lanes[0].1.store(POSITION / 2, Ordering::Relaxed);
    assert_eq!(write(&shared, 0, 1, None), Err(Refused::NoRoom { held: true }));
    assert_eq!(read(&shared, &mut reader, 9), []);
    write(&shared, 0, 1, None).unwrap();
    assert_eq!(read(&shared, &mut reader, 9), [1]);
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Write { writer: u32, stop: Option<usize> },
    Read(usize),
    Recover,
    Pass,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0..4_u32).prop_map(|writer| Action::Write { writer, stop: None }),
        2 => (0..4_u32, prop::option::of(0..STEPS.len()))
            .prop_map(|(writer, stop)| Action::Write { writer, stop }),
        3 => (0..6_usize).prop_map(Action::Read),
        1 => Just(Action::Recover),
        1 => Just(Action::Pass),
    ]
}

proptest! {
    /// What was completed comes out once; in the order of writing, unless the reader went on without
    /// waiting; and what was begun and not completed is counted.
    #[test]
    fn what_was_written_comes_out(
        actions in prop::collection::vec(action(), 0..200),
        lanes in 0..3_u32,
        start in prop_oneof![Just(0), POSITION - 60..POSITION, any::<u64>()],
        passes: bool,
    ) {
        let shared = Shared::new(1 << lanes, start);
        let mut reader = Reader::new(1 << lanes, start);
        let (mut written, mut values, mut begun) = (Vec::new(), Vec::new(), 0);
        let recover = |reader: &mut Reader| {
            let held: Vec<_> = Reader::held(&shared).collect();
            held.iter().for_each(|held| reader.recover(&shared, held.lane));
        };
        for (value, action) in (0..).zip(actions) {
            match action {
                Action::Write { writer, stop } => {
                    let stop = stop.map(|step| STEPS[step]);
                    match write(&shared, writer, value, stop) {
                        Ok(()) => written.push(value),
                        Err(Refused::Stopped) if stop == Some(Step::Committed) => written.push(value),
                        Err(Refused::Stopped) if stop != Some(Step::Picked) => begun += 1,
                        Err(why) => prop_assert_ne!(why, Refused::Lost),
                    }
                }
                Action::Read(most) => values.extend(read(&shared, &mut reader, most)),
                Action::Recover => recover(&mut reader),
                Action::Pass if passes => reader.pass(),
                Action::Pass => {}
            }
        }
        values.extend(read(&shared, &mut reader, usize::MAX));
        recover(&mut reader);
        values.extend(read(&shared, &mut reader, usize::MAX));
        // Nobody was ever slow: what was passed was never completed.
        prop_assert_eq!(values, written);
        prop_assert_eq!(counts(&reader), (begun, 0, 0));
        prop_assert!(!reader.is_waiting());
    }

    /// Whatever is in the memory, the reader comes to an end.
    #[test]
    fn any_memory_is_read_to_an_end(
        words in prop::collection::vec(any::<u64>(), 4 * WORDS),
        states in prop::collection::vec(prop_oneof![any::<u64>(), 0..64_u64], 8),
        forged in prop::collection::vec((0..4_usize, prop_oneof![any::<u64>(), 0..20_u64]), 0..20),
        order in prop_oneof![any::<u64>(), 0..20_u64],
    ) {
        let shared = Shared::new(4, 0);
        let mut reader = Reader::new(4, 0);
        shared.order.store(order, Ordering::Relaxed);
        for (index, (state, head, place)) in shared.lanes.iter().enumerate() {
            state.store(states[2 * index], Ordering::Relaxed);
            head.store(states[2 * index + 1], Ordering::Relaxed);
            for (word, value) in place.iter().zip(&words[index * WORDS..]) {
                word.store(*value, Ordering::Relaxed);
            }
        }
        let mut looks = 0;
        let mut look = |reader: &mut Reader| {
            let count = read(&shared, reader, usize::MAX).len();
            assert!(count <= 4 * WORDS / FRAME);
            looks += 1;
        };
        look(&mut reader);
        for (lane, order) in forged {
            shared.forge(lane, order, 1);
            look(&mut reader);
        }
        let held: Vec<_> = Reader::held(&shared).collect();
        held.iter().for_each(|held| reader.recover(&shared, held.lane));
        look(&mut reader);
        reader.pass();
        look(&mut reader);
        prop_assert_eq!(read(&shared, &mut reader, usize::MAX), [0; 0]);
        prop_assert_eq!(Reader::held(&shared).count(), 0);
    }
}
