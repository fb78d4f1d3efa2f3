//! The reference does the proxy's job: a KMS that checks signatures serves it, and the proxy's own code opens its EDEKs.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests panic to fail"
)]

use std::{net::SocketAddr, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use tsp_loadtest::kmssim::{Kmssim, Options, Provider, Sample, SampleShape, TspConfig};
use tsp_reference::{config::Config, fixed::Fixed, service::Service};
use tsp_wire::{
    Dek,
    edek::{self, EncryptedDeks},
};

const API_KEY: &str = "cmVmZXJlbmNlLWtleSE=";

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts");
    runtime.block_on(test);
}

/// The reference on the configuration file `text`, in `folder`.
async fn reference(folder: &Path, text: &str) -> SocketAddr {
    let path = folder.join("tenants.toml");
    std::fs::write(&path, text).expect("a temporary folder takes files");
    let config = Config::read(&path).expect("the file is one");
    let service = Service::new(&config, API_KEY).expect("the file can be used");
    service.start(LOOPBACK).await.expect("loopback has ports")
}

/// A key at the KMS with fixed answers that is at `url`.
fn fixed_config(url: &str, leasing: bool) -> String {
    let trust = match url.starts_with("https:") {
        true => "ca_file = \"ca.pem\"",
        false => "allow_insecure = true",
    };
    format!(
        "version = 1\n[[kms]]\nid = 7\ntype = \"AWS\"\nleasing_allowed = {leasing}\nendpoint = \"{url}\"\n{trust}\n\
         key_path = {{ keyID = \"alias/a\", region = \"eu-central-1\" }}\n\
         credentials = {{ accessKeyId = \"AKIA\", secretAccessKey = \"secret\" }}\n\
         [[tenant]]\nid = \"tenant-1\"\nassignments = [{{ kms = 7, primary = true }}]\n"
    )
}

/// Posts `members` with the metadata of `tenant`; gives the status and the answer.
async fn post(
    server: SocketAddr,
    endpoint: &str,
    tenant: &str,
    members: Value,
    api_key: &str,
) -> (u16, Value) {
    let mut body = json!({
        "tenantId": tenant,
        "iclFields": { "requestingId": "a \"quoted\" name", "dataLabel": null },
        "customFields": { "region": "eu" },
    });
    for (name, value) in members.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    let request = Request::post(format!("http://{server}/api/1/document/{endpoint}"))
        .header("authorization", format!("cmk {api_key}"))
        .body(Full::new(Bytes::from(body.to_string())))
        .expect("a request");
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request).await.expect("an answer");
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("a body");
    let body = serde_json::from_slice(&body.to_bytes()).expect("JSON");
    (status, body)
}

/// Wraps for `tenant-1`, and checks that single and batch unwraps give the same DEK.
async fn wrap_and_unwrap(server: SocketAddr) -> Value {
    let (status, wrapped) = post(server, "wrap", "tenant-1", json!({}), API_KEY).await;
    assert_eq!(status, 200, "{wrapped}");
    let dek = json!({ "dek": wrapped["dek"] });
    let one = json!({ "encryptedDocumentKey": wrapped["edek"] });
    let (status, unwrapped) = post(server, "unwrap", "tenant-1", one, API_KEY).await;
    assert_eq!((status, &unwrapped), (200, &dek));
    let batch = json!({ "edeks": { "good": wrapped["edek"], "bad": "AAAA" } });
    let (status, unwrapped) = post(server, "batch-unwrap", "tenant-1", batch, API_KEY).await;
    assert_eq!((status, &unwrapped["keys"]), (200, &json!({ "good": dek })));
    assert_eq!(unwrapped["failures"]["bad"]["code"], 203);
    let batch = json!({ "documentIds": ["0"] });
    let (_, batch) = post(server, "batch-wrap", "tenant-1", batch, API_KEY).await;
    assert_eq!(batch["failures"], json!({}));
    let in_batch = &batch["keys"]["0"];
    let one = json!({ "encryptedDocumentKey": in_batch["edek"] });
    let (_, unwrapped) = post(server, "unwrap", "tenant-1", one, API_KEY).await;
    assert_eq!(unwrapped["dek"], in_batch["dek"]);
    let batch = json!({ "edeks": [wrapped["edek"]] });
    let (_, unwrapped) = post(server, "batch-unwrap", "tenant-1", batch, API_KEY).await;
    assert_eq!(unwrapped, json!({ "keys": { "0": dek }, "failures": {} }));
    wrapped
}

#[test]
fn a_kms_that_checks_signatures_serves_it_with_and_without_leases() {
    run(async {
        let sample = Sample::new(&SampleShape {
            tenants: 1,
            providers: vec![Provider::Aws],
            ..SampleShape::default()
        });
        let clients = sample.clients.clone();
        let kmssim = Kmssim::start(Options::on_loopback(sample)).expect("kmssim starts");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, &kmssim.authority().certificate_pem).expect("it takes files");
        for leasing_allowed in [false, true] {
            let config = TspConfig {
                url: &kmssim.url(),
                ca_file: Some(&ca_file),
                leasing_allowed,
            };
            let server = reference(folder.path(), &config.text(&clients)).await;
            let wrapped = wrap_and_unwrap(server).await;
            let edek = edek::parse(wrapped["edek"].as_str().unwrap()).unwrap();
            let leased = edek.encrypted_deks[0].leased_key_id != 0;
            assert_eq!(leased, leasing_allowed);
        }
    });
}

#[test]
fn the_proxys_code_opens_its_leased_edeks() {
    run(async {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (kms, authority) = Fixed::new(true, None).with_tls().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority).unwrap();
        let kms = kms.start(LOOPBACK).await.unwrap();
        let url = format!("https://localhost:{}", kms.port());
        let server = reference(folder.path(), &fixed_config(&url, true)).await;
        let wrapped = wrap_and_unwrap(server).await;

        let edek = edek::parse(wrapped["edek"].as_str().unwrap()).unwrap();
        let entry = &edek.encrypted_deks[0];
        let leased = EncryptedDeks::from_bytes(&entry.encrypted_leased_key_data).unwrap();
        // This KMS's blob ends in the key.
        let blob = &leased.encrypted_deks[0].encrypted_dek_data;
        let key = Dek::fill_with(|key| key.copy_from_slice(&blob[blob.len() - Dek::LEN..]));
        let dek =
            tsp_shards::open_with_leased_key(&key, &entry.leased_key_iv, &entry.encrypted_dek_data)
                .unwrap();
        assert_eq!(
            BASE64.encode(dek.expose()),
            wrapped["dek"].as_str().unwrap()
        );
        assert_eq!((entry.kms_config_id, entry.leased_key_id), (7, 1));
    });
}

#[test]
fn refusals_have_the_proxys_status_and_code() {
    run(async {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Nobody listens there.
        let server = reference(folder.path(), &fixed_config("http://127.0.0.1:1", false)).await;
        for (tenant, api_key, status, code) in [
            ("tenant-1", "wrong", 401, 101),
            ("tenant-2", API_KEY, 422, 201),
            ("tenant-1", API_KEY, 502, 208),
        ] {
            let (answered, body) = post(server, "wrap", tenant, json!({}), api_key).await;
            assert_eq!((answered, &body["code"]), (status, &json!(code)), "{body}");
        }
        let (status, body) = post(server, "unwrap", "tenant-1", json!({}), API_KEY).await;
        assert_eq!((status, &body["code"]), (400, &json!(102)));
    });
}

#[test]
fn fixed_answers_look_like_the_proxys() {
    run(async {
        for leased in [true, false] {
            let server = Fixed::new(leased, None).start(LOOPBACK).await.unwrap();
            let (status, wrapped) = post(server, "wrap", "any", json!({}), "any").await;
            let edek = edek::parse(wrapped["edek"].as_str().unwrap()).unwrap();
            assert_eq!(status, 200);
            assert_eq!(edek.encrypted_deks[0].leased_key_id != 0, leased);
            let ids = json!({ "documentIds": ["a", "b"] });
            let (_, batch) = post(server, "batch-wrap", "any", ids, "any").await;
            let keys = json!({ "a": wrapped, "b": wrapped });
            assert_eq!(batch, json!({ "keys": keys, "failures": {} }));
            let (status, unwrapped) = post(server, "unwrap", "any", json!({}), "any").await;
            assert_eq!((status, &unwrapped["dek"]), (200, &wrapped["dek"]));
        }
    });
}
