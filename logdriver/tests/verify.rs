//! `tsp-logdriver verify` as an auditor runs it: a file, a key, and an exit code.

#![expect(clippy::unwrap_used, reason = "tests panic to fail")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use tsp_logdriver::chain::{Head, LogdriverId};
use tsp_wire::envelope::SigningKey;

/// Three events and a checkpoint, a line each.
fn log(signing: &SigningKey) -> String {
    let (logdriver, mut head) = (LogdriverId(1), Head::start(LogdriverId(1), "acme"));
    let mut lines = Vec::new();
    for event in ["DATA_ENCRYPT", "DATA_DECRYPT", "USER_LOGIN"] {
        let json = format!(
            r#"{{"tenantId":"acme","iclFields":{{"event":"{event}"}},"customFields":{{}}}}"#
        );
        lines.push(head.append(logdriver, json.as_bytes()).unwrap());
    }
    let checkpoint = head
        .checkpoint(logdriver, "acme", 0, "ray", signing)
        .unwrap();
    lines.push(head.append(logdriver, &checkpoint).unwrap());
    lines
        .iter()
        .map(|line| String::from_utf8_lossy(line).into_owned() + "\n")
        .collect()
}

fn verify(file: &Path, key: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tsp-logdriver"))
        .arg("verify")
        .arg(file)
        .args(["--public-key", key])
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn an_auditor_is_told_in_words_and_by_the_exit_code() {
    let signing = SigningKey::from_seed(&[7; 32]).unwrap();
    let key = BASE64.encode(signing.verifying().as_bytes());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("export.json");
    let whole = log(&signing);
    let told = |content: &str, key: &str, more: &[&str]| {
        fs::write(&file, content).unwrap();
        let output = verify(&file, key, more);
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert_eq!(
        told(&whole, &key, &["--from-start", "--last", "4"]),
        (
            Some(0),
            "Tenant acme, logdriver 0000000000000001\n  events 1 to 4: 4 in the export\n  \
             a signed checkpoint proves all up to event 4\n\
             The log is whole: nothing was deleted, edited or replaced.\n"
                .to_owned()
        )
    );
    let without_second: String = whole
        .split_inclusive('\n')
        .filter(|line| !line.contains("DATA_DECRYPT"))
        .collect();
    let (code, text) = told(&without_second, &key, &[]);
    assert_eq!(code, Some(69));
    assert!(
        text.contains("MISSING    event 2 is not in the export"),
        "{text}"
    );
    let (code, text) = told(&whole.replace("USER_LOGIN", "USER_LOGOUT"), &key, &[]);
    assert_eq!(code, Some(69));
    assert!(text.contains("EDITED     event 3 (record 3)"), "{text}");
    let other = BASE64.encode(
        SigningKey::from_seed(&[8; 32])
            .unwrap()
            .verifying()
            .as_bytes(),
    );
    let (code, text) = told(&whole, &other, &[]);
    assert_eq!(code, Some(69));
    assert!(text.contains("UNSIGNED   checkpoint 4"), "{text}");
    assert_eq!(told(&whole, "no key", &[]).0, Some(64));
    assert_eq!(
        verify(Path::new("/nowhere"), &key, &[]).status.code(),
        Some(64)
    );
}
