//! Signals: a thread of its own hands them to the control loop.

use std::{io, process, thread};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tsp_rt::mailbox::Sender;

use crate::control::Command;

/// Exit code of a process that a signal ends: this and the signal's number, as shells have it.
const EXIT_BY_SIGNAL: i32 = 128;

/// Starts the thread. The first SIGTERM or SIGINT goes to the control loop like every SIGHUP; a second one ends the
/// process at once, whatever state it is in.
pub(crate) fn start(commands: Sender<Command>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("tsp-signals".to_owned())
        .spawn(move || {
            let mut draining = false;
            for signal in signals.forever() {
                if signal != SIGHUP && std::mem::replace(&mut draining, true) {
                    eprintln!("tsp: a second signal; exiting without finishing the drain");
                    process::exit(EXIT_BY_SIGNAL + signal);
                }
                if commands.send(Command::Signal(signal)).is_err() && signal != SIGHUP {
                    eprintln!("tsp: the control loop does not answer; exiting");
                    process::exit(EXIT_BY_SIGNAL + signal);
                }
            }
        })?;
    Ok(())
}
