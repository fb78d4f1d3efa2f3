//! What clients come in by: the Unix socket, and how connections spread over the shards.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::Path,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    child,
    config::{self, As, AwsKms, tenant, two_local_tenants},
    fake_kms::FakeKms,
    http::{Connection, Request},
    metadata,
    metrics::Metrics,
    on_both,
    proxy::{API_KEY, Io, Proxy, Setup},
    text, until,
};

/// A request that every shard answers by itself.
fn wrap() -> Request {
    Request::api("document/wrap", API_KEY, &metadata("acme"))
}

fn with_socket(io: Io, config: &str) -> (Setup, std::path::PathBuf) {
    let setup = Setup::serve(io, config);
    let path = setup.folder().join("tsp.sock");
    let name = path.to_str().expect("temporary paths are UTF-8").to_owned();
    (setup.env("TSP_UNIX_SOCKET", &name), path)
}

/// Our own user and group, as the kernel tells them to the other end of a socket.
fn ourselves(path: &Path) -> (u32, u32) {
    let metadata = fs::metadata(path).expect("the file is there");
    (metadata.uid(), metadata.gid())
}

/// What each shard holds, once all of them together hold `total`.
fn held(proxy: &Proxy, shards: usize, total: usize) -> Vec<f64> {
    let mut all = Vec::new();
    until("the shards hold all connections", || {
        let metrics = Metrics::read(proxy.health);
        let shard = |index: usize| {
            let index = index.to_string();
            metrics.count("tsp_connections", &[("shard", &index)])
        };
        all = (0..shards).map(shard).collect();
        all.iter().sum::<f64>() == total as f64
    });
    all
}

/// Opens 32 connections, `rounds` times; no shard may ever hold more than `most` of them.
fn spreads(proxy: &Proxy, shards: usize, rounds: usize, most: f64, open: impl Fn() -> Connection) {
    for round in 0..rounds {
        let connections: Vec<_> = (0..32)
            .map(|_| {
                let mut connection = open();
                connection.ask(&wrap()).ok();
                connection
            })
            .collect();
        let held = held(proxy, shards, 32);
        assert!(
            held.iter().all(|count| *count <= most),
            "round {round}: {held:?}"
        );
        drop(connections);
        self::held(proxy, shards, 0);
    }
}

on_both! {
    fn the_unix_socket_serves_the_api_and_goes_with_the_process(io) {
        let (setup, path) = with_socket(io, &two_local_tenants());
        let proxy = setup.start();
        let started = proxy.log.wait_json(0, "line that tells the addresses", |line| line["http"].is_string()).0;
        assert_eq!(started["unix"], path.to_str().unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let mut connection = Connection::open_unix(&path);
        for _ in 0..3 {
            let wrapped = connection.ask(&wrap()).ok();
            text(&wrapped, "dek");
        }
        // The TCP listener serves beside it.
        proxy.send(&wrap()).ok();
        proxy.signal(Signal::TERM);
        assert!(connection.is_ended_by_peer());
        assert_eq!(proxy.wait_for_end().code, Some(0));
        assert!(!path.exists(), "the file is removed");
    }

    fn curl_speaks_to_the_unix_socket(io) {
        let (setup, path) = with_socket(io, &two_local_tenants());
        let _proxy = setup.start();
        let curl = child::command("curl")
            .args(["--silent", "--show-error", "--fail", "--unix-socket"])
            .arg(&path)
            .args(["-H", &format!("Authorization: cmk {API_KEY}"), "-d", &metadata("acme").to_string()])
            .arg("http://localhost/api/1/document/wrap")
            .output()
            .expect("curl is installed");
        assert!(curl.status.success(), "{}", String::from_utf8_lossy(&curl.stderr));
        let wrapped: Value = serde_json::from_slice(&curl.stdout).unwrap();
        text(&wrapped, "dek");
    }

    fn a_file_left_by_a_killed_process_is_taken_over_and_a_living_ones_is_not(io) {
        let (setup, path) = with_socket(io, &two_local_tenants());
        let first = setup.start();
        let (second, _) = with_socket(io, &two_local_tenants());
        let name = path.to_str().unwrap();
        let ended = second.env("TSP_UNIX_SOCKET", name).run_to_end();
        assert_eq!(ended.code, Some(71), "{}", ended.output);
        assert!(ended.output.contains("somebody listens there already"), "{}", ended.output);
        Connection::open_unix(&path).ask(&wrap()).ok();
        first.signal(Signal::KILL);
        // Only now: the killed process takes its folder with it.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let start = || Setup::serve(io, &two_local_tenants()).env("TSP_UNIX_SOCKET", path.to_str().unwrap()).start();
        let third = start();
        third.signal(Signal::KILL);
        assert_eq!(third.wait_for_end().code, None);
        assert!(path.exists(), "nobody was left to remove it");
        let fourth = start();
        Connection::open_unix(&path).ask(&wrap()).ok();
        drop(fourth);
    }

    fn who_may_not_connect_is_turned_away_counted_and_told(io) {
        let (setup, path) = with_socket(io, &two_local_tenants());
        let (uid, gid) = ourselves(setup.folder());
        let proxy = setup.env("TSP_UNIX_SOCKET_ALLOW", &format!("uid:{},gid:{}", uid + 1, gid + 1)).start();
        for _ in 0..3 {
            let stranger = UnixStream::connect(&path).expect("the file's permissions allow it");
            assert!(Connection::of_unix(stranger).is_ended_by_peer());
        }
        let told = proxy.log.wait_json(0, "warning", |line| line["message"].as_str().is_some_and(|text| text.contains("turned away"))).0;
        assert_eq!((told["uid"].as_u64(), told["gid"].as_u64()), (Some(uid.into()), Some(gid.into())), "{told}");
        let refused = Metrics::read(proxy.health).count("tsp_connections_closed_total", &[("limit", "peer_not_allowed")]);
        assert_eq!(refused, 3.0);
        drop(proxy);
        let (setup, path) = with_socket(io, &two_local_tenants());
        let _proxy = setup.env("TSP_UNIX_SOCKET_ALLOW", &format!("gid:{gid}")).env("TSP_UNIX_SOCKET_MODE", "600").start();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        Connection::open_unix(&path).ask(&wrap()).ok();
    }

    fn a_drain_finishes_what_came_over_the_unix_socket(io) {
        let kms = FakeKms::asking();
        let file = config::file(&[AwsKms::unchecked(1, &kms.url()).toml(), tenant("acme", &[(1, As::Primary)])]);
        let (setup, path) = with_socket(io, &file);
        let proxy = setup.start();
        // One per shard at least, so that one of them was handed over.
        let mut busy: Vec<_> = (0..4).map(|_| Connection::open_unix(&path)).collect();
        for connection in &mut busy {
            connection.send(&wrap().bytes()).expect("it can be sent");
        }
        let calls: Vec<_> = busy.iter().map(|_| kms.next_call()).collect();
        let from = proxy.log.len();
        proxy.signal(Signal::TERM);
        proxy.log.wait_json(from, "line about the drain", |line| line["message"].as_str().is_some_and(|text| text.contains("drain")));
        calls.into_iter().for_each(|call| call.succeed());
        for connection in &mut busy {
            connection.answer().ok();
            assert!(connection.is_ended_by_peer());
        }
        assert_eq!(proxy.wait_for_end().code, Some(0));
    }

    fn of_32_connections_no_shard_of_two_ever_holds_more_than_18(io) {
        let (setup, path) = with_socket(io, &two_local_tenants());
        let proxy = setup.start();
        spreads(&proxy, 2, 100, 18.0, || proxy.connect());
        spreads(&proxy, 2, 10, 16.0, || Connection::open_unix(&path));
    }

    fn of_32_connections_no_shard_of_four_ever_holds_more_than_9(io) {
        let (setup, path) = with_socket(io, &two_local_tenants());
        let proxy = setup.env("TSP_SHARDS", "4").start();
        spreads(&proxy, 4, 50, 9.0, || proxy.connect());
        spreads(&proxy, 4, 10, 8.0, || Connection::open_unix(&path));
        assert!(Metrics::read(proxy.health).count("tsp_connections_handed_over_total", &[]) > 0.0);
    }
}
