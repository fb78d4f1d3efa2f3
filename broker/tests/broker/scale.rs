//! What many tenants cost a broker: 10,000 of them with three KMS configs each, made by a vendor bridge. By hand, since figures
//! are of interest and no test's business, and since it takes minutes:
//!
//! ```sh
//! cargo test --release -p tsp-broker --test broker -- --ignored --nocapture scale
//! ```

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tsp_wire::account::SNAPSHOT_PATH;

use crate::{
    bridge::Bridge,
    support::{Kind, World},
};

const TENANTS: usize = 10_000;
const CONFIGS_EACH: usize = 3;
const THREADS: usize = 4;
const ROUNDS: usize = 5;

#[expect(clippy::disallowed_methods, reason = "a measurement of a process")]
fn now() -> Instant {
    Instant::now()
}

/// CPU that the process has used, user and system.
fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let used = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        let first = text
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok());
        Duration::from_nanos(first.unwrap_or_default())
    };
    tasks.map(|task| used(task.unwrap().path())).sum()
}

/// A line of the kernel's `status` of the process, in MiB.
fn memory_mib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .and_then(|number| number.parse::<u64>().ok())
        .unwrap()
        / 1024
}

fn fill(bridge: &Bridge) {
    let make = |first: usize| {
        for number in (first..TENANTS).step_by(THREADS) {
            let tenant = format!("tenant-{number}");
            let named = json!({ "id": tenant, "name": tenant });
            bridge.good("POST", "/1/tenants", Some(&named));
            for config in 0..CONFIGS_EACH {
                let id = bridge.aws("secret", true);
                let path = format!("/1/kms/configs/{id}/tenants/{tenant}");
                bridge.good("POST", &path, None);
                if config == 0 {
                    bridge.good("PUT", &path, Some(&json!({ "primary": true })));
                }
            }
        }
    };
    thread::scope(|scope| {
        for first in 0..THREADS {
            scope.spawn(move || make(first));
        }
    });
}

#[test]
#[ignore = "measures; see the head of the file"]
fn ten_thousand_tenants() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let world = World::new(kind);
        let account = world.account(&[]);
        let bridge = Bridge::start(&world);
        let begin = now();
        fill(&bridge);
        let (took, pid) = (begin.elapsed(), world.broker.pid());
        eprintln!("{kind:?}: filled in {} s", took.as_secs());
        eprintln!("resident after that: {} MiB", memory_mib(pid, "VmRSS"));
        let mut etag = String::new();
        for (what, known) in [("whole", false), ("unchanged", true)] {
            for _ in 0..ROUNDS {
                let (begin, used) = (now(), cpu(pid));
                let headers = if known {
                    format!("if-none-match: {etag}\r\naccept-encoding: gzip\r\n")
                } else {
                    "accept-encoding: gzip\r\n".to_owned()
                };
                let answer = world
                    .broker
                    .ask(&account, "GET", SNAPSHOT_PATH, &headers, b"")
                    .unwrap();
                assert_eq!(answer.status, if known { 304 } else { 200 });
                eprintln!(
                    "{what}: {:.1} MB, {} ms, {} ms of CPU",
                    answer.body.len() as f64 / 1e6,
                    begin.elapsed().as_millis(),
                    (cpu(pid) - used).as_millis()
                );
                etag = answer.header("etag").unwrap().to_owned();
            }
        }
        eprintln!(
            "resident after that: {} MiB, at most {} MiB",
            memory_mib(pid, "VmRSS"),
            memory_mib(pid, "VmHWM")
        );
    }
}
