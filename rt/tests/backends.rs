//! What a core can rely on, on each real back end.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may fail by panicking"
)]

mod support;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tsp_rt::{
    Accepted, Backend, CoreEnd, CoreMain, Listener, NetError, Rt, Stream, bind_reuseport,
    bind_unix, mailbox, timeout, yield_now,
};

const LOCALHOST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const LONG: Duration = Duration::from_secs(60);

fn listener<R: Rt>(rt: &R) -> R::Listener {
    rt.adopt(bind_reuseport(LOCALHOST, 1).unwrap().remove(0))
        .unwrap()
}

/// Two ends of one connection: the one that connected, and the one that was accepted.
async fn pair<R: Rt>(rt: &R) -> (R::Stream, R::Stream) {
    let mut listener = listener(rt);
    let near = rt
        .connect(listener.local_addr().unwrap(), LONG)
        .await
        .unwrap();
    let (far, _) = listener.accept().await.unwrap();
    (near, far)
}

/// Lets other tasks run until `done`, which they must bring about.
async fn until(done: impl Fn() -> bool) {
    while !done() {
        yield_now().await;
    }
}

struct CountsDrop(Arc<AtomicUsize>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

on_both_backends! {
    async fn bytes_pass_both_ways_and_shutdown_ends_one_direction(rt) {
        let (mut near, mut far) = pair(&rt).await;
        near.write_all(b"ping").await.unwrap();
        let mut four = [0; 4];
        far.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"ping");
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut four).await.unwrap(), 0);
        far.write_all(b"pong").await.unwrap();
        near.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"pong");
    }

    async fn a_megabyte_passes_through_full_socket_buffers(rt) {
        let (mut near, mut far) = pair(&rt).await;
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        rt.spawn(async move {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
    }

    async fn dropping_a_stream_tells_the_far_end(rt) {
        let (near, mut far) = pair(&rt).await;
        drop(near);
        assert_eq!(timeout(&rt, LONG, far.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    }

    async fn a_reset_is_an_error_and_not_an_end(rt) {
        let mut listener = listener(&rt);
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        // Closing with a zero linger time sends RST.
        socket2::SockRef::from(&near).set_linger(Some(Duration::ZERO)).unwrap();
        drop(near);
        let error = far.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(NetError::from(error), NetError::Reset);
    }

    async fn a_task_does_not_run_before_spawn_returns(rt) {
        let order = Rc::new(RefCell::new(Vec::new()));
        {
            // A borrow across `spawn` would panic in the task if it ran at once.
            let mut held = order.borrow_mut();
            let in_task = Rc::clone(&order);
            rt.spawn(async move { in_task.borrow_mut().push("task") });
            held.push("main");
        }
        until(|| order.borrow().len() == 2).await;
        assert_eq!(*order.borrow(), ["main", "task"]);
    }

    async fn a_panicking_task_is_counted_and_the_core_lives_on(rt) {
        let before = tsp_rt::task_panics();
        for _ in 0..10 {
            rt.spawn(async { panic!("on purpose") });
        }
        let done = Rc::new(Cell::new(false));
        let in_task = Rc::clone(&done);
        rt.spawn(async move { in_task.set(true) });
        until(|| done.get()).await;
        assert!(tsp_rt::task_panics() >= before + 10);
    }

    async fn a_panicking_destructor_does_not_end_the_process(rt) {
        struct PanicsOnDrop;
        impl Drop for PanicsOnDrop {
            fn drop(&mut self) {
                panic!("in a destructor, on purpose");
            }
        }
        let before = tsp_rt::task_panics();
        rt.spawn(async {
            let _held = PanicsOnDrop;
            yield_now().await;
        });
        until(|| tsp_rt::task_panics() > before).await;
    }

    async fn a_hundred_thousand_tasks_come_and_go(rt) {
        let ended = Rc::new(Cell::new(0));
        for n in 0..100_000 {
            let ended = Rc::clone(&ended);
            rt.spawn(async move {
                if n % 2 == 0 {
                    yield_now().await;
                }
                ended.set(ended.get() + 1);
            });
            if n % 1000 == 0 {
                yield_now().await;
            }
        }
        until(|| ended.get() == 100_000).await;
        // Each task's own handle is gone: its memory was freed, on glommio too.
        assert_eq!(Rc::strong_count(&ended), 1);
    }

    async fn timers_fire_in_the_order_of_their_times(rt) {
        let order = Rc::new(RefCell::new(Vec::new()));
        let begin = rt.now();
        for ms in [30, 10, 20] {
            let sleep = rt.sleep(Duration::from_millis(ms));
            let order = Rc::clone(&order);
            rt.spawn(async move {
                sleep.await;
                order.borrow_mut().push(ms);
            });
        }
        timeout(&rt, LONG, rt.sleep(Duration::from_millis(40))).await.unwrap();
        until(|| order.borrow().len() == 3).await;
        assert_eq!(*order.borrow(), [10, 20, 30]);
        assert!(rt.now() - begin >= Duration::from_millis(40));
    }

    async fn the_time_of_a_sleep_runs_from_the_call_and_a_huge_one_is_no_overflow(rt) {
        let begin = rt.now();
        let sleep = rt.sleep(Duration::from_millis(20));
        rt.sleep(Duration::from_millis(20)).await;
        sleep.await;
        assert!(rt.now() - begin >= Duration::from_millis(20));
        let forever = rt.sleep(Duration::MAX);
        assert_eq!(timeout(&rt, Duration::ZERO, forever).await, Err(NetError::Timeout));
    }

    async fn a_timer_fires_although_the_run_queue_is_never_empty(rt) {
        let stop = Rc::new(Cell::new(false));
        for _ in 0..64 {
            let stop = Rc::clone(&stop);
            rt.spawn(async move {
                while !stop.get() {
                    yield_now().await;
                }
            });
        }
        let begin = rt.now();
        rt.sleep(Duration::from_millis(1)).await;
        // Only against not firing at all; how late it is depends on the machine.
        assert!(rt.now() - begin < LONG);
        stop.set(true);
    }

    async fn nobody_listening_is_refused(rt) {
        let address = bind_reuseport(LOCALHOST, 1).unwrap().remove(0).local_addr().unwrap();
        assert_eq!(rt.connect(address, LONG).await.unwrap_err(), NetError::Refused);
    }

    async fn connecting_gives_up_after_its_timeout(rt) {
        // A listener whose backlog is full does not answer: the kernel drops the SYN.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&LOCALHOST.into()).unwrap();
        full.listen(0).unwrap();
        let address = full.local_addr().unwrap().as_socket().unwrap();
        let mut held = Vec::new();
        let mut result = Ok(());
        for _ in 0..8 {
            match rt.connect(address, Duration::from_millis(50)).await {
                Ok(stream) => held.push(stream),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        assert_eq!(result, Err(NetError::Timeout));
        assert_eq!(rt.connect(address, Duration::ZERO).await.unwrap_err(), NetError::Timeout);
    }

    async fn the_far_ends_address_is_told(rt) {
        let mut listener = listener(&rt);
        let address = listener.local_addr().unwrap();
        let _near = rt.connect(address, LONG).await.unwrap();
        let (_far, peer) = listener.accept().await.unwrap();
        let peer = peer.unwrap();
        assert!(peer.ip().is_loopback());
        assert_ne!(peer.port(), address.port());
    }

    async fn a_flood_of_connections_does_not_keep_the_other_tasks_from_running(rt) {
        let mut listener = listener(&rt);
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        for _ in 0..200 {
            held.push(rt.connect(address, LONG).await.unwrap());
        }
        let ran = Rc::new(Cell::new(0));
        let in_task = Rc::clone(&ran);
        rt.spawn(async move {
            loop {
                in_task.set(in_task.get() + 1);
                yield_now().await;
            }
        });
        for _ in 0..200 {
            listener.accept().await.unwrap();
        }
        assert!(ran.get() > 0);
    }

    async fn a_flood_of_messages_does_not_keep_the_other_tasks_from_running(rt) {
        let (sender, mut receiver) = mailbox::bounded(1000);
        let ran = Rc::new(Cell::new(false));
        let in_task = Rc::clone(&ran);
        rt.spawn(async move { in_task.set(true) });
        for n in 0..1000 {
            sender.send(n).unwrap();
        }
        for _ in 0..1000 {
            receiver.recv().await.unwrap();
        }
        assert!(ran.get());
    }

    async fn a_cancelled_accept_loses_no_connection(rt) {
        let mut listener = listener(&rt);
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        for _ in 0..100 {
            // Waits in the kernel by the time it is dropped.
            let waited = timeout(&rt, Duration::from_micros(100), listener.accept()).await;
            held.extend(waited.ok().map(|accepted| accepted.unwrap().0));
            let near = rt.connect(address, LONG).await.unwrap();
            let waited = timeout(&rt, Duration::ZERO, listener.accept()).await;
            held.extend(waited.ok().map(|accepted| accepted.unwrap().0));
            drop(near);
        }
        while held.len() < 100 {
            held.push(timeout(&rt, LONG, listener.accept()).await.unwrap().unwrap().0);
        }
    }

    async fn what_waits_is_taken_before_a_listener_closes(rt) {
        let mut listener = listener(&rt);
        assert!(listener.try_accept().unwrap().is_none());
        // Leaves a wait behind, as an accept loop that is told to stop does.
        assert!(timeout(&rt, Duration::ZERO, listener.accept()).await.is_err());
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(rt.connect(address, LONG).await.unwrap());
        }
        let mut accepted = Vec::new();
        while accepted.len() < 5 {
            match listener.try_accept().unwrap() {
                Some((stream, _)) => accepted.push(stream),
                None => rt.sleep(Duration::from_millis(1)).await,
            }
        }
        assert!(listener.try_accept().unwrap().is_none());
    }

    async fn a_unix_socket_carries_bytes_and_tells_who_connected(rt) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, file) = bind_unix(&path, 0o600).unwrap();
        let mut listener = rt.adopt(listener).unwrap();
        assert!(listener.local_addr().is_err());
        let mut near = rt.connect_unix(&path, LONG).await.unwrap();
        let accepted = listener.accept_socket().await.unwrap();
        assert_eq!(accepted.peer(), None);
        let credentials = accepted.credentials().unwrap();
        assert_eq!(u32::try_from(credentials.pid), Ok(std::process::id()));
        assert_eq!(credentials.uid, std::fs::metadata(&path).unwrap().uid());
        let mut far = R::Listener::open(accepted).unwrap();
        near.write_all(b"ping").await.unwrap();
        let mut four = [0; 4];
        far.read_exact(&mut four).await.unwrap();
        far.write_all(b"pong").await.unwrap();
        near.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"pong");
        assert!(!far.is_stale());
        drop(near);
        assert_eq!(far.read(&mut four).await.unwrap(), 0);
        // A pending poll in the ring must not keep it open.
        assert!(timeout(&rt, Duration::from_millis(1), listener.accept_socket()).await.is_err());
        drop(listener);
        assert_eq!(rt.connect_unix(&path, LONG).await.unwrap_err(), NetError::Refused);
        drop(file);
        assert!(!path.exists());
    }

    async fn an_accepted_socket_is_served_by_another_core(rt) {
        struct Other(mailbox::Receiver<Accepted>);
        impl CoreMain for Other {
            async fn run<R: Rt>(mut self, _: R) {
                let mut stream = R::Listener::open(self.0.recv().await.unwrap()).unwrap();
                let mut four = [0; 4];
                stream.read_exact(&mut four).await.unwrap();
                stream.write_all(&four).await.unwrap();
            }
        }
        let backend = match std::any::type_name::<R>() {
            name if name.ends_with("Uring") => Backend::Uring,
            _ => Backend::Epoll,
        };
        let (sender, receiver) = mailbox::bounded(1);
        let other = tsp_rt::spawn_core(backend, "other", None, Other(receiver)).unwrap();
        let mut listener = listener(&rt);
        let mut near = rt.connect(listener.local_addr().unwrap(), LONG).await.unwrap();
        sender.send(listener.accept_socket().await.unwrap()).unwrap();
        near.write_all(b"ping").await.unwrap();
        let mut four = [0; 4];
        near.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"ping");
        assert_eq!(other.join(), CoreEnd::Ended);
    }

    async fn a_dropped_listener_refuses_at_once(rt) {
        let mut listener = listener(&rt);
        let address = listener.local_addr().unwrap();
        // So that a poll is pending in the ring.
        assert!(timeout(&rt, Duration::from_millis(1), listener.accept()).await.is_err());
        drop(listener);
        assert_eq!(rt.connect(address, LONG).await.unwrap_err(), NetError::Refused);
        // And the port can be had again.
        bind_reuseport(address, 1).unwrap();
    }

    async fn an_idle_connection_is_stale_once_the_far_end_closes_or_speaks(rt) {
        let (near, far) = pair(&rt).await;
        assert!(!near.is_stale());
        drop(far);
        // FIN crosses the loopback within the system call; a margin for a busy machine.
        let mut near = near;
        assert_eq!(timeout(&rt, LONG, near.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
        assert!(near.is_stale());

        let (near, mut far) = pair(&rt).await;
        far.write_all(b"x").await.unwrap();
        while !near.is_stale() {
            rt.sleep(Duration::from_millis(1)).await;
        }
        // Looking did not take the byte.
        let mut near = near;
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 1);
        assert!(!near.is_stale());

        let staleness = near.staleness();
        assert!(!staleness.is_stale());
        drop(near);
        assert!(staleness.is_stale());
    }

    async fn names_are_resolved_off_the_core(rt) {
        let addresses = rt.resolve("localhost", 7).await.unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 7));
        assert_eq!(rt.resolve("[::1]", 7).await, Ok(vec!["[::1]:7".parse().unwrap()]));
    }

    async fn random_bytes_differ_and_fill_any_length(rt) {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let mut key = [0; 32];
            rt.random(&mut key);
            assert!(seen.insert(key));
        }
        let mut long = vec![0; 100_000];
        rt.random(&mut long);
        let zeros = long.iter().filter(|byte| **byte == 0).count();
        // Expected 390 of 100,000; beyond these bounds once in 10^20.
        assert!((200..600).contains(&zeros), "{zeros} zeros");
    }

    async fn a_hundred_thousand_sends_at_a_stalled_core_wake_it_once(rt) {
        const COUNT: usize = 100_000;
        let (sender, mut receiver) = mailbox::bounded(COUNT);
        let (mut publisher, mut newest) = mailbox::latest();
        let received = Rc::new(Cell::new(0));
        let in_task = Rc::clone(&received);
        rt.spawn(async move {
            while receiver.recv().await.is_some() {
                in_task.set(in_task.get() + 1);
            }
        });
        let last = Rc::new(Cell::new(0));
        let in_task = Rc::clone(&last);
        rt.spawn(async move {
            while let Some(number) = newest.recv().await {
                in_task.set(number);
            }
        });
        // Both begin to wait.
        for _ in 0..10 {
            yield_now().await;
        }
        let other = std::thread::spawn(move || {
            for n in 0..COUNT {
                sender.send(n).unwrap();
                publisher.publish(n);
            }
        });
        // The core stalls until all is sent. If a wake panicked the sender, this says so.
        other.join().unwrap();
        timeout(&rt, LONG, async {
            while received.get() < COUNT || last.get() < COUNT - 1 {
                rt.sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
    }

    async fn tokios_neutral_channels_work_from_another_thread(rt) {
        let (ask, mut asked) = tokio::sync::mpsc::channel::<tokio::sync::oneshot::Sender<usize>>(4);
        let notify = Arc::new(tokio::sync::Notify::new());
        let notified = Arc::clone(&notify);
        let other = std::thread::spawn(move || {
            let mut sum = 0;
            for _ in 0..1000 {
                let (answer, answered) = tokio::sync::oneshot::channel();
                ask.blocking_send(answer).unwrap();
                sum += answered.blocking_recv().unwrap();
            }
            notified.notify_one();
            sum
        });
        let mut count = 0;
        while let Some(answer) = asked.recv().await {
            count += 1;
            answer.send(count).unwrap();
            if count == 1000 {
                break;
            }
        }
        notify.notified().await;
        assert_eq!(other.join().unwrap(), 500_500);
        // And the other way: a oneshot that another thread completes while the core sleeps in its reactor.
        for n in 0..100_usize {
            let (answer, answered) = tokio::sync::oneshot::channel();
            let other = std::thread::spawn(move || answer.send(n).unwrap());
            assert_eq!(answered.await, Ok(n));
            other.join().unwrap();
        }
    }

    async fn messages_from_many_threads_all_arrive_while_the_core_sleeps_and_wakes(rt) {
        let (sender, mut receiver) = mailbox::bounded(16);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for n in 0..5_000_u64 {
                        let mut message = n;
                        while let Err(mailbox::SendError::Full(back)) = sender.send(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let mut sum = 0;
        while let Some(n) = timeout(&rt, LONG, receiver.recv()).await.unwrap() {
            sum += n;
        }
        assert_eq!(sum, 4 * 4_999 * 5_000 / 2);
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

/// Leaves tasks behind that never end, and a connection in one of them.
struct LeavesTasks {
    dropped: Arc<AtomicUsize>,
    address: SocketAddr,
}

impl CoreMain for LeavesTasks {
    async fn run<R: Rt>(self, rt: R) {
        for _ in 0..100 {
            let held = CountsDrop(Arc::clone(&self.dropped));
            rt.spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
        }
        // One that is asleep, one that has not begun when the core ends, one that spawns while it is dropped.
        let (held, sleep) = (CountsDrop(Arc::clone(&self.dropped)), rt.sleep(LONG));
        rt.spawn(async move {
            let _held = held;
            sleep.await;
        });
        let mut stream = rt.connect(self.address, LONG).await.unwrap();
        rt.spawn(async move {
            let _ = stream.read(&mut [0; 1]).await;
        });
        yield_now().await;
        let spawner = SpawnsOnDrop(rt.clone(), Arc::clone(&self.dropped));
        rt.spawn(async move {
            let _held = spawner;
            std::future::pending::<()>().await;
        });
    }
}

struct SpawnsOnDrop<R: Rt>(R, Arc<AtomicUsize>);

impl<R: Rt> Drop for SpawnsOnDrop<R> {
    fn drop(&mut self) {
        let held = CountsDrop(Arc::clone(&self.1));
        self.0.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
    }
}

fn tasks_are_dropped_with_the_core(backend: Backend) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let listener = std::net::TcpListener::bind(LOCALHOST).unwrap();
    let main = LeavesTasks {
        dropped: Arc::clone(&dropped),
        address: listener.local_addr().unwrap(),
    };
    let Some(end) = support::run_to_end(backend, main) else {
        return;
    };
    assert_eq!(end, CoreEnd::Ended);
    assert_eq!(dropped.load(Ordering::SeqCst), 102);
    // The far end sees the connection close.
    let (mut far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(io::Read::read(&mut far, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn tasks_and_sockets_are_dropped_when_a_core_ends_on_uring() {
    tasks_are_dropped_with_the_core(Backend::Uring);
}

#[test]
fn tasks_and_sockets_are_dropped_when_a_core_ends_on_epoll() {
    tasks_are_dropped_with_the_core(Backend::Epoll);
}

struct Panics(Arc<AtomicUsize>);

impl CoreMain for Panics {
    async fn run<R: Rt>(self, rt: R) {
        let held = CountsDrop(self.0);
        rt.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        yield_now().await;
        panic!("the main future gave up");
    }
}

fn a_dead_core_is_told(backend: Backend) {
    let dropped = Arc::new(AtomicUsize::new(0));
    if let Some(end) = support::run_to_end(backend, Panics(Arc::clone(&dropped))) {
        assert_eq!(end, CoreEnd::Died("the main future gave up".to_owned()));
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_panic_of_the_main_future_is_told_with_its_text_on_uring() {
    a_dead_core_is_told(Backend::Uring);
}

#[test]
fn a_panic_of_the_main_future_is_told_with_its_text_on_epoll() {
    a_dead_core_is_told(Backend::Epoll);
}

/// The CPUs that a thread may use, such as `0-1` or `2,5`, by its folder in `/proc`.
fn cpus(thread: &str) -> String {
    let status = std::fs::read_to_string(format!("{thread}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

struct ReportsCpus(crossbeam_channel::Sender<[String; 2]>);

impl CoreMain for ReportsCpus {
    async fn run<R: Rt>(self, rt: R) {
        let helper = rt.offload(|| cpus("/proc/thread-self")).await.unwrap();
        // Whatever becomes of the name: the question starts the resolver's threads.
        drop(rt.resolve("localhost", 80).await);
        self.0.send([cpus("/proc/thread-self"), helper]).unwrap();
    }
}

#[test]
fn a_core_stays_on_its_cpu_but_its_helpers_do_not_and_a_cpu_that_is_not_there_is_an_error() {
    let process = cpus("/proc/self");
    let first: usize = process.split(['-', ',']).next().unwrap().parse().unwrap();
    for backend in [Backend::Uring, Backend::Epoll] {
        if !support::can_use(backend) {
            continue;
        }
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let core = tsp_rt::spawn_core(backend, "pinned", Some(first), ReportsCpus(sender)).unwrap();
        assert_eq!(
            receiver.recv_timeout(support::HANG).unwrap(),
            [first.to_string(), process.clone()]
        );
        assert_eq!(core.join(), CoreEnd::Ended);
        for missing in [1023, 100_000] {
            let (sender, _) = crossbeam_channel::bounded(1);
            let error = tsp_rt::spawn_core(backend, "pinned", Some(missing), ReportsCpus(sender))
                .unwrap_err();
            assert!(error.to_string().contains("CPU"), "{error}");
        }
    }
    let mut resolvers = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.starts_with("resolver") {
            assert_eq!(cpus(task.to_str().unwrap()), process, "{name}");
            resolvers += 1;
        }
    }
    assert!(resolvers > 0);
}

#[test]
fn rings_have_coop_taskrun() {
    if support::can_use(Backend::Uring) {
        assert_eq!(
            tsp_rt::ring_flag(),
            tsp_rt::RingFlag::Set,
            "{}",
            tsp_rt::ring_flag()
        );
    }
}
