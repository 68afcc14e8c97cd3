//! Writers that are killed, that fork and that wait for room, in rings of all sizes, for as long as one
//! likes: every record that a writer finished must come out once, as it was, and in its writer's order.
//!
//! ```console
//! $ cargo run --release -p ttalloc-tests --bin soak -- --seconds 3600
//! ```
//!
//! It goes in rounds of half a second at the most, each with a ring of its own. When something does not
//! add up, it says what, and with which options the round comes again (as far as chance allows); the exit
//! code is 1 then.

mod books;
mod round;
mod writer;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use ttalloc_tests::random::Random;

use crate::round::{Figures, Plan};

/// Soaks the ring in random writers, and counts what comes out.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// For how long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Where the random numbers begin [default: another place each time].
    #[arg(long)]
    seed: Option<u64>,
    /// Ends after so many rounds.
    #[arg(long)]
    rounds: Option<u64>,
    /// At most so many processes at a time, besides those that they fork.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=64))]
    processes: u64,
    /// At most so many threads in each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=16))]
    threads: u64,
    /// Also has a process write nonsense into the ring. Nothing can add up then: only that the others
    /// neither hang nor crash is looked at.
    #[arg(long)]
    hostile: bool,
    /// Leaves one record out of the books on purpose, to see that it is missed.
    #[arg(long, hide = true)]
    lose_one: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(Random::any_seed);
    println!("soak: seed {seed}");
    let begun = Instant::now();
    let end = Duration::from_secs(options.seconds);
    let mut all = Figures::default();
    let mut told = Instant::now();
    let mut random = Random::new(seed);
    let mut round_seed = seed;
    while begun.elapsed() < end && options.rounds.is_none_or(|most| all.rounds < most) {
        let plan = Plan::new(&options, round_seed);
        match round::run(&plan) {
            Ok(figures) => all.add(&figures),
            Err(why) => {
                println!("soak: {plan:?}\nsoak: FAILED: {why}");
                println!("soak: this round again: soak --rounds 1 {}", plan.arguments(&options));
                return ExitCode::FAILURE;
            }
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!("soak: {:4} s, {all}", begun.elapsed().as_secs());
        }
        round_seed = random.below(1 << 40);
    }
    let what = if options.hostile { "nobody hung or crashed" } else { "all of it adds up" };
    println!("soak: {:4} s, {all}; {what}", begun.elapsed().as_secs());
    ExitCode::SUCCESS
}
