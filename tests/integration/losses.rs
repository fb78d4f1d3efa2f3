//! What becomes of events that a proxy could not hand over, whole: nobody takes any, or the proxy is killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use rustix::process::Signal;
use scopeguard::defer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    config::two_local_tenants,
    http::{Connection, Request},
    logdriver::{Logdriver, name},
    metadata, on_both,
    proxy::{API_KEY, Io, Proxy, Setup},
    request, text, until,
};

const LOST: &str = "TSP_EVENTS_LOST";
const DIED: &str = "LOGDRIVER_PROXY_DIED";
const FAILURES: &str = "tsp_real_time_security_event_failures_total";

/// How events travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pushed,
    Acknowledged,
}

impl Mode {
    fn scheme(self) -> &'static str {
        match self {
            Self::Pushed => "tcp",
            Self::Acknowledged => "tcp+ack",
        }
    }

    /// A proxy that holds up to `held` events twice: in its queue, and behind it.
    fn setup(self, io: Io, held: usize) -> Setup {
        let held = held.to_string();
        let acknowledged = (self == Self::Acknowledged).to_string();
        Setup::serve(io, &two_local_tenants())
            .env("TSP_EVENTS_ACKNOWLEDGED", &acknowledged)
            .env("TSP_EVENT_LOG_CHANNEL_SIZE", &held)
            .env("TSP_SEND_HIGH_WATER_MARK", &held)
            .env("TSP_SEND_LOGGING_TIMEOUT_MS", "5")
    }
}

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder can be made")
}

/// An event's number: the process and the shard that gave it, and which one.
fn number(event: &Value) -> ((String, u64), u64) {
    let sequence = &event["sequence"];
    let of = |member: &str| sequence[member].as_u64().expect("a number");
    let process = text(sequence, "instance").to_owned();
    ((process, of("shard")), of("number"))
}

/// The numbers of each shard of each process, each event once.
fn numbers(events: &[Value]) -> BTreeMap<(String, u64), BTreeSet<u64>> {
    let mut numbers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["sequence"].is_object()) {
        let (shard, number) = number(event);
        numbers.entry(shard).or_default().insert(number);
    }
    numbers
}

/// How many events this one says were lost.
fn lost(event: &Value) -> u64 {
    if name(event) == LOST {
        event["iclFields"]["count"].as_u64().unwrap_or(1)
    } else {
        0
    }
}

fn what_is_dropped_is_told(io: Io, mode: Mode) {
    let proxy = mode.setup(io, 2).start();
    let asked = [("acme", 30), ("globex", 5)];
    for (tenant, wraps) in asked {
        for _ in 0..wraps {
            proxy.call("document/wrap", &metadata(tenant)).ok();
        }
    }
    assert!(proxy.metrics().count(FAILURES, &[]) >= 20.0);
    let store = folder();
    let mut logdriver = Logdriver::start(&proxy, mode.scheme(), &store);
    // All that was done comes out: as an event, or as one of those that an event says were lost.
    let mut events = Vec::new();
    let accounted = |events: &[Value], tenant: &str| {
        let of = events.iter().filter(|event| event["tenantId"] == tenant);
        let counts = of.map(|event| match name(event) {
            "DATA_ENCRYPT" => 1,
            _ => lost(event),
        });
        counts.sum::<u64>()
    };
    while asked
        .iter()
        .any(|(tenant, wraps)| accounted(&events, tenant) < *wraps)
    {
        events.push(logdriver.event());
    }
    for (tenant, wraps) in asked {
        assert_eq!(accounted(&events, tenant), wraps, "{tenant}: {events:#?}");
    }
    let lost_events: u64 = events.iter().map(lost).sum();
    let failures = proxy.metrics().count(FAILURES, &[]);
    assert_eq!(failures, as_count(lost_events));
    logdriver.wait_for_metric("logdriver_proxy_events_lost_total", failures);
    // What is told fills each shard's numbers.
    let told: usize = numbers(&events).values().map(BTreeSet::len).sum();
    let last: u64 = numbers(&events)
        .values()
        .filter_map(|all| Some(all.last()? + 1))
        .sum();
    assert_eq!(u64::try_from(told).expect("few") + lost_events, last);
    let said = logdriver.verify(&events);
    for event in events.iter().filter(|event| name(event) == LOST) {
        let place = &event["chain"]["sequence"];
        let line = format!(
            "LOST       a proxy lost {} before they were stored, says event {place}",
            lost(event)
        );
        assert!(said.contains(&line), "no {line:?} in {said}");
    }
}

/// Requests for wraps from several connections, until they fail; the ids of those that were answered.
fn load(
    http: SocketAddr,
    answered: &Mutex<BTreeSet<String>>,
    done: &AtomicUsize,
    next: &AtomicU64,
) {
    let Ok(mut connection) = Connection::try_open(http) else {
        return;
    };
    loop {
        let id = format!("load-{}", next.fetch_add(1, Ordering::Relaxed));
        let mut body = request("acme", json!({}));
        body["iclFields"]["requestId"] = json!(id);
        let request = Request::api("document/wrap", API_KEY, &body);
        let sent = connection.send(&request.bytes());
        let Ok(answer) = sent.and_then(|()| connection.try_answer()) else {
            return;
        };
        assert_eq!(answer.status, 200, "{}", answer.text());
        answered.lock().expect("nobody panics with it").insert(id);
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// An address for events that the next process can have too: this test's own, so that nobody else takes the port meanwhile.
fn own_address(io: Io, mode: Mode, test: u8) -> SocketAddr {
    let (io, mode) = (u8::from(io == Io::Uring), u8::from(mode == Mode::Pushed));
    let run = u8::try_from(std::process::id() % 255).expect("less than 255");
    SocketAddr::from(([127, 77, run, 1 + 4 * test + 2 * io + mode], 0))
}

fn a_killed_proxy_loses_its_last_events_alone(io: Io, mode: Mode) {
    const BEFORE: usize = 2_000;
    let mut event = own_address(io, mode, 0);
    let setup = |event: SocketAddr| {
        let setup = mode.setup(io, 25_000);
        setup.env("TSP_EVENT_BIND_ADDRESS", &event.to_string())
    };
    let proxy = setup(event).start();
    event = proxy.event.expect("it is told");
    let store = folder();
    let mut logdriver = Logdriver::start(&proxy, mode.scheme(), &store);
    let answered = Mutex::new(BTreeSet::new());
    let (done, next) = (AtomicUsize::new(0), AtomicU64::new(0));
    let handed_over = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| load(proxy.http, &answered, &done, &next));
        }
        // It ends the load, too, whatever fails.
        defer!(proxy.signal(Signal::KILL));
        until("requests are answered", || {
            done.load(Ordering::Relaxed) >= BEFORE
        });
        proxy.metrics().count("tsp_events_pushed_total", &[])
    });
    let answered = answered.into_inner().expect("nobody panicked with it");
    drop(proxy);
    let successor = setup(event).start();
    let mut body = request("acme", json!({}));
    body["iclFields"]["requestId"] = json!("after");
    successor.call("document/wrap", &body).ok();
    let mut events = logdriver.take_until(&["after"]);
    let ids: BTreeSet<_> = events
        .iter()
        .filter_map(|event| event["iclFields"]["requestId"].as_str())
        .collect();
    let came = ids.len() - 1;
    eprintln!(
        "{mode:?} {io:?}: {} answered, {came} came, {handed_over} known as handed over",
        answered.len()
    );
    match mode {
        // The sockets' buffers die with the process too.
        Mode::Pushed => {}
        Mode::Acknowledged => {
            let came = as_count(came as u64);
            assert!(
                came >= handed_over,
                "{came} of {handed_over} that were acknowledged"
            );
        }
    }
    // The loss is at the end alone: all that was done before the last that came is there.
    let process = process_of(&events, "after");
    let mut last_numbers = BTreeSet::new();
    for ((instance, shard), numbers) in numbers(&events) {
        let all = 0..u64::try_from(numbers.len()).expect("few");
        assert_eq!(numbers, all.collect(), "shard {shard} of {instance}");
        if instance != process {
            last_numbers.insert(format!("{shard}:{}", numbers.len() - 1));
        }
    }
    // And it shows: to the tenant, whose log is not whole now,
    let former = process_of(&events, "load-0");
    let notice = notice_of_death(&mut logdriver, &mut events);
    assert_eq!(notice["tenantId"], "acme");
    assert_eq!(text(&notice["customFields"], "proxy"), former);
    let of_former = events
        .iter()
        .filter(|event| event["sequence"]["instance"] == *former);
    let last_event_at = of_former.map(|event| text(event, "timestamp")).max();
    assert_eq!(
        Some(text(&notice["customFields"], "lastEventAt")),
        last_event_at
    );
    let said = logdriver.verify(&events);
    assert!(
        said.contains(&format!("DIED       the proxy {former} ended")),
        "{said}"
    );
    // and to the operator.
    logdriver.wait_for_metric("logdriver_proxies_died_total", 1.0);
    let told = logdriver.log_line("ended without saying so");
    let told: BTreeSet<_> = text(&told, "last_numbers")
        .split(' ')
        .map(str::to_owned)
        .collect();
    assert_eq!(told, last_numbers);
    let metrics = logdriver.metrics();
    assert_eq!(metrics.count("logdriver_sequence_missing_total", &[]), 0.0);
}

/// The process that did what was asked for under this request id.
fn process_of(events: &[Value], request_id: &str) -> String {
    let of = |event: &&Value| event["iclFields"]["requestId"] == request_id;
    let event = events.iter().find(of).expect("it came");
    number(event).0.0
}

/// The event that tells of a death: of those that came, or that come.
fn notice_of_death(logdriver: &mut Logdriver, events: &mut Vec<Value>) -> Value {
    loop {
        if let Some(notice) = events.iter().find(|event| name(event) == DIED) {
            return notice.clone();
        }
        events.push(logdriver.event());
    }
}

fn a_proxy_that_is_killed_after_its_logdriver_is_missed_all_the_same(io: Io, mode: Mode) {
    let setup = |event: SocketAddr| {
        let setup = mode.setup(io, 25_000);
        setup.env("TSP_EVENT_BIND_ADDRESS", &event.to_string())
    };
    let wrap = |proxy: &Proxy, id: &str| {
        let mut body = request("acme", json!({}));
        body["iclFields"]["requestId"] = json!(id);
        proxy.call("document/wrap", &body).ok();
    };
    let proxy = setup(own_address(io, mode, 3)).start();
    let event = proxy.event.expect("it is told");
    let store = folder();
    let mut logdriver = Logdriver::start(&proxy, mode.scheme(), &store);
    wrap(&proxy, "before");
    let mut events = logdriver.take_until(&["before"]);
    logdriver.kill();
    // One that lives on is not missed.
    let mut logdriver = Logdriver::start(&proxy, mode.scheme(), &store);
    wrap(&proxy, "lives on");
    events.extend(logdriver.take_until(&["lives on"]));
    assert_eq!(died(&logdriver), 0.0);
    logdriver.kill();
    wrap(&proxy, "lost");
    proxy.signal(Signal::KILL);
    drop(proxy);

    let successor = setup(event).start();
    let mut logdriver = Logdriver::start(&successor, mode.scheme(), &store);
    wrap(&successor, "after");
    events.extend(logdriver.take_until(&["after"]));
    let notice = notice_of_death(&mut logdriver, &mut events);
    let former = process_of(&events, "before");
    assert_eq!(text(&notice["customFields"], "proxy"), former);
    assert_eq!(died(&logdriver), 1.0);
}

/// How many deaths of proxies a logdriver has counted.
fn died(logdriver: &Logdriver) -> f64 {
    let metrics = logdriver.metrics();
    metrics.count("logdriver_proxies_died_total", &[])
}

fn a_proxy_that_ends_in_order_loses_nothing(io: Io, mode: Mode) {
    let mut event = own_address(io, mode, 1);
    let setup = |event: SocketAddr| {
        let setup = mode.setup(io, 25_000);
        setup.env("TSP_EVENT_BIND_ADDRESS", &event.to_string())
    };
    let store = folder();
    let mut logdriver = None;
    let mut events = Vec::new();
    for round in 0..3 {
        let proxy = setup(event).start();
        event = proxy.event.expect("it is told");
        let logdriver =
            logdriver.get_or_insert_with(|| Logdriver::start(&proxy, mode.scheme(), &store));
        let mut ids = Vec::new();
        for wrap in 0..20 {
            let id = format!("{round}-{wrap}");
            let mut body = request("acme", json!({}));
            body["iclFields"]["requestId"] = json!(id);
            proxy.call("document/wrap", &body).ok();
            ids.push(id);
        }
        // One that ends before a logdriver has ever connected loses what it did.
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        events.extend(logdriver.take_until(&ids));
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.wait_for_end().code, Some(0));
    }
    let logdriver = logdriver.expect("it was started");
    assert!(
        events.iter().all(|event| !name(event).starts_with("TSP_")),
        "{events:#?}"
    );
    let metrics = logdriver.metrics();
    for nothing in [
        "logdriver_proxies_died_total",
        "logdriver_sequence_missing_total",
        "logdriver_events_malformed_total",
    ] {
        assert_eq!(metrics.count(nothing, &[]), 0.0, "{nothing}");
    }
}

fn every_logdriver_hears_the_end(io: Io, mode: Mode) {
    let setup = |event: SocketAddr| {
        let setup = mode.setup(io, 25_000);
        setup.env("TSP_EVENT_BIND_ADDRESS", &event.to_string())
    };
    let proxy = setup(own_address(io, mode, 2)).start();
    let stores = [folder(), folder()];
    let logdrivers = stores
        .each_ref()
        .map(|store| Logdriver::start(&proxy, mode.scheme(), store));
    let all_take = |proxy: &Proxy| {
        let received = || {
            let of = |logdriver: &Logdriver| {
                let metrics = logdriver.metrics();
                metrics.count("logdriver_events_received_total", &[])
            };
            [of(&logdrivers[0]), of(&logdrivers[1])]
        };
        let before = received();
        until("each logdriver takes an event", || {
            proxy.call("document/wrap", &metadata("acme")).ok();
            let now = received();
            now[0] > before[0] && now[1] > before[1]
        });
    };
    all_take(&proxy);
    let event = proxy.event.expect("it is told");
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_for_end().code, Some(0));

    let successor = setup(event).start();
    all_take(&successor);
    for logdriver in &logdrivers {
        assert_eq!(died(logdriver), 0.0);
    }
}

fn nobody_takes_events(io: Io, mode: Mode) {
    const ITEMS: u64 = 4_000;
    const REQUESTS: u64 = 30;
    const HELD: u64 = 1_000;
    // What these requests would hold if it were not dropped: some 1.5 KiB an event.
    const GROWTH_KIB_MAX: u64 = 48 * 1024;
    let proxy: Proxy = mode.setup(io, 1_000).start();
    let mut body = request("acme", json!({}));
    body["documentIds"] = (0..ITEMS).map(|id| json!(id.to_string())).collect();
    body["iclFields"]["dataLabel"] = json!("x".repeat(1_024));
    let mut after_first = 0;
    for round in 0..REQUESTS {
        let answer = proxy.call("document/batch-wrap", &body).ok();
        assert_eq!(
            answer["keys"].as_object().map(serde_json::Map::len),
            usize::try_from(ITEMS).ok()
        );
        if round == 4 {
            after_first = proxy.memory_kib("VmRSS");
        }
    }
    let growth = proxy.memory_kib("VmRSS").saturating_sub(after_first);
    assert!(
        growth < GROWTH_KIB_MAX,
        "{growth} KiB more after {REQUESTS} requests than after 5"
    );
    let metrics = proxy.metrics();
    let events = ITEMS * REQUESTS;
    let failures = metrics.count(FAILURES, &[]);
    assert_eq!(failures, as_count(events - 2 * HELD));
    assert_eq!(metrics.count("tsp_events_pushed_total", &[]), 0.0);
    assert_eq!(metrics.count("tsp_events_held", &[]), as_count(HELD));
}

/// As metrics tell it.
fn as_count(events: u64) -> f64 {
    f64::from(u32::try_from(events).expect("not so many"))
}

on_both! {
    fn dropped_events_are_told_to_their_tenants_when_pushed(io) {
        what_is_dropped_is_told(io, Mode::Pushed);
    }

    fn dropped_events_are_told_to_their_tenants_when_acknowledged(io) {
        what_is_dropped_is_told(io, Mode::Acknowledged);
    }

    fn a_killed_proxy_that_pushes_loses_its_last_events_alone(io) {
        a_killed_proxy_loses_its_last_events_alone(io, Mode::Pushed);
    }

    fn a_killed_proxy_loses_no_acknowledged_event(io) {
        a_killed_proxy_loses_its_last_events_alone(io, Mode::Acknowledged);
    }

    fn a_proxy_that_pushes_and_is_killed_after_its_logdriver_is_missed(io) {
        a_proxy_that_is_killed_after_its_logdriver_is_missed_all_the_same(io, Mode::Pushed);
    }

    fn a_proxy_whose_events_are_acknowledged_and_that_is_killed_after_its_logdriver_is_missed(io) {
        a_proxy_that_is_killed_after_its_logdriver_is_missed_all_the_same(io, Mode::Acknowledged);
    }

    fn a_proxy_that_pushes_and_ends_in_order_loses_nothing(io) {
        a_proxy_that_ends_in_order_loses_nothing(io, Mode::Pushed);
    }

    fn a_proxy_whose_events_are_acknowledged_and_that_ends_in_order_loses_nothing(io) {
        a_proxy_that_ends_in_order_loses_nothing(io, Mode::Acknowledged);
    }

    fn all_logdrivers_that_are_pushed_to_hear_that_a_proxy_ended(io) {
        every_logdriver_hears_the_end(io, Mode::Pushed);
    }

    fn all_logdrivers_that_acknowledge_hear_that_a_proxy_ended(io) {
        every_logdriver_hears_the_end(io, Mode::Acknowledged);
    }

    fn pushed_events_that_nobody_takes_cost_no_memory(io) {
        nobody_takes_events(io, Mode::Pushed);
    }

    fn kept_events_that_nobody_takes_cost_no_memory(io) {
        nobody_takes_events(io, Mode::Acknowledged);
    }
}
