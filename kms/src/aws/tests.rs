use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use proptest::prelude::*;
use serde_json::Value;
use tsp_wire::{
    Secret,
    snapshot::{KmsConfigDoc, KmsKeyDoc},
};

use super::*;
use crate::{Kms, Retry, Roots};

const KEY_ARN: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn doc(region: &str, key_id: &str) -> KmsConfigDoc {
    KmsConfigDoc {
        id: 1,
        leasing_allowed: true,
        key: KmsKeyDoc::Aws {
            key_id: key_id.to_owned(),
            region: region.to_owned(),
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
            assume_role: None,
            sts_endpoint: None,
        },
        endpoint: None,
        allow_insecure: false,
        ca_pem: None,
    }
}

fn at(endpoint: &str, region: &str, key_id: &str) -> KmsConfigDoc {
    KmsConfigDoc {
        endpoint: Some(endpoint.to_owned()),
        allow_insecure: true,
        ..doc(region, key_id)
    }
}

fn with_token(mut doc: KmsConfigDoc, access_key: &str, token: &str) -> KmsConfigDoc {
    if let KmsKeyDoc::Aws {
        access_key_id,
        session_token,
        ..
    } = &mut doc.key
    {
        access_key.clone_into(access_key_id);
        *session_token = Some(Secret::new(token.to_owned()));
    }
    doc
}

fn aws(doc: &KmsConfigDoc) -> Box<dyn RemoteKms> {
    match Kms::from_doc(doc).unwrap() {
        Kms::Remote(aws) => aws,
        Kms::Local(_) => panic!("the document is of AWS"),
    }
}

/// 2026-01-15 10:15:30 UTC, the moment of most vectors.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_768_472_130)
}

/// The DEK of the vectors: 0, 1, 2, …, 31.
fn dek() -> Dek {
    Dek::fill_with(|bytes| {
        bytes
            .iter_mut()
            .zip(0..)
            .for_each(|(byte, value)| *byte = value)
    })
}

fn header<'a>(request: &'a HttpRequest, name: &str) -> &'a str {
    request.header(name).unwrap()
}

fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

fn vectors(text: &str) -> Vec<Value> {
    json(text.as_bytes())["cases"].as_array().unwrap().clone()
}

#[test]
fn whole_requests_are_those_that_botocore_signs() {
    let endpoints = [
        ("encrypt-us-east-1-key-id", None),
        ("encrypt-eu-west-1-session-token", None),
        (
            "encrypt-us-gov-west-1-fips",
            Some("https://kms-fips.us-gov-west-1.amazonaws.com"),
        ),
        ("encrypt-cn-north-1", None),
        (
            "encrypt-eu-central-1-dualstack",
            Some("https://kms.eu-central-1.api.aws/"),
        ),
        (
            "encrypt-privatelink-host",
            Some("https://vpce-1a2b3c4d5e6f7a8b9-abcdefgh.kms.ap-southeast-2.vpce.amazonaws.com"),
        ),
        (
            "encrypt-custom-endpoint-port",
            Some("http://127.0.0.1:5600"),
        ),
    ];
    let cases = vectors(include_str!("../../tests/data/aws-sigv4-kms.json"));
    for (name, endpoint) in endpoints {
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        let (input, expect) = (&case["input"], &case["expect"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let expected_body = text(&input["body_utf8"]);
        let key_id = text(&json(expected_body.as_bytes())["KeyId"]);
        let mut doc = doc(&text(&input["region"]), &key_id);
        doc.endpoint = endpoint.map(str::to_owned);
        doc.allow_insecure = true;
        if let Some(token) = input["session_token"].as_str() {
            doc = with_token(doc, &text(&input["access_key_id"]), token);
        }
        let request = aws(&doc)
            .wrap_request(&dek(), None, &mut Session::default(), now())
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(request.body()),
            expected_body,
            "{name}"
        );
        let headers = &[&input["headers_before_signing"], &expect["headers_added"]];
        for (header_name, value) in headers.iter().flat_map(|map| map.as_object().unwrap()) {
            assert_eq!(
                header(&request, header_name),
                value.as_str().unwrap(),
                "{name}"
            );
        }
    }
}

#[test]
fn endpoints_headers_and_bodies_are_those_of_a_stock_sdk() {
    let cases = vectors(include_str!("../../tests/data/aws-wire-requests.json"));
    let mut count = 0;
    for case in cases
        .iter()
        .filter(|case| case["name"] != "sts assume_role")
    {
        let name = case["name"].as_str().unwrap();
        let sent = case["headers"].as_object().unwrap();
        let region = sent["Authorization"]
            .as_str()
            .unwrap()
            .split('/')
            .nth(2)
            .unwrap();
        let url = case["url"].as_str().unwrap();
        // The SDK does not compare an ARN's partition with the region's; we do.
        let same_partition = !["us-gov-", "cn-"]
            .iter()
            .any(|prefix| region.starts_with(prefix));
        let mut doc = doc(region, if same_partition { KEY_ARN } else { "1234abcd" });
        let special_host = name.contains("fips") || name.contains("dualstack");
        doc.endpoint = special_host.then(|| url.to_owned());
        if let Some(token) = sent.get("X-Amz-Security-Token") {
            doc = with_token(doc, "ASIAIOSFODNN7EXAMPLE", token.as_str().unwrap());
        }
        let aws = aws(&doc);
        let mut body = json(case["body_utf8"].as_str().unwrap().as_bytes());
        body.as_object_mut().unwrap().remove("EncryptionContext");
        let request = if name == "decrypt" {
            body["KeyId"] = KEY_ARN.into();
            let blob = BASE64
                .decode(body["CiphertextBlob"].as_str().unwrap())
                .unwrap();
            aws.unwrap_request(&blob, None, &mut Session::default(), now())
                .unwrap()
        } else {
            if !same_partition {
                body["KeyId"] = "1234abcd".into();
            }
            aws.wrap_request(&dek(), None, &mut Session::default(), now())
                .unwrap()
        };

        assert_eq!(format!("https://{}/", aws.endpoint().host), url, "{name}");
        assert_eq!((aws.endpoint().port, aws.endpoint().tls), (443, true));
        assert_eq!(json(request.body()), body, "{name}");
        // Ours besides the SDK's: `host`, which the SDK's transport adds, and `accept`. Not ours: the SDK's account of
        // itself, and `content-length`, which our transport adds.
        let mut theirs: Vec<_> = sent
            .keys()
            .map(|name| name.to_ascii_lowercase())
            .filter(|name| {
                !name.starts_with("amz-sdk-") && name != "user-agent" && name != "content-length"
            })
            .chain(["host".to_owned(), "accept".to_owned()])
            .collect();
        theirs.sort();
        let mut ours: Vec<_> = request
            .headers()
            .map(|(name, _)| name.to_owned())
            .filter(|name| name != "content-length")
            .collect();
        ours.sort();
        assert_eq!(ours, theirs, "{name}");
        for name in ["X-Amz-Target", "Content-Type", "X-Amz-Date"] {
            assert_eq!(header(&request, name), sent[name].as_str().unwrap());
        }
        count += 1;
    }
    assert_eq!(count, 6);
}

#[test]
fn a_request_is_a_post_to_the_root_that_does_not_show_its_secrets() {
    let doc = with_token(
        doc("eu-west-1", KEY_ARN),
        "ASIAIOSFODNN7EXAMPLE",
        "token/with+signs==",
    );
    let aws = aws(&doc);
    let mut session = Session::default();
    let wrap = aws.wrap_request(&dek(), None, &mut session, now()).unwrap();
    let unwrap = aws
        .unwrap_request(&[7; 6144], None, &mut session, now())
        .unwrap();
    for request in [wrap, unwrap] {
        assert_eq!(request.path(), "/");
        let shown = format!("{request:?}");
        for name in ["authorization", "x-amz-security-token"] {
            assert!(!shown.contains(header(&request, name)), "{shown}");
        }
    }
}

#[test]
fn an_unwrap_names_a_key_but_not_an_alias() {
    let cases = [
        ("1234abcd-12ab-34cd-56ef-1234567890ab", true),
        ("mrk-1234abcd12ab34cd56ef1234567890ab", true),
        (KEY_ARN, true),
        ("alias/tsp-ü", false),
        ("arn:aws:kms:us-east-1:111122223333:alias/tsp", false),
    ];
    for (key_id, named) in cases {
        let aws = aws(&doc("us-east-1", key_id));
        let mut session = Session::default();
        let wrap = json(
            aws.wrap_request(&dek(), None, &mut session, now())
                .unwrap()
                .body(),
        );
        assert_eq!(wrap["KeyId"], key_id);
        let unwrap = json(
            aws.unwrap_request(b"blob", None, &mut session, now())
                .unwrap()
                .body(),
        );
        assert_eq!(unwrap.get("KeyId"), named.then(|| key_id.into()).as_ref());
    }
}

#[test]
fn a_key_id_cannot_break_out_of_the_json() {
    let aws = aws(&doc("us-east-1", "alias/a\",\"GrantTokens\":[\"x\\"));
    let body = json(
        aws.wrap_request(&dek(), None, &mut Session::default(), now())
            .unwrap()
            .body(),
    );
    assert_eq!(body.as_object().unwrap().len(), 2);
    assert_eq!(body["KeyId"], "alias/a\",\"GrantTokens\":[\"x\\");
}

#[test]
fn a_blob_that_cannot_be_one_is_refused_without_a_call() {
    let aws = aws(&doc("us-east-1", KEY_ARN));
    for blob in [vec![], vec![0; 6145], vec![0; 1 << 20]] {
        let error = aws
            .unwrap_request(&blob, None, &mut Session::default(), now())
            .unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::UnwrapFailed, Retry::No)
        );
    }
}

#[test]
fn each_partition_has_its_hosts() {
    let cases = [
        ("us-east-1", "kms.us-east-1.amazonaws.com"),
        ("mx-central-1", "kms.mx-central-1.amazonaws.com"),
        ("moon-base-1", "kms.moon-base-1.amazonaws.com"),
        ("cn-northwest-1", "kms.cn-northwest-1.amazonaws.com.cn"),
        ("us-gov-west-1", "kms.us-gov-west-1.amazonaws.com"),
        ("eusc-de-east-1", "kms.eusc-de-east-1.amazonaws.eu"),
        ("us-iso-east-1", "kms.us-iso-east-1.c2s.ic.gov"),
        ("us-isob-east-1", "kms.us-isob-east-1.sc2s.sgov.gov"),
        ("eu-isoe-west-1", "kms.eu-isoe-west-1.cloud.adc-e.uk"),
        ("us-isof-south-1", "kms.us-isof-south-1.csp.hci.ic.gov"),
    ];
    for (region, host) in cases {
        let aws = aws(&doc(region, "alias/tsp"));
        let expected = Endpoint::at(host, Roots::Public);
        assert_eq!(aws.endpoint(), &expected);
        let request = aws
            .wrap_request(&dek(), None, &mut Session::default(), now())
            .unwrap();
        assert_eq!(header(&request, "host"), host);
    }
}

#[test]
fn a_custom_endpoint_changes_the_host_but_not_the_scope() {
    let cases = [
        (
            "https://KMS.internal",
            "kms.internal",
            443,
            true,
            "kms.internal",
        ),
        (
            "https://kms.internal:443/",
            "kms.internal",
            443,
            true,
            "kms.internal",
        ),
        (
            "https://kms.internal:8443",
            "kms.internal",
            8443,
            true,
            "kms.internal:8443",
        ),
        ("http://kms_sim:80", "kms_sim", 80, false, "kms_sim"),
        (
            "http://127.0.0.1:443",
            "127.0.0.1",
            443,
            false,
            "127.0.0.1:443",
        ),
        ("http://[::1]:5600/", "::1", 5600, false, "[::1]:5600"),
    ];
    for (url, host, port, tls, host_header) in cases {
        let aws = aws(&at(url, "eu-west-1", "alias/tsp"));
        let expected = Endpoint {
            tls,
            port,
            ..Endpoint::at(host, Roots::Public)
        };
        assert_eq!(aws.endpoint(), &expected, "{url}");
        let request = aws
            .wrap_request(&dek(), None, &mut Session::default(), now())
            .unwrap();
        assert_eq!(header(&request, "host"), host_header);
        assert!(
            header(&request, "authorization").contains("/20260115/eu-west-1/kms/aws4_request,")
        );
    }
}

/// Which member a document is refused for.
fn refused_member(doc: &KmsConfigDoc) -> &'static str {
    let error = Kms::from_doc(doc).unwrap_err();
    assert_eq!(error.tsp_code().number(), 207);
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("`{}` must be ", error.member())),
        "{text}"
    );
    error.member()
}

#[test]
fn a_wrong_endpoint_is_refused() {
    let urls = [
        "",
        "kms.internal",
        "kms.internal:8443",
        "//kms.internal",
        "ftp://kms.internal",
        "https://",
        "https://:443",
        "https://kms.internal:",
        "https://kms.internal:0",
        "https://kms.internal:65536",
        "https://kms.internal/path",
        "https://kms.internal/?query",
        "https://kms.internal#fragment",
        "https://user:password@kms.internal",
        "https://kms..internal",
        "https://kms.internal.",
        "https://kms internal",
        "https://kms\tinternal",
        "https://kms.internal\r\nx: y",
        "https://kmß.internal",
        "https://[::1",
        "https://[kms]",
        "https://[fe80::1%25eth0]",
    ];
    for url in urls {
        assert_eq!(
            refused_member(&at(url, "eu-west-1", "alias/tsp")),
            "endpoint",
            "{url:?}"
        );
    }
    let long = format!("https://{}", "a.".repeat(300));
    assert_eq!(
        refused_member(&at(&long, "eu-west-1", "alias/tsp")),
        "endpoint"
    );
}

#[test]
fn plain_http_must_be_allowed_explicitly() {
    let mut doc = at("http://127.0.0.1:5600", "eu-west-1", "alias/tsp");
    assert!(!aws(&doc).endpoint().tls);
    doc.allow_insecure = false;
    assert_eq!(refused_member(&doc), "endpoint");
}

#[test]
fn roots_are_public_unless_the_configuration_brings_its_own() {
    let mut doc = doc("eu-west-1", "alias/tsp");
    let pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    doc.ca_pem = Some(pem.to_owned());
    assert_eq!(aws(&doc).endpoint().roots, Roots::Pem(pem.into()));
    for wrong in ["", "MIIB", "-----BEGIN PRIVATE KEY-----", &pem.repeat(6000)] {
        doc.ca_pem = Some(wrong.to_owned());
        assert_eq!(refused_member(&doc), "ca_file");
    }
}

#[test]
fn a_wrong_region_is_refused() {
    for region in [
        "",
        "EU-WEST-1",
        "eu west 1",
        "eu-west-1 ",
        "-eu",
        "eu-",
        "eu.west",
        "eu/1",
        "a\tb",
        &"a".repeat(64),
    ] {
        assert_eq!(
            refused_member(&doc(region, "alias/tsp")),
            "region",
            "{region:?}"
        );
    }
}

#[test]
fn a_wrong_key_id_is_refused() {
    let long = format!("alias/{}", "a".repeat(2048));
    let wrong = [
        "",
        "key/1234abcd",
        "alias/",
        "alias/a b",
        "alias/a\u{7}",
        "1234 abcd",
        "1234abcd\n",
        long.as_str(),
        "arn:",
        "arn:aws:kms:eu-west-1:111122223333",
        "arn:aws:kms:eu-west-1:111122223333:",
        "arn:aws:kms:eu-west-1:111122223333:1234abcd",
        "arn:aws:kms:eu-west-1:111122223333:key/",
        "arn:aws:kms:eu-west-1:111122223333:key/a/b",
        "arn:aws:kms:eu-west-1:11112222333:key/1234abcd",
        "arn:aws:kms::111122223333:key/1234abcd",
        "arn:aws:iam:eu-west-1:111122223333:key/1234abcd",
        // Another partition than the region's, by name or by the ARN's own region.
        "arn:aws-cn:kms:eu-west-1:111122223333:key/1234abcd",
        "arn:aws:kms:cn-north-1:111122223333:key/1234abcd",
        "arn:aws-cn:kms:cn-north-1:111122223333:alias/tsp",
    ];
    for key_id in wrong {
        assert_eq!(
            refused_member(&doc("eu-west-1", key_id)),
            "keyID",
            "{key_id:?}"
        );
    }
    // A replica's ARN may name another region of the partition.
    aws(&doc(
        "eu-west-1",
        "arn:aws:kms:us-east-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab",
    ));
    aws(&doc(
        "cn-north-1",
        "arn:aws-cn:kms:cn-northwest-1:111122223333:alias/a:b/c",
    ));
}

#[test]
fn wrong_credentials_are_refused_and_not_repeated() {
    let canary = "SeCrEtCaNaRy";
    let refused = |id: &str, secret: &str, token: Option<&str>| {
        let mut doc = doc("eu-west-1", "alias/tsp");
        doc.key = KmsKeyDoc::Aws {
            key_id: "alias/tsp".to_owned(),
            region: "eu-west-1".to_owned(),
            access_key_id: id.to_owned(),
            secret_access_key: Secret::new(secret.to_owned()),
            session_token: token.map(|token| Secret::new(token.to_owned())),
            assume_role: None,
            sts_endpoint: None,
        };
        let error = Kms::from_doc(&doc).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(canary));
        error.member()
    };
    let not_visible = [" ", "\t", "\r\n", "ü", "\u{0}", "\u{7f}"];
    for wrong in not_visible.map(|wrong| format!("{canary}{wrong}")) {
        assert_eq!(refused(&wrong, "s", None), "accessKeyId");
        assert_eq!(refused("A", &wrong, None), "secretAccessKey");
        assert_eq!(refused("A", "s", Some(&wrong)), "sessionToken");
    }
    let long = canary.repeat(1000);
    for wrong in ["", "A/B", "A=B", long.as_str()] {
        assert_eq!(refused(wrong, "s", None), "accessKeyId");
    }
    for wrong in ["", long.as_str()] {
        assert_eq!(refused("A", wrong, None), "secretAccessKey");
        assert_eq!(refused("A", "s", Some(wrong)), "sessionToken");
    }
}

fn answer<T>(read: impl FnOnce(&HttpAnswer<'_>) -> T, status: u16, body: impl AsRef<[u8]>) -> T {
    let headers = String::new();
    read(&HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: body.as_ref(),
    })
}

#[test]
fn a_blob_is_read_whatever_stands_beside_it() {
    let aws = aws(&doc("us-east-1", KEY_ARN));
    let body = r#" {"EncryptionAlgorithm":"SYMMETRIC_DEFAULT","New":{"a":[1,{}]},"CiphertextBlob":"AQID+/8=","KeyId":"x"} "#;
    assert_eq!(
        answer(|a| aws.read_wrap(a), 200, body).unwrap(),
        [1, 2, 3, 0xfb, 0xff]
    );
    let largest = format!(r#"{{"CiphertextBlob":"{}"}}"#, BASE64.encode([9; 6144]));
    assert_eq!(
        answer(|a| aws.read_wrap(a), 200, largest).unwrap(),
        [9; 6144]
    );
}

#[test]
fn an_unusable_answer_to_a_wrap_is_a_failed_wrap() {
    let aws = aws(&doc("us-east-1", KEY_ARN));
    let bodies = [
        String::new(),
        "null".to_owned(),
        "<html></html>".to_owned(),
        "{}".to_owned(),
        r#"{"CiphertextBlob":"AQID"#.to_owned(),
        r#"{"CiphertextBlob":"AQID"}{}"#.to_owned(),
        r#"{"CiphertextBlob":""}"#.to_owned(),
        r#"{"CiphertextBlob":null}"#.to_owned(),
        r#"{"CiphertextBlob":7}"#.to_owned(),
        r#"{"CiphertextBlob":["AQID"]}"#.to_owned(),
        r#"{"CiphertextBlob":"AQI"}"#.to_owned(),
        r#"{"CiphertextBlob":"AQ-_"}"#.to_owned(),
        r#"{"CiphertextBlob":"\u0041QID"}"#.to_owned(),
        r#"{"CiphertextBlob":"AQID","CiphertextBlob":"AQID"}"#.to_owned(),
        r#"{"__type":"InternalFailure","message":"an error with a good status"}"#.to_owned(),
        format!(r#"{{"CiphertextBlob":"{}"}}"#, BASE64.encode([9; 6147])),
        format!(r#"{{"a":{}"#, "[".repeat(60_000)),
    ];
    for body in bodies {
        let error = answer(|a| aws.read_wrap(a), 200, &body).unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::WrapFailed, Retry::No),
            "{body}"
        );
    }
    let redirect = answer(|a| aws.read_wrap(a), 302, r#"{"CiphertextBlob":"AQID"}"#).unwrap_err();
    assert_eq!(redirect.kind(), KmsErrorKind::Configuration);
    let created = answer(|a| aws.read_wrap(a), 201, r#"{"CiphertextBlob":"AQID"}"#).unwrap_err();
    assert_eq!(created.kind(), KmsErrorKind::WrapFailed);
}

#[test]
fn a_dek_is_read_only_if_it_has_32_bytes() {
    let aws = aws(&doc("us-east-1", KEY_ARN));
    let read = |plaintext: &str| {
        let body =
            format!(r#"{{"KeyId":"{KEY_ARN}","Plaintext":{plaintext},"KeyMaterialId":"x"}}"#);
        answer(|a| aws.read_unwrap(a), 200, body)
    };
    let sound = "\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"";
    assert_eq!(read(sound).unwrap().expose(), dek().expose());
    let wrong = [
        format!("\"{}\"", BASE64.encode([1; 31])),
        format!("\"{}\"", BASE64.encode([1; 33])),
        "\"\"".to_owned(),
        "null".to_owned(),
        "1".to_owned(),
        format!("[{sound}]"),
        // Padding or digits that do not fit, the other alphabet, an escape.
        sound.replace("8=", "8"),
        sound.replace("8=", "9="),
        sound.replace("Hh8", "H-8"),
        sound.replacen('A', "\\u0041", 1),
        sound.replacen('A', "\\/", 1),
    ];
    for plaintext in wrong {
        let error = read(&plaintext).unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::UnwrapFailed, Retry::No),
            "{plaintext}"
        );
    }
    let missing = answer(
        |a| aws.read_unwrap(a),
        200,
        r#"{"CiphertextForRecipient":"AA=="}"#,
    );
    assert_eq!(missing.unwrap_err().kind(), KmsErrorKind::UnwrapFailed);
}

#[test]
fn base64_is_the_standard_alphabet_with_padding() {
    let aws = aws(&doc("us-east-1", KEY_ARN));
    let read = |text: &Value| {
        answer(
            |a| aws.read_wrap(a),
            200,
            format!(r#"{{"CiphertextBlob":{text}}}"#),
        )
    };
    let file = json(include_bytes!("../../tests/data/base64.json"));
    for case in file["cases"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|case| case["hex"] != "")
    {
        assert_eq!(
            ::hex::encode(read(&case["base64"]).unwrap()),
            case["hex"].as_str().unwrap()
        );
    }
    for text in file["invalid_base64"].as_array().unwrap() {
        assert_eq!(
            read(text).unwrap_err().kind(),
            KmsErrorKind::WrapFailed,
            "{text}"
        );
    }
}

/// Answers as KMS does when it checks a request's time: five minutes either way.
fn checked(
    aws: &dyn RemoteKms,
    session: &mut Session,
    ours: SystemTime,
    theirs: SystemTime,
) -> Result<(), KmsError> {
    let request = aws.wrap_request(&dek(), None, session, ours).unwrap();
    let spell = |time| {
        Stamp::new(crate::session::unix_seconds(time))
            .time()
            .to_owned()
    };
    let stamp = header(&request, "x-amz-date");
    let tolerance = Duration::from_secs(300);
    let why = if stamp < spell(theirs - tolerance).as_str() {
        "Signature expired: …"
    } else if stamp > spell(theirs + tolerance).as_str() {
        "Signature not yet current: …"
    } else {
        return Ok(());
    };
    let headers = format!("date: {}\r\n", httpdate::fmt_http_date(theirs));
    let body = format!(r#"{{"__type":"InvalidSignatureException","message":"{why}"}}"#);
    Err(aws
        .read_wrap(&HttpAnswer {
            status: 400,
            headers: headers.as_bytes(),
            body: body.as_bytes(),
        })
        .unwrap_err())
}

#[test]
fn a_clock_four_minutes_off_is_fine_and_six_are_repaired_once() {
    let aws = aws(&doc("us-east-1", KEY_ARN));
    for forward in [true, false] {
        let off = |seconds| {
            let difference = Duration::from_secs(seconds);
            if forward {
                now() + difference
            } else {
                now() - difference
            }
        };
        let mut session = Session::default();
        checked(&*aws, &mut session, off(240), now()).unwrap();
        let error = checked(&*aws, &mut session, off(360), now()).unwrap_err();
        assert!(session.repair(&error));
        for hours in 0..48 {
            let later = Duration::from_secs(3600 * hours);
            checked(&*aws, &mut session, off(360) + later, now() + later).unwrap();
        }
        // Somebody sets the clock right: the remembered offset is the fault now, and goes.
        let error = checked(&*aws, &mut session, now(), now()).unwrap_err();
        assert!(session.repair(&error));
        checked(&*aws, &mut session, now(), now()).unwrap();
    }
}

#[test]
fn a_request_signed_just_before_midnight_keeps_its_day() {
    let aws = aws(&doc("us-east-1", KEY_ARN));
    let midnight = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    let mut session = Session::default();
    for (before, stamp, day) in [
        (Duration::from_millis(1), "20251231T235959Z", "/20251231/"),
        (Duration::ZERO, "20260101T000000Z", "/20260101/"),
    ] {
        let request = aws
            .wrap_request(&dek(), None, &mut session, midnight - before)
            .unwrap();
        assert_eq!(header(&request, "x-amz-date"), stamp);
        assert!(header(&request, "authorization").contains(day));
    }
    // A repaired clock moves the day of the signature with it.
    let theirs = midnight + Duration::from_secs(360);
    let ours = midnight - Duration::from_secs(60);
    let error = checked(&*aws, &mut session, ours, theirs).unwrap_err();
    assert!(session.repair(&error));
    let request = aws.wrap_request(&dek(), None, &mut session, ours).unwrap();
    assert_eq!(header(&request, "x-amz-date"), "20260101T000600Z");
    assert!(header(&request, "authorization").contains("/20260101/"));
}

#[test]
fn times_that_no_date_can_express_do_not_panic() {
    let aws = aws(&doc("us-east-1", KEY_ARN));
    let mut session = Session::default();
    for time in [
        UNIX_EPOCH - Duration::from_secs(1),
        UNIX_EPOCH + Duration::from_secs(1 << 60),
    ] {
        let request = aws.wrap_request(&dek(), None, &mut session, time).unwrap();
        assert_eq!(header(&request, "x-amz-date").len(), 16);
    }
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic(
        status in 0..1000_u16,
        names in proptest::collection::vec(
            proptest::sample::select(vec!["date", "retry-after", "x-amz-retry-after", "x-amzn-errortype", "x-amzn-requestid"]),
            0..4,
        ),
        value in proptest::collection::vec(any::<u8>(), 0..40),
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            "[{}<>\\[\\]\":,/&;#!a-z0-9_\\\\ ]{0,200}".prop_map(String::into_bytes),
            "\\{\"(__type|code|message|Message|Plaintext|CiphertextBlob)\":\"?.{0,80}\"?[},].{0,40}".prop_map(String::into_bytes),
            "<ErrorResponse><Error><(Code|Message)>.{0,80}(</Code>)?.{0,80}".prop_map(String::into_bytes),
        ],
    ) {
        let aws = aws(&doc("us-east-1", KEY_ARN));
        let mut headers = Vec::new();
        for name in names {
            headers.extend_from_slice(name.as_bytes());
            headers.extend_from_slice(&[b": ", &*value, b"\r\n"].concat());
        }
        let answer = HttpAnswer { status, headers: &headers, body: &body };
        for error in [aws.read_wrap(&answer).err(), aws.read_unwrap(&answer).err()].into_iter().flatten() {
            prop_assert!(!error.sentence().is_empty());
            prop_assert!(error.to_string().chars().count() < 600);
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }
}
