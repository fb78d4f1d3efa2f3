use std::{fs, os::unix::fs::symlink, time::Duration};

use tempfile::TempDir;
use tsp_wire::snapshot::{GcpTokenKind, KmsKeyDoc};

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
            other @ (Polled::Same | Polled::StillFailed | Polled::NotAsked) => panic!("{other:?}"),
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

/// One entry of every kind, with each member that it can have, and every credential somewhere else.
const EVERY_MEMBER: &str = r#"
version = 1
[[kms]]
id = 1
type = "AWS"
leasing_allowed = true
endpoint = "https://kms.example.com"
stsEndpoint = "https://sts.example.com"
key_path = { keyID = "alias/acme", region = "eu-central-1" }
[kms.credentials]
accessKeyId = { env = "ONE" }
secretAccessKey = { env = "TWO" }
sessionToken = { file = "three" }
roleArn = { env = "FOUR" }
externalId = { env = "FIVE" }
sessionName = { file = "six" }
durationS = 900
[[kms]]
id = 2
type = "GCP"
tokenKind = "endpoint"
tokenEndpoint = "https://token.example.com/token"
key_path = { projectId = "p", locationId = "l", keyRingId = "r", cryptoKeyId = "k" }
credentials = { client_email = { env = "ONE" }, private_key = { file = "three" }, private_key_id = { env = "FIVE" } }
[[kms]]
id = 3
type = "AZURE"
authority = "https://login.example.com"
algorithm = "A256KW"
key_path = { vaultBaseUrl = "https://acme.vault.azure.net", keyName = "k" }
credentials = { clientId = { env = "ONE" }, clientSecret = { env = "TWO" }, tenantGuid = { env = "FOUR" } }
[[kms]]
id = 4
type = "AZURE"
key_path = { vaultBaseUrl = "https://acme.vault.azure.net", keyName = "k" }
credentials = { clientId = "id", clientCertificate = { file = "three" }, tenantGuid = "guid" }
[[kms]]
id = 5
type = "THALES"
serverName = "ciphertrust.acme"
spkiPin = "pin"
key_path = { serviceUrl = "https://10.0.0.7", keyId = "k" }
[kms.credentials]
username = { env = "ONE" }
password = { file = "three" }
authDomain = { env = "FOUR" }
connection = { env = "FIVE" }
"#;

#[test]
fn every_member_of_every_kind_arrives_where_it_belongs() {
    let mut place = Place::new(EVERY_MEMBER);
    place.strings = Map::of(&[
        ("ONE", "one"),
        ("TWO", "two"),
        ("FOUR", "four"),
        ("FIVE", "five"),
    ]);
    place.write("three", "three\n");
    place.write("six", "six\n");
    let loaded = place.load().unwrap();
    assert!(loaded.left_out.is_empty(), "{:?}", loaded.left_out);
    let [aws, gcp, azure_secret, azure_certificate, thales] =
        <[_; 5]>::try_from(loaded.kms).unwrap();

    let KmsKeyDoc::Aws {
        access_key_id,
        secret_access_key,
        session_token,
        assume_role: Some(role),
        sts_endpoint,
        ..
    } = aws.key
    else {
        panic!("{aws:?}");
    };
    assert_eq!(access_key_id, "one");
    assert_eq!(secret_access_key.expose(), "two");
    assert_eq!(session_token.unwrap().expose(), "three");
    assert_eq!(sts_endpoint.unwrap(), "https://sts.example.com");
    assert_eq!(role.role_arn, "four");
    assert_eq!(role.external_id.unwrap().expose(), "five");
    assert_eq!(role.session_name.unwrap(), "six");
    assert_eq!(role.duration_s, Some(900));

    let KmsKeyDoc::Gcp {
        client_email,
        private_key,
        private_key_id,
        project_id,
        location_id,
        key_ring_id,
        crypto_key_id,
        token,
        token_endpoint,
    } = gcp.key
    else {
        panic!("{gcp:?}");
    };
    assert_eq!(client_email, "one");
    assert_eq!(private_key.expose(), "three");
    assert_eq!(private_key_id.unwrap(), "five");
    let key = [project_id, location_id, key_ring_id, crypto_key_id];
    assert_eq!(key, ["p", "l", "r", "k"]);
    assert_eq!(token, GcpTokenKind::Endpoint);
    assert_eq!(token_endpoint.unwrap(), "https://token.example.com/token");

    let KmsKeyDoc::Azure {
        client_id,
        client_secret: Some(secret),
        client_certificate: None,
        tenant_guid,
        vault_base_url,
        key_name,
        algorithm,
        authority,
    } = azure_secret.key
    else {
        panic!("{azure_secret:?}");
    };
    assert_eq!((client_id.as_str(), tenant_guid.as_str()), ("one", "four"));
    assert_eq!(secret.expose(), "two");
    assert_eq!(vault_base_url, "https://acme.vault.azure.net");
    assert_eq!(key_name, "k");
    assert_eq!(algorithm.unwrap(), "A256KW");
    assert_eq!(authority.unwrap(), "https://login.example.com");
    let KmsKeyDoc::Azure {
        client_secret: None,
        client_certificate: Some(certificate),
        ..
    } = azure_certificate.key
    else {
        panic!("{azure_certificate:?}");
    };
    assert_eq!(certificate.expose(), "three");

    let KmsKeyDoc::Thales {
        username,
        password,
        auth_domain,
        connection,
        service_url,
        key_id,
        server_name,
        spki_pin,
    } = thales.key
    else {
        panic!("{thales:?}");
    };
    let named = [username, auth_domain, connection, service_url, key_id];
    assert_eq!(named, ["one", "four", "five", "https://10.0.0.7", "k"]);
    assert_eq!(password.expose(), "three");
    assert_eq!(server_name.unwrap(), "ciphertrust.acme");
    assert_eq!(spki_pin.unwrap(), "pin");
}

#[test]
fn mistakes_in_each_kind_of_kms_are_told_with_the_name_that_was_meant() {
    let place = Place::new(
        r#"version = 1
[[kms]]
id = 1
type = "AWS"
authority = "https://x"
stsEndpoint = "https://x"
key_path = { keyID = "k", region = "r" }
credentials = { accessKeyId = "a", secretAccessKey = "s", rolArn = "canary", externalId = "canary", durationS = -1 }
[[kms]]
id = 2
type = "GCP"
tokenKind = "canary"
tokenEndpiont = "https://x"
key_path = { projectID = "p", locationId = "l", keyRingId = "r", cryptoKeyId = "k" }
credentials = { client_email = "e", privateKey = "canary" }
[[kms]]
id = 3
type = "AZURE"
key_path = { vaultBaseUrl = "https://x" }
credentials = { clientId = "i", tenantGuid = "g" }
[[kms]]
id = 4
type = "AZURE"
key_path = { vaultBaseUrl = "https://x", keyName = "k" }
credentials = { clientId = "i", tenantGuid = "g", clientSecret = "canary", clientCertificate = "canary" }
[[kms]]
id = 5
type = "THALES"
serverName = 7
key_path = "k"
credentials = { username = "u", passwort = "canary", authDomain = "root" }
"#,
    );
    let problems = place.load().unwrap_err();
    assert_eq!(
        problems,
        [
            "tenants.toml:5: kms 1: authority has no meaning with type AWS",
            "tenants.toml:8: kms 1: credentials: \"rolArn\" is not known here; the nearest known one is roleArn",
            "tenants.toml:8: kms 1: credentials: durationS must be a number of seconds",
            "tenants.toml:6: kms 1: stsEndpoint goes with roleArn, which is missing",
            "tenants.toml:8: kms 1: credentials: externalId goes with roleArn, which is missing",
            "tenants.toml:8: kms 1: credentials: durationS goes with roleArn, which is missing",
            "tenants.toml:13: kms 2: \"tokenEndpiont\" is not known here; the nearest known one is tokenEndpoint",
            "tenants.toml:14: kms 2: key_path: \"projectID\" is not known here; the nearest known one is projectId",
            "tenants.toml:14: kms 2: key_path: projectId is missing",
            "tenants.toml:12: kms 2: tokenKind is neither self-signed nor endpoint",
            "tenants.toml:15: kms 2: credentials: \"privateKey\" is not known here; the nearest known one is private_key",
            "tenants.toml:15: kms 2: credentials: private_key is missing",
            "tenants.toml:19: kms 3: key_path: keyName is missing",
            "tenants.toml:20: kms 3: credentials must have either clientSecret or clientCertificate",
            "tenants.toml:25: kms 4: credentials must have either clientSecret or clientCertificate",
            "tenants.toml:30: kms 5: key_path must be a table",
            "tenants.toml:29: kms 5: serverName must be a string, and not empty",
            "tenants.toml:31: kms 5: credentials: \"passwort\" is not known here; the nearest known one is password",
            "tenants.toml:31: kms 5: credentials: password is missing",
        ]
    );
}

/// The examples that operators copy: every block of TOML in the documents that has a KMS config.
#[test]
fn the_examples_in_the_documents_have_no_mistake() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = vec![root.join("README.md"), root.join("docs/operations.md")];
    let of_each_kms = fs::read_dir(root.join("docs/kms")).unwrap();
    documents.extend(of_each_kms.map(|entry| entry.unwrap().path()));
    let mut kinds = std::collections::BTreeSet::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        let blocks = text.split("```toml\n").skip(1);
        let blocks = blocks.map(|rest| rest.split("```").next().unwrap());
        for block in blocks.filter(|block| block.contains("[[kms]]")) {
            let version = if block.contains("version =") {
                ""
            } else {
                "version = 1\n"
            };
            let place = Place::new(&format!("{version}{block}"));
            let problems = match place.load() {
                Ok(_) => Vec::new(),
                Err(problems) => problems,
            };
            // Their variables and files are not there.
            let mistakes: Vec<_> = problems
                .iter()
                .filter(|problem| {
                    !problem.ends_with("it is left out") && !problem.ends_with("can be used")
                })
                .collect();
            assert!(mistakes.is_empty(), "{}: {mistakes:#?}", document.display());
            kinds.extend(
                block
                    .lines()
                    .filter(|line| line.starts_with("type ="))
                    .map(|line| line.split('"').nth(1).unwrap().to_owned()),
            );
        }
    }
    assert!(
        ["AWS", "AZURE", "LOCAL", "THALES"]
            .iter()
            .all(|kind| kinds.contains(*kind)),
        "{kinds:?}"
    );
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
            "tenants.toml:14: kms number 3: endpoint has no meaning with type LOCAL",
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
type = "AZURE"
key_path = {{ vaultBaseUrl = "https://acme.vault.azure.net", keyName = "k" }}
credentials = {{ clientId = {{ env = "NOT_SET" }}, clientSecret = {{ env = "NOR_THIS" }}, tenantGuid = "g" }}
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
    assert_eq!(loaded.unusable, [1, 2, 3]);
    assert_eq!(
        loaded.tenants[0].assignments.len(),
        2,
        "operations with the config that cannot be used must say so, and not that there is none"
    );
    let lines = place.lines(&loaded.left_out);
    assert_eq!(
        lines,
        [
            "tenants.toml:3: kms 1: ca_file: . is not a file; it is left out",
            "tenants.toml:3: kms 1: credentials: accessKeyId: nowhere cannot be read: No such file or directory (os error 2); it is left out",
            "tenants.toml:3: kms 1: credentials: secretAccessKey: the environment variable NOT_SET is not set; it is left out",
            "tenants.toml:9: kms 2: credentials: key is not base64 of 32 bytes; it is left out",
            "tenants.toml:13: kms 3: credentials: clientId: the environment variable NOT_SET is not set; it is left out",
            "tenants.toml:13: kms 3: credentials: clientSecret: the environment variable NOR_THIS is not set; it is left out",
        ]
    );
}

#[test]
fn a_file_of_which_nothing_can_be_used_is_refused() {
    let place = Place::new(
        "version = 1\n[[kms]]\nid = 3\ntype = \"LOCAL\"\ncredentials = { key = { env = \"NOT_SET\" } }\n",
    );
    let problems = place.load().unwrap_err();
    assert_eq!(
        problems,
        [
            "tenants.toml: none of its KMS configs can be used",
            "tenants.toml:2: kms 3: credentials: key: the environment variable NOT_SET is not set; it is left out",
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
    let seen = |source: &FileSource<Map>| source.configs.seen.as_ref().map(|seen| seen.settled);
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

/// One secret, as a proxy stores it.
fn store(place: &Place, name: &str, path: &str) -> Vec<u8> {
    use crate::secrets::{
        file::Edited,
        tests::{at, offer},
    };
    let file = SecretsFile::new(place.path(name));
    let (offer, _) = offer("a", path, b"blob");
    file.update(
        |_| {},
        |secrets| {
            secrets.take(&offer, at(0)).unwrap();
            Ok(((), Edited::Yes))
        },
    )
    .unwrap();
    fs::read(file.path()).unwrap()
}

#[test]
fn secrets_lie_beside_the_file_or_where_it_says() {
    let path = |config: &str, named| secrets_path(Path::new(config), named).display().to_string();
    assert_eq!(
        path("/etc/tsp/tenants.toml", None),
        "/etc/tsp/tenants.secrets.jsonl"
    );
    assert_eq!(path("tenants", None), "tenants.secrets.jsonl");
    assert_eq!(path("/etc/tenants.toml", Some("data/s")), "/etc/data/s");
    assert_eq!(path("/etc/tenants.toml", Some("/var/s")), "/var/s");
}

#[test]
fn a_stored_secret_is_a_new_state_of_the_secrets_alone() {
    let place = Place::new(&local(1, "a"));
    let mut source = place.source();
    let nowhere = source.poll_secrets(Ask::Always, later());
    assert!(
        matches!(nowhere, Polled::Same),
        "not known yet where they are"
    );
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::New(_)
    ));
    let Polled::New(none) = source.poll_secrets(Ask::IfChanged, later()) else {
        panic!("the first look is new")
    };
    assert!(none.is_empty());
    assert!(matches!(
        source.poll_secrets(Ask::IfChanged, later()),
        Polled::Same
    ));

    store(&place, "tenants.secrets.jsonl", "p");
    let Polled::New(one) = source.poll_secrets(Ask::IfChanged, soon()) else {
        panic!("not noticed")
    };
    assert_eq!((one[0].tenant.as_str(), one[0].path.as_str()), ("a", "p"));
    assert!(matches!(source.poll(Ask::IfChanged, later()), Polled::Same));
    assert!(matches!(
        source.poll_secrets(Ask::IfChanged, later()),
        Polled::Same
    ));
}

#[test]
fn a_mistake_in_one_file_does_not_hide_the_other() {
    let place = Place::new(&local(1, "a"));
    let mut source = place.source();
    source.poll(Ask::IfChanged, later());
    source.poll_secrets(Ask::IfChanged, later());
    place.write("tenants.toml", "wrong");
    let good = store(&place, "tenants.secrets.jsonl", "p");
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::Failed(_)
    ));
    assert!(matches!(
        source.poll_secrets(Ask::IfChanged, later()),
        Polled::New(_)
    ));

    place.write("tenants.toml", &local(1, "b"));
    place.write("tenants.secrets.jsonl", "wrong\n");
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::New(_)
    ));
    let Polled::Failed(problems) = source.poll_secrets(Ask::IfChanged, later()) else {
        panic!("not noticed")
    };
    let lines = place.lines(&problems);
    assert!(
        lines[0].starts_with("tenants.secrets.jsonl: line 1: not JSON"),
        "{lines:?}"
    );
    assert!(matches!(
        source.poll_secrets(Ask::IfChanged, later()),
        Polled::StillFailed
    ));
    fs::write(place.path("tenants.secrets.jsonl"), good).unwrap();
    assert!(matches!(
        source.poll_secrets(Ask::IfChanged, later()),
        Polled::Same
    ));
}

#[test]
fn the_place_of_the_secrets_does_not_change_while_a_proxy_runs() {
    let place = Place::new(&("secrets_file = \"kept\"\n".to_owned() + &local(1, "a")));
    let mut source = place.source();
    assert!(matches!(
        source.poll(Ask::IfChanged, later()),
        Polled::New(_)
    ));
    store(&place, "kept", "p");
    assert!(matches!(
        source.poll_secrets(Ask::IfChanged, later()),
        Polled::New(_)
    ));
    place.write("tenants.toml", &local(1, "a"));
    let Polled::Failed(problems) = source.poll(Ask::IfChanged, later()) else {
        panic!("not noticed")
    };
    let lines = place.lines(&problems);
    assert_eq!(
        lines,
        ["tenants.toml: secrets_file has changed from kept; that takes a restart"]
    );
}
