//! What many tenants cost a proxy that has them from a broker: 10,000 tenants with three KMS configs each. By hand, since
//! figures are of interest and no test's business:
//!
//! ```sh
//! cargo test --release --workspace --test integration -- --ignored --nocapture broker::scale
//! ```
//!
//! The far end is a stand-in that has the snapshot ready, sealed as an admin seals it: what is measured is the proxy.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::{Arc, Mutex},
    time::Instant,
};

use flate2::{Compression, write::GzEncoder};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use tsp_wire::{
    ApiKey,
    account::{
        AccountId, Assignment, KmsConfig, SNAPSHOT_FORMAT, Segment, SnapshotAnswer, Tenant,
        env::ServiceAccount, kms, signed,
    },
    envelope::{self, Epoch, PrivateKey, SegmentKey, SigningKey},
};

use tsp_loadtest::{
    client::Target,
    generator::{self, Generator, Length, Phase},
    mix::Demand,
    report::Latency,
};

use super::*;
use crate::support::proxy::API_KEY;

const TENANTS: u64 = 10_000;
const CONFIGS_EACH: u64 = 3;
const ROUNDS: usize = 5;
const EPOCH: Epoch = Epoch(1);

/// The first tenant's primary one, a LOCAL key: wraps under it tell what a change costs those who ask meanwhile.
const WRAPPING_CONFIG: u64 = 1;
/// Another tenant's, which is what changes.
const CHANGING_CONFIG: u64 = 4;

/// Wraps per second beside a change: a fifth of what two cores can do with the generator on them.
const WRAPS_PER_S: f64 = 2_000.0;
const WRAPS_FOR: Duration = Duration::from_secs(5);

/// A vendor without a broker.
struct Sealer {
    account: ServiceAccount,
    vendor: SigningKey,
    segment: SegmentKey,
    random: ChaCha20Rng,
}

impl Sealer {
    fn config(&mut self, id: u64, revision: u64) -> KmsConfig {
        let mut config = KmsConfig {
            id,
            schema: kms::SCHEMA,
            revision,
            leasing_allowed: false,
            envelope: Vec::new(),
        };
        let mut content = json!({
            "type": "AWS",
            "key_path": { "keyID": format!("alias/tenant-{id}"), "region": "eu-central-1" },
            "credentials": {
                "accessKeyId": "AKIAIOSFODNN7EXAMPLE",
                "secretAccessKey": format!("wJalrXUtnFEMI/K7MDENG/bPxRfiCY{id:010}"),
            },
        });
        if id == WRAPPING_CONFIG {
            content = local_content(1);
        }
        let binding = config.binding(self.account.vendor());
        let content = content.to_string();
        let content = signed::sign_content(&self.vendor, &binding, "", content.as_bytes());
        config.envelope = envelope::seal(
            &self.segment.public,
            EPOCH,
            &binding,
            &content.unwrap(),
            &mut self.random,
        )
        .unwrap();
        config
    }
}

/// All tenants, each with configs of its own.
fn world() -> (Sealer, SnapshotAnswer) {
    let mut random = ChaCha20Rng::seed_from_u64(1);
    let vendor = SigningKey::generate(&mut random).unwrap();
    let private = PrivateKey::generate(&mut random);
    let account = ServiceAccount {
        broker_url: "http://127.0.0.1".to_owned(),
        id: AccountId::new([1; 12], &vendor.verifying()),
        config: 12,
        segment: 7,
        encryption_key: PrivateKey::generate(&mut random),
        signing_key: SigningKey::generate(&mut random).unwrap(),
    };
    let segment = SegmentKey {
        segment: account.segment,
        epoch: EPOCH,
        public: private.public(),
    };
    let sealed_key = envelope::seal(
        &account.encryption_key.public(),
        EPOCH,
        &Segment::binding(account.vendor(), account.config),
        private.expose(),
        &mut random,
    )
    .unwrap();
    let mut sealer = Sealer {
        account,
        vendor,
        segment,
        random,
    };
    let configs = TENANTS * CONFIGS_EACH;
    let assign = |kms: u64, tenant: &str| {
        let vendor = sealer.account.vendor();
        signed::sign_assignment(&sealer.vendor, vendor, kms, tenant).unwrap()
    };
    let tenants: Vec<_> = (0..TENANTS)
        .map(|number| Tenant {
            id: format!("tenant-{number}"),
            tags: vec!["default".to_owned()],
            leasing_required: false,
            assignments: (0..CONFIGS_EACH)
                .map(|which| {
                    let kms = number * CONFIGS_EACH + which + 1;
                    Assignment {
                        kms,
                        active: true,
                        primary: which == 0,
                        signer: sealer.vendor.verifying().as_bytes().to_vec(),
                        signature: assign(kms, &format!("tenant-{number}")).to_vec(),
                    }
                })
                .collect(),
            logging: None,
        })
        .collect();
    let snapshot = SnapshotAnswer {
        format: SNAPSHOT_FORMAT,
        version: 1,
        vendor_key: sealer.vendor.verifying().as_bytes().to_vec(),
        segment: Segment {
            id: segment.segment,
            epoch: EPOCH,
            public_key: segment.public.as_bytes().to_vec(),
            signature: segment.sign(&sealer.vendor).unwrap().to_vec(),
            sealed_key,
        },
        kms_configs: (1..=configs).map(|id| sealer.config(id, 1)).collect(),
        logging_configs: Vec::new(),
        tenants,
        secrets: Vec::new(),
        signers: Vec::new(),
    };
    (sealer, snapshot)
}

/// What the stand-in gives: its ETag, and the snapshot compressed.
type Ready = Arc<Mutex<(String, Vec<u8>)>>;

fn ready(snapshot: &SnapshotAnswer) -> (String, Vec<u8>) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let json = serde_json::to_vec(snapshot).unwrap();
    encoder.write_all(&json).unwrap();
    let zipped = encoder.finish().unwrap();
    eprintln!(
        "a snapshot has {:.1} MB, and travels with {:.1} MB",
        json.len() as f64 / 1e6,
        zipped.len() as f64 / 1e6
    );
    (format!("\"{}\"", snapshot.version), zipped)
}

fn stand_in(state: &Ready) -> Relay {
    let state = Arc::clone(state);
    Relay::start(Box::new(move |request| {
        let (etag, body) = state.lock().unwrap().clone();
        let headers = [
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
            ("etag", etag.as_str()),
        ];
        if request.header("if-none-match") == Some(&etag) {
            return Some(answer(304, &headers[2..], b""));
        }
        Some(answer(200, &headers, &body))
    }))
}

/// CPU that the process has used, in ms, all threads together.
fn cpu_ms(proxy: &Proxy) -> u64 {
    let schedstat = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        let first = text
            .split(' ')
            .next()
            .and_then(|number| number.parse::<u64>().ok());
        first.unwrap_or_default()
    };
    let tasks = fs::read_dir(format!("/proc/{}/task", proxy.id())).unwrap();
    tasks
        .map(|task| schedstat(task.unwrap().path()))
        .sum::<u64>()
        / 1_000_000
}

fn spread(what: &str, unit: &str, mut values: Vec<u64>) {
    values.sort_unstable();
    let (first, last) = (values[0], values[values.len() - 1]);
    let median = values[values.len() / 2];
    eprintln!(
        "{what}: {median} {unit} ({first} to {last}, {} times)",
        values.len()
    );
}

/// Until the next look at the broker has come to its end: wall clock and CPU in ms.
fn refresh(proxy: &Proxy) -> (u64, u64) {
    let from = proxy.log.len();
    let (cpu, begin) = (cpu_ms(proxy), Instant::now());
    proxy.signal(Signal::HUP);
    proxy.log.wait_json(from, "end of a look", |line| {
        line["message"] == "the configuration is good and has not changed"
            || line["message"] == "tenant configurations published"
    });
    let millis = u64::try_from(begin.elapsed().as_millis()).unwrap();
    (millis, cpu_ms(proxy) - cpu)
}

#[test]
#[ignore = "measures; see the head of the file"]
fn ten_thousand_tenants() {
    let (mut sealer, mut snapshot) = world();
    let state = Arc::new(Mutex::new(ready(&snapshot)));
    let relay = stand_in(&state);
    let key = ApiKey::new("unused-by-the-proxy".to_owned()).unwrap();
    let file = sealer.account.to_file(&key);
    let lines = file.lines().filter_map(|line| line.split_once('='));
    let variables: HashMap<_, _> = lines
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let account = Account(variables).by_way_of(&relay.url());
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let start = |account: &Account, with_copy: bool| {
        // Nobody takes events here: with them on, wraps would wait for a full queue after the first 50,000.
        let setup = local(Io::Epoll, account).env("TSP_ENABLE_LOGDRIVER_INTEGRATION", "false");
        let setup = if with_copy {
            setup.env("TSP_SNAPSHOT_CACHE", copy.to_str().unwrap())
        } else {
            setup
        };
        let begin = Instant::now();
        let proxy = setup.start();
        proxy.wait_for_ready(200);
        (u64::try_from(begin.elapsed().as_millis()).unwrap(), proxy)
    };
    let from_broker: Vec<_> = (0..ROUNDS).map(|_| start(&account, false).0).collect();
    spread(
        "process start to /ready, from the broker",
        "ms",
        from_broker,
    );

    let (_, proxy) = start(&account, true);
    let nowhere = account.by_way_of("http://127.0.0.1:1");
    let from_disk: Vec<_> = (0..ROUNDS).map(|_| start(&nowhere, true).0).collect();
    spread("process start to /ready, from the disk", "ms", from_disk);
    eprintln!("resident at rest: {} MiB", proxy.memory_kib("VmRSS") / 1024);

    let (walls, cpus) = (0..ROUNDS).map(|_| refresh(&proxy)).unzip();
    spread(
        "refresh with nothing changed, until it is logged",
        "ms",
        walls,
    );
    spread("refresh with nothing changed, CPU", "ms", cpus);
    let mut change = || {
        snapshot.version += 1;
        let place = usize::try_from(CHANGING_CONFIG).unwrap() - 1;
        let revision = snapshot.kms_configs[place].revision + 1;
        snapshot.kms_configs[place] = sealer.config(CHANGING_CONFIG, revision);
        *state.lock().unwrap() = ready(&snapshot);
    };
    let changed = (0..ROUNDS).map(|_| {
        change();
        refresh(&proxy)
    });
    let (walls, cpus) = changed.unzip();
    spread(
        "refresh with one change, until all shards have it",
        "ms",
        walls,
    );
    spread("refresh with one change, CPU", "ms", cpus);
    eprintln!(
        "resident after that: {} MiB, at most {} MiB",
        proxy.memory_kib("VmRSS") / 1024,
        proxy.memory_kib("VmHWM") / 1024
    );

    let wraps = Wraps::of("tenant-0", &proxy);
    for round in 0..ROUNDS {
        let alone = wraps.run(|| {});
        change();
        let beside = wraps.run(|| _ = refresh(&proxy));
        eprintln!("round {round}, wraps alone {alone}");
        eprintln!("round {round}, with a change {beside}");
    }
}

/// Wraps at a steady rate.
struct Wraps(Generator);

impl Wraps {
    fn of(tenant: &str, proxy: &Proxy) -> Self {
        let target = Target::new(proxy.http, "proxy", API_KEY).unwrap();
        let demand = Demand::of("wrap".parse().unwrap());
        let plan = generator::prepare(&target, &demand, &[tenant.to_owned()]);
        let plan = Arc::new(plan.unwrap().unwrap());
        Self(Generator::start(&target, &plan, 16, &[None]).unwrap())
    }

    /// Latencies while `meanwhile` runs, after a second.
    fn run(&self, meanwhile: impl FnOnce() + Send) -> String {
        let phase = Phase {
            rate: Some(WRAPS_PER_S),
            shares_cpu: true,
            ..Phase::closed(Length::Time(WRAPS_FOR))
        };
        let outcome = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_secs(1));
                meanwhile();
            });
            self.0.run(phase).unwrap()
        });
        assert_eq!(outcome.failed(), 0);
        let Latency {
            p50,
            p99,
            p99_9,
            max,
            ..
        } = Latency::of(&outcome.all_latencies_us());
        format!("p50 {p50} µs, p99 {p99} µs, p99.9 {p99_9} µs, slowest {max} µs")
    }
}
