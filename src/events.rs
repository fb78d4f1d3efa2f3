//! The event thread: takes events from the shards' queue and pushes them out of the process, on an nng PUSH socket
//! that logdrivers connect to.
//!
//! A message is the version byte and one event, or several with a line feed between them. Every message costs some
//! 25 µs of CPU (nng hands it from thread to thread), so what waits at one time travels together.
//!
//! What must stay true: the thread never waits on the queue. A sleeper must be woken by who has something for it, which
//! would cost the shard 3 µs per event; so this one takes what is there, then sleeps on its own clock. At most
//! `TSP_SEND_HIGH_WATER_MARK` events are held here, the socket itself buffers none; then the queue fills up, and the
//! shards apply their rule for events that cannot be handed over.
//!
//! With `TSP_EVENTS_ACKNOWLEDGED` the socket is one that is asked, and events are kept until a logdriver has them on disk:
//! [`kept`].

mod kept;

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt, io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use anng::{
    Message, Socket,
    pipes::TcpOptions,
    protocols::{pipeline0::Push0, reqrep0::Rep0},
};
use crossbeam_channel::{Receiver, Sender, TryRecvError, after};
use prometheus::{IntCounter, IntGauge};
use tsp_shards::{EventBatch, EventReceiver};

use self::kept::Keeper;
use crate::config::EventSettings;

/// How long the thread sleeps when less than a message waits: first, and at most. It doubles while nothing comes. The first is
/// short against any consumer's delay, and long enough that at a thousand events per second several share a message; the last
/// costs nothing and is short enough for a queue of the default size at 100,000 events per second.
const IDLE_FIRST: Duration = Duration::from_millis(10);
const IDLE_MAX: Duration = Duration::from_millis(64);

/// How long to wait for the socket before looking at the queue again. The socket wakes the thread by itself.
const SOCKET_WAIT: Duration = Duration::from_millis(20);

/// How long [`EventThread::stop`] tries to get rid of what is held. A logdriver that reads takes milliseconds; where
/// none has ever read anything, none will come in the last moment.
const FLUSH_MAX: Duration = Duration::from_secs(2);
const FLUSH_MAX_UNREAD: Duration = Duration::from_millis(100);

/// How often what shards said last is pushed once more, so that every logdriver hears it and none takes the end for a death: the
/// socket gives messages to each in turn, so it reaches as many.
const LAST_WORDS_COPIES: usize = 16;

/// How long the socket stays open after the last event, so that it reaches the kernel: nng drops it otherwise.
const LINGER: Duration = Duration::from_millis(200);

/// What the event thread counts.
#[derive(Clone, Debug)]
pub struct EventCounters {
    /// Events given to the socket.
    pub pushed: IntCounter,
    /// Events that the socket refused, or that were still held at the end.
    pub failed: IntCounter,
    /// Events that wait for the socket.
    pub held: IntGauge,
}

/// The running event thread.
#[derive(Debug)]
pub struct EventThread {
    local_addr: SocketAddr,
    stop: Sender<()>,
    /// Nothing is ever sent; it is cut when the thread ends.
    alive: Receiver<Infallible>,
    thread: JoinHandle<()>,
}

/// The event socket cannot listen.
#[derive(Debug)]
pub struct BindError {
    /// Where it should.
    pub address: SocketAddr,
    /// Why it cannot.
    pub why: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot listen for logdrivers on {}: {}",
            self.address, self.why
        )
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.why)
    }
}

impl EventThread {
    /// Binds the socket and starts the thread; both, and nng's own threads, stay on the calling thread's core. `instance` is
    /// this process, as its events name it.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn start(
        settings: &EventSettings,
        queue: EventReceiver,
        instance: u64,
        counters: EventCounters,
    ) -> Result<Self, BindError> {
        let address = settings.listen;
        let bind = |why| BindError { address, why };
        let (bound, when_bound) = crossbeam_channel::bounded(1);
        let (stop, stopped) = crossbeam_channel::bounded(1);
        let (pulse, alive) = crossbeam_channel::bounded(1);
        let high_water_mark = settings.high_water_mark;
        let acknowledged = settings.acknowledged;
        let thread = thread::Builder::new()
            .name("tsp-events".to_owned())
            .spawn(move || {
                // Dropped with the thread, however that ends.
                let _pulse = pulse;
                let serve = || {
                    if acknowledged {
                        let (socket, local_addr) = listen(Rep0::socket, address)?;
                        // The starter waits for it, here and below.
                        let _ = bound.send(Ok(local_addr));
                        Keeper::new(queue, high_water_mark, stopped, counters, instance)
                            .run(&socket);
                        return Ok(());
                    }
                    let (socket, local_addr) = listen(Push0::socket, address)?;
                    let mut pusher = Pusher {
                        queue,
                        held: Held::default(),
                        high_water_mark,
                        stopped,
                        deadline: None,
                        counters,
                    };
                    let _ = bound.send(Ok(local_addr));
                    pusher.run(socket);
                    Ok(())
                };
                if let Err(why) = serve() {
                    let _ = bound.send(Err(why));
                }
            })
            .map_err(bind)?;
        let local_addr = when_bound
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the event thread died")))
            .map_err(bind)?;
        Ok(Self {
            local_addr,
            stop,
            alive,
            thread,
        })
    }

    /// Where logdrivers connect.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// A channel that is cut when the thread ends. Before [`Self::stop`] that is a failure: every request would wait for
    /// an event queue that nobody empties.
    #[must_use]
    pub fn alive(&self) -> &Receiver<Infallible> {
        &self.alive
    }

    /// Pushes what is left, for up to two seconds if anybody ever read, and ends the thread. To be called when nobody sends any more.
    pub fn stop(self) {
        // The thread may have died; then there is nothing to stop.
        let _ = self.stop.send(());
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the event thread had died");
        }
    }
}

fn listen<P>(
    socket: impl FnOnce() -> io::Result<Socket<P>>,
    address: SocketAddr,
) -> io::Result<(Socket<P>, SocketAddr)> {
    // anng panics on errors of listening other than "in use", such as a foreign address; so the kernel is asked first.
    drop(TcpListener::bind(address)?);
    let socket = socket()?;
    let local_addr = block_on(async {
        // Dropping the handle leaves the socket listening.
        socket
            .listen_tcp(address, &TcpOptions::default())
            .await?
            .local_addr()
    })?;
    Ok((socket, local_addr))
}

/// Events that were taken from the queue, the oldest first.
#[derive(Default)]
struct Held {
    batches: VecDeque<EventBatch>,
    events: usize,
}

impl Held {
    /// Takes up to `room` more.
    fn take_from(&mut self, queue: &mut EventReceiver, room: usize) {
        self.events += queue.take(room, &mut self.batches);
    }

    /// The oldest batch, and with it as many of the following as do not make it larger than this.
    fn next(&mut self, events_max: usize, bytes_max: usize) -> Option<EventBatch> {
        let first = self.batches.pop_front()?;
        let (mut events, mut bytes) = (first.events(), first.bytes().len());
        let mut batches = vec![first];
        while let Some(batch) = self.batches.pop_front_if(|batch| {
            events += batch.events();
            bytes += batch.bytes().len();
            events <= events_max && bytes <= bytes_max
        }) {
            batches.push(batch);
        }
        let batch = EventBatch::joined(batches)?;
        self.events -= batch.events();
        Some(batch)
    }
}

struct Pusher {
    queue: EventReceiver,
    held: Held,
    /// Most events here, those on their way into the socket included.
    high_water_mark: usize,
    stopped: Receiver<()>,
    /// Tells when the time to get rid of what is held is over; set once the thread is told to stop.
    deadline: Option<Receiver<Instant>>,
    counters: EventCounters,
}

impl Pusher {
    fn run(&mut self, mut socket: Socket<Push0>) {
        let waker = current_thread_waker();
        let mut idle = IDLE_FIRST;
        // Whether events had time to gather. While a message is pushed few come, and each message wakes half a dozen threads.
        let mut gathered = true;
        let in_time = loop {
            self.take_from_queue(0);
            let full = self.held.events >= EventBatch::EVENTS_MAX.min(self.high_water_mark);
            if gathered || full || self.deadline.is_some() {
                gathered = false;
                let next = self
                    .held
                    .next(EventBatch::EVENTS_MAX, EventBatch::BYTES_FULL);
                if let Some(batch) = next {
                    idle = IDLE_FIRST;
                    if !self.push(&mut socket, &batch, &waker) {
                        break false;
                    }
                    continue;
                }
                if self.deadline.is_some() {
                    break true;
                }
            }
            if self.stopped.try_recv() != Err(TryRecvError::Empty) {
                self.start_to_stop();
                continue;
            }
            thread::park_timeout(idle);
            idle = (idle * 2).min(IDLE_MAX);
            gathered = true;
        };
        if in_time && let Some(words) = self.queue.last_words() {
            let mut copies = 0..LAST_WORDS_COPIES;
            while copies.next().is_some() && self.push(&mut socket, &words, &waker) {}
        }
        let lost = self.held.events + self.queue.len();
        self.counters.failed.inc_by(count(lost));
        let failed = self.counters.failed.get();
        if failed > 0 {
            tracing::warn!(
                events = failed,
                "security events were lost: no logdriver took them"
            );
        }
        if self.counters.pushed.get() > 0 {
            thread::park_timeout(LINGER);
        }
    }

    /// Gives one message to the socket, and meanwhile takes from the queue what there is room for. `false` if the
    /// thread has been told to stop and the time for that is over; the message's events are lost then.
    fn push(&mut self, socket: &mut Socket<Push0>, batch: &EventBatch, waker: &Waker) -> bool {
        let (message, events) = (Message::from(batch.bytes()), batch.events());
        let mut context = Context::from_waker(waker);
        let mut push = pin!(socket.push(message));
        loop {
            match push.as_mut().poll(&mut context) {
                Poll::Ready(Ok(())) => {
                    self.counters.pushed.inc_by(count(events));
                    return true;
                }
                Poll::Ready(Err((error, _))) => {
                    self.counters.failed.inc_by(count(events));
                    tracing::warn!(%error, events, "the event socket refused security events");
                    return true;
                }
                Poll::Pending => {}
            }
            if self.deadline.is_none() && self.stopped.try_recv() != Err(TryRecvError::Empty) {
                self.start_to_stop();
            }
            if self
                .deadline
                .as_ref()
                .is_some_and(|deadline| deadline.try_recv().is_ok())
            {
                self.counters.failed.inc_by(count(events));
                return false;
            }
            self.take_from_queue(events);
            thread::park_timeout(SOCKET_WAIT);
        }
    }

    fn start_to_stop(&mut self) {
        let is_read = self.counters.pushed.get() > 0;
        self.deadline = Some(after(if is_read { FLUSH_MAX } else { FLUSH_MAX_UNREAD }));
    }

    /// Takes from the queue what there is room for beside the events on their way.
    fn take_from_queue(&mut self, on_their_way: usize) {
        let room = self.high_water_mark - self.held.events - on_their_way;
        self.held.take_from(&mut self.queue, room);
        let held = self.held.events + on_their_way;
        self.counters
            .held
            .set(i64::try_from(held).unwrap_or(i64::MAX));
    }
}

fn count(events: usize) -> u64 {
    u64::try_from(events).unwrap_or(u64::MAX)
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn current_thread_waker() -> Waker {
    Waker::from(Arc::new(Unpark(thread::current())))
}

/// Runs a future to its end on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = current_thread_waker();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests;
