//! More than a proxy takes on: callers pile up behind a KMS that hangs. What is too much is told at once, the other tenants
//! notice nothing, and memory stays within its bounds.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, TryRecvError, channel},
    },
    thread,
    time::Duration,
};

use scopeguard::defer;
use serde_json::{Value, json};
use tsp_shards::Limits;

use crate::support::{
    PATIENCE,
    http::{Answer, Connection, Request},
    kmssim::{ClientKey, Provider, SampleShape, Simulator},
    metadata, on_both,
    proxy::{API_KEY, Io, Proxy},
    request,
};

/// How often a flood is tried: one that takes longer than an attempt at the KMS meets an open breaker, which is another refusal.
const ROUNDS_MAX: usize = 10;

/// Memory for one operation that waits for a connection, in KiB: its request, its answer, and the tasks around them.
const WAITER_KIB_MAX: u64 = 24;

/// One shard, and two tenants with keys of one KMS.
struct Stand {
    proxy: Proxy,
    simulator: Simulator,
}

impl Stand {
    fn start(io: Io) -> Self {
        let simulator = Simulator::with(&SampleShape {
            tenants: 2,
            providers: vec![Provider::Aws],
            ..SampleShape::default()
        });
        let proxy = simulator.setup(io).env("TSP_SHARDS", "1").start();
        let stand = Self { proxy, simulator };
        for tenant in stand.tenants() {
            stand.proxy.call("document/wrap", &metadata(tenant)).ok();
        }
        stand
    }

    /// The one whose key will hang, and the other.
    fn tenants(&self) -> [&str; 2] {
        [0, 1].map(|index| &*self.simulator.clients[index].tenant)
    }

    fn hang(&self) {
        let ClientKey::Aws { key_id, .. } = &self.simulator.clients[0].key else {
            panic!("all are at AWS");
        };
        let rule = json!({ "kind": "hang", "target": { "key": key_id } });
        self.simulator.order("POST", "/faults", &rule);
    }

    /// Lets the key serve again, and waits until the proxy has noticed.
    fn heal(&self) {
        self.simulator.order("DELETE", "/faults", &Value::Null);
        let wrap = metadata(self.tenants()[0]);
        let mut tries = 0;
        while self.proxy.call("document/wrap", &wrap).status != 200 {
            tries += 1;
            assert!(tries < 600, "it does not serve again");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Lets the key hang, does `flood` until it came in time, and has the other tenant wrap all the while.
    fn flooded(&self, flood: impl Fn() -> bool) {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                let wrap = Request::api("document/wrap", API_KEY, &metadata(self.tenants()[1]));
                let mut connection = self.proxy.connect();
                let mut served = 0;
                while !over.load(Relaxed) || served == 0 {
                    connection.ask(&wrap).ok();
                    served += 1;
                }
            });
            // A flood that fails must not leave the other waiting.
            defer!(over.store(true, Relaxed));
            let came = (0..ROUNDS_MAX).any(|_| {
                self.hang();
                let came = flood();
                self.heal();
                came
            });
            over.store(true, Relaxed);
            other.join().expect("the other tenant is served");
            assert!(came, "no flood came in time");
        });
    }

    fn refused_by(&self, limit: &str) -> f64 {
        let family = "tsp_requests_refused_total";
        self.proxy.metrics().count(family, &[("limit", limit)])
    }
}

/// Sends requests, each on a connection of its own; gives the answers as they come, with the place of each.
fn send_all(proxy: &Proxy, requests: Vec<Request>) -> Receiver<(usize, Answer)> {
    let (sender, answers) = channel();
    for (place, request) in requests.into_iter().enumerate() {
        let mut connection = Connection::open(proxy.http);
        connection.send(&request.bytes()).expect("it is open");
        let sender = sender.clone();
        thread::spawn(move || drop(sender.send((place, connection.answer()))));
    }
    answers
}

fn told_to_come_again(answer: &Answer, code: u16) -> String {
    assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
    answer.refused(503, code)
}

on_both! {
    fn who_would_be_the_next_to_wait_for_a_hanging_kms_is_told_at_once(io) {
        let stand = Stand::start(io);
        let limits = Limits::default();
        let items = limits.batch_fanout_max;
        // The tenant's connections, and its half of the queue.
        let room = limits.kms_tenant_connections_max + limits.kms_waiters_max / 2;
        assert_eq!(room % items, 0, "so many batches fill it");
        let ids: Vec<_> = (0..items).map(|n| n.to_string()).collect();
        let [hanging, _] = stand.tenants();
        let batch = request(hanging, json!({ "documentIds": ids }));
        let batch = Request::api("document/batch-wrap", API_KEY, &batch);
        let before = stand.proxy.memory_kib("VmRSS");
        stand.flooded(|| {
            let answers = send_all(&stand.proxy, vec![batch.clone(); room / items + 1]);
            let first = answers.recv_timeout(PATIENCE).expect("one too many").1.ok();
            let failures = first["failures"].as_object().expect("failures by id");
            let all = failures.values().filter(|failure| {
                let told = failure["message"].as_str();
                failure["code"] == 208 && told.is_some_and(|told| told.contains("too many operations wait"))
            });
            if all.count() < items {
                return false;
            }
            let single = stand.proxy.call("document/wrap", &metadata(hanging));
            if !matches!(answers.try_recv(), Err(TryRecvError::Empty)) {
                return false;
            }
            let told = told_to_come_again(&single, 208);
            assert!(told.contains("too many operations wait"), "{told}");
            let grown = stand.proxy.memory_kib("VmRSS").saturating_sub(before);
            eprintln!("{room} that wait: {grown} KiB");
            let waiting = u64::try_from(room).expect("thousands");
            assert!(grown <= waiting * WAITER_KIB_MAX, "{grown} KiB");
            // Those that wait end by their deadline.
            assert_eq!(answers.iter().count(), room / items);
            true
        });
        assert!(stand.refused_by("kms_waiters_max") > 0.0);
    }

    fn one_request_more_of_a_tenant_whose_kms_hangs_is_told_at_once(io) {
        // A socket each, here and there.
        tsp_rt::raise_limits().expect("the limits can be raised");
        let stand = Stand::start(io);
        let room = Limits::default().tenant_inflight_max;
        let [hanging, _] = stand.tenants();
        let wrap = Request::api("document/wrap", API_KEY, &metadata(hanging));
        let before = stand.proxy.memory_kib("VmRSS");
        stand.flooded(|| {
            let answers = send_all(&stand.proxy, vec![wrap.clone(); room + 1]);
            let first = answers.recv_timeout(PATIENCE).expect("one too many").1;
            if first.status != 503 {
                return false;
            }
            let told = told_to_come_again(&first, 100);
            assert!(told.contains("requests of this tenant"), "{told}");
            let grown = stand.proxy.memory_kib("VmRSS").saturating_sub(before);
            eprintln!("{room} in flight: {grown} KiB");
            // A connection's buffers go with each.
            let inflight = u64::try_from(room).expect("thousands");
            assert!(grown <= inflight * 2 * WAITER_KIB_MAX, "{grown} KiB");
            assert_eq!(answers.iter().count(), room);
            true
        });
        assert!(stand.refused_by("tenant_inflight_max") > 0.0);
    }
}
