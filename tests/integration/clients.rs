//! The vendors' own clients against the simulated KMSs: what these take from `tsp` they must take from boto3, google-cloud-kms
//! and azure-keyvault-keys too, and refuse them what they refuse `tsp`.
//!
//! Each script encrypts and decrypts as its vendor documents it, provokes that API's errors, and ends with requests under a
//! wrong key that must be refused; see tests/peers. No proxy takes part.

use std::process::Stdio;

use serde_json::Value;

use crate::support::{
    child,
    kmssim::{Provider, SampleShape, Simulator},
    peers::{source_folder, target_folder},
};

/// What every script has shown among other things, in these words.
const SHOWN: &str = "is refused";

#[track_caller]
fn is_content(script: &str, shape: SampleShape) {
    let simulator = Simulator::with(&shape);
    let mut command = child::command(target_folder().join("peers-clients/bin/python"));
    command
        .arg(source_folder().join("tests/peers").join(script))
        .args(["--control", &simulator.control_url()])
        .args(["--address", &simulator.address().to_string()])
        .arg("--ca")
        .arg(simulator.ca_file())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = child::spawn(command)
        .wait_with_output()
        .expect("the child is ours");
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{script}: {}; run ./x setup if packages are missing\n{errors}",
        output.status
    );
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"));
    let done = report["done"].as_array().into_iter().flatten();
    let mut done = done.filter_map(Value::as_str);
    assert!(done.any(|what| what.contains(SHOWN)), "{report}");
}

fn at(provider: Provider) -> SampleShape {
    SampleShape {
        tenants: 1,
        providers: vec![provider],
        ..SampleShape::default()
    }
}

#[test]
fn boto3_as_a_user() {
    is_content("clients_aws.py", at(Provider::Aws));
}

#[test]
fn boto3_in_a_role() {
    let shape = SampleShape {
        aws_roles: true,
        ..at(Provider::Aws)
    };
    is_content("clients_aws.py", shape);
}

/// The script signs tokens itself, then asks the endpoint for them.
#[test]
fn google_cloud_kms() {
    is_content("clients_gcp.py", at(Provider::Gcp));
}

#[test]
fn azure_keyvault_keys_with_a_secret_at_a_vault() {
    is_content("clients_azure.py", at(Provider::Azure));
}

#[test]
fn azure_keyvault_keys_with_a_certificate_at_an_hsm() {
    let shape = SampleShape {
        azure_certificates: true,
        azure_hsm: true,
        ..at(Provider::Azure)
    };
    is_content("clients_azure.py", shape);
}
