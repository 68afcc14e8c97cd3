//! Numbers that look random and come again from the same seed.

use std::time::{Duration, SystemTime};

/// A sequence of numbers: splitmix64, by Steele, Lea and Flood (2014).
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The seed that the environment variable `TTALLOC_SEED` names, or else one of this moment's.
    ///
    /// # Panics
    /// If the variable is no number.
    pub fn any_seed() -> u64 {
        match std::env::var("TTALLOC_SEED") {
            Ok(seed) => seed.parse().expect("TTALLOC_SEED is a number"),
            Err(_) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                now.unwrap_or_default().as_nanos() as u64 % 1_000_000_007
            }
        }
    }

    /// The next number, any.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// The next number below `end`, which must not be 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// The next time below `end`, to the microsecond.
    pub fn time_below(&mut self, end: Duration) -> Duration {
        Duration::from_micros(self.below(end.as_micros().max(1) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_its_sequence() {
        let mut random = Random::new(1_234_567);
        let first = [random.number(), random.number(), random.number()];
        // The published test vector of splitmix64.
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(first, expected);
    }
}
