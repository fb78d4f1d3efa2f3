//! The whole life of a configuration, and that the broker never saw what was in it.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::read::GzDecoder;
use tsp_wire::{
    Secret,
    account::{
        ConfigError, Memory, SNAPSHOT_PATH, SecretOutcome, Seen, SnapshotAnswer, SnapshotError,
        env::ServiceAccount,
    },
    envelope::{Epoch, OpenError},
    snapshot::{KmsConfigDoc, KmsKeyDoc},
};

use crate::support::{PASSPHRASE, World, database_files, dumped, on_both, sql};

pub(crate) fn aws(secret: &str) -> String {
    serde_json::json!({
        "type": "AWS", "key_path": { "keyID": "alias/acme", "region": "eu-central-1" },
        "credentials": { "accessKeyId": "AKIDEXAMPLE", "secretAccessKey": secret },
    })
    .to_string()
}

pub(crate) fn secret_of(config: KmsConfigDoc) -> Secret<String> {
    match config.key {
        KmsKeyDoc::Aws {
            secret_access_key, ..
        } => secret_access_key,
        KmsKeyDoc::Local { .. }
        | KmsKeyDoc::Gcp { .. }
        | KmsKeyDoc::Azure { .. }
        | KmsKeyDoc::Thales { .. } => panic!("not the kind that was sealed"),
    }
}

/// The one KMS config that there is, and serves `acme`.
pub(crate) fn only_config(snapshot: &SnapshotAnswer, account: &ServiceAccount) -> KmsConfigDoc {
    let mut configs = snapshot
        .open(account)
        .unwrap()
        .configs(snapshot, &mut Memory::default());
    assert_eq!(configs.left_out, []);
    let assignments = &configs.tenants[0].assignments;
    assert_eq!((configs.kms.len(), assignments.len()), (1, 1));
    configs.kms.remove(0)
}

#[test]
fn a_configuration_lives_sealed_from_the_admin_to_the_proxy() {
    on_both(|world| {
        world.admin(&["tenant", "create", "acme"]);
        let file = world.file("aws.json", &aws("CANARY-credential-1"));
        let id = world.admin(&["kms", "create", "--file", &file, "--leasing"]);
        let id = id.trim();
        world.admin(&["kms", "assign", id, "acme", "--primary"]);
        let logging = world.file(
            "logging.json",
            r#"{"type":"SPLUNK","hecUrl":"https://splunk.example.com:8088","token":"CANARY-logging"}"#,
        );
        world.admin(&["logging", "set", "acme", "--file", &logging]);
        let account = world.account(&[]);
        let broker = &world.broker;

        let mut seen = Seen::default();
        let first = broker.snapshot(&account);
        let segment = first.open(&account).unwrap();
        seen.advance(&first).unwrap();
        let config = only_config(&first, &account);
        assert_eq!(
            (config.id.to_string().as_str(), config.leasing_allowed),
            (id, true)
        );
        let tenant = &first.tenants[0];
        assert_eq!(secret_of(config).expose(), "CANARY-credential-1");
        assert_eq!(
            (tenant.id.as_str(), &*tenant.tags),
            ("acme", &["default".to_owned()][..])
        );
        assert!(tenant.assignments[0].active && tenant.assignments[0].primary);
        let log = segment
            .logging_config("acme", &first.logging_configs[0])
            .unwrap();
        assert!(log.starts_with(br#"{"type":"SPLUNK""#));
        assert_eq!(tenant.logging, Some(first.logging_configs[0].id));

        // A proxy makes a secret, and the next one gets that.
        let made = broker.offer(&account, "acme", "p", id, b"blob").unwrap();
        let SecretOutcome::Created(made) = made else {
            panic!("{made:?}")
        };
        let again = broker.offer(&account, "acme", "p", id, b"other").unwrap();
        assert_eq!(again, SecretOutcome::Existing(made.clone()));
        assert_eq!(broker.snapshot(&account).secrets, [made]);

        // Other credentials for the same key; not another key.
        let file = world.file("aws.json", &aws("CANARY-credential-2"));
        world.admin(&["kms", "update", id, "--file", &file]);
        let other = world.file("other.json", &aws("x").replace("alias/acme", "alias/other"));
        let refused = world.refused(&["kms", "update", id, "--file", &other]);
        assert!(refused.contains("never change"), "{refused}");
        let second = broker.snapshot(&account);
        seen.advance(&second).unwrap();
        let config = only_config(&second, &account);
        assert_eq!(secret_of(config).expose(), "CANARY-credential-2");
        // The broker goes back to what it had.
        assert!(matches!(seen.advance(&first), Err(SnapshotError::Older(_))));

        // A new key: everything opens with it, and nothing with the old one.
        let rotated = world.admin(&["segment", "rotate"]);
        let expected = format!("epoch 2, for the accounts {}\n", account.config);
        assert_eq!(rotated, expected);
        let third = broker.snapshot(&account);
        let segment = third.open(&account).unwrap();
        assert_eq!(third.segment.epoch, Epoch(2));
        let config = only_config(&third, &account);
        assert_eq!(secret_of(config).expose(), "CANARY-credential-2");
        let old = second
            .open(&account)
            .unwrap()
            .configs(&third, &mut Memory::default());
        assert_eq!(
            old.left_out[0].why,
            ConfigError::Envelope(OpenError::WrongEpoch {
                found: Epoch(2),
                expected: Epoch(1)
            })
        );
        let log = segment
            .logging_config("acme", &third.logging_configs[0])
            .unwrap();
        assert!(log.starts_with(br#"{"type":"SPLUNK""#));

        world.admin(&["kms", "disable", id, "acme"]);
        let assignment = broker.snapshot(&account).tenants[0].assignments[0].clone();
        assert!(!assignment.active && !assignment.primary);

        let export = world.admin(&["secrets", "export"]);
        assert!(
            export.starts_with(r#"{"format":"tsp-tenant-secrets""#) && export.lines().count() == 2
        );

        let verified = world.admin(&["audit", "verify"]);
        assert!(verified.ends_with("lines, whole\n"), "{verified}");
        nothing_secret_is_at_the_broker(&world);
    });
}

#[test]
fn a_tenants_configuration_lives_and_dies_without_the_broker_knowing_it() {
    on_both(|world| {
        world.admin(&["tenant", "create", "acme"]);
        let link = world.admin(&["tenant", "invite", "acme", "eve@acme.example"]);
        let (_, invitation_key) = link.trim().rsplit_once('.').unwrap();
        let account = world.account(&[]);
        let broker = &world.broker;
        let secret = || {
            let snapshot = broker.snapshot(&account);
            let config = only_config(&snapshot, &account);
            secret_of(config)
        };
        let eve = |arguments: &[&str]| world.admin_as("eve", arguments);

        eve(&["tenant", "accept", link.trim()]);
        let file = world.file("aws.json", &aws("CANARY-credential-1"));
        let id = eve(&["kms", "create", "--file", &file]);
        let id = id.trim();
        eve(&["kms", "assign", id, "acme", "--primary"]);
        assert_eq!(secret().expose(), "CANARY-credential-1");
        let file = world.file("aws.json", &aws("CANARY-credential-2"));
        eve(&["kms", "update", id, "--file", &file, "--leasing"]);
        assert_eq!(secret().expose(), "CANARY-credential-2");
        let logging = world.file(
            "logging.json",
            r#"{"type":"SPLUNK","hecUrl":"https://splunk.example.com:8088","token":"CANARY-logging"}"#,
        );
        eve(&["logging", "set", "acme", "--file", &logging]);
        world.admin(&["segment", "rotate"]);
        eve(&["segment", "rotate"]);
        assert_eq!(secret().expose(), "CANARY-credential-2");
        eve(&["kms", "disable", id, "acme"]);
        nothing_secret_is_at_the_broker(&world);

        eve(&["kms", "unassign", id, "acme"]);
        eve(&["kms", "delete", id]);
        eve(&["logging", "remove", "acme"]);
        assert_eq!(broker.snapshot(&account).kms_configs.len(), 0);
        nothing_secret_is_at_the_broker(&world);
        let (memory, database) = (memory_of(world.broker.pid()), dumped(&world));
        assert!(!holds(&memory, invitation_key) && !holds(&database, invitation_key));
        eve(&["audit", "verify"]);
        world.admin(&["audit", "verify"]);
    });
}

/// Whether `text` is there, as it is or in base64 at any place of a longer one.
fn holds(bytes: &[u8], text: &str) -> bool {
    let mut forms = vec![text.as_bytes().to_vec()];
    for shift in 0..3 {
        let shifted = [vec![0; shift], text.as_bytes().to_vec()].concat();
        let encoded = STANDARD.encode(&shifted[..shifted.len() / 3 * 3]);
        forms.push(encoded.as_bytes()[(shift * 4).div_ceil(3)..].to_vec());
    }
    let mut forms = forms.iter();
    forms.any(|form| memchr::memmem::find(bytes, form).is_some())
}

/// Planted in everything that the admins sealed or kept: in the database, the log and the memory of the broker none may be.
fn nothing_secret_is_at_the_broker(world: &World) {
    let (database, files) = (dumped(world), database_files(world));
    let log = world.broker.log();
    let memory = memory_of(world.broker.pid());
    assert!(memory.len() > 1 << 20, "the memory could be read");
    let places = [
        ("database", database.as_slice()),
        ("database's files", &files),
        ("log", log.as_bytes()),
        ("memory", &memory),
    ];
    let mut canaries = vec![
        "CANARY-credential".to_owned(),
        "CANARY-logging".to_owned(),
        PASSPHRASE.to_owned(),
    ];
    for who in ["admin", "eve"] {
        let profile = world.folder.path().join(format!("{who}.json"));
        if let Ok(profile) = fs::read(profile) {
            let profile: serde_json::Value = serde_json::from_slice(&profile).unwrap();
            canaries.push(profile["secretKey"].as_str().unwrap().to_owned());
        }
    }
    for (place, bytes) in places {
        for canary in &canaries {
            assert!(!holds(bytes, canary), "{canary} in the {place}");
        }
        // What was searched is what it is taken for.
        assert!(holds(bytes, "acme") || place == "log", "{place}");
    }
}

pub(crate) fn memory_of(pid: u32) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let process = format!("/proc/{pid}");
    let maps = fs::read_to_string(format!("{process}/maps")).unwrap();
    let memory = fs::File::open(format!("{process}/mem")).unwrap();
    let mut bytes = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        let (from, to) = range.split_once('-').unwrap();
        let at = |text| u64::from_str_radix(text, 16).unwrap();
        let (from, to) = (at(from), at(to));
        if !rights.starts_with("rw") || to - from > 1 << 30 {
            continue;
        }
        let mut part = vec![0; usize::try_from(to - from).unwrap()];
        if memory.read_exact_at(&mut part, from).is_ok() {
            bytes.extend(part);
        }
    }
    bytes
}

#[test]
fn an_unchanged_snapshot_costs_a_304_and_travels_compressed() {
    on_both(|world| {
        world.admin(&["tenant", "create", "acme"]);
        let account = world.account(&[]);
        let broker = &world.broker;
        let plain = broker.ask(&account, "GET", SNAPSHOT_PATH, "", b"").unwrap();
        let etag = plain.header("etag").unwrap().to_owned();
        let known = format!("if-none-match: {etag}\r\n");
        let same = broker
            .ask(&account, "GET", SNAPSHOT_PATH, &known, b"")
            .unwrap();
        assert_eq!(
            (same.status, same.body.len(), same.header("etag")),
            (304, 0, Some(&*etag))
        );

        let zipped = "accept-encoding: br, gzip;q=0.5\r\n";
        let zipped = broker
            .ask(&account, "GET", SNAPSHOT_PATH, zipped, b"")
            .unwrap();
        assert_eq!(zipped.header("content-encoding"), Some("gzip"));
        let read: SnapshotAnswer = serde_json::from_reader(GzDecoder::new(&*zipped.body)).unwrap();
        assert_eq!(read, SnapshotAnswer::from_json(&plain.body).unwrap());

        world.admin(&["tenant", "create", "globex"]);
        let changed = broker
            .ask(&account, "GET", SNAPSHOT_PATH, &known, b"")
            .unwrap();
        assert_eq!(changed.status, 200);
        assert_ne!(changed.header("etag"), Some(&*etag));
    });
}

#[test]
fn a_broken_audit_trail_is_noticed() {
    let mut world = World::new(crate::support::Kind::Postgres);
    world.admin(&["tenant", "create", "acme"]);
    world.admin(&["tenant", "create", "globex"]);
    world.admin(&["audit", "verify"]);
    let psql = |statement: &str| sql(&world, statement);
    psql("UPDATE changes SET object = 'tenant other' WHERE number = 2");
    let refused = world.refused(&["audit", "verify"]);
    assert!(refused.contains("broken at line 2"), "{refused}");
    psql("UPDATE changes SET object = 'tenant acme' WHERE number = 2");
    world.admin(&["audit", "verify"]);
    // A line less at the end breaks no hash; the profile remembers how long it was.
    psql("DELETE FROM changes WHERE number = 3");
    let refused = world.refused(&["audit", "verify"]);
    assert!(refused.contains("shorter than it was"), "{refused}");
    world.kill_and_restart();
}

#[test]
fn a_broker_that_adds_itself_to_a_rotation_gets_nothing() {
    let world = World::new(crate::support::Kind::Postgres);
    let account = world.account(&[]);
    // A key of the broker's own in the place of the account's.
    let own = "BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=";
    let statement = format!("UPDATE accounts SET encryption_key = '{own}'");
    sql(&world, &statement);
    let refused = world.refused(&["segment", "rotate"]);
    assert!(refused.contains("not certified by the vendor"), "{refused}");
    assert_eq!(world.broker.snapshot(&account).segment.epoch, Epoch(1));
}
