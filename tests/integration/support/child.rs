//! Processes that cannot outlive this one: ended by handle on drop, and by the kernel if we die without dropping.

use std::{
    ffi::OsStr,
    process::{Child, Command},
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
};

/// A command that the kernel kills when the thread that spawned it ends. So [`spawn`] uses one thread that never does.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// Spawns `command`, made by [`command`], from the thread that lives as long as the process.
#[track_caller]
pub(crate) fn spawn(command: Command) -> Child {
    type Job = (Command, Sender<std::io::Result<Child>>);
    static JOBS: OnceLock<Sender<Job>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (jobs, receiver) = channel::<Job>();
        thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, answer) in receiver {
                    // The asker waits for this; if it has panicked meanwhile, the child is ended here.
                    if let Err(unsent) = answer.send(command.spawn())
                        && let Ok(mut child) = unsent.0
                    {
                        let _ = child.kill();
                    }
                }
            })
            .expect("a thread can be started");
        jobs
    });
    let shown = format!("{command:?}");
    let (answer, child) = channel();
    jobs.send((command, answer)).expect("the spawner lives");
    child
        .recv()
        .expect("the spawner answers")
        .unwrap_or_else(|error| panic!("cannot start {shown}: {error}"))
}
