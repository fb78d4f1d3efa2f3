//! AWS: botocore's signed requests are accepted and nothing else is; what each state of a key says.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::Method;
use serde_json::{Value, json};

use crate::kmssim::{
    aws::AwsErrorStyle,
    exchange::{Failure, Refusal, Request, Verdict},
    testing::{AwsSigner, Trial, VECTORS_UNIX_S, body, data, text},
    world::{
        AwsAccessKeyDoc, AwsDoc, AwsKeyDoc, AwsKeyState, AwsRoleDoc, ClientKey, CredentialState,
        SampleShape, WorldDoc,
    },
};

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const KEY: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

/// The world in which the vectors' requests make sense.
fn vector_world(secret: &str) -> WorldDoc {
    let access_key = |id: &str, token: Option<&str>| AwsAccessKeyDoc {
        access_key_id: id.to_owned(),
        secret_access_key: secret.to_owned(),
        session_token: token.map(str::to_owned),
        expires_unix_s: None,
        arn: "arn:aws:iam::111122223333:user/u".to_owned(),
        state: CredentialState::Active,
    };
    let token = "FwoGZXIvYXdzEXAMPLETOKEN//////////wEaDExampleSessionToken+with/slash==";
    let regions = [
        ("aws", "us-east-1"),
        ("aws", "eu-west-1"),
        ("aws", "us-west-2"),
        ("aws", "eu-central-1"),
        ("aws", "ap-southeast-2"),
        ("aws-us-gov", "us-gov-west-1"),
        ("aws-us-gov", "us-gov-east-1"),
        ("aws-cn", "cn-north-1"),
        ("aws-cn", "cn-northwest-1"),
    ];
    let keys = regions.map(|(partition, region)| AwsKeyDoc {
        arn: format!("arn:{partition}:kms:{region}:111122223333:key/{KEY}"),
        aliases: vec!["alias/tsp".to_owned(), "alias/tsp-ü".to_owned()],
        state: AwsKeyState::Enabled,
        usage: "ENCRYPT_DECRYPT".to_owned(),
        allows: Vec::new(),
        rotations: 0,
    });
    let roles = ["aws", "aws-cn"].map(|partition| AwsRoleDoc {
        arn: format!("arn:{partition}:iam::444455556666:role/tsp-kms"),
        trusts: vec!["arn:aws:iam::111122223333:root".to_owned()],
        external_id: None,
        duration_s_max: 43_200,
        state: CredentialState::Active,
    });
    WorldDoc {
        aws: AwsDoc {
            access_keys: vec![
                access_key("AKIAIOSFODNN7EXAMPLE", None),
                access_key("ASIAIOSFODNN7EXAMPLE", Some(token)),
            ],
            roles: roles.to_vec(),
            keys: keys.to_vec(),
            ..AwsDoc::default()
        },
        ..WorldDoc::default()
    }
}

fn unix_s(stamp: &str) -> u64 {
    let time = chrono::NaiveDateTime::parse_from_str(stamp, "%Y%m%dT%H%M%SZ").unwrap();
    time.and_utc().timestamp().try_into().unwrap()
}

/// The signed request of a vector, and when it was signed.
fn vector(case: &Value) -> (Request, u64) {
    let (input, expect) = (&case["input"], &case["expect"]);
    let members = [&input["headers_before_signing"], &expect["headers_added"]];
    let headers: Vec<_> = members
        .into_iter()
        .flat_map(|headers| headers.as_object().unwrap())
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
        .collect();
    let body = text(input, "body_utf8").to_owned();
    let request = Request::made(Method::POST, text(input, "url"), &headers, body);
    (request, unix_s(text(input, "timestamp")))
}

fn vectors() -> Vec<Value> {
    let file = data("aws-sigv4-kms.json");
    let cases = file["cases"].as_array().unwrap().clone();
    assert_eq!(cases.len(), 19);
    cases
}

#[test]
fn all_requests_that_botocore_signed_are_accepted() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    for case in vectors() {
        let (request, signed_at) = vector(&case);
        trial.set_time(signed_at);
        let reply = trial.send(&request);
        // These two carry bytes that no KMS made; the first names a key of another region besides.
        let expected = match text(&case, "name") {
            "decrypt-us-west-2" => Verdict::Failed(Failure::NotFound),
            "re-encrypt" => Verdict::Failed(Failure::Ciphertext),
            _ => Verdict::Answered,
        };
        assert_eq!(
            reply.verdict, expected,
            "{}: {} {}",
            case["name"], reply.code, reply.reason
        );
    }
}

#[test]
fn none_of_them_is_accepted_with_another_secret() {
    let mut trial = Trial::of_world(&vector_world(&SECRET.replace("EXAMPLE", "example")));
    for case in vectors() {
        let (request, signed_at) = vector(&case);
        trial.set_time(signed_at);
        let (_, code, verdict) = trial.refused(&request);
        let expected = match text(&case["input"], "service") {
            "kms" => "InvalidSignatureException",
            _ => "SignatureDoesNotMatch",
        };
        assert_eq!(
            (code.as_str(), verdict),
            (expected, Verdict::Refused(Refusal::Credential))
        );
    }
}

#[test]
fn none_of_them_is_accepted_with_another_body_or_target() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    for case in vectors() {
        let (request, signed_at) = vector(&case);
        trial.set_time(signed_at);
        let mut other = request.clone();
        other.body = [other.body.as_ref(), b" "].concat().into();
        let mut changed = vec![other];
        if request.header("x-amz-target").is_some() {
            let mut other = request.clone();
            other.parts.headers.insert(
                "x-amz-target",
                http::HeaderValue::from_static("TrentService.ListKeys"),
            );
            changed.push(other);
        }
        for request in changed {
            let (_, _, verdict) = trial.refused(&request);
            assert_eq!(
                verdict,
                Verdict::Refused(Refusal::Credential),
                "{}",
                case["name"]
            );
        }
    }
}

#[test]
fn stock_clients_requests_are_accepted_with_all_their_headers() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let file = data("aws-wire-requests.json");
    for case in file["cases"].as_array().unwrap() {
        let headers: Vec<_> = case["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
            .collect();
        let body = text(case, "body_utf8").to_owned();
        let request = Request::made(Method::POST, text(case, "url"), &headers, body);
        let reply = trial.send(&request);
        // Some name a key of another region than they call, which is no matter of the signature.
        let accepted = matches!(
            reply.verdict,
            Verdict::Answered | Verdict::Failed(Failure::NotFound | Failure::Ciphertext)
        );
        assert!(
            accepted,
            "{}: {} {}",
            case["name"], reply.code, reply.reason
        );
    }
}

#[test]
fn a_signature_is_good_for_five_minutes_either_way_and_says_so_afterwards() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let (request, signed_at) = vector(&vectors()[0]);
    for minutes in [0, 4, 5] {
        for now in [signed_at + minutes * 60, signed_at - minutes * 60] {
            trial.set_time(now);
            assert_eq!(trial.send(&request).verdict, Verdict::Answered);
        }
    }
    trial.set_time(signed_at + 301);
    let late = trial.send(&request);
    assert_eq!(late.verdict, Verdict::Refused(Refusal::Clock));
    assert_eq!(
        late.reason,
        "Signature expired: 20260115T101530Z is now earlier than 20260115T101531Z (20260115T102031Z - 5 min.)"
    );
    assert_eq!(text(&body(&late), "__type"), "InvalidSignatureException");
    assert_eq!(late.headers["date"], "Thu, 15 Jan 2026 10:20:31 GMT");
    trial.set_time(signed_at - 301);
    let early = trial.send(&request);
    assert!(
        early.reason.starts_with("Signature not yet current: "),
        "{}",
        early.reason
    );
}

#[test]
fn a_request_without_credentials_or_with_unknown_ones_is_refused_by_name() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let headers = [
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", "TrentService.Encrypt"),
    ];
    let url = "https://kms.us-east-1.amazonaws.com/";
    let request = Request::made(Method::POST, url, &headers, "{}");
    assert_eq!(
        trial.refused(&request).1,
        "MissingAuthenticationTokenException"
    );
    let stranger = AwsSigner {
        access_key_id: "AKIASTRANGER00000000".to_owned(),
        ..signer()
    };
    let request = stranger.kms("Encrypt", &json!({}));
    assert_eq!(trial.refused(&request).1, "UnrecognizedClientException");
    for garbage in [
        "AWS4-HMAC-SHA256",
        "Basic eA==",
        "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=, Signature=",
    ] {
        let with = [headers[0], headers[1], ("authorization", garbage)];
        let request = Request::made(Method::POST, url, &with, "{}");
        let (_, code, _) = trial.refused(&request);
        assert!(code.ends_with("Exception"), "{garbage}: {code}");
    }
}

#[test]
fn temporary_credentials_need_their_token_and_end() {
    let mut world = vector_world(SECRET);
    world.aws.access_keys[1].expires_unix_s = Some(VECTORS_UNIX_S + 10);
    let mut trial = Trial::of_world(&world);
    let without = AwsSigner {
        access_key_id: "ASIAIOSFODNN7EXAMPLE".to_owned(),
        ..signer()
    };
    let plain = json!({ "KeyId": KEY, "Plaintext": "AAEC" });
    assert_eq!(
        trial.refused(&without.kms("Encrypt", &plain)).1,
        "UnrecognizedClientException"
    );
    let with = AwsSigner {
        session_token: world.aws.access_keys[1].session_token.clone(),
        ..without
    };
    trial.ask(&with.kms("Encrypt", &plain));
    trial.set_time(VECTORS_UNIX_S + 10);
    assert_eq!(
        trial.refused(&with.kms("Encrypt", &plain)).1,
        "ExpiredTokenException"
    );
}

fn signer() -> AwsSigner {
    AwsSigner {
        access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
        secret_access_key: SECRET.to_owned(),
        session_token: None,
        region: "us-east-1".to_owned(),
        service: "kms",
        unix_s: VECTORS_UNIX_S,
    }
}

fn arn() -> String {
    format!("arn:aws:kms:us-east-1:111122223333:key/{KEY}")
}

fn encrypt(trial: &mut Trial, key: &str, context: &Value) -> String {
    let request = json!({ "KeyId": key, "Plaintext": "AAECAwQ=", "EncryptionContext": context });
    let answer = trial.ask(&signer().kms("Encrypt", &request));
    assert_eq!(text(&answer, "KeyId"), arn());
    text(&answer, "CiphertextBlob").to_owned()
}

#[test]
fn every_form_of_a_key_id_encrypts_and_the_blob_decrypts_without_any() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let alias_arn = "arn:aws:kms:us-east-1:111122223333:alias/tsp";
    for key in [KEY, &arn(), "alias/tsp", alias_arn] {
        let blob = encrypt(&mut trial, key, &json!({}));
        let length = BASE64.decode(&blob).unwrap().len();
        assert!(length < 190, "{length}");
        for more in [json!({}), json!({ "KeyId": key })] {
            let mut request = json!({ "CiphertextBlob": blob });
            request
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let answer = trial.ask(&signer().kms("Decrypt", &request));
            assert_eq!(text(&answer, "Plaintext"), "AAECAwQ=");
            assert_eq!(text(&answer, "KeyMaterialId").len(), 64);
        }
    }
}

#[test]
fn a_blob_opens_only_with_its_context_its_key_and_all_its_bits() {
    let mut world = vector_world(SECRET);
    let mut second = world.aws.keys[0].clone();
    second.arn = second.arn.replace("1234abcd", "ffffffff");
    second.aliases.clear();
    let second_arn = second.arn.clone();
    world.aws.keys.push(second);
    let mut trial = Trial::of_world(&world);
    let blob = encrypt(&mut trial, KEY, &json!({ "a": "1", "b": "2" }));
    let decrypt = |blob: &str, context: Value, key: Option<&str>| {
        let mut request = json!({ "CiphertextBlob": blob, "EncryptionContext": context });
        if let Some(key) = key {
            request["KeyId"] = key.into();
        }
        signer().kms("Decrypt", &request)
    };
    trial.ask(&decrypt(&blob, json!({ "b": "2", "a": "1" }), None));
    for context in [
        json!({}),
        json!({ "a": "1" }),
        json!({ "a": "2", "b": "1" }),
        json!({ "A": "1", "b": "2" }),
    ] {
        assert_eq!(
            trial.refused(&decrypt(&blob, context, None)).1,
            "InvalidCiphertextException"
        );
    }
    let context = json!({ "a": "1", "b": "2" });
    let wrong_key = decrypt(&blob, context.clone(), Some(&second_arn));
    assert_eq!(trial.refused(&wrong_key).1, "IncorrectKeyException");
    let bytes = BASE64.decode(&blob).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let (status, code, verdict) =
            trial.refused(&decrypt(&BASE64.encode(changed), context.clone(), None));
        assert_eq!(
            (status, code.as_str()),
            (400, "InvalidCiphertextException"),
            "byte {at}"
        );
        assert_eq!(verdict, Verdict::Failed(Failure::Ciphertext));
    }
    for length in 1..bytes.len() {
        let cut = BASE64.encode(&bytes[..length]);
        assert_eq!(
            trial.refused(&decrypt(&cut, context.clone(), None)).1,
            "InvalidCiphertextException"
        );
    }
}

#[test]
fn each_state_of_a_key_has_its_error() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let blob = encrypt(&mut trial, KEY, &json!({}));
    for (state, code, status) in [
        (AwsKeyState::Disabled, "DisabledException", 400),
        (
            AwsKeyState::PendingDeletion,
            "KMSInvalidStateException",
            400,
        ),
        (AwsKeyState::PendingImport, "KMSInvalidStateException", 400),
        (AwsKeyState::Unavailable, "KMSInvalidStateException", 400),
        (AwsKeyState::Creating, "KMSInvalidStateException", 400),
        (AwsKeyState::Deleted, "NotFoundException", 400),
    ] {
        for key in trial.sim.world.aws.keys_named(&arn()) {
            key.doc.state = state;
        }
        let request = json!({ "KeyId": KEY, "Plaintext": "AAEC" });
        let refused = trial.refused(&signer().kms("Encrypt", &request));
        assert_eq!((refused.0, refused.1.as_str()), (status, code));
        let named = json!({ "KeyId": KEY, "CiphertextBlob": blob });
        assert_eq!(trial.refused(&signer().kms("Decrypt", &named)).1, code);
    }
    // Without a key id, KMS does not tell that the key is gone.
    let request = json!({ "CiphertextBlob": blob });
    assert_eq!(
        trial.refused(&signer().kms("Decrypt", &request)).1,
        "AccessDeniedException"
    );
}

#[test]
fn what_is_not_there_or_not_allowed_is_told_apart() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let mut code = |key: &str| {
        let request = json!({ "KeyId": key, "Plaintext": "AAEC" });
        trial.refused(&signer().kms("Encrypt", &request)).1
    };
    assert_eq!(code("alias/none"), "NotFoundException");
    assert_eq!(
        code("ffffffff-12ab-34cd-56ef-1234567890ab"),
        "NotFoundException"
    );
    assert_eq!(
        code(&format!("arn:aws:kms:eu-west-1:111122223333:key/{KEY}")),
        "NotFoundException"
    );
    assert_eq!(code(""), "ValidationException");
    for key in trial.sim.world.aws.keys_named(KEY) {
        key.denied.set(None, true);
    }
    let request = json!({ "KeyId": KEY, "Plaintext": "AAEC" });
    let (status, code, verdict) = trial.refused(&signer().kms("Encrypt", &request));
    assert_eq!((status, code.as_str()), (400, "AccessDeniedException"));
    assert_eq!(verdict, Verdict::Failed(Failure::Permission));
}

#[test]
fn malformed_requests_are_refused_by_their_names() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let long = BASE64.encode([0; 4097]);
    for (operation, body, code) in [
        (
            "Encrypt",
            json!({ "Plaintext": "AAEC" }),
            "ValidationException",
        ),
        ("Encrypt", json!({ "KeyId": KEY }), "ValidationException"),
        (
            "Encrypt",
            json!({ "KeyId": KEY, "Plaintext": "" }),
            "ValidationException",
        ),
        (
            "Encrypt",
            json!({ "KeyId": KEY, "Plaintext": long }),
            "ValidationException",
        ),
        (
            "Encrypt",
            json!({ "KeyId": KEY, "Plaintext": "AAE-" }),
            "SerializationException",
        ),
        (
            "Encrypt",
            json!({ "KeyId": 7, "Plaintext": "AAEC" }),
            "SerializationException",
        ),
        ("Encrypt", json!([]), "SerializationException"),
        ("Decrypt", json!({}), "ValidationException"),
        ("DeleteEverything", json!({}), "UnknownOperationException"),
        (
            "Encrypt",
            json!({ "KeyId": KEY, "Plaintext": "AAEC", "EncryptionAlgorithm": "RSAES_OAEP_SHA_256" }),
            "InvalidKeyUsageException",
        ),
    ] {
        let (_, found, verdict) = trial.refused(&signer().kms(operation, &body));
        assert_eq!(found, code, "{body}");
        assert!(matches!(
            verdict,
            Verdict::Refused(Refusal::Parameter | Refusal::Protocol)
        ));
    }
}

#[test]
fn a_rotated_key_still_opens_what_was_sealed_before() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let old = encrypt(&mut trial, KEY, &json!({}));
    for key in trial.sim.world.aws.keys_named(KEY) {
        key.rotate();
    }
    let new = encrypt(&mut trial, KEY, &json!({}));
    let mut material = |blob: &str| {
        let answer = trial.ask(&signer().kms("Decrypt", &json!({ "CiphertextBlob": blob })));
        text(&answer, "KeyMaterialId").to_owned()
    };
    assert_ne!(material(&old), material(&new));
}

#[test]
fn data_keys_re_encryption_and_descriptions_work() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let made = trial.ask(&signer().kms(
        "GenerateDataKey",
        &json!({ "KeyId": KEY, "KeySpec": "AES_256" }),
    ));
    let plaintext = text(&made, "Plaintext").to_owned();
    assert_eq!(BASE64.decode(&plaintext).unwrap().len(), 32);
    let moved = trial.ask(&signer().kms(
        "ReEncrypt",
        &json!({ "CiphertextBlob": made["CiphertextBlob"], "DestinationKeyId": "alias/tsp",
            "DestinationEncryptionContext": { "x": "y" } }),
    ));
    let opened = trial.ask(&signer().kms(
        "Decrypt",
        &json!({ "CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": { "x": "y" } }),
    ));
    assert_eq!(text(&opened, "Plaintext"), plaintext);
    let described = trial.ask(&signer().kms("DescribeKey", &json!({ "KeyId": "alias/tsp" })));
    assert_eq!(described["KeyMetadata"]["KeyState"], "Enabled");
}

#[test]
fn multi_region_keys_share_their_material() {
    let mut world = vector_world(SECRET);
    for region in ["us-east-1", "eu-west-1"] {
        let mut key = world.aws.keys[0].clone();
        key.arn = format!("arn:aws:kms:{region}:111122223333:key/mrk-1234");
        key.aliases.clear();
        world.aws.keys.push(key);
    }
    let mut trial = Trial::of_world(&world);
    let request = json!({ "KeyId": "mrk-1234", "Plaintext": "AAEC" });
    let sealed = trial.ask(&signer().kms("Encrypt", &request));
    let abroad = AwsSigner {
        region: "eu-west-1".to_owned(),
        ..signer()
    };
    let opened = trial.ask(&abroad.kms(
        "Decrypt",
        &json!({ "CiphertextBlob": sealed["CiphertextBlob"] }),
    ));
    assert_eq!(
        text(&opened, "KeyId"),
        "arn:aws:kms:eu-west-1:111122223333:key/mrk-1234"
    );
    // A key of one region is unknown in the other.
    let single = encrypt(&mut trial, KEY, &json!({}));
    let refused = trial.refused(&abroad.kms("Decrypt", &json!({ "CiphertextBlob": single })));
    assert_eq!(refused.1, "AccessDeniedException");
}

#[test]
fn a_signature_for_another_region_or_service_is_refused() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let headers = [
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", "TrentService.DescribeKey"),
    ];
    let body = json!({ "KeyId": KEY }).to_string();
    let url = "https://kms.us-east-1.amazonaws.com/";
    let mut other = signer();
    other.region = "eu-west-1".to_owned();
    assert_eq!(
        trial.refused(&other.sign(url, &headers, &body)).1,
        "InvalidSignatureException"
    );
    let other = AwsSigner {
        service: "sts",
        ..signer()
    };
    assert_eq!(
        trial.refused(&other.sign(url, &headers, &body)).1,
        "InvalidSignatureException"
    );
    // Under a name of our own, the client decides about the region.
    trial.ask(&signer().sign("https://localhost:1234/", &headers, &body));
}

fn member<'a>(xml: &'a str, name: &str) -> &'a str {
    let (_, rest) = xml
        .split_once(&format!("<{name}>"))
        .unwrap_or_else(|| panic!("no {name} in {xml}"));
    rest.split_once("</").unwrap().0
}

#[test]
fn an_assumed_role_uses_the_keys_of_its_account_until_it_ends() {
    let mut trial = Trial::of_sample(&SampleShape {
        aws_roles: true,
        ..SampleShape::default()
    });
    let ClientKey::Aws {
        key_id,
        access_key_id,
        secret_access_key,
        role_arn,
        external_id,
        ..
    } = trial.clients[0].key.clone()
    else {
        panic!("the first is AWS")
    };
    let (role, external) = (role_arn.unwrap(), external_id.unwrap());
    let vendor = AwsSigner {
        access_key_id,
        secret_access_key,
        service: "sts",
        ..signer()
    };
    let assume = |external: Option<&str>, duration: &str| {
        let mut form = vec![
            ("Action", "AssumeRole"),
            ("Version", "2011-06-15"),
            ("RoleArn", role.as_str()),
            ("RoleSessionName", "tsp"),
            ("DurationSeconds", duration),
        ];
        form.extend(external.map(|id| ("ExternalId", id)));
        vendor.sts(&form)
    };
    for wrong in [None, Some("external-tenant-2")] {
        let refused = trial.refused(&assume(wrong, "900"));
        assert_eq!((refused.0, refused.1.as_str()), (403, "AccessDenied"));
    }
    assert_eq!(
        trial.refused(&assume(Some(&external), "899")).1,
        "ValidationError"
    );
    let reply = trial.send(&assume(Some(&external), "900"));
    assert_eq!(reply.verdict, Verdict::Answered, "{}", reply.reason);
    let xml = String::from_utf8(reply.body).unwrap();
    assert_eq!(member(&xml, "Expiration"), "2026-01-15T10:30:30Z");
    let session = AwsSigner {
        access_key_id: member(&xml, "AccessKeyId").to_owned(),
        secret_access_key: member(&xml, "SecretAccessKey").to_owned(),
        session_token: Some(member(&xml, "SessionToken").to_owned()),
        service: "kms",
        ..signer()
    };
    let request = json!({ "KeyId": key_id, "Plaintext": "AAEC" });
    trial.ask(&session.kms("Encrypt", &request));
    // The vendor itself may not.
    let as_vendor = AwsSigner {
        service: "kms",
        ..vendor.clone()
    };
    assert_eq!(
        trial.refused(&as_vendor.kms("Encrypt", &request)).1,
        "AccessDeniedException"
    );
    // A token of another session does not fit this access key.
    let other = trial.send(&assume(Some(&external), "900"));
    let mixed = AwsSigner {
        session_token: Some(
            member(&String::from_utf8(other.body).unwrap(), "SessionToken").to_owned(),
        ),
        ..session.clone()
    };
    assert_eq!(
        trial.refused(&mixed.kms("Encrypt", &request)).1,
        "UnrecognizedClientException"
    );
    trial.set_time(VECTORS_UNIX_S + 900);
    let late = AwsSigner {
        unix_s: VECTORS_UNIX_S + 900,
        ..session.clone()
    };
    let refused = trial.refused(&late.kms("Encrypt", &request));
    assert_eq!(
        (refused.1.as_str(), refused.2),
        ("ExpiredTokenException", Verdict::Refused(Refusal::Token))
    );
    trial.set_time(VECTORS_UNIX_S);
    assert!(trial.sim.world.aws.revoke_tokens(&role));
    let refused = trial.refused(&session.kms("Encrypt", &request));
    assert_eq!(
        (refused.1.as_str(), refused.2),
        ("ExpiredTokenException", Verdict::Failed(Failure::Revoked))
    );
}

#[test]
fn credentials_accounts_and_regions_can_be_switched_off() {
    let mut world = vector_world(SECRET);
    world.aws.sts_disabled_regions = vec!["ap-east-1".to_owned()];
    let mut trial = Trial::of_world(&world);
    let describe = signer().kms("DescribeKey", &json!({ "KeyId": KEY }));
    trial.ask(&describe);
    assert!(
        trial
            .sim
            .world
            .aws
            .set_credential("AKIAIOSFODNN7EXAMPLE", CredentialState::Disabled)
    );
    let refused = trial.refused(&describe);
    assert_eq!(
        (refused.1.as_str(), refused.2),
        (
            "UnrecognizedClientException",
            Verdict::Failed(Failure::Revoked)
        )
    );
    assert!(
        trial
            .sim
            .world
            .aws
            .set_credential("AKIAIOSFODNN7EXAMPLE", CredentialState::Active)
    );
    assert!(trial.sim.world.aws.set_account("111122223333", true));
    assert_eq!(trial.refused(&describe).1, "SubscriptionRequiredException");
    assert!(trial.sim.world.aws.set_account("111122223333", false));
    trial.ask(&describe);
    let abroad = AwsSigner {
        region: "ap-east-1".to_owned(),
        service: "sts",
        ..signer()
    };
    let form = [("Action", "AssumeRole"), ("Version", "2011-06-15")];
    assert_eq!(
        trial.refused(&abroad.sts(&form)).1,
        "RegionDisabledException"
    );
}

#[test]
fn the_code_of_an_error_is_where_the_style_says() {
    let mut trial = Trial::of_world(&vector_world(SECRET));
    let request = signer().kms("DescribeKey", &json!({ "KeyId": "alias/none" }));
    let mut styled = |style| {
        trial.sim.world.aws.error_style = style;
        let reply = trial.send(&request);
        (body(&reply), reply.headers.get("x-amzn-errortype").cloned())
    };
    let (plain, header) = styled(AwsErrorStyle::Plain);
    assert_eq!(
        (text(&plain, "__type"), header),
        ("NotFoundException", None)
    );
    let (namespaced, _) = styled(AwsErrorStyle::Namespaced);
    assert_eq!(
        text(&namespaced, "__type"),
        "com.amazonaws.kms#NotFoundException"
    );
    assert!(namespaced["Message"].is_string());
    let (bare, header) = styled(AwsErrorStyle::Header);
    assert!(bare["__type"].is_null());
    assert!(
        header
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("NotFoundException:http")
    );
}
