//! The event thread: takes frames from the shards' queue and pushes them out of the process, on an nng PUSH socket
//! that logdrivers connect to.
//!
//! A message is the version byte and one event, or several with a line feed between them. Every message costs some
//! 25 µs of CPU (nng hands it from thread to thread), so when many events wait they travel together; few travel alone.
//!
//! What must stay true: the thread never waits on the queue. A thread asleep on a channel must be woken by the sender,
//! which costs the shard 3 µs per event; so this one drains what is there, then sleeps on its own clock. At most
//! `TSP_SEND_HIGH_WATER_MARK` events are held here, the socket itself buffers none; then the queue fills up, and the
//! shards apply their rule for events that cannot be handed over.

use std::{
    collections::VecDeque,
    fmt, io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use anng::{Message, Socket, pipes::TcpOptions, protocols::pipeline0::Push0};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, after};
use prometheus::{IntCounter, IntGauge};

use crate::config::EventSettings;

/// Up to this many waiting events go out in messages of their own, so that several logdrivers share a trickle evenly.
const ALONE_UP_TO: usize = 8;

/// Most events in one message, and the size in bytes beyond which no further event is added to one. Enough to make a
/// message's own cost disappear, little enough that a lost message is a small loss.
const MESSAGE_EVENTS_MAX: usize = 64;
const MESSAGE_BYTES_FULL: usize = 64 * 1024;

/// How long the thread sleeps when the queue is empty: first, and at most. It doubles while nothing comes. The first is
/// short against any consumer's delay, the last costs nothing and is short enough for a queue of the default size at
/// 100,000 events per second.
const IDLE_FIRST: Duration = Duration::from_millis(2);
const IDLE_MAX: Duration = Duration::from_millis(64);

/// How long to wait for the socket before looking at the queue again. The socket wakes the thread by itself.
const SOCKET_WAIT: Duration = Duration::from_millis(20);

/// How long [`EventThread::stop`] tries to get rid of what is held. A logdriver that reads takes milliseconds; where
/// none has ever read anything, none will come in the last moment.
const FLUSH_MAX: Duration = Duration::from_secs(2);
const FLUSH_MAX_UNREAD: Duration = Duration::from_millis(100);

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
    /// Binds the socket and starts the thread; both, and nng's own threads, stay on the calling thread's core.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn start(
        settings: &EventSettings,
        queue: Receiver<Vec<u8>>,
        counters: EventCounters,
    ) -> Result<Self, BindError> {
        let address = settings.listen;
        let bind = |why| BindError { address, why };
        let (bound, when_bound) = crossbeam_channel::bounded(1);
        let (stop, stopped) = crossbeam_channel::bounded(1);
        let high_water_mark = settings.high_water_mark;
        let thread = thread::Builder::new()
            .name("tsp-events".to_owned())
            .spawn(move || match listen(address) {
                Ok((socket, local_addr)) => {
                    let held = VecDeque::new();
                    let mut pusher = Pusher {
                        queue,
                        held,
                        high_water_mark,
                        stopped,
                        deadline: None,
                        counters,
                    };
                    // The starter waits for it.
                    let _ = bound.send(Ok(local_addr));
                    pusher.run(socket);
                }
                Err(why) => {
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
            thread,
        })
    }

    /// Where logdrivers connect.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Pushes what is left, for up to two seconds if anybody ever read, and ends the thread. To be called when nobody sends any more.
    pub fn stop(self) {
        // The thread may have died; then there is nothing to stop.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the event thread had died");
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<(Socket<Push0>, SocketAddr)> {
    // anng panics on errors of listening other than "in use", such as a foreign address; so the kernel is asked first.
    drop(TcpListener::bind(address)?);
    let socket = Push0::socket()?;
    let local_addr = block_on(async {
        // Dropping the handle leaves the socket listening.
        socket
            .listen_tcp(address, &TcpOptions::default())
            .await?
            .local_addr()
    })?;
    Ok((socket, local_addr))
}

struct Pusher {
    queue: Receiver<Vec<u8>>,
    held: VecDeque<Vec<u8>>,
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
        loop {
            self.take_from_queue(0);
            if let Some((message, events)) = self.next_message() {
                idle = IDLE_FIRST;
                if !self.push(&mut socket, message, events, &waker) {
                    break;
                }
                continue;
            }
            if self.deadline.is_some() {
                break;
            }
            match self.stopped.recv_timeout(idle) {
                Err(RecvTimeoutError::Timeout) => idle = (idle * 2).min(IDLE_MAX),
                Ok(()) | Err(RecvTimeoutError::Disconnected) => self.start_to_stop(),
            }
        }
        let lost = self.held.len().saturating_add(self.queue.len());
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

    /// One event if few wait, many if many do; and how many.
    fn next_message(&mut self) -> Option<(Message, usize)> {
        let pack = self.held.len() > ALONE_UP_TO;
        let first = self.held.pop_front()?;
        let mut bytes = first;
        let mut events = 1;
        while pack && events < MESSAGE_EVENTS_MAX && bytes.len() < MESSAGE_BYTES_FULL {
            // All frames are of one version, so the message's first byte speaks for all.
            let Some(frame) = self.held.pop_front() else {
                break;
            };
            bytes.push(b'\n');
            bytes.extend_from_slice(frame.get(1..).unwrap_or_default());
            events += 1;
        }
        Some((Message::from(bytes.as_slice()), events))
    }

    /// Gives one message to the socket, and meanwhile takes from the queue what there is room for. `false` if the
    /// thread has been told to stop and the time for that is over; the message's events are lost then.
    fn push(
        &mut self,
        socket: &mut Socket<Push0>,
        message: Message,
        events: usize,
        waker: &Waker,
    ) -> bool {
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
        while self.held.len() + on_their_way < self.high_water_mark {
            match self.queue.try_recv() {
                Ok(frame) => self.held.push_back(frame),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let held = self.held.len() + on_their_way;
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
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{Ipv4Addr, TcpStream},
    };

    use super::*;

    fn counters() -> EventCounters {
        EventCounters {
            pushed: IntCounter::new("pushed", "pushed").unwrap(),
            failed: IntCounter::new("failed", "failed").unwrap(),
            held: IntGauge::new("held", "held").unwrap(),
        }
    }

    fn settings(listen: SocketAddr, high_water_mark: usize) -> EventSettings {
        EventSettings {
            listen,
            channel_size: 0,
            high_water_mark,
            send_timeout: Duration::ZERO,
            required: false,
        }
    }

    const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// The PULL side of the SP protocol over TCP, from its specification: an 8-byte greeting each way, then messages
    /// with their length in front.
    struct Puller(TcpStream);

    impl Puller {
        fn connect(address: SocketAddr) -> Self {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"\0SP\0\x00\x51\0\0").unwrap();
            let mut greeting = [0; 8];
            stream.read_exact(&mut greeting).unwrap();
            assert_eq!(
                &greeting, b"\0SP\0\x00\x50\0\0",
                "the far end is a PUSH socket"
            );
            Self(stream)
        }

        fn pull(&mut self) -> Vec<u8> {
            let mut length = [0; 8];
            self.0.read_exact(&mut length).unwrap();
            let mut message = vec![0; usize::try_from(u64::from_be_bytes(length)).unwrap()];
            self.0.read_exact(&mut message).unwrap();
            message
        }

        /// The next message's events.
        fn events(&mut self) -> Vec<Vec<u8>> {
            let message = self.pull();
            let events = message.strip_prefix(b"\x01").unwrap();
            events
                .split(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec)
                .collect()
        }

        fn is_at_end(&mut self) -> bool {
            matches!(self.0.read(&mut [0; 1]), Ok(0) | Err(_))
        }
    }

    fn frame(number: usize) -> Vec<u8> {
        format!("\u{1}{number}").into_bytes()
    }

    #[test]
    fn few_events_travel_alone() {
        let (sender, queue) = crossbeam_channel::bounded(10);
        let thread = EventThread::start(&settings(ANY_PORT, 100), queue, counters()).unwrap();
        let mut puller = Puller::connect(thread.local_addr());
        for number in 0..ALONE_UP_TO {
            sender.send(frame(number)).unwrap();
        }
        for number in 0..ALONE_UP_TO {
            assert_eq!(puller.pull(), frame(number));
        }
        thread.stop();
    }

    #[test]
    fn many_travel_together_in_order_and_none_is_lost() {
        const EVENTS: usize = 20_000;
        let (sender, queue) = crossbeam_channel::bounded(1_000);
        let counters = counters();
        let settings = settings(ANY_PORT, 1_000);
        let thread = EventThread::start(&settings, queue, counters.clone()).unwrap();
        let mut puller = Puller::connect(thread.local_addr());
        let feeder = thread::spawn(move || {
            for number in 0..EVENTS {
                sender.send(frame(number)).unwrap();
            }
        });
        let mut pulled = 0;
        let mut messages = 0;
        while pulled < EVENTS {
            let events = puller.events();
            assert!(events.len() <= MESSAGE_EVENTS_MAX);
            for event in events {
                assert_eq!(event, pulled.to_string().into_bytes());
                pulled += 1;
            }
            messages += 1;
        }
        assert!(messages < EVENTS / 2, "{messages} messages");
        feeder.join().unwrap();
        thread.stop();
        assert!(puller.is_at_end());
        assert_eq!(
            (counters.pushed.get(), counters.failed.get()),
            (count(EVENTS), 0)
        );
    }

    #[test]
    fn a_full_message_takes_no_further_event() {
        let (_sender, queue) = crossbeam_channel::bounded(1);
        let (_stop, stopped) = crossbeam_channel::bounded(1);
        let held = (0..100).map(|_| vec![1; MESSAGE_BYTES_FULL / 2]).collect();
        let counters = counters();
        let mut pusher = Pusher {
            queue,
            held,
            high_water_mark: 100,
            stopped,
            deadline: None,
            counters,
        };
        let (message, events) = pusher.next_message().unwrap();
        assert_eq!((events, message.len()), (2, MESSAGE_BYTES_FULL));
    }

    #[test]
    fn what_is_held_at_the_end_still_goes_out() {
        let (sender, queue) = crossbeam_channel::bounded(2_000);
        let counters = counters();
        let settings = settings(ANY_PORT, 2_000);
        let thread = EventThread::start(&settings, queue, counters.clone()).unwrap();
        let mut puller = Puller::connect(thread.local_addr());
        for number in 0..2_000 {
            sender.send(frame(number)).unwrap();
        }
        drop(sender);
        let stopper = thread::spawn(move || thread.stop());
        let mut pulled = 0;
        while pulled < 2_000 {
            pulled += puller.events().len();
        }
        assert!(puller.is_at_end());
        stopper.join().unwrap();
        assert_eq!((counters.pushed.get(), counters.failed.get()), (2_000, 0));
    }

    #[test]
    fn without_a_logdriver_it_takes_no_more_than_the_high_water_mark() {
        thread::scope(|scope| {
            for high_water_mark in [1, 2, 40, 2_000] {
                scope.spawn(move || {
                    let (sender, queue) = crossbeam_channel::bounded(high_water_mark + 10);
                    for number in 0..high_water_mark + 10 {
                        sender.send(frame(number)).unwrap();
                    }
                    let counters = counters();
                    let settings = settings(ANY_PORT, high_water_mark);
                    let thread = EventThread::start(&settings, queue, counters.clone()).unwrap();
                    while sender.len() > 10 {
                        thread::yield_now();
                    }
                    thread.stop();
                    assert_eq!(sender.len(), 10, "the rest stays in the queue");
                    let lost = count(high_water_mark + 10);
                    assert_eq!((counters.pushed.get(), counters.failed.get()), (0, lost));
                });
            }
        });
    }

    #[test]
    fn an_address_that_cannot_be_had_is_an_error() {
        let taken = TcpListener::bind(ANY_PORT).unwrap();
        let (_sender, queue) = crossbeam_channel::bounded(1);
        for address in [
            taken.local_addr().unwrap(),
            "192.0.2.1:5555".parse().unwrap(),
        ] {
            let error =
                EventThread::start(&settings(address, 10), queue.clone(), counters()).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("cannot listen for logdrivers on {address}: "))
            );
        }
    }

    /// `cargo test -p tsp --lib cost_per_event -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn cost_per_event() {
        const EVENTS: u32 = 200_000;
        let cpu = || std::fs::read_to_string("/proc/self/stat").unwrap();
        let ticks = |stat: &str| {
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let (sender, queue) = crossbeam_channel::bounded(25_000);
        let thread = EventThread::start(&settings(ANY_PORT, 25_000), queue, counters()).unwrap();
        let mut puller = Puller::connect(thread.local_addr());
        let before = ticks(&cpu());
        #[expect(clippy::disallowed_methods, reason = "a measurement")]
        let start = Instant::now();
        let mut event = vec![b'x'; 400];
        event[0] = 1;
        let feeder = thread::spawn(move || {
            for _ in 0..EVENTS {
                sender.send(event.clone()).unwrap();
            }
        });
        let mut pulled = 0;
        while pulled < usize::try_from(EVENTS).unwrap() {
            pulled += puller.events().len();
        }
        let wall = start.elapsed();
        feeder.join().unwrap();
        let cpu = Duration::from_millis((ticks(&cpu()) - before) * 10);
        println!(
            "{:?} wall, {:?} CPU of the whole process, per event",
            wall / EVENTS,
            cpu / EVENTS
        );
        thread.stop();
    }
}
