//! The simulated runtime, with everything that a shard does on it told apart from what the runtime and the far ends do.
//!
//! The polls of a shard's tasks are made inside [`shard`]; what they make the simulated kernel do (streams, timers,
//! connections, wakes, the queue of tasks) inside [`kernel`]. So the two functions' names are all that a profiler needs:
//! valgrind's tools find them in the stack. The counting allocator is asked in the same two places.

use std::{
    cell::Cell,
    future::Future,
    hint::black_box,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant, SystemTime},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tsp_rt::{
    Accepted, Listener, NetError, Rt, Staleness, Stream,
    sim::{SimListener, SimRt, SimSleep, SimStream},
};

/// What was allocated, by number and by bytes; growing an allocation is one more, as large as it has become.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allocated {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATED: Cell<Allocated> = const { Cell::new(Allocated { count: 0, bytes: 0 }) };
}

/// Counts what shards allocate until [`stop_counting`].
pub(crate) fn start_counting() {
    ALLOCATED.set(Allocated::default());
    COUNTING.set(true);
}

/// What shards have allocated since [`start_counting`].
pub(crate) fn stop_counting() -> Allocated {
    COUNTING.set(false);
    ALLOCATED.get()
}

/// Does what counts. Its name is known to the profilers, so it stays on the stack meanwhile: no inlining, no tail call.
#[inline(never)]
pub(crate) fn shard(work: &mut dyn FnMut()) {
    if !COUNTING.get() {
        work();
        return black_box(());
    }
    let used = allocation_counter::measure(work);
    let before = ALLOCATED.get();
    ALLOCATED.set(Allocated {
        count: before.count + used.count_total,
        bytes: before.bytes + used.bytes_total,
    });
}

/// Does what does not count, inside [`shard`] or not. Its name is known to the profilers too.
#[inline(never)]
pub(crate) fn kernel(work: &mut dyn FnMut()) {
    if COUNTING.get() {
        allocation_counter::opt_out(work);
    } else {
        work();
        black_box(());
    }
}

/// The value of `work`, which does not count.
fn outside<T>(work: impl FnOnce() -> T) -> T {
    let (mut work, mut value) = (Some(work), None);
    kernel(&mut || value = work.take().map(|work| work()));
    #[expect(clippy::expect_used, reason = "it was called once")]
    value.expect("the work was done")
}

/// Awaits `future`, whose polls do not count.
async fn await_outside<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| outside(|| future.as_mut().poll(cx))).await
}

/// A task of a shard.
struct Task {
    body: Pin<Box<dyn Future<Output = ()>>>,
    /// The simulator's waker, and ours that goes around it.
    waker: Option<(Waker, Waker)>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this
            .waker
            .as_ref()
            .is_none_or(|(inner, _)| !inner.will_wake(cx.waker()))
        {
            let bell = Bell(cx.waker().clone());
            this.waker = Some((cx.waker().clone(), Arc::new(bell).into()));
        }
        let waker = this.waker.as_ref().map_or(cx.waker(), |(_, ours)| ours);
        let mut polled = Poll::Pending;
        shard(&mut || polled = this.body.as_mut().poll(&mut Context::from_waker(waker)));
        polled
    }
}

/// Wakes a task without its counting as the waker's work.
struct Bell(Waker);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        kernel(&mut || self.0.wake_by_ref());
    }
}

/// A core of the simulation that a shard runs on.
#[derive(Clone, Debug)]
pub(crate) struct Metered(pub(crate) SimRt);

impl Rt for Metered {
    type Listener = MeteredListener;
    type Stream = MeteredStream;
    type Sleep = MeteredSleep;

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn wall_now(&self) -> SystemTime {
        self.0.wall_now()
    }

    fn sleep(&self, duration: Duration) -> MeteredSleep {
        MeteredSleep(Some(outside(|| self.0.sleep(duration))))
    }

    /// Boxing the task counts: every runtime does that.
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let body: Pin<Box<dyn Future<Output = ()>>> = Box::pin(task);
        outside(|| self.0.spawn(Task { body, waker: None }));
    }

    fn adopt(&self, listener: impl Into<OwnedFd>) -> io::Result<MeteredListener> {
        self.0.adopt(listener).map(MeteredListener)
    }

    async fn connect(
        &self,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<MeteredStream, NetError> {
        let stream = await_outside(self.0.connect(address, timeout)).await?;
        Ok(MeteredStream(stream))
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, NetError> {
        await_outside(self.0.resolve(host, port)).await
    }

    fn random(&self, out: &mut [u8]) {
        self.0.random(out);
    }

    async fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetError> {
        await_outside(self.0.offload(work)).await
    }
}

/// A listener of a shard.
#[derive(Debug)]
pub(crate) struct MeteredListener(pub(crate) SimListener);

impl Listener for MeteredListener {
    type Stream = MeteredStream;

    async fn accept_socket(&mut self) -> io::Result<Accepted> {
        await_outside(self.0.accept_socket()).await
    }

    fn try_accept_socket(&mut self) -> io::Result<Option<Accepted>> {
        outside(|| self.0.try_accept_socket())
    }

    fn open(accepted: Accepted) -> io::Result<MeteredStream> {
        outside(|| SimListener::open(accepted)).map(MeteredStream)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A connection of a shard.
#[derive(Debug)]
pub(crate) struct MeteredStream(SimStream);

impl Stream for MeteredStream {
    fn staleness(&self) -> Staleness {
        outside(|| self.0.staleness())
    }
}

impl AsyncRead for MeteredStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        outside(|| Pin::new(&mut self.0).poll_read(cx, buf))
    }
}

// `is_write_vectored` stays false, as on the real back ends.
impl AsyncWrite for MeteredStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        outside(|| Pin::new(&mut self.0).poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        outside(|| Pin::new(&mut self.0).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        outside(|| Pin::new(&mut self.0).poll_shutdown(cx))
    }
}

/// A timer of a shard. There is one as long as it is not dropped.
#[derive(Debug)]
pub(crate) struct MeteredSleep(Option<SimSleep>);

impl Future for MeteredSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        outside(|| {
            self.0
                .as_mut()
                .map_or(Poll::Ready(()), |sleep| Pin::new(sleep).poll(cx))
        })
    }
}

impl Drop for MeteredSleep {
    fn drop(&mut self) {
        outside(|| drop(self.0.take()));
    }
}
