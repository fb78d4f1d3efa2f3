//! Recovery without a proxy: `tsp recover`, and the script of docs/recovery.md, on what a proxy has wrapped.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
};

use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, aead::Aead as _};
use prost::Message as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tsp_wire::edek::{EncryptedDek, EncryptedDeks};

use crate::support::{
    base64, child,
    config::{self, As, AwsKms, local_kms, tenant},
    metadata, on_both,
    peers::{Peer, source_folder, target_folder},
    proxy::{Io, Proxy, Setup},
    request, text, to_base64,
};

const EXIT_UNRECOVERED: i32 = 69;

/// Runs a program with `input` in a file on its standard input.
#[track_caller]
fn run(program: &Path, arguments: &[&str], input: &str, folder: &Path) -> Output {
    let path = folder.join("input");
    fs::write(&path, input).expect("it can be written");
    let mut command = child::command(program);
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(fs::File::open(path).expect("it was written"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = child::spawn(command).wait_with_output();
    output.expect("a program ends")
}

#[track_caller]
fn stdout(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// `tsp recover`, in the folder of the configuration file.
#[track_caller]
fn recover(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let all = [&["recover", "--config", "tenants.toml"], arguments].concat();
    run(Path::new(env!("CARGO_BIN_EXE_tsp")), &all, input, folder)
}

/// The script of the documentation, which reads `keys.json`.
#[track_caller]
fn script(folder: &Path, arguments: &[&str], input: &str) -> String {
    let python = target_folder().join("peers/bin/python");
    let path = source_folder().join("docs/recovery.py");
    let path = path.to_str().expect("our paths are UTF-8");
    let all = [&[path, "keys.json"], arguments].concat();
    stdout(&run(&python, &all, input, folder))
}

/// A new DEK and its EDEK.
#[track_caller]
fn wrap(proxy: &Proxy, tenant: &str) -> (String, String) {
    let answer = proxy.call("document/wrap", &metadata(tenant)).ok();
    let member = |name| text(&answer, name).to_owned();
    (member("dek"), member("edek"))
}

/// An EDEK under a leased key, which is what a wrap gave.
fn lease((leased_key, wrapped): &(String, String), dek: &str) -> String {
    let wrapped = base64(wrapped);
    let config = EncryptedDeks::from_bytes(&wrapped).expect("our own EDEK");
    let cipher = Aes256Gcm::new_from_slice(&base64(leased_key)).expect("32 bytes");
    let nonce = [5; 12];
    let sealed = cipher.encrypt(&Nonce::from(nonce), base64(dek).as_slice());
    let entry = EncryptedDek {
        encrypted_dek_data: sealed.expect("short input"),
        kms_config_id: config.encrypted_deks[0].kms_config_id,
        leased_key_id: 7,
        leased_key_iv: nonce.to_vec(),
        encrypted_leased_key_data: wrapped,
        tenant_id: Vec::new(),
    };
    let edeks = EncryptedDeks {
        encrypted_deks: vec![entry],
    };
    to_base64(&edeks.encode_to_vec())
}

/// EDEKs of `tenant`, leased ones among them, and the DEKs in them: both one per line.
fn wrapped_lines(proxy: &Proxy, tenant: &str) -> (String, String) {
    let lease_of = wrap(proxy, tenant);
    let (mut edeks, mut deks) = (String::new(), String::new());
    for number in 0..20 {
        let (dek, edek) = wrap(proxy, tenant);
        let edek = if number % 2 == 0 {
            edek
        } else {
            lease(&lease_of, &dek)
        };
        edeks.push_str(&(edek + "\n"));
        deks.push_str(&(dek + "\n"));
    }
    (edeks, deks)
}

#[track_caller]
fn derive(proxy: &Proxy, tenant: &str) -> String {
    let members = json!({
        "paths": {"customers": ["ssn"]}, "derivationType": "sha512", "secretType": "deterministic",
    });
    let answer = proxy
        .call("key/derive-with-secret-path", &request(tenant, members))
        .ok();
    text(&answer["derivedKeys"]["customers"]["ssn"][0], "derivedKey").to_owned()
}

/// Only the configuration, the secrets and the keys are left, in a folder of their own.
fn disaster(proxy: Proxy, keys: &Value) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let config = proxy.config_path();
    for name in ["tenants.toml", "tenants.secrets.jsonl"] {
        let from = config.with_file_name(name);
        fs::copy(from, folder.path().join(name)).expect("it was there");
    }
    fs::write(folder.path().join("keys.json"), keys.to_string()).expect("it can be written");
    drop(proxy);
    folder
}

/// Everything that was wrapped and derived for `tenant` comes back, by both ways.
fn recovers(proxy: Proxy, tenant: &str, keys: &Value) {
    let (edeks, deks) = wrapped_lines(&proxy, tenant);
    let derived = derive(&proxy, tenant);
    let folder = disaster(proxy, keys);
    let folder = folder.path();

    let recovered = recover(folder, &["--tenant", tenant], &edeks);
    assert_eq!(stdout(&recovered), deks);
    let told = String::from_utf8_lossy(&recovered.stderr);
    assert!(told.contains("prints keys, in the clear"), "{told}");
    assert_eq!(script(folder, &["deks", tenant], &edeks), deks);

    let exported = run(
        Path::new(env!("CARGO_BIN_EXE_tsp")),
        &["secrets", "export", tenant, "--config", "tenants.toml"],
        "",
        folder,
    );
    let backup = stdout(&exported);
    let keys = stdout(&recover(folder, &["--derive", "ssn"], &backup));
    let key: Value = serde_json::from_str(&keys).expect("one line");
    assert_eq!(
        (text(&key, "tenant"), text(&key, "derivedKey")),
        (tenant, derived.as_str())
    );
    fs::write(folder.join("backup"), backup).expect("it can be written");
    let from_script = script(folder, &["derive", "backup", "ssn"], "");
    assert_eq!(from_script, format!("{} {derived}\n", key["id"]));
}

on_both! {
    fn what_a_local_key_wrapped(io) {
        let proxy = Setup::serve(io, &config::two_local_tenants()).start();
        recovers(proxy, "acme", &json!({"1": {"local": to_base64(&[0x11; 32])}}));
    }

    fn what_aws_wrapped(io) {
        let moto = Peer::moto();
        let kms = AwsKms::at(moto, 3, 0);
        let proxy = Setup::serve(io, &config::file(&[kms.toml(), tenant("acme", &[(3, As::Primary)])])).start();
        let keys = json!({"3": {"aws": {
            "region_name": "us-east-1", "endpoint_url": kms.endpoint,
            "aws_access_key_id": kms.user.access_key_id, "aws_secret_access_key": kms.user.secret_access_key,
        }}});
        recovers(proxy, "acme", &keys);
    }

    fn what_a_proxy_leased_a_key_for(io) {
        let leasing = config::two_local_tenants().replace("type =", "leasing_allowed = true\ntype =");
        let proxy = Setup::serve(io, &leasing).start();
        let (dek, edek) = wrap(&proxy, "acme");
        let parsed = EncryptedDeks::from_bytes(&base64(&edek)).expect("our own EDEK");
        assert_ne!(parsed.encrypted_deks[0].leased_key_id, 0);
        derive(&proxy, "acme");
        let folder = disaster(proxy, &json!({"1": {"local": to_base64(&[0x11; 32])}}));
        let (edek, dek) = (edek + "\n", dek + "\n");
        assert_eq!(stdout(&recover(folder.path(), &["--tenant", "acme"], &edek)), dek);
        assert_eq!(script(folder.path(), &["deks", "acme"], &edek), dek);
    }

    fn what_cannot_be_opened_is_named_and_the_rest_comes_back(io) {
        let moto = Peer::moto();
        let kms = AwsKms::at(moto, 3, 0);
        let good = config::file(&[
            kms.toml(), local_kms(1, 0x11), tenant("acme", &[(3, As::Primary)]), tenant("globex", &[(1, As::Primary)]),
        ]);
        let proxy = Setup::serve(io, &good).start();
        let [aws, local] = ["acme", "globex"].map(|tenant| wrap(&proxy, tenant));
        derive(&proxy, "acme");
        let folder = disaster(proxy, &json!({}));
        let broken = good.replace(&kms.user.secret_access_key, "not-the-secret");
        fs::write(folder.path().join("tenants.toml"), broken).expect("it can be written");
        let recovered = recover(folder.path(), &["--tenant", "globex"], &format!("{}\n{}\n", aws.1, local.1));
        assert_eq!(recovered.status.code(), Some(EXIT_UNRECOVERED));
        assert_eq!(String::from_utf8_lossy(&recovered.stdout), format!("\n{}\n", local.0));
        let told = String::from_utf8_lossy(&recovered.stderr);
        assert!(told.contains("line 1: KMS config 3: AWS KMS"), "{told}");
        assert!(told.contains("1 of 2 could not be opened"), "{told}");
    }
}

/// The secret and the ciphertext that the original product published, with the secret under a local key.
#[test]
fn the_script_reads_what_the_original_product_encrypted() {
    let published = include_str!("../../wire/tests/data/published-vectors.json");
    let published: Value = serde_json::from_str(published).unwrap();
    let published = &published["derivation"];
    let line = super::secrets::line(
        published["tenantSecretId"].as_u64().unwrap(),
        text(published, "tenantId"),
        text(published, "secretPath"),
        "archived",
        text(published, "secret_base64"),
        9,
    );
    let folder = TempDir::new().expect("a temporary folder can be made");
    let keys = json!({"9": {"local": to_base64(&[9; 32])}});
    fs::write(folder.path().join("keys.json"), keys.to_string()).unwrap();
    fs::write(
        folder.path().join("secrets"),
        super::secrets::file_of(&[line]),
    )
    .unwrap();
    let path = text(published, "derivationPath");
    let derived = script(folder.path(), &["derive", "secrets", path], "");
    assert_eq!(
        derived,
        format!("5111 {}\n", text(published, "derivedKey_sha512_base64"))
    );
    let field = text(published, "deterministic_ciphertext_base64").to_owned() + "\n";
    let read = script(folder.path(), &["field", "secrets", path], &field);
    assert_eq!(read, "Jim Bridger\n");
}
