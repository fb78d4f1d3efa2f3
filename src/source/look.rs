//! The thread that looks at the source, so that a slow or hanging file system delays neither probes nor a drain.

use std::{io, thread, time::SystemTime};

use crossbeam_channel::Sender;
use tsp_rt::mailbox;
use tsp_shards::Snapshot;
use tsp_wire::SnapshotVersion;

use super::{Ask, Polled, Source};
use crate::{config::Problem, control::Command};

/// What a look came to; a new state is ready to be published.
pub(crate) enum Looked {
    /// As [`Polled::Same`].
    Same,
    /// A new state, and what was left out of it.
    New(Snapshot, Vec<Problem>),
    /// As [`Polled::Failed`].
    Failed(Vec<Problem>),
    /// As [`Polled::StillFailed`].
    StillFailed,
}

/// Starts the thread, on the calling thread's core. It answers every ask with one [`Command::Looked`], counts versions
/// up from `version`, and ends with the sender.
pub(crate) fn start(
    mut source: Source,
    mut version: SnapshotVersion,
    commander: mailbox::Sender<Command>,
) -> io::Result<Sender<Ask>> {
    // The loop asks once and waits for the answer.
    let (asks, asked) = crossbeam_channel::bounded(1);
    thread::Builder::new()
        .name("tsp-source".to_owned())
        .spawn(move || {
            for ask in asked {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "to be compared with times of files"
                )]
                let now = SystemTime::now();
                let looked = match source.poll(ask, now) {
                    Polled::Same => Looked::Same,
                    Polled::New(loaded) => {
                        version = version.next();
                        let (snapshot, left_out) = loaded.into_snapshot(version);
                        Looked::New(snapshot, left_out)
                    }
                    Polled::Failed(problems) => Looked::Failed(problems),
                    Polled::StillFailed => Looked::StillFailed,
                };
                if commander.send(Command::Looked(ask, looked)).is_err() {
                    break;
                }
            }
        })?;
    Ok(asks)
}
