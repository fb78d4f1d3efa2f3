//! No secret leaves by a side door: not by `Debug`, and not by an error, whatever the KMS echoes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fmt::Debug,
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use proptest::prelude::*;
use tsp_kms::{
    HttpAnswer, HttpRequest, Kms, KmsKind, KmsOperation, RemoteKms, Retry, Session, Signed,
    TokenStep,
};
use tsp_wire::{
    Dek, Secret,
    snapshot::{AssumeRoleDoc, GcpTokenKind, KmsConfigDoc, KmsKeyDoc},
};

const SECRET: &str = "CANARYsecretCANARYsecretCANARYsecretCANA";
const TOKEN: &str = "CANARYtoken/CANARYtoken+CANARYtoken=";
const DEK: [u8; 32] = *b"CANARYdekCANARYdekCANARYdekCANAR";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_768_472_130)
}

fn doc(key: KmsKeyDoc) -> KmsConfigDoc {
    KmsConfigDoc {
        id: 1,
        leasing_allowed: true,
        key,
        endpoint: None,
        allow_insecure: false,
        ca_pem: None,
    }
}

fn aws_doc() -> KmsConfigDoc {
    doc(KmsKeyDoc::Aws {
        key_id: "alias/tsp".to_owned(),
        region: "eu-west-1".to_owned(),
        access_key_id: "ASIAIOSFODNN7EXAMPLE".to_owned(),
        secret_access_key: Secret::new(SECRET.to_owned()),
        session_token: Some(Secret::new(TOKEN.to_owned())),
        assume_role: None,
        sts_endpoint: None,
    })
}

fn role_doc() -> KmsConfigDoc {
    let mut doc = aws_doc();
    if let KmsKeyDoc::Aws { assume_role, .. } = &mut doc.key {
        *assume_role = Some(AssumeRoleDoc {
            role_arn: "arn:aws:iam::111122223333:role/tsp".to_owned(),
            external_id: Some(Secret::new("CANARYexternalCANARYexternal".to_owned())),
            session_name: None,
            duration_s: None,
        });
    }
    doc
}

fn gcp_doc(token: GcpTokenKind) -> KmsConfigDoc {
    let pem = include_str!("data/gcp-TEST-ONLY-service-account-key.pem");
    doc(KmsKeyDoc::Gcp {
        client_email: "tsp@acme.iam.gserviceaccount.com".to_owned(),
        private_key: Secret::new(pem.to_owned()),
        private_key_id: None,
        project_id: "acme".to_owned(),
        location_id: "europe-west1".to_owned(),
        key_ring_id: "tsp".to_owned(),
        crypto_key_id: "documents".to_owned(),
        token,
        token_endpoint: None,
    })
}

fn remote(doc: &KmsConfigDoc) -> Box<dyn RemoteKms> {
    let Ok(Kms::Remote(kms)) = Kms::from_doc(doc) else {
        unreachable!("the document is sound")
    };
    kms
}

/// One of each that asks over the network.
static ALL: LazyLock<Vec<Box<dyn RemoteKms>>> = LazyLock::new(|| {
    [
        aws_doc(),
        role_doc(),
        gcp_doc(GcpTokenKind::SelfSigned),
        gcp_doc(GcpTokenKind::Endpoint),
    ]
    .iter()
    .map(remote)
    .collect()
});

fn wrap(aws: &dyn RemoteKms, session: &mut Session) -> HttpRequest {
    aws.wrap_request(&Dek::fill_with(|dek| *dek = DEK), None, session, now())
        .unwrap()
}

/// Every spelling in which a planted secret could show up.
fn spellings() -> Vec<String> {
    // A piece of the service account's key in the middle, as it stands in its PEM.
    let pem = include_str!("data/gcp-TEST-ONLY-service-account-key.pem");
    let line = pem.lines().nth(10).unwrap().as_bytes();
    let external: &[u8] = b"CANARYexternal";
    [SECRET.as_bytes(), TOKEN.as_bytes(), &DEK, line, external]
        .into_iter()
        .flat_map(|secret| {
            // The first bytes are enough to know it by, in whatever it is cut to.
            let start: &[u8; 12] = secret.first_chunk().unwrap();
            let text = String::from_utf8(start.to_vec()).unwrap();
            let hex = start
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>();
            let list = format!("{start:?}").trim_matches(['[', ']']).to_owned();
            [text, hex.to_uppercase(), hex, list]
        })
        .chain(["Q0FOQVJZZGVrQ0FO".to_owned()])
        .collect()
}

fn assert_silent(value: &impl Debug) {
    for text in [format!("{value:?}"), format!("{value:#?}")] {
        for spelling in spellings() {
            assert!(!text.contains(&spelling), "{spelling} in {text}");
        }
    }
}

#[test]
fn nothing_prints_a_secret() {
    let local = Kms::from_doc(&doc(KmsKeyDoc::Local {
        key: Secret::new(DEK),
    }))
    .unwrap();
    assert_silent(&local);
    let kms = Kms::from_doc(&aws_doc()).unwrap();
    assert_silent(&kms);
    let Kms::Remote(aws) = kms else {
        unreachable!("the document is of AWS")
    };
    let mut session = Session::default();
    let request = wrap(&*aws, &mut session);
    // The canary is there to be seen: in the header and in the body.
    assert_eq!(request.header("x-amz-security-token").unwrap(), TOKEN);
    assert!(String::from_utf8_lossy(request.body()).contains("Q0FOQVJZZGVrQ0FO"));
    assert_silent(&request);
    assert_silent(&session);
    let headers = String::new();
    assert_silent(&HttpAnswer {
        status: 200,
        headers: headers.as_bytes(),
        body: request.body(),
    });
}

#[test]
fn no_step_towards_a_token_prints_a_secret() {
    let mut steps = 0;
    for kms in &*ALL {
        assert_silent(&kms);
        if kms.credential().is_none() {
            continue;
        }
        let mut session = Session::default();
        let step = kms.token_step(None, None, &mut session, now()).unwrap();
        assert_silent(&step);
        assert_silent(&session);
        match step {
            TokenStep::Call(call) => assert_silent(&call),
            TokenStep::Sign(sign) => {
                let signed = sign().unwrap();
                assert_silent(&signed);
                if let Signed::Token(token) = signed {
                    let dek = Dek::fill_with(|dek| *dek = DEK);
                    let request = kms.wrap_request(&dek, Some(&token), &mut session, now());
                    assert_silent(&request);
                }
            }
        }
        steps += 1;
    }
    assert!(steps >= 3);
}

#[test]
fn a_refused_configuration_does_not_repeat_a_secret() {
    let wrong: [fn(&mut KmsConfigDoc); 6] = [
        |doc| doc.endpoint = Some(format!("https://user:{SECRET}@kms.internal")),
        |doc| doc.ca_pem = Some(SECRET.to_owned()),
        |doc| set_key(doc, |key_id, _, _| *key_id = format!("arn:{SECRET}")),
        |doc| set_key(doc, |_, region, _| *region = SECRET.to_owned()),
        |doc| {
            set_key(doc, |_, _, access_key_id| {
                *access_key_id = format!("{SECRET}/")
            })
        },
        |doc| {
            set_key(doc, |key_id, _, _| {
                *key_id = format!("arn:aws-cn:kms:cn-north-1:111122223333:key/{SECRET}");
            });
        },
    ];
    for spoil in wrong {
        let mut doc = aws_doc();
        spoil(&mut doc);
        let error = Kms::from_doc(&doc).unwrap_err();
        assert_silent(&error);
        assert_silent(&error.to_string());
    }
}

fn set_key(doc: &mut KmsConfigDoc, set: impl FnOnce(&mut String, &mut String, &mut String)) {
    if let KmsKeyDoc::Aws {
        key_id,
        region,
        access_key_id,
        ..
    } = &mut doc.key
    {
        set(key_id, region, access_key_id);
    }
}

#[test]
fn an_unreachable_kms_is_named_without_what_was_sent() {
    use KmsOperation::Wrap;
    let why = format!("TLS said {SECRET}\n and {TOKEN}");
    let error = tsp_kms::KmsError::unreachable(
        KmsKind::Aws,
        Wrap,
        Retry::Transient,
        tsp_kms::Blame::Network,
        why,
    );
    assert_silent(&error);
    assert_eq!(
        error.to_string(),
        "AWS KMS could not wrap the key: TLS said [cut] and [cut]. Check the endpoint in the KMS config, and the \
         network between it and the proxy."
    );
}

/// Where a KMS may echo something: header or body, in each kind of body.
fn echoes(canary: &str) -> Vec<(String, String)> {
    let bodies = [
        format!(r#"{{"__type":"{canary}","message":"m"}}"#),
        format!(r#"{{"__type":"ns#{canary}:{canary}","message":"m"}}"#),
        format!(r#"{{"code":"{canary}"}}"#),
        format!(r#"{{"__type":"ValidationException","message":"Value '{canary}' failed"}}"#),
        format!(r#"{{"__type":"ValidationException","Message":"{canary}"}}"#),
        format!(r#"{{"Plaintext":"{canary}","CiphertextBlob":7}}"#),
        format!(
            "<ErrorResponse><Error><Code>{canary}</Code><Message>of {canary}.</Message></Error>\
                 <RequestId>{canary}</RequestId></ErrorResponse>"
        ),
        format!(
            "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>{canary}</AccessKeyId>\
                 </Credentials></AssumeRoleResult></AssumeRoleResponse>"
        ),
        format!(
            r#"{{"error":{{"code":403,"status":"{canary}","message":"Permission '{canary}' denied"}}}}"#
        ),
        format!(
            r#"{{"error":{{"message":"{canary}","details":[{{"@type":"x.ErrorInfo","reason":"{canary}"}}]}}}}"#
        ),
        format!(
            r#"{{"error":{{"details":[{{"@type":"x.PreconditionFailure","violations":[{{"type":"{canary}"}}]}}]}}}}"#
        ),
        format!(r#"{{"ciphertext":"{canary}","name":"{canary}"}}"#),
        format!(r#"{{"error":"{canary}","error_description":"Not {canary}."}}"#),
        format!(r#"{{"access_token":"{canary}","token_type":"mac"}}"#),
        format!("<html>{canary}</html>"),
        canary.to_owned(),
    ];
    bodies
        .into_iter()
        .map(|body| {
            let mut headers = String::new();
            for name in [
                "x-amzn-requestid",
                "x-amzn-errortype",
                "date",
                "retry-after",
            ] {
                headers.push_str(&format!("{name}: {canary}\r\n"));
            }
            (headers, body)
        })
        .collect()
}

proptest! {
    #[test]
    fn what_a_kms_echoes_does_not_come_out(
        canary in prop_oneof![
            "[A-Za-z0-9+/]{30,200}[0-9]==?",
            "[A-Za-z0-9_-]{30,200}[0-9]",
            "[0-9a-f]{32,128}[0-9]",
        ],
        status in prop_oneof![Just(200_u16), Just(400), Just(403), Just(503), 0..700_u16],
    ) {
        let echoes = echoes(&canary);
        let pairs = ALL.iter().flat_map(|kms| echoes.iter().map(move |echo| (kms, echo)));
        for (kms, (headers, body)) in pairs {
            let answer = HttpAnswer { status, headers: headers.as_bytes(), body: body.as_bytes() };
            let errors = [
                kms.read_wrap(&answer).err(),
                kms.read_unwrap(&answer).err(),
                kms.read_token(&answer, now()).err(),
            ];
            for error in errors.into_iter().flatten() {
                for text in [error.to_string(), format!("{error:?}")] {
                    for piece in canary.as_bytes().windows(12) {
                        let piece = std::str::from_utf8(piece).unwrap();
                        prop_assert!(!text.contains(piece), "{} in {}", piece, text);
                    }
                }
            }
        }
    }
}
