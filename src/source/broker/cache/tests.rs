use std::os::unix::fs::PermissionsExt as _;

use tsp_wire::{
    account::AccountId,
    envelope::{PrivateKey, SigningKey},
};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn account(number: u8) -> ServiceAccount {
    let signing_key = SigningKey::from_seed(&[number; 32]).unwrap();
    ServiceAccount {
        broker_url: "https://broker.example.com".to_owned(),
        id: AccountId::new([number; 12], &signing_key.verifying()),
        config: 7,
        segment: 1,
        encryption_key: PrivateKey::from_slice(&[number; 32]).unwrap(),
        signing_key,
    }
}

fn written(path: &Path) -> Cache {
    let mut cache = Cache::new(path.to_owned(), &account(1), DAY);
    assert!(cache.load(at(NOW)).unwrap().is_none());
    cache.store("\"1\"", at(NOW), true, b"a snapshot", &Memory::default());
    cache
}

#[test]
fn a_snapshot_is_read_back_until_it_is_a_day_old() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy");
    let mut cache = written(&path);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, MODE);
    for (later, young) in [(0, true), (86_399, true), (86_400, false), (1 << 30, false)] {
        let cached = cache.load(at(NOW + later)).unwrap().unwrap();
        assert_eq!((cached.young, cached.gzip), (young, true), "{later}");
        assert_eq!(
            (&*cached.etag, &*cached.body),
            ("\"1\"", &b"a snapshot"[..])
        );
        assert_eq!(cached.confirmed, at(NOW));
    }
    assert!(cache.load(at(NOW - 30)).unwrap().is_some());
    let why = cache.load(at(NOW - 3_600)).err().unwrap();
    assert!(why.contains("future"), "{why}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft");
}

#[test]
fn a_confirmed_snapshot_gets_a_new_date_once_an_hour() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = written(&folder.path().join("copy"));
    let mut date_after = |seconds| {
        cache.confirmed("\"1\"", at(NOW + seconds));
        cache.load(at(NOW)).map(|cached| cached.unwrap().confirmed)
    };
    assert_eq!(date_after(3_599), Ok(at(NOW)));
    assert!(date_after(3_600).unwrap_err().contains("future"));
    let confirmed = cache.load(at(NOW + 3_600)).unwrap().unwrap().confirmed;
    assert_eq!(confirmed, at(NOW + 3_600));
}

#[test]
fn whatever_byte_is_flipped_or_missing_the_copy_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy");
    let mut cache = written(&path);
    let whole = fs::read(&path).unwrap();
    for index in 0..whole.len() {
        let mut changed = whole.clone();
        changed[index] ^= 1;
        fs::write(&path, &changed).unwrap();
        assert!(cache.load(at(NOW)).is_err(), "byte {index}");
        fs::write(&path, &whole[..index]).unwrap();
        assert!(cache.load(at(NOW)).is_err(), "{index} bytes");
    }
    fs::write(&path, [&*whole, b"x"].concat()).unwrap();
    assert!(cache.load(at(NOW)).is_err());
    fs::write(&path, &whole).unwrap();
    assert!(cache.load(at(NOW)).unwrap().is_some());
}

#[test]
fn another_accounts_copy_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy");
    written(&path);
    let mut other = Cache::new(path.clone(), &account(2), DAY);
    assert_eq!(
        other.load(at(NOW)).err().unwrap(),
        "it is another service account's"
    );
    // The same account with other keys, as after a rotation.
    let mut rotated = account(1);
    rotated.encryption_key = PrivateKey::from_slice(&[9; 32]).unwrap();
    let why = Cache::new(path, &rotated, DAY).load(at(NOW)).err().unwrap();
    assert!(why.contains("changed"), "{why}");
}

#[test]
fn a_place_that_cannot_be_written_to_is_told_and_leaves_no_draft() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy");
    fs::create_dir(&path).unwrap();
    let mut cache = Cache::new(path, &account(1), DAY);
    cache.store("", at(NOW), false, b"a snapshot", &Memory::default());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_was_not_written_lends_its_date_to_nothing_older() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy");
    let mut cache = written(&path);
    // A state that cannot be written: its ETag is too long. The broker confirms it an hour later.
    let etag = "2".repeat(HEAD_BYTES_MAX);
    cache.store(
        &etag,
        at(NOW + 10),
        true,
        b"a newer one",
        &Memory::default(),
    );
    cache.confirmed(&etag, at(NOW + 3_600));
    let cached = cache.load(at(NOW + 3_600)).unwrap().unwrap();
    assert_eq!(cached.confirmed, at(NOW));
    assert_eq!(cached.body, b"a snapshot");
}
