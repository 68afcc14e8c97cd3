//! The collector: what keeps the books of a program that has the preload library and no launcher. The library
//! starts it, and waits for the name of the ring.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ttalloc_ring::ring::RingOptions;

use super::background::{forget_streams, keep_until, tend};
use super::keeper::Keeper;
use super::signals::Wishes;
use super::snapshot::Snapshots;
use super::subject::{Stage, Subject};
use super::watch::{How, Watch};
use super::{GRACE, Outcome, RunError, check_destination, name_of, no_ring, to_json};
use crate::report::Exit;

/// What to collect.
pub struct Collection {
    /// The program's pid.
    pub pid: u32,
    /// Where the ring's name goes.
    pub reply: OwnedFd,
    /// Where the report goes, with the placeholders of [`super::name::Name`].
    pub report: PathBuf,
}

/// Keeps the books of a program that runs, and of its children, until all are gone. `told` gets what is to be
/// told at the program's end.
pub fn collect(collection: Collection, told: impl Fn(&Outcome)) -> Result<(), RunError> {
    let Collection { pid, reply, report } = collection;
    let wishes = Wishes::take();
    let system = |what, advice| move |why| RunError::System { what, why, advice };
    let (mut subject, start_ticks) = Subject::running(pid).map_err(system(
        "the program can't be found",
        "check that /proc is mounted and shows this user's processes",
    ))?;
    let destination = check_destination(&name_of(&report)?.path(pid))?;
    let mut keeper = Keeper::new(&RingOptions::default()).map_err(no_ring)?;
    keeper.watch.begin_with(pid, start_ticks);
    let answer = format!("{}\n", keeper.ring.variable());
    let mut reply = File::from(reply);
    reply.write_all(answer.as_bytes()).map_err(system(
        "the program does not wait for an answer any more",
        "nothing: it runs untracked",
    ))?;
    drop(reply);

    let mut snapshots = Snapshots::new(None);
    let has_ended = |watch: &Watch| watch.program() != How::Running;
    keep_until(&mut keeper, &wishes, &mut snapshots, has_ended, |snapshots, keeper| {
        tend(snapshots, &destination, &subject, keeper);
    });
    keeper.catch_up();
    keeper.settle();
    match keeper.watch.program() {
        // The end was wished for.
        How::Running => {}
        How::Exited(exit) => subject.ended(exit),
        How::Replaced(_) => subject.ended(Exit::Exec(None)),
        How::Unknown => subject.ended(Exit::Unknown(true)),
    }
    let ended = has_ended(&keeper.watch);
    let mut running = if ended { keeper.until_gone(GRACE) } else { keeper.watch.running() };
    snapshots.finish();
    let goes_on = ended && !running.is_empty() && destination.is_file();
    if goes_on {
        let report = subject.report(&keeper, Stage::Snapshot);
        let written = to_json(&report).and_then(|json| destination.write(&json));
        let follower = Some(std::process::id());
        told(&Outcome { report, code: 0, written, running, follower });
        // Nobody shall wait for what this process might still print.
        let nothing = OpenOptions::new().read(true).write(true).open("/dev/null");
        nothing.and_then(|nothing| forget_streams(&nothing)).map_err(system(
            "/dev/null can't be put in the place of standard error",
            "check that /dev/null is there",
        ))?;
        let gone = |watch: &Watch| watch.running().is_empty();
        running = keep_until(&mut keeper, &wishes, &mut snapshots, gone, |snapshots, keeper| {
            tend(snapshots, &destination, &subject, keeper);
        });
    }
    keeper.finish();
    snapshots.finish();
    let report = subject.report(&keeper, Stage::Last(&running));
    let written = to_json(&report).and_then(|json| destination.write(&json));
    if !goes_on {
        told(&Outcome { report, code: 0, written, running, follower: None });
    }
    Ok(())
}
