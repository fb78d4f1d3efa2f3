//! [`Rt`] on glommio, one executor per core.
//!
//! glommio 0.9.0 needs some care, which all is in this file, `guard.rs` and `mailbox.rs`:
//!
//! - It runs a task inside `spawn_local`. We queue it instead, so that `spawn` means the same on every back end.
//! - It forgets unfinished tasks when the executor ends; their sockets would stay open. We keep the handles and cancel them.
//! - A panic in a task takes the executor down. [`Guarded`] catches it.
//! - Its `accept` loses a connection when the future is dropped, and makes five system calls. Ours is `accept4` behind a
//!   readiness poll.
//! - A pending poll keeps a closed socket open until the next turn of the reactor. We `shutdown` before we close.
//! - Its `connect` resolves names on the core. It is given addresses only.
//! - Foreign wakes and timers wait for the preempt timer while the run queue is never empty; that is 10 ms here, not 100.
//! - It goes to sleep with tasks ready to run if the preempt timer ends before the first of them has run, as happens when
//!   the machine is busy and the thread loses its CPU right there. A timer of ours ends that sleep; before there is one,
//!   [`wait_for_start`] does.
//! - It pins threads by reading `/sys`, which containers may hide. The thread is pinned before it gets here.

pub(crate) mod ring;

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt as _;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use futures_io::{AsyncRead as _, AsyncWrite as _};
use glommio::net::TcpStream;
use glommio::task::JoinHandle;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, TaskQueueHandle};
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::guard::Guarded;
use crate::listen::{ACCEPT_BACKOFF, count_backoff};
use crate::random::CoreRandom;
use crate::socket::{
    AcceptTrouble, Watch, accept_trouble, connect_unix, listens_on, prepare_listener, try_take,
};
use crate::{Accepted, Listener, NetError, Rt, Staleness, Stream, probe, resolve, yield_now};

/// Memory registered with each ring for file I/O, of which there is none here: glommio's minimum.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// Entries per ring. Depths from 128 to 4096 were measured to make no difference.
const RING_DEPTH: usize = 256;

/// How long tasks may run before the reactor looks at timers and foreign wakes again. Shorter ones make it more likely
/// that the executor sleeps on ready tasks.
const PREEMPT_TIMER: Duration = Duration::from_millis(10);

/// Longest sleep of an executor: what a ready task can lose when the executor sleeps on it. Costs an idle core about
/// two milliseconds of CPU a second.
const TICK: Duration = Duration::from_millis(10);

/// How long a core may take to begin before its sleep is interrupted, again and again. Most take below a millisecond.
const START_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Longest sleep; more than that overflows glommio's arithmetic, and nobody will wait that long.
const SLEEP_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Connections that a listener accepts in a row before it lets the core's other tasks run; tokio does it by itself.
const ACCEPT_BURST_MAX: u8 = 16;

/// A core on io_uring. Made by [`crate::spawn_core`].
#[derive(Clone)]
pub struct Uring {
    core: Rc<Core>,
}

struct Core {
    random: CoreRandom,
    tasks: RefCell<Tasks>,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").finish_non_exhaustive()
    }
}

fn executor() -> io::Result<LocalExecutor> {
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT_TIMER)
        .make()
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Makes the executor, then runs `main` to its end; all other tasks are dropped then.
///
/// `main` must not panic. `started` is called when the executor has begun to run; until then, [`wait_for_start`] is needed
/// on another thread.
pub(crate) fn run<T: 'static, F: Future<Output = T>>(
    started: impl FnOnce(),
    main: impl FnOnce(Uring) -> F,
) -> io::Result<T> {
    // glommio panics, with a text that misleads, if the kernel refuses.
    probe::ask_kernel().map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))?;
    let core = Rc::new(Core {
        random: CoreRandom::new()?,
        tasks: RefCell::default(),
    });
    let executor = executor()?;
    let rt = Uring {
        core: Rc::clone(&core),
    };
    let value = executor.run(async move {
        started();
        let value = ticking(main(rt)).await;
        core.cancel_tasks().await;
        value
    });
    Ok(value)
}

/// Runs `main`, with a timer always armed, so that the executor never sleeps for longer than [`TICK`].
async fn ticking<T>(main: impl Future<Output = T>) -> T {
    let mut main = std::pin::pin!(main);
    let mut tick = glommio::timer::Timer::new(TICK);
    poll_fn(|cx| {
        while Pin::new(&mut tick).poll(cx).is_ready() {
            tick = glommio::timer::Timer::new(TICK);
        }
        main.as_mut().poll(cx)
    })
    .await
}

/// Waits for the word that a core has begun, on the thread that started it, and interrupts the executor's sleep if it
/// does not come soon: an executor that has lost its CPU at the wrong moment sleeps before it has run anything, with no
/// timer to end it.
pub(crate) fn wait_for_start<W, T>(
    word: &crossbeam_channel::Receiver<W>,
    thread: &std::thread::JoinHandle<T>,
) -> Result<W, crossbeam_channel::RecvError> {
    loop {
        match word.recv_timeout(START_LOOK_INTERVAL) {
            Ok(word) => return Ok(word),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {
                return Err(crossbeam_channel::RecvError);
            }
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => interrupt(thread),
        }
    }
}

/// Makes the system call that `thread` waits in return with EINTR. The signal is SIGURG: nobody else uses it here, and its
/// default is to be ignored, so one that comes late does no harm.
fn interrupt<T>(thread: &std::thread::JoinHandle<T>) {
    extern "C" fn nothing(_: libc::c_int) {}
    #[expect(
        unsafe_code,
        reason = "signals have no safe wrapper in our dependencies"
    )]
    // SAFETY: an all-zero sigaction is valid, with no flags and an empty mask; the handler does nothing, so it is safe in
    // any state of the interrupted thread. The thread has not been joined, so its pthread_t is valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(libc::SIGURG, &raw const action, std::ptr::null_mut());
        libc::pthread_kill(thread.as_pthread_t(), libc::SIGURG);
    }
}

/// The tasks of a core that have not ended.
#[derive(Default)]
struct Tasks {
    /// By slot; a free slot is `None`.
    handles: Vec<Option<JoinHandle<()>>>,
    free: Vec<usize>,
    closing: bool,
}

impl Core {
    /// Drops all tasks that have not ended, and those that they spawn while they are dropped.
    async fn cancel_tasks(&self) {
        {
            let mut tasks = self.tasks.borrow_mut();
            tasks.closing = true;
            for handle in tasks.handles.iter().flatten() {
                // Queues the task once more, for the executor to drop its future.
                handle.cancel();
            }
        }
        while self.tasks.borrow().is_any_left() {
            yield_now().await;
        }
    }
}

impl Tasks {
    fn is_any_left(&self) -> bool {
        self.free.len() < self.handles.len()
    }

    fn reserve(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.handles.push(None);
            self.handles.len() - 1
        })
    }

    fn keep(&mut self, slot: usize, handle: JoinHandle<()>) {
        if let Some(place) = self.handles.get_mut(slot) {
            *place = Some(handle);
        }
    }

    fn release(&mut self, slot: usize) -> Option<JoinHandle<()>> {
        self.free.push(slot);
        self.handles.get_mut(slot).and_then(Option::take)
    }
}

/// A task's place among the [`Tasks`]; freed when the task has ended or was dropped.
///
/// [`Guarded`] drops it while the task is being polled, not after: glommio reads a task's state before it drops a
/// completed future and writes it back afterwards, so a handle dropped in between would be forgotten, and the task leak.
struct Slot {
    core: Rc<Core>,
    slot: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let handle = self.core.tasks.borrow_mut().release(self.slot);
        drop(handle);
    }
}

impl Rt for Uring {
    type Listener = UringListener;
    type Stream = UringStream;
    type Sleep = UringSleep;

    #[expect(
        clippy::disallowed_methods,
        reason = "the seam is where the clock is read"
    )]
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the seam is where the clock is read"
    )]
    fn wall_now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> UringSleep {
        UringSleep(glommio::timer::Timer::new(duration.min(SLEEP_MAX)))
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let slot = {
            let mut tasks = self.core.tasks.borrow_mut();
            if tasks.closing {
                None
            } else {
                Some(tasks.reserve())
            }
        };
        let Some(slot) = slot else {
            // The core ends: as on tokio, the task is dropped unpolled.
            drop(Guarded::new(task, ()));
            return;
        };
        let task = Guarded::new(
            task,
            Slot {
                core: Rc::clone(&self.core),
                slot,
            },
        );
        // Into the default queue, which cannot be missing. In any other a panic would abort the process.
        match glommio::executor().spawn_local_into(task, TaskQueueHandle::default()) {
            Ok(task) => self.core.tasks.borrow_mut().keep(slot, task.detach()),
            Err(error) => tracing::error!("glommio lost its default task queue: {error}"),
        }
    }

    fn adopt(&self, listener: impl Into<OwnedFd>) -> io::Result<UringListener> {
        Ok(UringListener {
            inner: prepare_listener(listener.into())?,
            readiness: None,
            burst: 0,
        })
    }

    async fn connect(
        &self,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<UringStream, NetError> {
        if timeout.is_zero() {
            return Err(NetError::Timeout);
        }
        let stream = TcpStream::connect_timeout(address, timeout.min(SLEEP_MAX))
            .await
            .map_err(io::Error::from)?;
        stream.set_nodelay(true).map_err(io::Error::from)?;
        Ok(UringStream::new(stream))
    }

    async fn connect_unix(&self, path: &Path, timeout: Duration) -> Result<UringStream, NetError> {
        let connected = connect_unix(self, path, timeout, false).await?;
        Ok(UringListener::open(connected)?)
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, NetError> {
        resolve::resolve(host, port).await
    }

    fn random(&self, out: &mut [u8]) {
        self.core.random.fill(out, self.now());
    }
}

/// What [`Uring::sleep`](Rt::sleep) returns.
#[derive(Debug)]
pub struct UringSleep(glommio::timer::Timer);

impl Future for UringSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

/// A listening socket on io_uring.
#[derive(Debug)]
pub struct UringListener {
    inner: Socket,
    /// Set while nothing waits to be accepted.
    readiness: Option<Readiness>,
    /// Connections accepted since this last let other tasks run.
    burst: u8,
}

/// One wait until a connection waits to be accepted.
///
/// glommio has no public way to poll a descriptor. A `TcpStream` of its own, made of the listening socket, is one: it
/// starts a `POLL_ADD` when it is made, and its read stays pending until that completes. What the read says then (`recv`
/// on a listening socket fails with ENOTCONN) is of no interest.
#[derive(Debug)]
struct Readiness(TcpStream);

impl Readiness {
    fn of(listener: &Socket) -> io::Result<Self> {
        let fd = OwnedFd::from(listener.try_clone()?).into_raw_fd();
        #[expect(unsafe_code, reason = "glommio adopts sockets as raw descriptors only")]
        // SAFETY: the descriptor was duplicated for this and is owned by nobody else.
        Ok(Self(unsafe { TcpStream::from_raw_fd(fd) }))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll_read(cx, &mut [0]).map(drop)
    }
}

impl UringListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        loop {
            if let Some(readiness) = &mut self.readiness {
                ready!(readiness.poll(cx));
                self.readiness = None;
                self.burst = 0;
            }
            match Accepted::take(&self.inner, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness = Some(Readiness::of(&self.inner)?);
                }
                Err(error) if accept_trouble(&error) == AcceptTrouble::Skip => {}
                other => return Poll::Ready(other),
            }
        }
    }
}

impl Listener for UringListener {
    type Stream = UringStream;

    async fn accept_socket(&mut self) -> io::Result<Accepted> {
        if self.burst == ACCEPT_BURST_MAX {
            // First, so that a caller that keeps cancelling gets on too.
            self.burst = 0;
            yield_now().await;
        }
        self.burst += 1;
        loop {
            match poll_fn(|cx| self.poll_accept(cx)).await {
                Err(error) if accept_trouble(&error) == AcceptTrouble::BackOff => {
                    count_backoff(&error);
                    glommio::timer::sleep(ACCEPT_BACKOFF).await;
                }
                other => return other,
            }
        }
    }

    fn try_accept_socket(&mut self) -> io::Result<Option<Accepted>> {
        try_take(&self.inner, false)
    }

    // A Unix socket, too: what glommio's `TcpStream` does with a descriptor once it has it is the same for both.
    fn open(accepted: Accepted) -> io::Result<UringStream> {
        let fd = accepted.into_socket()?.into_raw_fd();
        #[expect(unsafe_code, reason = "glommio adopts sockets as raw descriptors only")]
        // SAFETY: the descriptor comes from the socket that gave it up.
        Ok(UringStream::new(unsafe { TcpStream::from_raw_fd(fd) }))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        listens_on(&self.inner)
    }
}

impl Drop for UringListener {
    fn drop(&mut self) {
        // The pending poll keeps the socket, so closing it alone would leave it listening until the ring has cancelled.
        // An error means that it does not listen any more.
        let _ = self.inner.shutdown(std::net::Shutdown::Read);
    }
}

/// A connection on io_uring.
#[derive(Debug)]
pub struct UringStream {
    watch: Watch,
    inner: TcpStream,
}

impl UringStream {
    fn new(inner: TcpStream) -> Self {
        Self {
            watch: Watch::new(&inner),
            inner,
        }
    }
}

impl Drop for UringStream {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "glommio lends sockets as raw descriptors only")]
        // SAFETY: `inner` owns the descriptor and lives until after this function.
        let fd = unsafe { BorrowedFd::borrow_raw(self.inner.as_raw_fd()) };
        // The pending poll keeps the socket, so closing it alone would send FIN only after the ring has cancelled. An error
        // means that the connection is gone already.
        let _ = SockRef::from(&fd).shutdown(std::net::Shutdown::Both);
    }
}

impl Stream for UringStream {
    fn staleness(&self) -> Staleness {
        self.watch.staleness()
    }
}

impl AsyncRead for UringStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        #[expect(
            unsafe_code,
            reason = "filling the buffer with zeros first would cost as much as the read"
        )]
        // SAFETY: glommio 0.9.0 hands the slice to `recv` and does not look into it. Nothing de-initialises it.
        let unfilled = unsafe {
            let unfilled = std::ptr::from_mut(buf.unfilled_mut()) as *mut [u8];
            &mut *unfilled
        };
        let count = ready!(Pin::new(&mut self.inner).poll_read(cx, unfilled))?;
        #[expect(unsafe_code, reason = "the counterpart of not zeroing the buffer")]
        // SAFETY: `recv` has written `count` bytes from the start of the unfilled part.
        unsafe {
            buf.assume_init(count);
        }
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

// `is_write_vectored` stays false on purpose: hyper then sends head and body in one `send`.
impl AsyncWrite for UringStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// Makes a whole executor and takes it down, on a thread of its own: the last question of the probe.
pub(crate) fn trial() -> Result<(), String> {
    let (started, has_started) = crossbeam_channel::bounded(1);
    let trial = std::thread::Builder::new()
        .name("uring-trial".to_owned())
        .spawn(move || {
            let started = || started.send(()).unwrap_or_default();
            run(started, |_| async {}).map_err(|error| error.to_string())
        })
        .map_err(|error| error.to_string())?;
    // Without the word, the thread has ended with an error, which it tells below.
    wait_for_start(&has_started, &trial).unwrap_or_default();
    match trial.join() {
        Ok(result) => result,
        Err(payload) => Err(crate::guard::panic_text(payload.as_ref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IoChoice, bind_reuseport, choose};

    /// A core that sleeps on its ready tasks never ends here: nothing else would wake it.
    #[test]
    fn cores_begin_and_go_on_although_the_machine_is_busy() {
        use std::sync::atomic::{AtomicBool, Ordering};
        struct Main;
        impl crate::CoreMain for Main {
            async fn run<R: Rt>(self, rt: R) {
                for _ in 0..20 {
                    let (done, is_done) = tokio::sync::oneshot::channel();
                    rt.spawn(async move { done.send(()).unwrap() });
                    is_done.await.unwrap();
                }
            }
        }
        if let Err(error) = choose(IoChoice::Uring) {
            eprintln!("skipped: {error}");
            return;
        }
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            for _ in 0..40 {
                let core = crate::spawn_core(crate::Backend::Uring, "busy", None, Main).unwrap();
                assert_eq!(core.join(), crate::CoreEnd::Ended);
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn both_ends_have_nodelay() {
        if let Err(error) = choose(IoChoice::Uring) {
            eprintln!("skipped: {error}");
            return;
        }
        run(
            || {},
            async |rt| {
                let listener = bind_reuseport("127.0.0.1:0".parse().unwrap(), 1)
                    .unwrap()
                    .remove(0);
                let mut listener = rt.adopt(listener).unwrap();
                let address = listener.local_addr().unwrap();
                let near = rt.connect(address, Duration::from_secs(60)).await.unwrap();
                let (far, _) = listener.accept().await.unwrap();
                assert!(near.inner.nodelay().unwrap() && far.inner.nodelay().unwrap());
            },
        )
        .unwrap();
    }
}
