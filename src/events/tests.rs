use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
};

use tsp_shards::{EventLane, event_queue};

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
        acknowledged: false,
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

/// Puts an event in as soon as there is room.
fn send(lane: &EventLane, number: usize) {
    while lane
        .push(|out| out.extend_from_slice(number.to_string().as_bytes()))
        .is_err()
    {
        thread::yield_now();
    }
}

/// A queue, and a lane of it.
fn queue(capacity: usize) -> (EventLane, EventReceiver) {
    let (queue, receiver) = event_queue(capacity);
    (queue.lane(), receiver)
}

#[test]
fn what_waits_at_one_time_travels_together() {
    let (lane, queue) = queue(10);
    for number in 0..3 {
        send(&lane, number);
    }
    let thread = EventThread::start(&settings(ANY_PORT, 100), queue, 9, counters()).unwrap();
    let mut puller = Puller::connect(thread.local_addr());
    assert_eq!(puller.pull(), b"\x010\n1\n2");
    send(&lane, 3);
    assert_eq!(puller.pull(), b"\x013");
    thread.stop();
}

#[test]
fn many_travel_together_in_order_and_none_is_lost() {
    const EVENTS: usize = 20_000;
    let (lane, queue) = queue(1_000);
    let counters = counters();
    let settings = settings(ANY_PORT, 1_000);
    let thread = EventThread::start(&settings, queue, 9, counters.clone()).unwrap();
    let mut puller = Puller::connect(thread.local_addr());
    let feeder = thread::spawn(move || {
        for number in 0..EVENTS {
            send(&lane, number);
        }
    });
    let mut pulled = 0;
    let mut messages = 0;
    while pulled < EVENTS {
        let events = puller.events();
        assert!(events.len() <= EventBatch::EVENTS_MAX);
        for event in events {
            assert_eq!(event, pulled.to_string().into_bytes());
            pulled += 1;
        }
        messages += 1;
    }
    assert!(messages < EVENTS / 2, "{messages} messages");
    feeder.join().unwrap();
    let alive = thread.alive().clone();
    assert_eq!(alive.try_recv(), Err(TryRecvError::Empty));
    thread.stop();
    assert_eq!(alive.try_recv(), Err(TryRecvError::Disconnected));
    assert!(puller.is_at_end());
    assert_eq!(
        (counters.pushed.get(), counters.failed.get()),
        (count(EVENTS), 0)
    );
}

#[test]
fn batches_are_joined_as_far_as_they_fit() {
    let (lane, mut queue) = queue(10);
    let mut held = Held::default();
    for number in 1..=4 {
        send(&lane, number);
        held.take_from(&mut queue, 10);
    }
    let mut next = |events_max, bytes_max| {
        let batch = held.next(events_max, bytes_max);
        batch.map(|batch| batch.bytes().to_vec())
    };
    assert_eq!(next(2, 100).unwrap(), b"\x011\n2");
    assert_eq!(next(9, 3).unwrap(), b"\x013");
    // One that is too large already travels alone.
    assert_eq!(next(0, 0).unwrap(), b"\x014");
    assert_eq!((next(9, 100), held.events), (None, 0));
}

#[test]
fn what_is_held_at_the_end_still_goes_out() {
    let (lane, queue) = queue(2_000);
    let counters = counters();
    let settings = settings(ANY_PORT, 2_000);
    let thread = EventThread::start(&settings, queue, 9, counters.clone()).unwrap();
    let mut puller = Puller::connect(thread.local_addr());
    for number in 0..2_000 {
        send(&lane, number);
    }
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
fn every_logdriver_hears_what_is_said_last() {
    let (lane, queue) = queue(1_000);
    let counters = counters();
    let thread =
        EventThread::start(&settings(ANY_PORT, 1_000), queue, 9, counters.clone()).unwrap();
    let (heard, hears) = std::sync::mpsc::channel();
    let pullers: Vec<_> = (0..3)
        .map(|puller| {
            let mut from = Puller::connect(thread.local_addr());
            let heard = heard.clone();
            thread::spawn(move || {
                loop {
                    let events = from.events();
                    heard.send(puller).unwrap();
                    if events.contains(&b"end".to_vec()) {
                        return;
                    }
                }
            })
        })
        .collect();
    // Each takes its turn once it is connected.
    let mut known = [false; 3];
    let mut sent = 0;
    while known.contains(&false) {
        send(&lane, sent);
        sent += 1;
        known[hears.recv().unwrap()] = true;
    }
    lane.push_last(|out| out.extend_from_slice(b"end")).unwrap();
    thread.stop();
    for puller in pullers {
        puller.join().unwrap();
    }
    let told = (counters.pushed.get(), counters.failed.get());
    assert_eq!(told, (count(sent + 1), 0));
}

#[test]
fn without_a_logdriver_what_is_said_last_is_waited_for_once() {
    let (lane, queue) = queue(10);
    let counters = counters();
    let thread = EventThread::start(&settings(ANY_PORT, 10), queue, 9, counters.clone()).unwrap();
    lane.push_last(|out| out.extend_from_slice(b"end")).unwrap();
    thread.stop();
    assert_eq!((counters.pushed.get(), counters.failed.get()), (0, 1));
}

#[test]
fn without_a_logdriver_it_takes_no_more_than_the_high_water_mark() {
    thread::scope(|scope| {
        for high_water_mark in [1, 2, 40, 2_000] {
            scope.spawn(move || {
                let capacity = high_water_mark + 10;
                let (lane, queue) = queue(capacity);
                for number in 0..capacity {
                    send(&lane, number);
                }
                let counters = counters();
                let settings = settings(ANY_PORT, high_water_mark);
                let thread = EventThread::start(&settings, queue, 9, counters.clone()).unwrap();
                // So much room there is now, and no more.
                for number in 0..high_water_mark {
                    send(&lane, number);
                }
                thread.stop();
                assert!(lane.push(|_| {}).is_err(), "the rest stays in the queue");
                let lost = count(high_water_mark + capacity);
                assert_eq!((counters.pushed.get(), counters.failed.get()), (0, lost));
            });
        }
    });
}

#[test]
fn an_address_that_cannot_be_had_is_an_error() {
    let taken = TcpListener::bind(ANY_PORT).unwrap();
    for address in [
        taken.local_addr().unwrap(),
        "192.0.2.1:5555".parse().unwrap(),
    ] {
        let (_, queue) = event_queue(1);
        let error = EventThread::start(&settings(address, 10), queue, 9, counters()).unwrap_err();
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
    let (lane, queue) = queue(25_000);
    let thread = EventThread::start(&settings(ANY_PORT, 25_000), queue, 9, counters()).unwrap();
    let mut puller = Puller::connect(thread.local_addr());
    let before = ticks(&cpu());
    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    let start = Instant::now();
    let event = [b'x'; 400];
    let feeder = thread::spawn(move || {
        for _ in 0..EVENTS {
            while lane.push(|out| out.extend_from_slice(&event)).is_err() {
                thread::yield_now();
            }
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
