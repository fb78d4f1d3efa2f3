use std::{os::unix::fs::symlink, thread};

use tempfile::TempDir;
use tsp_wire::{KmsConfigId, edek};

use super::*;
use crate::secrets::{
    Taken,
    tests::{at, offer, place},
};

fn folder() -> (TempDir, SecretsFile) {
    let folder = tempfile::tempdir().unwrap();
    let file = SecretsFile::new(folder.path().join("tenants.secrets.jsonl"));
    (folder, file)
}

fn nobody_waits(lock: &Path) {
    panic!("nobody holds {}", lock.display());
}

/// Creates if absent, and gives the current secret's number.
fn create(file: &SecretsFile, tenant: &str, path: &str) -> u64 {
    let (offer, _) = offer(tenant, path, b"blob");
    let stored = file.update(
        |_| {},
        |secrets| {
            let (doc, how) = secrets.take(&offer, at(1_700_000_000)).unwrap();
            let edited = match how {
                Taken::New => Edited::Yes,
                Taken::WasThere => Edited::No,
            };
            Ok((doc.id, edited))
        },
    );
    stored.unwrap()
}

fn names(folder: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn record(id: u64) -> Record {
    Record {
        id: TenantSecretId::new(id).unwrap(),
        place: place("Jürgen \"7\"", "a/\u{7}ü"),
        status: RotationStatus::Current,
        created: at(1_700_000_000),
        changed: at(1_700_000_001),
        edek: edek::encode_unleased(KmsConfigId::new(41).unwrap(), b"blob"),
    }
}

#[test]
fn the_format_is_the_documented_one_and_is_read_back() {
    let line = concat!(
        r#"{"id":4294967295,"tenant":"Jürgen \"7\"","type":"deterministic","path":"a/\u0007ü","status":"current","#,
        r#""created":"2023-11-14T22:13:20Z","changed":"2023-11-14T22:13:21Z","edek":"CggKBGJsb2IQKQ=="}"#,
        "\n"
    );
    let record = record(u64::from(u32::MAX));
    let bytes = render([&record]);
    let text = String::from_utf8(bytes.clone()).unwrap();
    let (head, lines) = text.split_once('\n').unwrap();
    assert_eq!(lines, line);
    // As `sha256sum` has it.
    let digest = "733e3d231b0b9ffd7e4f85143961c27f519bc9523ec63f7267e8337e53b00b87";
    assert_eq!(
        head,
        format!(r#"{{"format":"tsp-tenant-secrets","version":1,"secrets":1,"sha256":"{digest}"}}"#)
    );
    assert_eq!(parse(&bytes).unwrap().records(), [record]);
}

#[test]
fn nothing_stored_is_no_secrets_and_no_file() {
    let (folder, file) = folder();
    assert_eq!(file.load().unwrap().records(), []);
    let nothing = file.update(nobody_waits, |secrets| {
        Ok((secrets.records().len(), Edited::No))
    });
    assert_eq!(nothing, Ok(0));
    assert_eq!(names(&folder), ["tenants.secrets.jsonl.lock"]);
    assert_eq!(file.load().unwrap().records(), []);
}

#[test]
fn what_was_stored_is_there_and_only_for_its_owner() {
    let (folder, file) = folder();
    let first = create(&file, "acme", "p");
    assert_eq!(create(&file, "acme", "p"), first);
    let other = create(&file, "acme", "q");
    assert_ne!(first, other);
    let ids: Vec<_> = file
        .load()
        .unwrap()
        .records()
        .iter()
        .map(|record| u64::from(record.id.number()))
        .collect();
    assert_eq!(ids, [first, other]);
    assert_eq!(
        names(&folder),
        ["tenants.secrets.jsonl", "tenants.secrets.jsonl.lock"]
    );
    let mode = |mode| {
        let there = fs::metadata(file.path()).unwrap().mode() & 0o777;
        assert_eq!(there, mode, "{there:o}");
    };
    mode(0o600);
    // What an operator allows stays allowed.
    fs::set_permissions(file.path(), Permissions::from_mode(0o640)).unwrap();
    create(&file, "acme", "r");
    mode(0o640);
}

#[test]
fn a_file_that_went_is_missed() {
    let (folder, file) = folder();
    create(&file, "acme", "p");
    let copy = fs::read(file.path()).unwrap();
    fs::remove_file(file.path()).unwrap();
    let why = file.load().unwrap_err().why;
    assert!(why.contains("put a copy back"), "{why}");
    let (offered, _) = offer("acme", "p", b"blob");
    let refused = file.update(nobody_waits, |secrets| {
        secrets.take(&offered, at(0)).unwrap();
        Ok(((), Edited::Yes))
    });
    assert!(
        refused.is_err(),
        "a second secret would make the first one's data unreadable"
    );

    fs::write(file.path(), copy).unwrap();
    assert_eq!(file.load().unwrap().records().len(), 1);
    fs::remove_file(file.path()).unwrap();
    fs::remove_file(folder.path().join("tenants.secrets.jsonl.lock")).unwrap();
    assert_eq!(file.load().unwrap().records(), []);
}

#[test]
fn a_damaged_file_is_refused_and_never_written_over() {
    let (_folder, file) = folder();
    create(&file, "acme", "p");
    create(&file, "acme", "q");
    let good = fs::read(file.path()).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x01;
        assert!(parse(&bad).is_err(), "byte {at}");
        assert!(parse(&good[..at]).is_err(), "cut at {at}");
    }
    fs::write(file.path(), &good[..good.len() - 1]).unwrap();
    let (offered, _) = offer("acme", "new", b"blob");
    let refused = file.update(nobody_waits, |secrets| {
        secrets.take(&offered, at(0)).unwrap();
        Ok(((), Edited::Yes))
    });
    assert!(refused.unwrap_err().why.contains("damaged"));
    assert_eq!(fs::read(file.path()).unwrap(), good[..good.len() - 1]);
}

#[test]
fn what_breaks_a_rule_is_named_with_its_line() {
    let signed = |lines: &str| {
        let (count, digest) = (lines.lines().count(), sha256(lines.as_bytes()));
        format!(
            "{{\"format\":\"tsp-tenant-secrets\",\"version\":1,\"secrets\":{count},\"sha256\":\"{digest}\"}}\n{lines}"
        )
    };
    let good = String::from_utf8(render([&record(7)])).unwrap();
    let line = good.split_once('\n').unwrap().1;
    assert!(parse(signed(line).as_bytes()).is_ok());
    for (from, to, why) in [
        (r#""id":7"#, r#""id":0"#, "line 2: id cannot be"),
        (r#""id":7"#, r#""id":7.5"#, "line 2: invalid type"),
        (
            r#""id":7"#,
            r#""id":7,"more":1"#,
            "line 2: unknown field `more`",
        ),
        ("deterministic", "other", "line 2: type cannot be"),
        ("\"current\"", "\"other\"", "line 2: status cannot be"),
        (
            "2023-11-14T22:13:20Z",
            "yesterday",
            "line 2: created cannot be",
        ),
        (
            r#""tenant":"J"#,
            r#""tenant":"\u0000J"#,
            "line 2: tenant cannot be",
        ),
        (r#""path":"a"#, r#""path":null,"x":"a"#, "line 2: "),
        (
            "CggKBGJsb2IQKQ==",
            "CggKBGJsb2IQKQ",
            "line 2: edek cannot be",
        ),
        ("CggKBGJsb2IQKQ==", "Q2FuYXJ5", "line 2: edek cannot be"),
    ] {
        let bad = signed(&line.replace(from, to));
        let found = parse(bad.as_bytes()).unwrap_err();
        assert!(found.starts_with(why), "{found}");
    }
    let twice = signed(&format!("{line}{line}"));
    assert_eq!(
        parse(twice.as_bytes()).unwrap_err(),
        "line 3: there are two secrets with the id 7"
    );
    for (head, why) in [
        ("", "its first line has no end"),
        ("x\n", "line 1: not JSON"),
        ("{}\n", "is no file of tenant secrets"),
        (
            "{\"format\":\"tsp-tenant-secrets\",\"version\":2}\n",
            "a newer program wrote it",
        ),
        ("\u{0}\n", "line 1: not JSON"),
    ] {
        let found = parse(head.as_bytes()).unwrap_err();
        assert!(found.contains(why), "{found}");
    }
    assert_eq!(parse(b"\xff\n").unwrap_err(), "is not UTF-8");
}

#[test]
fn a_writer_that_died_leaves_nothing_in_the_way() {
    let (folder, file) = folder();
    create(&file, "acme", "p");
    fs::write(folder.path().join("tenants.secrets.jsonl.new"), b"half a").unwrap();
    create(&file, "acme", "q");
    assert_eq!(file.load().unwrap().records().len(), 2);
    assert_eq!(
        names(&folder),
        ["tenants.secrets.jsonl", "tenants.secrets.jsonl.lock"]
    );
}

#[test]
fn a_link_stays_a_link_and_both_names_have_one_lock() {
    let (folder, file) = folder();
    create(&file, "acme", "p");
    let link = folder.path().join("link");
    symlink(file.path(), &link).unwrap();
    let linked = SecretsFile::new(link.clone());
    create(&linked, "acme", "q");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(file.load().unwrap().records().len(), 2);
    assert_eq!(names(&folder).len(), 3, "{:?}", names(&folder));
}

#[test]
fn many_writers_agree() {
    let (_folder, file) = folder();
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let file = file.clone();
            thread::spawn(move || {
                let mine = create(&file, "acme", &format!("of {writer}"));
                (create(&file, "acme", "shared"), mine)
            })
        })
        .collect();
    let mut ids: Vec<_> = writers
        .into_iter()
        .map(|writer| writer.join().unwrap())
        .collect();
    ids.sort_unstable();
    assert!(ids.iter().all(|(shared, _)| *shared == ids[0].0));
    ids.dedup();
    assert_eq!(ids.len(), 8);
    assert_eq!(file.load().unwrap().records().len(), 9);
}

#[test]
fn a_lock_that_was_removed_while_somebody_waited_for_it_does_not_count() {
    let (folder, file) = folder();
    create(&file, "acme", "p");
    let lock = folder.path().join("tenants.secrets.jsonl.lock");
    let held = File::open(&lock).unwrap();
    held.lock().unwrap();
    let id = file.update(
        |waits_for| {
            assert_eq!(
                fs::canonicalize(waits_for).unwrap(),
                fs::canonicalize(&lock).unwrap()
            );
            fs::remove_file(&lock).unwrap();
            drop(held);
        },
        |secrets| Ok((secrets.records().len(), Edited::No)),
    );
    assert_eq!(id, Ok(1));
    assert!(lock.exists(), "it locked a new one");
}
