use std::{fs, os::unix::fs::symlink, time::Duration};

use tempfile::TempDir;
use tsp_wire::snapshot::KmsKeyDoc;

use super::*;
use crate::{config::tests::Map, source::Loaded};

const LOCAL_KEY: &str = "gPONi9iWZoUc33OooCw0eMCUwJZj0rU0o5w/2/DaQE2I";
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A time at which every file has settled.
fn later() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40)
}

/// A time at which none has.
fn soon() -> SystemTime {
    SystemTime::UNIX_EPOCH
}

struct Place {
    directory: TempDir,
    strings: Map,
}

impl Place {
    fn new(text: &str) -> Self {
        let place = Self {
            directory: tempfile::tempdir().unwrap(),
            strings: Map::default(),
        };
        place.write("tenants.toml", text);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn source(&self) -> FileSource<Map> {
        FileSource::new(self.path("tenants.toml"), self.strings.clone())
    }

    fn load(&self) -> Result<Loaded, Vec<String>> {
        match self.source().poll(Ask::IfChanged, later()) {
            Polled::New(loaded) => Ok(*loaded),
            Polled::Failed(problems) => Err(self.lines(&problems)),
            other @ (Polled::Same | Polled::StillFailed) => panic!("{other:?}"),
        }
    }

    /// Problems without the temporary directory in front.
    fn lines(&self, problems: &[Problem]) -> Vec<String> {
        let directory = format!("{}/", self.directory.path().display());
        problems
            .iter()
            .map(|problem| problem.to_string().replace(&directory, ""))
            .collect()
    }
}

fn local(id: i64, tenant: &str) -> String {
    format!(
        "version = 1\n[[kms]]\nid = {id}\ntype = \"LOCAL\"\ncredentials = {{ key = \"{KEY}\" }}\n\
         [[tenant]]\nid = \"{tenant}\"\nassignments = [ {{ kms = {id}, primary = true }} ]\n"
    )
}

#[test]
fn a_whole_file_becomes_a_state() {
    let mut place = Place::new(&format!(
        r#"
        version = 1
        [[kms]]
        id = 41
        type = "AWS"
        leasing_allowed = true
        key_path = {{ keyID = "alias/acme", region = "us-east-1" }}
        endpoint = "https://127.0.0.1:5603"
        ca_file = "ca.pem"
        [kms.credentials]
        accessKeyId = "AKIDEXAMPLE"
        secretAccessKey = {{ env = "ACME_SECRET" }}
        sessionToken = {{ file = "secrets/token" }}
        [[kms]]
        id = 12
        type = "LOCAL"
        credentials = {{ key = "{KEY}" }}
        [[tenant]]
        id = "acme"
        assignments = [ {{ kms = 41, primary = true }}, {{ kms = 12, active = false }} ]
        [[tenant]]
        id = "nobody"
        "#
    ));
    place.strings = Map::of(&[("ACME_SECRET", " from the environment \n")]);
    place.write("ca.pem", "-----BEGIN CERTIFICATE-----\n");
    fs::create_dir(place.path("secrets")).unwrap();
    place.write("secrets/token", "from a file\n");

    let loaded = place.load().unwrap();
    assert!(loaded.left_out.is_empty());
    let aws = &loaded.kms[0];
    assert_eq!(
        (aws.id, aws.leasing_allowed, aws.allow_insecure),
        (41, true, false)
    );
    assert_eq!(aws.endpoint.as_deref(), Some("https://127.0.0.1:5603"));
    assert_eq!(aws.ca_pem.as_deref(), Some("-----BEGIN CERTIFICATE-----\n"));
    let KmsKeyDoc::Aws {
        key_id,
        region,
        access_key_id,
        secret_access_key,
        session_token,
        ..
    } = &aws.key
    else {
        panic!("{aws:?}");
    };
    assert_eq!(
        (key_id.as_str(), region.as_str()),
        ("alias/acme", "us-east-1")
    );
    assert_eq!(access_key_id, "AKIDEXAMPLE");
    assert_eq!(secret_access_key.expose(), "from the environment");
    assert_eq!(session_token.as_ref().unwrap().expose(), "from a file");
    let KmsKeyDoc::Local { key } = &loaded.kms[1].key else {
        panic!("{:?}", loaded.kms[1])
    };
    assert_eq!(key.expose()[..4], [0, 1, 2, 3]);
    assert_eq!(loaded.kms[1].id, 12);

    let acme = &loaded.tenants[0];
    let assignments: Vec<_> = acme
        .assignments
        .iter()
        .map(|one| (one.kms, one.active, one.primary))
        .collect();
    assert_eq!(assignments, [(41, true, true), (12, false, false)]);
    assert!(loaded.tenants[1].assignments.is_empty());
}

#[test]
fn an_empty_set_of_tenants_is_a_state() {
    let loaded = Place::new("version = 1\n").load().unwrap();
    assert!(loaded.kms.is_empty() && loaded.tenants.is_empty());
}

#[test]
fn all_mistakes_of_form_are_told_at_once_with_their_lines() {
    let place = Place::new(
        r#"version = 2
tenants = []
[[kms]]
id = 0
type = "AWS"
key_path = { keyid = "k", region = "" }
credentials = "canary"
[[kms]]
id = 5
type = "ORACLE"
leasing_allowed = "canary"
[[kms]]
type = "LOCAL"
endpoint = "https://x"
credentials = { key = { env = "A", file = "b" } }
[[kms]]
id = 5
type = "LOCAL"
credentials = { key = 12 }
[[tenant]]
id = ""
assignments = [ { kms = 7 }, { kms = 5, primary = true, active = false }, { kms = 5, primary = true } ]
[[tenant]]
id = "twice"
assignments = [ "canary", { primary = true } ]
[[tenant]]
id = "twice"
"#,
    );
    let problems = place.load().unwrap_err();
    assert_eq!(
        problems,
        [
            "tenants.toml:2: the file: \"tenants\" is not known here; the nearest known one is tenant",
            "tenants.toml:1: version is 2; this program reads version 1",
            "tenants.toml:3: kms 0: id is not a number from 1 to 2147483647",
            "tenants.toml:6: kms 0: key_path: \"keyid\" is not known here; the nearest known one is keyID",
            "tenants.toml:6: kms 0: key_path: keyID is missing",
            "tenants.toml:6: kms 0: key_path: region must be a string, and not empty",
            "tenants.toml:7: kms 0: credentials must be a table",
            "tenants.toml:11: kms 5: leasing_allowed must be true or false",
            "tenants.toml:8: kms 5: type is none of AWS, LOCAL, GCP, AZURE, THALES",
            "tenants.toml:12: kms number 3: id is missing",
            "tenants.toml:14: kms number 3: endpoint has no meaning for a LOCAL key",
            "tenants.toml:15: kms number 3: credentials: key must be a string, { env = \"NAME\" } or { file = \"PATH\" }",
            "tenants.toml:19: kms 5: credentials: key must be a string, { env = \"NAME\" } or { file = \"PATH\" }",
            "tenants.toml:16: kms 5 is there twice, first at tenants.toml:8",
            "tenants.toml:21: tenant \"\": id must be a string, and not empty",
            "tenants.toml:22: tenant \"\": assignment 1: there is no [[kms]] with id 7",
            "tenants.toml:22: tenant \"\": assignment 2: a primary config must be active",
            "tenants.toml:22: tenant \"\": assignment 3: kms 5 is assigned twice",
            "tenants.toml:22: tenant \"\": assignment 3: only one config can be primary",
            "tenants.toml:25: tenant \"twice\": assignments must hold tables only",
            "tenants.toml:25: tenant \"twice\": assignment 2: kms is missing",
            "tenants.toml:26: tenant \"twice\" is there twice, first at tenants.toml:23",
        ]
    );
}

#[test]
fn no_problem_quotes_a_secret() {
    let texts = [
        "version = 1\nkey = \"canary",
        "version = 1\n[[kms]]\nid = 1\ntype = \"LOCAL\"\ncredentials = { key = \"canary\" }",
        "version = 1\n[[kms]]\nid = 1\ntype = \"AWS\"\nkey_path = { keyID = \"k\", region = \"r\" }\n\
         credentials = { accessKeyId = [\"canary\"], secretAccessKey = { is = \"canary\" } }",
        "canary",
        "version = \"canary\"\n\"canary\\u0000\" 1",
    ];
    for text in texts {
        let problems = Place::new(text).load().unwrap_err();
        assert!(!problems.is_empty());
        for line in problems {
            assert!(!line.contains("canary") && !line.contains('\n'), "{line}");
        }
    }
}

#[test]
fn what_cannot_be_fetched_leaves_out_its_config_and_no_other() {
    let place = Place::new(&format!(
        r#"
version = 1
[[kms]]
id = 1
type = "AWS"
key_path = {{ keyID = "k", region = "r" }}
credentials = {{ accessKeyId = {{ file = "nowhere" }}, secretAccessKey = {{ env = "NOT_SET" }} }}
ca_file = "."
[[kms]]
id = 2
type = "LOCAL"
credentials = {{ key = "{LOCAL_KEY}" }}
[[kms]]
id = 3
type = "GCP"
key_path = {{ projectId = "p" }}
[[kms]]
id = 4
type = "LOCAL"
credentials = {{ key = "{KEY}" }}
[[tenant]]
id = "a"
assignments = [ {{ kms = 1 }}, {{ kms = 4 }} ]
"#
    ));
    let loaded = place.load().unwrap();
    assert_eq!(loaded.kms.len(), 1);
    assert_eq!(
        loaded.tenants[0].assignments.len(),
        1,
        "the tenant keeps its other config"
    );
    let lines = place.lines(&loaded.left_out);
    assert_eq!(
        lines,
        [
            "tenants.toml:3: kms 1: ca_file: . is not a file; it is left out",
            "tenants.toml:3: kms 1: credentials: accessKeyId: nowhere cannot be read: No such file or directory (os error 2); it is left out",
            "tenants.toml:3: kms 1: credentials: secretAccessKey: the environment variable NOT_SET is not set; it is left out",
            "tenants.toml:9: kms 2: credentials: key is not base64 of 32 bytes; it is left out",
            "tenants.toml:13: kms 3: type GCP is not available in this version; it is left out",
        ]
    );
}

#[test]
fn a_file_of_which_nothing_can_be_used_is_refused() {
    let place = Place::new("version = 1\n[[kms]]\nid = 3\ntype = \"THALES\"\n");
    let problems = place.load().unwrap_err();
    assert_eq!(
        problems,
        [
            "tenants.toml: none of its KMS configs can be used",
            "tenants.toml:2: kms 3: type THALES is not available in this version; it is left out",
        ]
    );
}

#[test]
fn a_file_that_is_not_there_or_too_large_is_refused() {
    let place = Place::new("");
    fs::remove_file(place.path("tenants.toml")).unwrap();
    assert_eq!(
        place.load().unwrap_err(),
        ["tenants.toml: cannot be read: No such file or directory (os error 2)"]
    );
    let file = fs::File::create(place.path("tenants.toml")).unwrap();
    file.set_len(crate::config::CONFIG_BYTES_MAX + 1).unwrap();
    assert_eq!(
        place.load().unwrap_err(),
        ["tenants.toml: has more than 67108864 bytes"]
    );
    place.write("tenants.toml", "");
    fs::write(place.path("tenants.toml"), b"\xff").unwrap();
    assert_eq!(place.load().unwrap_err(), ["tenants.toml: is not UTF-8"]);
}

#[test]
fn a_file_of_the_wrong_kind_gives_a_bounded_number_of_problems() {
    let text: String = (0..10_000).map(|n| format!("member_{n} = 1\n")).collect();
    let problems = Place::new(&text).load().unwrap_err();
    assert_eq!(problems.len(), crate::config::PROBLEMS_MAX + 1);
    assert_eq!(problems.last().unwrap(), "tenants.toml: has more problems");
}

#[test]
fn an_unchanged_file_is_the_same_state() {
    let place = Place::new(&local(1, "a"));
    let mut source = place.source();
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::New(_)
    ));
    assert!(matches!(source.poll(Ask::IfChanged, later()), Polled::Same));
    assert!(matches!(source.poll(Ask::Always, later()), Polled::Same));
}

#[test]
fn a_file_that_is_replaced_by_a_rename_is_a_new_state() {
    let place = Place::new(&local(1, "a"));
    let mut source = place.source();
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::New(_)
    ));
    place.write("draft", &local(1, "b"));
    fs::rename(place.path("draft"), place.path("tenants.toml")).unwrap();
    let Polled::New(loaded) = source.poll(Ask::IfChanged, later()) else {
        panic!("not noticed")
    };
    assert_eq!(loaded.tenants[0].id, "b");
}

/// Kubernetes puts the files of a volume into a directory per version and swaps a link to it.
#[test]
fn a_swapped_link_to_the_directory_is_a_new_state() {
    let place = Place::new("");
    for (version, tenant) in [("1", "a"), ("2", "b")] {
        fs::create_dir(place.path(version)).unwrap();
        place.write(&format!("{version}/tenants.toml"), &local(1, tenant));
    }
    fs::remove_file(place.path("tenants.toml")).unwrap();
    symlink("1", place.path("..data")).unwrap();
    symlink("..data/tenants.toml", place.path("tenants.toml")).unwrap();
    let mut source = place.source();
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::New(_)
    ));
    symlink("2", place.path("..data_tmp")).unwrap();
    fs::rename(place.path("..data_tmp"), place.path("..data")).unwrap();
    let Polled::New(loaded) = source.poll(Ask::IfChanged, later()) else {
        panic!("not noticed")
    };
    assert_eq!(loaded.tenants[0].id, "b");
}

#[test]
fn a_changed_credential_file_is_a_new_state() {
    let text = local(1, "a").replace(&format!("\"{KEY}\""), "{ file = \"key\" }");
    let place = Place::new(
        &(text
            + "[[kms]]\nid = 2\ntype = \"LOCAL\"\ncredentials = { key = \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\" }\n"),
    );
    let mut source = place.source();
    let Polled::New(loaded) = source.poll(Ask::IfChanged, later()) else {
        panic!("no state")
    };
    assert_eq!(
        (loaded.kms.len(), loaded.left_out.len()),
        (1, 1),
        "the file is not there yet"
    );
    place.write("key", KEY);
    let Polled::New(loaded) = source.poll(Ask::IfChanged, later()) else {
        panic!("not noticed")
    };
    assert_eq!((loaded.kms.len(), loaded.left_out.len()), (2, 0));
}

#[test]
fn a_bad_file_is_told_once_until_it_changes_or_somebody_asks() {
    let place = Place::new(&local(1, "a"));
    let mut source = place.source();
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::New(_)
    ));
    place.write("tenants.toml", "version = 1\nwrong");
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::Failed(_)
    ));
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::StillFailed
    ));
    assert!(matches!(
        source.poll(Ask::Always, later()),
        Polled::Failed(_)
    ));
    place.write("tenants.toml", &local(1, "a"));
    assert!(
        matches!(source.poll(Ask::IfChanged, later()), Polled::Same),
        "the last good state is back"
    );
    assert!(matches!(source.poll(Ask::IfChanged, later()), Polled::Same));
}

/// Timestamps are coarse: a second change right after the first may look the same from outside.
#[test]
fn a_file_is_read_again_until_it_has_settled() {
    let place = Place::new(&local(1, "a"));
    let mut source = place.source();
    assert!(matches!(
        source.poll(Ask::IfChanged, soon()),
        Polled::New(_)
    ));
    let seen = |source: &FileSource<Map>| source.seen.as_ref().map(|seen| seen.settled);
    assert_eq!(seen(&source), Some(false));
    assert!(matches!(source.poll(Ask::IfChanged, soon()), Polled::Same));
    assert!(matches!(source.poll(Ask::IfChanged, later()), Polled::Same));
    assert_eq!(seen(&source), Some(true));

    place.write("tenants.toml", "wrong");
    assert!(matches!(
        source.poll(Ask::IfChanged, soon()),
        Polled::Failed(_)
    ));
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::StillFailed
    ));
}
