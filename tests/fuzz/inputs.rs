//! What is done with each input, by the fuzzer, and by the ordinary test of the inputs that are kept.
//!
//! To run one: `cargo +nightly fuzz run --fuzz-dir tests/fuzz ring -- -max_total_time=300`, or `record`; and
//! `cargo +nightly fuzz cmin --fuzz-dir tests/fuzz ring` to keep only those that differ in what they reach.

#![allow(dead_code, reason = "each target uses one of them")]

use std::cell::Cell;
use std::os::unix::fs::FileExt;

use ttalloc_ring::lane::{frame, words_for};
use ttalloc_ring::record::{MAX_BYTES, Record};
use ttalloc_ring::ring::{Consumer, Follow, OnFull, Producer, RingOptions};

const LANES: usize = 4;
const LANE_BYTES: usize = 16 << 10;
/// Where a lane's head is, from its state, and the next lane's state, in bytes.
const HEAD: u64 = 64;
const NEXT_STATE: u64 = 128;

/// Decodes a record, whatever it is.
pub fn record(bytes: &[u8]) {
    if let Ok((head, record)) = Record::decode(bytes) {
        let _ = format!("{head:?} {record:?}");
    }
}

/// Does to a ring's memory what the input says, some of it as a producer would, and reads in between.
pub fn ring(bytes: &[u8]) {
    let options = RingOptions {
        lanes: LANES,
        lane_bytes: LANE_BYTES,
        on_full: OnFull::Drop,
        follow: Follow::Inherit,
    };
    let mut consumer = Consumer::create(&options).expect("a ring can be made");
    let producer = Producer::attach(consumer.variable()).expect("it can be attached");
    let length = consumer.file().metadata().expect("it is a file").len();
    let words = length - (LANES * LANE_BYTES) as u64;
    let states = words - LANES as u64 * NEXT_STATE;
    let mut input = Input(bytes);
    // A spoiled header may have a producer wait, and the reader is on this thread.
    let mut spoiled_header = false;
    let hint = Cell::new(0);
    while !input.0.is_empty() {
        let [action, lane] = input.take();
        let lane = u64::from(lane) % LANES as u64;
        match action % 8 {
            0 if !spoiled_header => {
                let size = usize::from(u16::from_le_bytes(input.take())) % (MAX_BYTES + 2);
                producer.write(&hint, lane as u32, &[], &vec![lane as u8; size]);
            }
            0 | 1 => {
                // Anywhere, and so mostly in the lanes and the counters.
                let at = u64::from(u32::from_le_bytes(input.take())) % (length - 8);
                spoiled_header |= at < states;
                put(&consumer, at, &input.take::<8>());
            }
            2 => {
                // In what is shared by all lanes.
                let at = u64::from(u16::from_le_bytes(input.take())) % 1024;
                spoiled_header = true;
                put(&consumer, at, &input.take::<8>());
            }
            3 => put(&consumer, states + lane * NEXT_STATE, &input.take::<8>()),
            4 => put(&consumer, states + lane * NEXT_STATE + HEAD, &input.take::<8>()),
            5 => {
                // A record that is sound, of any number and length, at the position where one is due.
                let number = u64::from_le_bytes(input.take());
                let size = usize::from(u16::from_le_bytes(input.take()));
                let mut state = [0; 8];
                let state_at = states + lane * NEXT_STATE;
                consumer.file().read_exact_at(&mut state, state_at).expect("it can be read");
                let position = u64::from_le_bytes(state);
                let at = |position: u64| {
                    words + lane * LANE_BYTES as u64 + position * 8 % LANE_BYTES as u64
                };
                let [first, second] = frame(position, number, size);
                put(&consumer, at(position), &first.to_le_bytes());
                put(&consumer, at(position.wrapping_add(1)), &second.to_le_bytes());
                let end = position.wrapping_add(words_for(size) as u64);
                put(&consumer, state_at, &end.to_le_bytes());
            }
            6 => {
                drain(&mut consumer, usize::from(lane as u8) * 7);
            }
            _ => match lane {
                0 => consumer.pass(),
                1 => recover(&mut consumer),
                2 => consumer.abandon(),
                _ => {
                    let _ = (
                        consumer.is_full(),
                        consumer.calls(lane as u32),
                        consumer.processes().count(),
                    );
                }
            },
        }
    }
    // Nobody writes any more, so the reader comes to an end.
    for _ in 0..4 {
        drain(&mut consumer, usize::MAX);
        recover(&mut consumer);
        consumer.pass();
    }
    assert_eq!(drain(&mut consumer, usize::MAX), 0);
    assert_eq!(consumer.held().count(), 0);
}

fn drain(consumer: &mut Consumer, most: usize) -> usize {
    let count = consumer.drain(most, |bytes| {
        assert!(bytes.len() <= MAX_BYTES);
        record(bytes);
    });
    // A record takes two words at least.
    assert!(count <= LANES * LANE_BYTES / 16, "{count} records");
    count
}

fn recover(consumer: &mut Consumer) {
    let held: Vec<_> = consumer.held().collect();
    assert!(held.len() <= LANES);
    held.iter().for_each(|held| consumer.recover(held.lane));
}

fn put(consumer: &Consumer, at: u64, bytes: &[u8]) {
    consumer.file().write_all_at(bytes, at).expect("the memory can be written");
}

/// What is left of the input, zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (start, rest) = self.0.split_at(self.0.len().min(N));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..start.len()].copy_from_slice(start);
        bytes
    }
}
