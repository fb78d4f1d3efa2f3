//! Cores: one thread each, pinned, with a back end and a main future.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::thread::JoinHandle;

use crate::guard::panic_text;
use crate::{Epoll, Rt, epoll, uring};

/// What a core's thread is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// io_uring, by glommio.
    Uring,
    /// epoll, by tokio.
    Epoll,
}

impl Backend {
    /// `uring` or `epoll`, as in `TSP_IO` and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a core does, for any back end. A closure cannot be generic over the back end; this is one that is.
pub trait CoreMain: Send + 'static {
    /// The core lives as long as this future.
    fn run<R: Rt>(self, rt: R) -> impl Future<Output = ()>;
}

/// How a core's life ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoreEnd {
    /// Its main future completed.
    Ended,
    /// Its main future, or the executor under it, panicked; the text is the panic's.
    Died(String),
}

/// A running core. Dropping it lets the core run on.
#[derive(Debug)]
pub struct CoreThread {
    thread: JoinHandle<CoreEnd>,
}

impl CoreThread {
    /// Waits until the core has ended. Blocks; never call it on a core.
    #[must_use]
    pub fn join(self) -> CoreEnd {
        match self.thread.join() {
            Ok(end) => end,
            Err(payload) => CoreEnd::Died(panic_text(payload.as_ref())),
        }
    }

    /// Whether the core has ended, without waiting.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Starts a core on a thread of its own and waits until its executor stands.
///
/// `cpu` is the kernel's number of the CPU to stay on, as in `/proc/self/status`; `None` leaves the scheduler free.
///
/// # Errors
/// Whatever kept the thread from starting, the pinning from taking or the executor from being built. With
/// [`Backend::Uring`] call [`crate::choose`] first: its errors say what to do.
pub fn spawn_core(
    backend: Backend,
    name: &str,
    cpu: Option<usize>,
    main: impl CoreMain,
) -> io::Result<CoreThread> {
    spawn_core_watched(backend, name, cpu, main, |_| {})
}

/// As [`spawn_core`]; `on_end` is called on the core's thread as the last thing it does, and must not wait.
///
/// # Errors
/// As [`spawn_core`]; `on_end` is not called then.
pub fn spawn_core_watched(
    backend: Backend,
    name: &str,
    cpu: Option<usize>,
    main: impl CoreMain,
    on_end: impl FnOnce(&CoreEnd) + Send + 'static,
) -> io::Result<CoreThread> {
    let (started, has_started) = crossbeam_channel::bounded::<io::Result<()>>(1);
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let live = || {
                if let Some(cpu) = cpu {
                    pin_to(cpu)?;
                }
                run_core(backend, main, || drop(started.send(Ok(()))))
            };
            let end = match catch_unwind(AssertUnwindSafe(live)) {
                Ok(Ok(end)) => end,
                Ok(Err(error)) => {
                    let end = CoreEnd::Died(error.to_string());
                    if started.send(Err(error)).is_ok() {
                        return end;
                    }
                    end
                }
                Err(payload) => CoreEnd::Died(panic_text(payload.as_ref())),
            };
            on_end(&end);
            end
        })?;
    let word = match backend {
        Backend::Uring => uring::wait_for_start(&has_started, &thread),
        Backend::Epoll => has_started.recv(),
    };
    match word {
        Ok(Ok(())) => Ok(CoreThread { thread }),
        Ok(Err(error)) => {
            drop(thread.join());
            Err(error)
        }
        // The executor panicked while it was built: `started` was dropped unsent.
        Err(_) => Err(io::Error::other(match thread.join() {
            Ok(CoreEnd::Died(text)) => text,
            Ok(CoreEnd::Ended) => "the core ended before it began".to_owned(),
            Err(payload) => panic_text(payload.as_ref()),
        })),
    }
}

fn run_core(backend: Backend, main: impl CoreMain, started: impl FnOnce()) -> io::Result<CoreEnd> {
    match backend {
        Backend::Uring => uring::run(started, |rt| caught(main.run(rt))),
        Backend::Epoll => epoll::run(started, |rt| caught(main.run(rt))),
    }
}

/// Runs a future to its end or its panic, so that the executor under it can be taken down in order either way.
async fn caught(future: impl Future<Output = ()>) -> CoreEnd {
    let mut future = pin!(future);
    std::future::poll_fn(move |cx| {
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll.map(|()| CoreEnd::Ended),
            Err(payload) => CoreEnd::Died(panic_text(payload.as_ref())).into(),
        }
    })
    .await
}

/// Runs `main` on the calling thread, on epoll, and returns what it returns. For the control core and for tests.
///
/// # Errors
/// If the runtime cannot be built.
///
/// # Panics
/// If `main` panics; and if the thread runs a tokio runtime already.
pub fn run_here<T, F: Future<Output = T>>(main: impl FnOnce(Epoll) -> F) -> io::Result<T> {
    epoll::run(|| {}, main)
}

/// Keeps the calling thread, and the threads that it will start, on one CPU.
fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= usize::try_from(libc::CPU_SETSIZE).unwrap_or(0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no CPU {cpu}"),
        ));
    }
    #[expect(
        unsafe_code,
        reason = "the affinity calls have no safe wrapper in our dependencies"
    )]
    // SAFETY: an all-zero cpu_set_t is the empty set; `cpu` is below CPU_SETSIZE, so CPU_SET stays inside it; the kernel
    // reads the set only during the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(
        error.kind(),
        format!("cannot pin a thread to CPU {cpu}: {error}"),
    ))
}

/// Starts a thread that serves cores and is none itself: on the CPUs of the process's first thread and as nice as that,
/// although a core starts it. It would inherit the core's one CPU, and be in the way there.
///
/// # Errors
/// Whatever kept the thread from starting. That it cannot be moved is logged.
pub(crate) fn spawn_helper(name: String, main: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name).spawn(move || {
        if let Err(error) = follow_first_thread() {
            tracing::warn!("a helper thread stays on its core's CPU: {error}");
        }
        main();
    })?;
    Ok(())
}

fn follow_first_thread() -> io::Result<()> {
    let check = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let which = libc::PRIO_PROCESS;
    #[expect(
        unsafe_code,
        reason = "these calls have no safe wrapper in our dependencies"
    )]
    // SAFETY: the process's number is also that of its first thread, and 0 is the calling one; an all-zero cpu_set_t is a
    // set, which the kernel fills and reads during the calls only.
    unsafe {
        let first = libc::getpid();
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let bytes = size_of::<libc::cpu_set_t>();
        check(libc::sched_getaffinity(first, bytes, &raw mut set))?;
        check(libc::sched_setaffinity(0, bytes, &raw const set))?;
        // -1 can be a niceness or an error; taken for a niceness it fails below, where it is not permitted.
        let niceness = libc::getpriority(which, first.cast_unsigned());
        check(libc::setpriority(which, 0, niceness))
    }
}
