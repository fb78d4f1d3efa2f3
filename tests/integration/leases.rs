//! Leased keys in whole proxies: few KMS calls, EDEKs of the documented form, revocation, *forget*, and what is left in memory.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
};

use aes_gcm::{Aes256Gcm, KeyInit as _, aead::Aead as _};
use prost::Message as _;
use serde_json::{Value, json};
use tsp_kms::LocalKms;
use tsp_wire::{
    Dek, Secret,
    edek::{EncryptedDek, EncryptedDeks},
};

use crate::support::{
    base64,
    config::{self, As, leased, local_kms, tenant},
    http::{self, Request},
    kmssim::{ClientKey, Provider, Simulator},
    metadata, on_both,
    proxy::{Io, Proxy, Setup},
    request, text, until,
};

const SEED: u8 = 0x31;

const ADMIN_TOKEN: &str = "canary-admin-token";

fn local(io: Io) -> Setup {
    let config = config::file(&[
        leased(&local_kms(1, SEED)),
        tenant("acme", &[(1, As::Primary)]),
    ]);
    Setup::serve(io, &config)
}

#[track_caller]
fn wrap(proxy: &Proxy, tenant: &str) -> (Vec<u8>, String) {
    let answer = proxy.call("document/wrap", &metadata(tenant)).ok();
    (
        base64(text(&answer, "dek")),
        text(&answer, "edek").to_owned(),
    )
}

fn unwrap_request(tenant: &str, edek: &str) -> Value {
    request(tenant, json!({ "encryptedDocumentKey": edek }))
}

#[track_caller]
fn unwrap(proxy: &Proxy, tenant: &str, edek: &str) -> Vec<u8> {
    let answer = proxy.call("document/unwrap", &unwrap_request(tenant, edek));
    base64(text(&answer.ok(), "dek"))
}

#[track_caller]
fn entry(edek: &[u8]) -> EncryptedDek {
    let edek = EncryptedDeks::from_bytes(edek).expect("an EDEK");
    let [entry] = edek.encrypted_deks.as_slice() else {
        panic!("not one entry: {edek:?}")
    };
    entry.clone()
}

/// The leased key of an EDEK of [`local`]'s tenant, by documented means only.
#[track_caller]
fn leased_key(edek: &str) -> Dek {
    let sealed = entry(&entry(&base64(edek)).encrypted_leased_key_data);
    let local = LocalKms::new(&Secret::new([SEED; 32]));
    local
        .unwrap("acme", &sealed.encrypted_dek_data)
        .expect("the local key opens it")
}

#[track_caller]
fn forget(proxy: &Proxy, tenant: &str) {
    let path = format!("/admin/tenants/{tenant}/forget");
    let bearer = format!("Bearer {ADMIN_TOKEN}");
    let order = Request::new("POST", &path).header("authorization", &bearer);
    let answer = http::ask(proxy.health, &order);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// A leased EDEK of our own making: the key number `number`, wrapped by the local KMS config `config` for `tenant`. Its DEK is
/// `number`, too.
fn made_up(tenant: &str, config: u8, number: u64) -> String {
    let bytes = |salt: u8| {
        let mut bytes = [salt; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    let mut nonce = [config; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    let leased_key = Dek::from_slice(&bytes(config)).expect("32 bytes");
    let local = LocalKms::new(&Secret::new([config; 32]));
    let inner = EncryptedDek {
        encrypted_dek_data: local.wrap(tenant, &leased_key, nonce),
        kms_config_id: config.into(),
        ..EncryptedDek::default()
    };
    let cipher = Aes256Gcm::new(leased_key.expose().into());
    let sealed = cipher.encrypt(&nonce.into(), bytes(0xdd).as_slice());
    let outer = EncryptedDek {
        encrypted_dek_data: sealed.expect("it is short"),
        leased_key_id: 1,
        leased_key_iv: nonce.to_vec(),
        encrypted_leased_key_data: message(inner),
        kms_config_id: config.into(),
        ..EncryptedDek::default()
    };
    crate::support::to_base64(&message(outer))
}

fn message(entry: EncryptedDek) -> Vec<u8> {
    let encrypted_deks = vec![entry];
    EncryptedDeks { encrypted_deks }.encode_to_vec()
}

/// Unwraps `count` EDEKs, each of another leased key, in batches with one that is asked for again and again. Gives how often
/// that one had to be opened, and the process's memory before and after in KiB.
#[track_caller]
fn flood(proxy: &Proxy, count: u64) -> (f64, u64, u64) {
    const BATCH: u64 = 1_000;
    let misses = || {
        let labels = [("kind", "unwrap"), ("result", "miss")];
        proxy.metrics().count("tsp_held_key_uses_total", &labels)
    };
    let hot = made_up("acme", 1, u64::MAX);
    let batch = |numbers: std::ops::Range<u64>| {
        let edeks = numbers.map(|number| (number.to_string(), json!(made_up("acme", 1, number))));
        let mut edeks: serde_json::Map<_, _> = edeks.collect();
        edeks.insert("hot".to_owned(), json!(hot));
        let answer = proxy.call(
            "document/batch-unwrap",
            &request("acme", json!({ "edeks": edeks })),
        );
        let answer = answer.ok();
        assert_eq!(answer["failures"], json!({}));
    };
    batch(0..BATCH);
    let (before, opened) = (proxy.memory_kib("VmRSS"), misses());
    for first in (1..count / BATCH).map(|number| number * BATCH) {
        batch(first..first + BATCH);
    }
    let others = (count - BATCH) as f64;
    (
        misses() - opened - others,
        before,
        proxy.memory_kib("VmRSS"),
    )
}

fn one_shard(io: Io) -> Setup {
    let config = config::file(&[
        leased(&local_kms(1, 1)),
        tenant("acme", &[(1, As::Primary)]),
    ]);
    Setup::serve(io, &config).env("TSP_SHARDS", "1")
}

on_both! {
    fn a_leased_edek_opens_with_nothing_but_the_kms_and_aes_gcm(io) {
        let proxy = local(io).start();
        let (dek, edek) = wrap(&proxy, "acme");
        let outer = entry(&base64(&edek));
        assert_eq!(outer.kms_config_id, 1);
        assert!(outer.leased_key_id >= 1 && outer.tenant_id.is_empty());
        let inner = entry(&outer.encrypted_leased_key_data);
        assert_eq!((inner.kms_config_id, inner.leased_key_id), (1, 0));
        let cipher = Aes256Gcm::new(leased_key(&edek).expose().into());
        let iv: [u8; 12] = outer.leased_key_iv.as_slice().try_into().expect("12 bytes");
        let opened = cipher.decrypt(&iv.into(), outer.encrypted_dek_data.as_slice());
        assert_eq!(opened.expect("it opens"), dek);

        let another = wrap(&proxy, "acme").1;
        assert_eq!(entry(&base64(&another)).leased_key_id, outer.leased_key_id, "one lease for all");
        assert_ne!(entry(&base64(&another)).leased_key_iv, outer.leased_key_iv);
    }

    fn leased_edeks_outlive_the_process_and_the_switch(io) {
        let proxy = local(io).start();
        let (dek, edek) = wrap(&proxy, "acme");
        assert_eq!(unwrap(&proxy, "acme", &edek), dek);
        drop(proxy);
        let without = config::file(&[local_kms(1, SEED), tenant("acme", &[(1, As::Primary)])]);
        let proxy = Setup::serve(io, &without).start();
        assert_eq!(unwrap(&proxy, "acme", &edek), dek);
        let plain = wrap(&proxy, "acme").1;
        assert_eq!(entry(&base64(&plain)).leased_key_id, 0);
    }

    fn a_kms_is_asked_once_to_wrap_and_once_to_unwrap_whatever_the_load(io) {
        let simulator = Simulator::start();
        let proxy = simulator.leasing(io).start();
        for provider in [Provider::Aws, Provider::Gcp, Provider::Azure, Provider::Thales] {
            let tenant = simulator.tenant(provider);
            for _ in 0..30 {
                let (dek, edek) = wrap(&proxy, tenant);
                assert_eq!(unwrap(&proxy, tenant, &edek), dek);
            }
            for operation in ["wrap", "unwrap"] {
                assert_eq!(simulator.requests(provider, operation), 1, "{provider:?} {operation}");
            }
        }
        let metrics = proxy.metrics();
        let count = |operation| metrics.count("tsp_key_operations_total", &[("operation", operation)]);
        assert_eq!((count("wrap"), count("unwrap")), (120.0, 120.0));
        assert_eq!((count("leased_key_wrap"), count("leased_key_unwrap")), (4.0, 4.0));
        let tenant = simulator.tenant(Provider::Aws);
        let saved = metrics.count("tsp_kms_calls_saved_total", &[("tenant", tenant)]);
        assert!((58.0..=60.0).contains(&saved), "{saved}");
        let misses = [("kind", "lease"), ("result", "miss")];
        assert_eq!(metrics.count("tsp_held_key_uses_total", &misses), 4.0);
        simulator.assert_refused_none();
    }

    fn a_revocation_at_the_kms_bites_within_the_bound(io) {
        let simulator = Simulator::start();
        let proxy = simulator.leasing(io).env("TSP_LEASE_REVALIDATE_S", "1").start();
        let tenant = simulator.tenant(Provider::Aws);
        let (dek, edek) = wrap(&proxy, tenant);
        assert_eq!(unwrap(&proxy, tenant, &edek), dek);
        let key = simulator.clients.iter().find_map(|client| {
            let ClientKey::Aws { key_id, .. } = &client.key else { return None };
            (client.tenant == tenant).then_some(key_id)
        });
        let order = json!({ "provider": "aws", "key": key, "action": "disable" });
        simulator.order("POST", "/keys", &order);
        let refused = |endpoint: &str, body: &Value| {
            until("the proxy asks the KMS again", || {
                let answer = proxy.call(endpoint, body);
                answer.status != 200 && { answer.refused(422, 207); true }
            });
        };
        refused("document/wrap", &metadata(tenant));
        refused("document/unwrap", &unwrap_request(tenant, &edek));
    }

    fn a_kms_that_has_gone_stops_nothing_that_is_leased(io) {
        let simulator = Simulator::start();
        let proxy = simulator.leasing(io).env("TSP_LEASE_REVALIDATE_S", "1").start();
        let tenant = simulator.tenant(Provider::Aws).to_owned();
        let (dek, edek) = wrap(&proxy, &tenant);
        assert_eq!(unwrap(&proxy, &tenant, &edek), dek);
        drop(simulator);
        // Until it was asked again, and in vain, every request succeeds.
        until("the KMS is asked again", || {
            assert_eq!(unwrap(&proxy, &tenant, &wrap(&proxy, &tenant).1).len(), 32);
            assert_eq!(unwrap(&proxy, &tenant, &edek), dek);
            let failed = |operation| [("http_code", "none"), ("kms_operation", operation)];
            let metrics = proxy.metrics();
            let count = |operation| metrics.count("tsp_kms_request_duration_seconds_count", &failed(operation));
            count("wrap") >= 2.0 && count("unwrap") >= 2.0
        });
    }

    fn what_is_forgotten_is_asked_for_again(io) {
        let simulator = Simulator::start();
        let proxy = simulator.leasing(io).env("TSP_ADMIN_TOKEN", ADMIN_TOKEN).start();
        let tenant = simulator.tenant(Provider::Aws);
        let (dek, edek) = wrap(&proxy, tenant);
        assert_eq!(unwrap(&proxy, tenant, &edek), dek);
        let asked = simulator.requests(Provider::Aws, "unwrap");
        forget(&proxy, tenant);
        assert_eq!(unwrap(&proxy, tenant, &edek), dek);
        assert_eq!(simulator.requests(Provider::Aws, "unwrap"), asked + 1);
    }

    fn a_config_that_is_disabled_takes_its_keys_with_it(io) {
        let proxy = local(io).start();
        let (_, edek) = wrap(&proxy, "acme");
        unwrap(&proxy, "acme", &edek);
        proxy.replace_config(&config::file(&[
            leased(&local_kms(1, SEED)),
            local_kms(2, SEED),
            tenant("acme", &[(1, As::Disabled), (2, As::Primary)]),
        ]));
        until("the configuration is read", || {
            let answer = proxy.call("document/unwrap", &unwrap_request("acme", &edek));
            answer.status != 200 && { answer.refused(422, 202); true }
        });
        assert_eq!(entry(&base64(&wrap(&proxy, "acme").1)).leased_key_id, 0);
    }

    fn a_flood_of_leased_keys_stays_within_its_bound_and_passes_by_the_one_in_use(io) {
        let proxy = one_shard(io).start();
        let (opened_again, _, _) = flood(&proxy, 20_000);
        assert_eq!(opened_again, 0.0);
        // What is held is told once a minute; the bound itself is what a shard's own tests look at.
    }

    /// Looks for known keys in all that the process can write to: none of a document is there after its answer, and none
    /// that is leased after a *forget*.
    fn no_key_is_left_in_memory(io) {
        let proxy = local(io).env("TSP_ADMIN_TOKEN", ADMIN_TOKEN).env("RUST_LOG", "trace").start();
        let mut deks = Vec::new();
        let mut edeks = Vec::new();
        for _ in 0..40 {
            let (dek, edek) = wrap(&proxy, "acme");
            assert_eq!(unwrap(&proxy, "acme", &edek), dek);
            // And a few that fail.
            proxy.call("document/unwrap", &unwrap_request("nobody", &edek)).refused(422, 201);
            deks.push(dek);
            edeks.push(edek);
        }
        let lease = leased_key(&edeks[0]);
        assert_eq!(leased_key(&edeks[39]).expose(), lease.expose());
        let in_memory = Memory::of(&proxy);
        assert!(in_memory.holds(lease.expose()), "the search finds what is there");
        let left: Vec<_> = deks.iter().filter(|dek| in_memory.holds(dek)).collect();
        assert!(left.is_empty(), "{} of {} documents' keys are left", left.len(), deks.len());

        forget(&proxy, "acme");
        assert!(!Memory::of(&proxy).holds(lease.expose()), "the leased key is left");
        let log = proxy.log.text();
        for canary in [ADMIN_TOKEN, &hex::encode(lease.expose()), &crate::support::to_base64(lease.expose())] {
            assert!(!log.contains(canary));
        }
        for dek in &deks {
            assert!(!log.contains(&crate::support::to_base64(dek)));
        }
    }
}

/// A million of them, with the memory. By hand, with --nocapture; minutes.
#[test]
#[ignore = "figures, by hand"]
fn figures_of_a_flood() {
    let io = Io::Epoll;
    let proxy = one_shard(io).start();
    let (opened_again, before, after) = flood(&proxy, 1_000_000);
    eprintln!(
        "1,000,000 leased keys: {before} KiB before, {after} KiB after; the hot one was opened again {opened_again} times"
    );
    assert_eq!(opened_again, 0.0);
}

/// Memory of 10,000 tenants with three configs each, all leased and warm. By hand, with --nocapture.
#[test]
#[ignore = "figures, by hand"]
fn figures_of_ten_thousand_tenants() {
    const TENANTS: usize = 10_000;
    let mut pieces: Vec<_> = (1..=3)
        .map(|id| leased(&local_kms(id.into(), id)))
        .collect();
    pieces.extend((0..TENANTS).map(|number| {
        tenant(
            &format!("tenant-{number}"),
            &[(1, As::Primary), (2, As::Active), (3, As::Active)],
        )
    }));
    let io = Io::Epoll;
    for shards in ["1", "2"] {
        let empty = Setup::serve(io, &config::file(&[]))
            .env("TSP_SHARDS", shards)
            .start();
        let none = empty.memory_kib("VmRSS");
        drop(empty);
        let proxy = Setup::serve(io, &config::file(&pieces))
            .env("TSP_SHARDS", shards)
            .start();
        let cold = proxy.memory_kib("VmRSS");
        for number in 0..TENANTS {
            let name = format!("tenant-{number}");
            wrap(&proxy, &name);
            for config in 1..=3 {
                unwrap(&proxy, &name, &made_up(&name, config, number as u64));
            }
        }
        let warm = proxy.memory_kib("VmRSS");
        let shards: u64 = shards.parse().expect("a number");
        let each = (warm - none) * 1024 / TENANTS as u64 / shards;
        eprintln!(
            "{shards} shards: {none} KiB with no tenant, {cold} KiB cold, {warm} KiB warm: {each} bytes per tenant and shard"
        );
    }
}

/// All that a process can write to, copied.
struct Memory(Vec<Vec<u8>>);

impl Memory {
    #[track_caller]
    fn of(proxy: &Proxy) -> Self {
        let folder = format!("/proc/{}", proxy.id());
        let maps = fs::read_to_string(format!("{folder}/maps")).expect("the process is ours");
        let memory = File::open(format!("{folder}/mem")).expect("the process is ours");
        // "7f0c…-7f0d… rw-p …"
        let ranges = maps.lines().filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (from, to) = range.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            rest.starts_with("rw")
                .then_some((number(from)?, number(to)?))
        });
        let copies = ranges.filter_map(|(from, to)| {
            let mut bytes = vec![0; usize::try_from(to - from).ok()?];
            // Some of the kernel's own pages cannot be read.
            memory.read_exact_at(&mut bytes, from).ok()?;
            Some(bytes)
        });
        Self(copies.collect())
    }

    fn holds(&self, key: &[u8]) -> bool {
        let finder = memchr::memmem::Finder::new(key);
        self.0.iter().any(|bytes| finder.find(bytes).is_some())
    }
}
