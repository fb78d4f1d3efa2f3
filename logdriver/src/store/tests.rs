use std::{collections::HashSet, net::SocketAddr, path::Path};

use rusqlite::Connection;
use serde_json::Value;

use super::*;
use crate::chain::{Head, Link, LogdriverId};

fn config(folder: &Path) -> StoreConfig {
    StoreConfig {
        folder: folder.to_owned(),
        secret: Some(Zeroizing::new(vec![7; 32])),
        signing: None,
        capacity: 100,
        free_bytes_min: 0,
    }
}

fn open(folder: &Path) -> (Opened, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new().unwrap());
    (Store::open(config(folder), &metrics).unwrap(), metrics)
}

async fn close(opened: Opened) {
    let Opened { store, closed, .. } = opened;
    drop(store);
    closed.wait().await;
}

fn event(tenant: &str, number: u64) -> Incoming {
    let json = format!(
        r#"{{"tenantId":"{tenant}","timestamp":"2023-11-14T22:13:20.000Z","iclFields":{{"event":"DATA_ENCRYPT","requestingId":"svc"}},"customFields":{{"n":"{number}"}},"sequence":{{"instance":"000000000000beef","shard":0,"number":{number}}}}}"#
    );
    Incoming::read(json.into()).unwrap()
}

fn number(event: &Event) -> Option<u64> {
    let json: Value = serde_json::from_slice(&event.json).unwrap();
    json["customFields"]["n"].as_str()?.parse().ok()
}

/// Appends, and waits until it is on disk.
async fn append(store: &Store, events: Vec<Incoming>, batch: Option<ProxyBatch>) {
    let (done, on_disk) = oneshot::channel();
    let append = Append {
        events,
        batch,
        done: Some(done),
        ..Append::default()
    };
    store.append(append).await.unwrap();
    on_disk.await.unwrap();
}

async fn read(store: &Store, tenant: &str) -> Batch {
    store
        .read(&tenant.into(), usize::MAX, usize::MAX)
        .await
        .unwrap()
}

/// Whether events are a whole chain from the tenant's first event on.
fn assert_chain(store: &Store, tenant: &str, events: &[Event]) {
    let logdriver = LogdriverId(store.instance());
    let mut hash = Head::start(logdriver, tenant).hash;
    for (event, sequence) in events.iter().zip(1..) {
        let mut json = serde_json::from_slice(&event.json).unwrap();
        let link = Link::take(&mut json).unwrap();
        assert_eq!((event.sequence, link.sequence), (sequence, sequence));
        assert_eq!((link.logdriver, link.previous), (logdriver, hash));
        assert!(link.fits(&json));
        hash = link.hash;
    }
}

#[tokio::test]
async fn events_come_back_in_order_with_places_and_ids_that_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (mut opened, metrics) = open(folder.path());
    let store = opened.store.clone();
    for number in 0..5 {
        append(
            &store,
            vec![event("acme", number), event("globex", number)],
            None,
        )
        .await;
    }
    let first = read(&store, "acme").await;
    assert_eq!(
        first.events.iter().filter_map(number).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    assert_chain(&store, "acme", &first.events);
    let ids: HashSet<_> = first.events.iter().map(|event| &event.id).collect();
    assert_eq!(ids.len(), 5);
    for event in &first.events {
        let json: Value = serde_json::from_slice(&event.json).unwrap();
        assert_eq!(json["iclFields"]["logdriverRayId"], event.id.as_str());
    }
    let some = store.read(&"acme".into(), 2, usize::MAX).await.unwrap();
    assert_eq!(some.events, first.events[..2]);
    store
        .settle(&"acme".into(), 2, Vec::new(), Vec::new())
        .await
        .unwrap();
    assert_eq!(read(&store, "acme").await.events, first.events[2..]);
    let told: i64 = std::iter::from_fn(|| opened.arrivals.try_recv().ok())
        .flatten()
        .map(|arrived| arrived.events)
        .sum();
    assert_eq!(told, 10);
    assert_eq!(
        (metrics.stored.get(), metrics.buffered_events.get()),
        (10, 8)
    );
    drop(store);
    close(opened).await;

    // After a restart: what was not settled, the same to the byte, and the chain goes on.
    let (mut opened, metrics) = open(folder.path());
    assert_eq!(metrics.buffered_events.get(), 8);
    let mut waiting = opened.arrivals.recv().await.unwrap();
    waiting.sort_by(|one, other| one.tenant.cmp(&other.tenant));
    assert_eq!((&*waiting[0].tenant, waiting[0].events), ("acme", 3));
    assert_eq!((&*waiting[1].tenant, waiting[1].events), ("globex", 5));
    append(&opened.store, vec![event("acme", 5)], None).await;
    let second = read(&opened.store, "acme").await;
    assert_eq!(second.events[..3], first.events[2..]);
    let whole: Vec<_> = first.events[..2]
        .iter()
        .chain(&second.events)
        .cloned()
        .collect();
    assert_chain(&opened.store, "acme", &whole);
    close(opened).await;
}

#[tokio::test]
async fn two_logdrivers_give_an_event_the_same_id() {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let (opened, _) = open(folder.path());
        append(
            &opened.store,
            vec![event("acme", 0), event("acme", 1)],
            None,
        )
        .await;
        let events = read(&opened.store, "acme").await.events;
        ids.push(events.into_iter().map(|event| event.id).collect::<Vec<_>>());
        close(opened).await;
    }
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0][0], ids[0][1]);
}

#[tokio::test]
async fn a_chain_has_a_checkpoint_after_a_thousand_events() {
    let folder = tempfile::tempdir().unwrap();
    let (opened, _) = open(folder.path());
    append(
        &opened.store,
        (0..2_500).map(|n| event("acme", n)).collect(),
        None,
    )
    .await;
    let events = read(&opened.store, "acme").await.events;
    assert_chain(&opened.store, "acme", &events);
    let checkpoints: Vec<_> = events
        .iter()
        .filter(|event| number(event).is_none())
        .map(|event| event.sequence)
        .collect();
    assert_eq!(checkpoints, [1_001, 2_002]);
    close(opened).await;
}

#[tokio::test]
async fn a_batch_that_comes_again_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let batch = |number| {
        Some(ProxyBatch {
            instance: u64::MAX,
            number,
        })
    };
    let (opened, metrics) = open(folder.path());
    append(&opened.store, vec![event("acme", 0)], batch(1)).await;
    append(&opened.store, vec![event("acme", 0)], batch(1)).await;
    append(&opened.store, vec![event("acme", 1)], batch(2)).await;
    assert_eq!(metrics.repeated.get(), 1);
    close(opened).await;
    let (opened, metrics) = open(folder.path());
    append(&opened.store, vec![event("acme", 1)], batch(2)).await;
    assert_eq!(metrics.repeated.get(), 1);
    let events = read(&opened.store, "acme").await.events;
    assert_eq!(events.iter().filter_map(number).collect::<Vec<_>>(), [0, 1]);
    close(opened).await;
}

#[tokio::test]
async fn a_damaged_block_is_skipped_named_and_kept_and_the_rest_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (opened, _) = open(folder.path());
    for number in 0..3 {
        append(&opened.store, vec![event("acme", number)], None).await;
    }
    close(opened).await;
    let database = Connection::open(folder.path().join("events.sqlite")).unwrap();
    let block: Vec<u8> = database
        .query_row("SELECT content FROM block WHERE first = 2", [], |row| {
            row.get(0)
        })
        .unwrap();
    let mut damaged = block.clone();
    damaged[40] ^= 0x10;
    database
        .execute("UPDATE block SET content = ?1 WHERE first = 2", [damaged])
        .unwrap();
    drop(database);

    let (opened, metrics) = open(folder.path());
    let batch = read(&opened.store, "acme").await;
    assert_eq!(
        batch.events.iter().filter_map(number).collect::<Vec<_>>(),
        [0, 2]
    );
    assert_eq!(batch.corrupt.len(), 1);
    assert_eq!((batch.corrupt[0].first, batch.corrupt[0].events), (2, 1));
    let corrupt = batch.corrupt;
    opened
        .store
        .settle(&"acme".into(), 2, Vec::new(), corrupt)
        .await
        .unwrap();
    let batch = read(&opened.store, "acme").await;
    assert_eq!(
        batch.events.iter().filter_map(number).collect::<Vec<_>>(),
        [2]
    );
    assert!(batch.corrupt.is_empty());
    assert_eq!(metrics.corrupt.get(), 1);
    close(opened).await;
    let letters = letters(folder.path());
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (letters[0].reason.as_str(), letters[0].event.as_ref()),
        ("damaged on disk", None)
    );
}

fn letters(folder: &Path) -> Vec<Letter> {
    let mut letters = Vec::new();
    let secret = Zeroizing::new(vec![7; 32]);
    let dead = DeadLetters::open(folder, Some(&secret)).unwrap();
    dead.each(|letter| letters.push(letter)).unwrap();
    letters
}

#[tokio::test]
async fn dead_letters_and_what_is_no_event_are_kept_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (opened, metrics) = open(folder.path());
    append(
        &opened.store,
        vec![event("acme", 0), event("acme", 1)],
        None,
    )
    .await;
    let strange = Append {
        strange: vec![Bytes::from_static(b"what?")],
        ..Append::default()
    };
    opened.store.append(strange).await.unwrap();
    let events = read(&opened.store, "acme").await.events;
    let dead = vec![(events[1].clone(), "HTTP 400".to_owned())];
    opened
        .store
        .settle(&"acme".into(), 2, dead, Vec::new())
        .await
        .unwrap();
    assert_eq!(read(&opened.store, "acme").await, Batch::default());
    close(opened).await;
    assert_eq!(metrics.malformed.get(), 1);
    let mut letters = letters(folder.path());
    letters.sort_by(|one, other| one.tenant.cmp(&other.tenant));
    assert_eq!(letters.len(), 2);
    assert_eq!(letters[0].event.as_ref().unwrap().json, "what?");
    assert_eq!(
        (letters[1].tenant.as_str(), letters[1].reason.as_str()),
        ("acme", "HTTP 400")
    );
    assert_eq!(letters[1].event.as_ref(), Some(&events[1]));
}

#[tokio::test]
async fn nothing_of_an_event_lies_on_disk_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let (opened, _) = open(folder.path());
    let canary = String::from_utf8(event("acme", 0).json().to_vec()).unwrap();
    let canary = Incoming::read(canary.replace("svc", "CANARY").into()).unwrap();
    append(&opened.store, vec![canary], None).await;
    let events = read(&opened.store, "acme").await.events;
    assert!(String::from_utf8_lossy(&events[0].json).contains("CANARY"));
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|at| at == b"CANARY"));
    }
    close(opened).await;
}

#[tokio::test]
async fn a_store_belongs_to_one_process_and_to_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let (opened, metrics) = open(folder.path());
    let again = Store::open(config(folder.path()), &metrics);
    assert!(matches!(again, Err(OpenError::Locked)));
    close(opened).await;
    let other = StoreConfig {
        secret: Some(Zeroizing::new(vec![8; 32])),
        ..config(folder.path())
    };
    assert!(matches!(
        Store::open(other, &metrics),
        Err(OpenError::OtherKey)
    ));
}

#[tokio::test]
async fn without_an_account_the_store_has_a_key_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let own = || StoreConfig {
        secret: None,
        ..config(folder.path())
    };
    let opened = Store::open(own(), &metrics).unwrap();
    append(&opened.store, vec![event("acme", 0)], None).await;
    close(opened).await;
    let opened = Store::open(own(), &metrics).unwrap();
    assert_eq!(read(&opened.store, "acme").await.events.len(), 1);
    close(opened).await;
}

/// `cargo test -p tsp-logdriver --lib events_per_second -- --ignored --nocapture`, with TMPDIR on the disk of interest.
#[tokio::test]
#[ignore = "a measurement"]
async fn events_per_second() {
    const EVENTS: u64 = 300_000;
    for tenants in [1, 1_000] {
        let folder = tempfile::tempdir().unwrap();
        let (opened, _) = open(folder.path());
        let begun = crate::clock::monotonic();
        let mut last = None;
        for message in 0..EVENTS / 64 {
            let events = (0..64).map(|n| event(&format!("t{}", (message * 64 + n) % tenants), n));
            let (done, on_disk) = oneshot::channel();
            let append = Append {
                events: events.collect(),
                done: Some(done),
                ..Append::default()
            };
            opened.store.append(append).await.unwrap();
            last = Some(on_disk);
        }
        last.unwrap().await.unwrap();
        let took = begun.elapsed();
        println!("{tenants} tenants: {EVENTS} events in {took:?}");
        close(opened).await;
    }
}

fn shard(next: u64, ended: bool) -> Shard {
    Shard {
        address: SocketAddr::from(([127, 0, 0, 1], 5555)),
        next,
        event_ms: 1_700_000_000_000,
        ended,
    }
}

async fn append_from(store: &Store, events: Vec<Incoming>, key: (u64, u16), shard: Shard) {
    let append = Append {
        events,
        shards: Shards::from([(key, shard)]),
        ..Append::default()
    };
    store.append(append).await.unwrap();
}

#[tokio::test]
async fn a_store_of_an_earlier_version_gets_what_is_new() {
    let drops = [
        "ALTER TABLE tenant DROP COLUMN heard_ms; DROP TABLE shard; PRAGMA user_version = 1;",
        "ALTER TABLE tenant DROP COLUMN heard_ms; ALTER TABLE shard DROP COLUMN address; \
         ALTER TABLE shard DROP COLUMN since_ms; ALTER TABLE shard DROP COLUMN event_ms; \
         ALTER TABLE shard DROP COLUMN state; PRAGMA user_version = 2;",
    ];
    for drop in drops {
        let folder = tempfile::tempdir().unwrap();
        let (opened, _) = open(folder.path());
        append(&opened.store, vec![event("acme", 0)], None).await;
        close(opened).await;
        let database = Connection::open(folder.path().join("events.sqlite")).unwrap();
        database.execute_batch(drop).unwrap();
        std::mem::drop(database);
        let (opened, _) = open(folder.path());
        append_from(&opened.store, Vec::new(), (7, 1), shard(5, true)).await;
        append(&opened.store, vec![event("acme", 1)], None).await;
        let events = read(&opened.store, "acme").await.events;
        assert_chain(&opened.store, "acme", &events);
        close(opened).await;
        let (opened, _) = open(folder.path());
        assert_eq!(opened.shards, Shards::from([((7, 1), shard(5, true))]));
        close(opened).await;
    }
}

#[tokio::test]
async fn what_a_shard_said_last_stands_and_nobody_hears_an_end_while_away() {
    let folder = tempfile::tempdir().unwrap();
    let (opened, _) = open(folder.path());
    let tell = async |key, shard| append_from(&opened.store, Vec::new(), key, shard).await;
    tell((1, 0), shard(5, false)).await;
    tell((1, 0), shard(6, true)).await;
    tell((1, 0), shard(6, false)).await;
    // Late.
    tell((1, 0), shard(4, false)).await;
    tell((2, 0), shard(9, false)).await;
    close(opened).await;
    let (opened, _) = open(folder.path());
    let expected = [((1, 0), shard(6, true)), ((2, 0), shard(9, true))];
    assert_eq!(opened.shards, Shards::from(expected));
    // It lives on.
    append_from(&opened.store, Vec::new(), (2, 0), shard(10, false)).await;
    append(&opened.store, vec![event("acme", 0)], None).await;
    let row = "SELECT next, state FROM shard WHERE instance = 2";
    let database = Connection::open(folder.path().join("events.sqlite")).unwrap();
    let row = database.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?)));
    assert_eq!(row, Ok((10, 0)));
    close(opened).await;
}

/// The deaths that a tenant was told of, and when each process's last event happened.
async fn deaths(store: &Store, tenant: &str) -> Vec<(String, String)> {
    let events = read(store, tenant).await.events;
    assert_chain(store, tenant, &events);
    let told = events.iter().filter_map(|event| {
        let json: serde_json::Map<_, _> = serde_json::from_slice(&event.json).unwrap();
        assert_eq!(json["iclFields"]["logdriverRayId"], event.id.as_str());
        crate::notice::of_death(&json)
    });
    told.collect()
}

#[tokio::test]
async fn who_was_heard_of_while_a_process_lived_is_told_of_its_death_once() {
    let folder = tempfile::tempdir().unwrap();
    let (opened, _) = open(folder.path());
    let store = &opened.store;
    append(store, vec![event("before", 0)], None).await;
    // Times are told apart by milliseconds.
    let heard = crate::clock::now_ms();
    while crate::clock::now_ms() == heard {
        std::thread::yield_now();
    }
    append_from(store, vec![event("acme", 0)], (7, 0), shard(1, false)).await;
    append_from(store, vec![event("globex", 0)], (8, 0), shard(1, true)).await;
    for _ in 0..2 {
        let append = Append {
            died: vec![7, 8, 9],
            ..Append::default()
        };
        store.append(append).await.unwrap();
    }
    // What is told is written after all that was handed over before, and at the latest when the store is closed.
    close(opened).await;
    let (opened, _) = open(folder.path());
    let died = (
        "0000000000000007".to_owned(),
        "2023-11-14T22:13:20.000Z".to_owned(),
    );
    for tenant in ["acme", "globex"] {
        assert_eq!(
            deaths(&opened.store, tenant).await,
            std::slice::from_ref(&died)
        );
    }
    assert_eq!(deaths(&opened.store, "before").await, []);
    close(opened).await;
}

#[tokio::test]
async fn a_crash_between_a_death_and_its_notice_has_it_told_by_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let (opened, _) = open(folder.path());
    append_from(
        &opened.store,
        vec![event("acme", 0)],
        (7, 0),
        shard(1, false),
    )
    .await;
    close(opened).await;
    let database = Connection::open(folder.path().join("events.sqlite")).unwrap();
    let crash = "UPDATE shard SET state = 2 WHERE instance = 7";
    assert_eq!(database.execute(crash, []), Ok(1));
    drop(database);
    for _ in 0..2 {
        let (opened, _) = open(folder.path());
        close(opened).await;
    }
    let (opened, _) = open(folder.path());
    assert_eq!(deaths(&opened.store, "acme").await.len(), 1);
    close(opened).await;
}
