//! Processes that cannot outlive this one: ended by handle on drop, and by the kernel if we die without dropping.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
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

/// Another of our programs, which lies beside the one that is tested. Cargo does not build it for `--test integration` alone, being another package's.
///
/// # Panics
/// If it is missing, or older than its source.
#[track_caller]
pub(crate) fn beside_tsp(name: &str) -> PathBuf {
    let tsp = Path::new(env!("CARGO_BIN_EXE_tsp"));
    let program = tsp.with_file_name(name);
    let complaint = |what: &str| {
        format!(
            "{} is {what}: `./x test` builds it, and so does `cargo build --workspace --bins`",
            program.display()
        )
    };
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let Ok(built) = changed(&program) else {
        panic!("{}", complaint("not there"));
    };
    // Cargo's list of what it was made of: `PROGRAM: FILE FILE …`.
    let sources = fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let mut sources = sources.split_ascii_whitespace().skip(1);
    let newer = sources.find(|path| changed(Path::new(path)).is_ok_and(|changed| changed > built));
    assert!(newer.is_none(), "{}", complaint("older than its source"));
    program
}
