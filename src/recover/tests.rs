use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tempfile::TempDir;
use tsp_kms::LocalKms;
use tsp_wire::{
    Dek, KmsConfigId, Secret, TenantSecretId,
    derive::{DerivationType, Deriver, RotationStatus, SecretType},
    edek,
};

use super::*;
use crate::secrets::{Place, Record, file::render, tests::at};

/// The examples of the API: a LOCAL key of config 41, an EDEK under it, the same DEK leased, and what both hold.
const LOCAL_KEY: &str = "gPOL2IuWZoUc33OooCw4eJTAlmPStTSjnD/b8NpATYg=";
const DEK: &str = "r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=";
const UNLEASED: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";
const LEASED: &str = "Co0BCjDbDJIiUdkh/W2RYPtBlAFdgZFcJtAeGnC/6FxqXs4WTe3vpn5J2ikftnx2Kc9n4L8QKRjZNiIM1br530s4xSCVFDPgKkYKRApATEtXMYzPUy+9CMYNDqVd6TpEdUCuRqvON204TbEC8VExy1sVTYFu3CTbEYAWn/fwhlYUOjYoGf+EJorcniZzyxAp";
/// As one client sends it back, with the tenant in it.
const LEASED_WITH_TENANT: &str = "CpMBCjDbDJIiUdkh/W2RYPtBlAFdgZFcJtAeGnC/6FxqXs4WTe3vpn5J2ikftnx2Kc9n4L8QKRjZNiIM1br530s4xSCVFDPgKkYKRApATEtXMYzPUy+9CMYNDqVd6TpEdUCuRqvON204TbEC8VExy1sVTYFu3CTbEYAWn/fwhlYUOjYoGf+EJorcniZzyxApMgRhY21l";

struct Recovery {
    folder: TempDir,
    options: RecoverOptions,
}

/// What came of it: standard output, standard error, and the end.
type Came = (String, Vec<String>, Result<(), String>);

impl Recovery {
    fn of(input: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "version = 1\n[[kms]]\nid = 41\ntype = \"LOCAL\"\ncredentials = {{ key = \"{LOCAL_KEY}\" }}\n\
             [[kms]]\nid = 42\ntype = \"LOCAL\"\ncredentials = {{ key = {{ env = \"TSP_TEST_NOT_THERE\" }} }}\n"
        );
        fs::write(folder.path().join("tenants.toml"), config).unwrap();
        fs::write(folder.path().join("input"), input).unwrap();
        let options = RecoverOptions {
            config: Some(folder.path().join("tenants.toml")),
            input: Some(folder.path().join("input")),
            ..RecoverOptions::default()
        };
        Self { folder, options }
    }

    fn tenant(mut self, tenant: &str) -> Self {
        self.options.tenant = Some(tenant.to_owned());
        self
    }

    fn derive(mut self, paths: &[&str]) -> Self {
        self.options.derive = paths.iter().map(|path| (*path).to_owned()).collect();
        self
    }

    fn run(self) -> Came {
        let (mut out, mut told) = (Vec::new(), Vec::new());
        let ended = recover(&self.options, &mut out, &mut |line| {
            told.push(line.replace(&self.folder.path().display().to_string(), ""));
        });
        let told = told
            .into_iter()
            .filter(|line| !line.contains("TSP_TEST_NOT_THERE"))
            .collect();
        let out = String::from_utf8(out).unwrap();
        (out, told, ended.map_err(|why| why.to_string()))
    }

    /// Standard output of what must succeed, and say nothing but the warning.
    fn good(self) -> String {
        let (out, told, ended) = self.run();
        assert_eq!((told, ended), (vec![WARNING.to_owned()], Ok(())));
        out
    }
}

#[test]
fn edeks_in_lines_are_deks_in_lines() {
    // The example's unleased blob names no tenant, so any does.
    let input = format!("{UNLEASED}\n\n {LEASED} \n{LEASED_WITH_TENANT}");
    assert_eq!(
        Recovery::of(&input).tenant("acme").good(),
        format!("{DEK}\n\n{DEK}\n{DEK}\n")
    );
    assert_eq!(Recovery::of("").good(), "");
}

#[test]
fn what_cannot_be_opened_is_told_and_leaves_its_line_empty() {
    let foreign = BASE64.encode(edek::encode_unleased(KmsConfigId::new(7).unwrap(), b"blob"));
    let broken = BASE64.encode(edek::encode_unleased(
        KmsConfigId::new(41).unwrap(),
        b"blob",
    ));
    let unusable = BASE64.encode(edek::encode_unleased(
        KmsConfigId::new(42).unwrap(),
        b"blob",
    ));
    let input = format!("{UNLEASED}\nZWRlaw==\n{foreign}\n{broken}\n{unusable}\n{UNLEASED}\n");
    let (out, told, ended) = Recovery::of(&input).tenant("acme").run();
    assert_eq!(out, format!("{DEK}\n\n\n\n\n{DEK}\n"));
    for (line, part) in told[1..].iter().zip([
        "line 2: Provided EDEK didn't contain",
        "line 3: KMS config 7 wrapped it",
        "line 4: KMS config 41: local KMS",
        "line 5: KMS config 42 wrapped it",
    ]) {
        assert!(line.starts_with(part), "{line}");
    }
    assert_eq!(told.len(), 5);
    assert_eq!(ended, Err("tsp: 4 of 6 could not be opened".to_owned()));
}

#[test]
fn json_keeps_its_shape() {
    let array = json!([UNLEASED, "nonsense!"]).to_string();
    let (out, _, ended) = Recovery::of(&array).run();
    assert_eq!(
        serde_json::from_str::<Value>(&out).unwrap(),
        json!([DEK, null])
    );
    assert!(ended.is_err());
    let object = json!({"a \"b\"": UNLEASED, "": LEASED}).to_string();
    let out = Recovery::of(&object).tenant("acme").good();
    assert_eq!(
        serde_json::from_str::<Value>(&out).unwrap(),
        json!({"a \"b\"": DEK, "": DEK})
    );
    for empty in ["[]", "{}"] {
        assert_eq!(Recovery::of(empty).good(), format!("{empty}\n"));
    }
    for (bad, why) in [
        ("[1]", "item 0: an EDEK is a string"),
        ("{\"a\":", "looks like JSON"),
        ("{\"format\":\"tsp-tenant-secrets\"}\n", "format version"),
    ] {
        let (out, _, ended) = Recovery::of(bad).run();
        let ended = ended.unwrap_err();
        assert!(ended.contains(why), "{ended}");
        assert_eq!(out, "");
    }
}

/// A secret whose bytes are all `byte`, of tenant `acme`.
fn record(number: u64, byte: u8, status: RotationStatus) -> Record {
    let key: [u8; 32] = BASE64.decode(LOCAL_KEY).unwrap().try_into().unwrap();
    let secret = Dek::fill_with(|bytes| bytes.fill(byte));
    let blob = LocalKms::new(&Secret::new(key)).wrap("acme", &secret, [1; 12]);
    Record {
        id: TenantSecretId::new(number).unwrap(),
        place: Place {
            tenant: "acme".to_owned(),
            secret_type: SecretType::Deterministic,
            path: "customers".to_owned(),
        },
        status,
        created: at(0),
        changed: at(0),
        edek: edek::encode_unleased(KmsConfigId::new(41).unwrap(), &blob),
    }
}

fn derived(byte: u8, path: &str) -> String {
    let secret = Dek::fill_with(|bytes| bytes.fill(byte));
    let deriver = Deriver::new(&secret, "acme", DerivationType::Sha512);
    BASE64.encode(deriver.derive(path).expose())
}

#[test]
fn a_backup_of_secrets_gives_them_or_keys_derived_from_them() {
    let records = [
        record(9001, 1, RotationStatus::Current),
        record(8044, 2, RotationStatus::Archived),
    ];
    let backup = String::from_utf8(render(&records)).unwrap();
    let lines = |out: String| -> Vec<Value> {
        out.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let known = |number: u64, status: &str, more: Value| {
        let mut line = json!({
            "id": number, "tenant": "acme", "type": "deterministic", "path": "customers", "status": status,
        });
        for (name, value) in more.as_object().unwrap() {
            line[name] = value.clone();
        }
        line
    };
    let secret = |byte: u8| json!({"secret": BASE64.encode([byte; 32])});
    assert_eq!(
        lines(Recovery::of(&backup).good()),
        [
            known(9001, "current", secret(1)),
            known(8044, "archived", secret(2))
        ]
    );
    let key =
        |byte: u8, path: &str| json!({"derivationPath": path, "derivedKey": derived(byte, path)});
    assert_eq!(
        lines(Recovery::of(&backup).derive(&["ssn", ""]).good()),
        [
            known(9001, "current", key(1, "ssn")),
            known(9001, "current", key(1, "")),
            known(8044, "archived", key(2, "ssn")),
            known(8044, "archived", key(2, "")),
        ]
    );
}

#[test]
fn keys_are_derived_for_a_tenant_that_is_known() {
    let wrapped = BASE64.encode(record(1, 3, RotationStatus::Current).edek);
    let out = Recovery::of(&wrapped)
        .tenant("acme")
        .derive(&["a", "b"])
        .good();
    assert_eq!(out, format!("{}\t{}\n", derived(3, "a"), derived(3, "b")));
    let (out, told, ended) = Recovery::of(&wrapped).derive(&["a"]).run();
    assert!(ended.unwrap_err().contains("--tenant"));
    assert_eq!(
        (out, told),
        (String::new(), vec![]),
        "and not even the warning"
    );
    let (_, told, _) = Recovery::of(&wrapped).run();
    assert!(told[1].contains("--tenant"), "{told:?}");
}

#[test]
fn nothing_is_written_where_nothing_can_be_tried() {
    let mut recovery = Recovery::of(UNLEASED);
    recovery.options.input = Some("not/there".into());
    let (out, _, ended) = recovery.run();
    assert!(ended.unwrap_err().contains("not/there"));
    assert_eq!(out, "");
}
