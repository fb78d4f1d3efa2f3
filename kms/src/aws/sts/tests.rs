use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use serde_json::Value;
use tsp_wire::{
    Dek,
    snapshot::{AssumeRoleDoc, KmsConfigDoc, KmsKeyDoc},
};

use super::*;
use crate::{Kms, RemoteKms, Retry, Roots, TokenStep};

/// 2026-01-15 10:15:30 UTC, the moment of the vectors.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_768_472_130)
}

const ROLE_ARN: &str = "arn:aws:iam::444455556666:role/tsp-kms";
const EXTERNAL_ID: &str = "ext:tenant=1/a+b@c.d";

fn role() -> AssumeRoleDoc {
    AssumeRoleDoc {
        role_arn: ROLE_ARN.to_owned(),
        external_id: Some(Secret::new(EXTERNAL_ID.to_owned())),
        session_name: Some("tsp-core0".to_owned()),
        duration_s: Some(3600),
    }
}

fn doc(region: &str, role: AssumeRoleDoc) -> KmsConfigDoc {
    KmsConfigDoc {
        id: 1,
        leasing_allowed: true,
        key: KmsKeyDoc::Aws {
            key_id: "alias/tsp".to_owned(),
            region: region.to_owned(),
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
            assume_role: Some(role),
            sts_endpoint: None,
        },
        endpoint: None,
        allow_insecure: false,
        ca_pem: None,
    }
}

/// The document, with the members that only AWS has changed.
fn with(
    mut doc: KmsConfigDoc,
    change: impl FnOnce(&mut String, &mut Option<Secret<String>>, &mut Option<String>),
) -> KmsConfigDoc {
    if let KmsKeyDoc::Aws {
        access_key_id,
        session_token,
        sts_endpoint,
        ..
    } = &mut doc.key
    {
        change(access_key_id, session_token, sts_endpoint);
    }
    doc
}

fn aws(doc: &KmsConfigDoc) -> Box<dyn RemoteKms> {
    match Kms::from_doc(doc).unwrap() {
        Kms::Remote(aws) => aws,
        Kms::Local(_) => panic!("the document is of AWS"),
    }
}

fn call(aws: &dyn RemoteKms, session: &mut Session, now: SystemTime) -> TokenCall {
    match aws.token_step(None, None, session, now).unwrap() {
        TokenStep::Call(call) => *call,
        TokenStep::Sign(_) => panic!("nothing to sign at leisure"),
    }
}

fn header<'a>(request: &'a HttpRequest, name: &str) -> &'a str {
    request.header(name).unwrap()
}

fn answer_at<T>(
    date: Option<&str>,
    body: &str,
    read: impl FnOnce(&HttpAnswer<'_>) -> Result<T, KmsError>,
) -> Result<T, KmsError> {
    let headers = date.map_or_else(String::new, |date| format!("date: {date}\r\n"));
    let body = body.as_bytes();
    read(&HttpAnswer {
        status: 200,
        headers: headers.as_bytes(),
        body,
    })
}

fn session_xml(expiration: &str) -> String {
    format!(
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId>\
         <SecretAccessKey>session/secret+key</SecretAccessKey><SessionToken>session/token+==</SessionToken>\
         <Expiration>{expiration}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )
}

#[test]
fn whole_requests_are_those_that_botocore_signs() {
    let file: Value =
        serde_json::from_str(include_str!("../../../tests/data/aws-sigv4-kms.json")).unwrap();
    let case = |name: &str| {
        let mut cases = file["cases"].as_array().unwrap().iter();
        cases.find(|case| case["name"] == name).unwrap().clone()
    };
    let in_china = |mut role: AssumeRoleDoc| {
        role.role_arn = role.role_arn.replacen("aws", "aws-cn", 1);
        role
    };
    let chained = case("sts-assume-role-cn-chained-session");
    let docs = [
        (case("sts-assume-role-eu-west-1"), doc("eu-west-1", role())),
        (
            case("sts-assume-role-global"),
            with(doc("us-east-1", role()), |_, _, sts_endpoint| {
                *sts_endpoint = Some("https://sts.amazonaws.com/".to_owned());
            }),
        ),
        (
            chained.clone(),
            with(doc("cn-northwest-1", in_china(role())), |id, token, _| {
                "ASIAIOSFODNN7EXAMPLE".clone_into(id);
                let text = chained["input"]["session_token"].as_str().unwrap();
                *token = Some(Secret::new(text.to_owned()));
            }),
        ),
    ];
    for (case, doc) in docs {
        let (input, expect) = (&case["input"], &case["expect"]);
        let call = call(&*aws(&doc), &mut Session::default(), now());
        let url = format!("https://{}{}", call.endpoint.host, call.request.path());
        assert_eq!(url, input["url"].as_str().unwrap());
        assert_eq!(
            String::from_utf8_lossy(call.request.body()),
            input["body_utf8"].as_str().unwrap()
        );
        let expected: Vec<_> = [&input["headers_before_signing"], &expect["headers_added"]]
            .into_iter()
            .flat_map(|map| map.as_object().unwrap())
            .collect();
        for (name, value) in &expected {
            assert_eq!(header(&call.request, name), value.as_str().unwrap());
        }
        assert_eq!(call.request.headers().count(), expected.len() + 2);
        assert_eq!(header(&call.request, "accept"), "text/xml");
    }
}

#[test]
fn what_is_not_configured_is_not_sent() {
    let role = AssumeRoleDoc {
        role_arn: ROLE_ARN.to_owned(),
        external_id: None,
        session_name: None,
        duration_s: None,
    };
    let call = call(
        &*aws(&doc("eu-west-1", role)),
        &mut Session::default(),
        now(),
    );
    assert_eq!(
        String::from_utf8_lossy(call.request.body()),
        "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A444455556666%3Arole%2Ftsp-kms\
         &RoleSessionName=tenant-security-proxy"
    );
}

#[test]
fn each_partition_has_its_host_and_a_configured_one_goes_before() {
    let cases = [
        ("us-east-1", "aws", "sts.us-east-1.amazonaws.com"),
        ("cn-north-1", "aws-cn", "sts.cn-north-1.amazonaws.com.cn"),
        (
            "us-gov-west-1",
            "aws-us-gov",
            "sts.us-gov-west-1.amazonaws.com",
        ),
        (
            "eusc-de-east-1",
            "aws-eusc",
            "sts.eusc-de-east-1.amazonaws.eu",
        ),
        ("us-iso-east-1", "aws-iso", "sts.us-iso-east-1.c2s.ic.gov"),
    ];
    for (region, partition, host) in cases {
        let mut role = role();
        role.role_arn = format!("arn:{partition}:iam::444455556666:role/team/tsp");
        let mut doc = doc(region, role);
        // A host for KMS is none for STS; whom to trust is the same.
        doc.endpoint = Some("https://kms.internal".to_owned());
        let pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        doc.ca_pem = Some(pem.to_owned());
        let mut session = Session::default();
        let public = call(&*aws(&doc), &mut session, now());
        assert_eq!(public.endpoint, Endpoint::at(host, Roots::Pem(pem.into())));
        assert_eq!(header(&public.request, "host"), host);

        let mut doc = with(doc, |_, _, sts| {
            *sts = Some("http://127.0.0.1:5601".to_owned());
        });
        assert_eq!(
            Kms::from_doc(&doc).unwrap_err().member(),
            "stsEndpoint",
            "plain http"
        );
        doc.allow_insecure = true;
        let private = call(&*aws(&doc), &mut session, now());
        assert!(!private.endpoint.tls);
        assert_eq!(header(&private.request, "host"), "127.0.0.1:5601");
        let scope = format!("/20260115/{region}/sts/aws4_request,");
        assert!(header(&private.request, "authorization").contains(&scope));
    }
}

#[test]
fn the_four_fields_are_those_that_botocore_reads() {
    let file: Value = serde_json::from_str(include_str!(
        "../../../tests/data/aws-sts-assume-role-responses.json"
    ))
    .unwrap();
    let aws = aws(&doc("eu-west-1", role()));
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let expect = |name: &str| case["expect"][name].as_str().unwrap();
        let expires_at = OffsetDateTime::parse(expect("Expiration"), &Rfc3339).unwrap();
        let given_at = SystemTime::from(expires_at) - Duration::from_secs(3600);
        let body = case["body_utf8"].as_str().unwrap();
        let token = answer_at(None, body, |answer| aws.read_token(answer, given_at)).unwrap();
        assert_eq!(
            token.expires_at(),
            SystemTime::from(expires_at) - Duration::from_secs(10)
        );
        let Proof::Aws(signer) = &token.proof else {
            panic!("keys of a session")
        };
        let signed = aws
            .wrap_request(
                &Dek::fill_with(|_| {}),
                Some(&token),
                &mut Session::default(),
                given_at,
            )
            .unwrap();
        let credential = format!("Credential={}/", expect("AccessKeyId"));
        assert!(header(&signed, "authorization").contains(&credential));
        assert_eq!(
            header(&signed, "x-amz-security-token"),
            expect("SessionToken")
        );
        // The secret shows only in what it signs.
        let expected = Signer::new(
            expect("AccessKeyId").to_owned(),
            Secret::new(expect("SecretAccessKey").to_owned()),
            Some(Secret::new(expect("SessionToken").to_owned())),
            "eu-west-1".to_owned(),
            "kms",
        );
        assert_eq!(signer.credential(&[]), expected.credential(&[]));
    }
}

#[test]
fn requests_to_kms_are_signed_with_the_session_and_not_without() {
    let aws = aws(&doc("eu-west-1", role()));
    let mut session = Session::default();
    let dek = Dek::fill_with(|_| {});
    let wrap = aws.wrap_request(&dek, None, &mut session, now());
    let unwrap = aws.unwrap_request(b"blob", None, &mut session, now());
    for error in [wrap.unwrap_err(), unwrap.unwrap_err()] {
        assert_eq!(error.kind(), crate::KmsErrorKind::Authorization);
    }
    let read = |secret: &str| {
        let body = session_xml("2026-01-15T11:15:30Z").replace("session/secret+key", secret);
        answer_at(None, &body, |answer| aws.read_token(answer, now())).unwrap()
    };
    // A renewed session does not sign with the key that was derived for the one before.
    for secret in ["first", "second"] {
        let token = read(secret);
        let kept = aws
            .wrap_request(&dek, Some(&token), &mut session, now())
            .unwrap();
        let fresh = aws
            .wrap_request(&dek, Some(&token), &mut Session::default(), now())
            .unwrap();
        assert!(kept.headers().eq(fresh.headers()));
        assert!(header(&kept, "authorization").contains("/eu-west-1/kms/aws4_request,"));
    }
}

#[test]
fn a_session_is_renewed_when_15_to_10_minutes_are_left() {
    let aws = aws(&doc("eu-west-1", role()));
    let times = |now: SystemTime, date: Option<&str>, expiration: &str| {
        let token = answer_at(date, &session_xml(expiration), |answer| {
            aws.read_token(answer, now)
        })
        .unwrap();
        let after = |time: SystemTime| time.duration_since(now).unwrap().as_secs();
        (after(token.renew_at()), after(token.expires_at()))
    };
    let (renew, over) = times(now(), None, "2026-01-15T11:15:30Z");
    assert!((2700..=3000).contains(&renew), "{renew}");
    assert_eq!(over, 3590);
    // The shortest session is not renewed all the time.
    assert_eq!(times(now(), None, "2026-01-15T10:30:30Z"), (450, 890));
    // Our clock is an hour behind the server's, or ahead: the session has the same length.
    let date = Some("Thu, 15 Jan 2026 10:15:30 GMT");
    for ours in [
        now() - Duration::from_secs(3600),
        now() + Duration::from_secs(3600),
    ] {
        assert_eq!(times(ours, date, "2026-01-15T11:15:30Z"), (renew, over));
    }
}

#[test]
fn an_answer_without_a_usable_session_gives_no_token() {
    let aws = aws(&doc("eu-west-1", role()));
    let sound = session_xml("2026-01-15T11:15:30Z");
    let read = |body: &str| answer_at(None, body, |answer| aws.read_token(answer, now()));
    read(&sound).unwrap();
    let long = "x".repeat(9000);
    let bodies = [
        String::new(),
        "{}".to_owned(),
        "<html></html>".to_owned(),
        r#"{"AssumeRoleResponse":{"AssumeRoleResult":{}}}"#.to_owned(),
        "<AssumeRoleResponse/>".to_owned(),
        sound.replace("AssumeRoleResult", "GetSessionTokenResult"),
        sound.replace("Credentials", "Keys"),
        sound.replace("</AssumeRoleResponse>", ""),
        sound.replace("ASIAIOSFODNN7EXAMPLE", ""),
        sound.replace("ASIAIOSFODNN7EXAMPLE", "ASIA/IOSF"),
        sound.replace("session/secret+key", ""),
        sound.replace("session/secret+key", "a b"),
        sound.replace("session/secret+key", &long),
        sound.replace("session/token+==", ""),
        sound.replace("session/token+==", "a\nb"),
        sound.replace("session/token+==", &format!("{long}<!-- -->x")),
        sound.replace("session/token+==", "&unknown;"),
        sound.replace("2026-01-15T11:15:30Z", ""),
        sound.replace("2026-01-15T11:15:30Z", "soon"),
        sound.replace("2026-01-15T11:15:30Z", "2026-01-15T10:15:30Z"),
        sound.replace("2026-01-15T11:15:30Z", "1900-01-15T10:15:30Z"),
    ];
    for body in bodies {
        let error = read(&body).unwrap_err();
        assert_eq!(
            (error.kind(), error.retry(), error.operation()),
            (
                crate::KmsErrorKind::Unreachable,
                Retry::No,
                KmsOperation::Token
            ),
            "{body}"
        );
    }
}

#[test]
fn a_refusal_names_sts_and_what_to_check() {
    let aws = aws(&doc("eu-west-1", role()));
    let body = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
        <Code>AccessDenied</Code><Message>User: arn:aws:iam::111122223333:user/tsp is not authorized to perform: \
        sts:AssumeRole on resource: arn:aws:iam::444455556666:role/tsp-kms</Message></Error>\
        <RequestId>0a1b2c3d-0000-4000-8000-0123456789ab</RequestId></ErrorResponse>";
    let headers = String::new();
    let answer = HttpAnswer {
        status: 403,
        headers: headers.as_bytes(),
        body: body.as_bytes(),
    };
    assert_eq!(
        aws.read_token(&answer, now()).unwrap_err().to_string(),
        "AWS STS gave no token (AccessDenied, request 0a1b2c3d-0000-4000-8000-0123456789ab): \
         User: arn:aws:iam::111122223333:user/tsp is not authorized to perform: sts:AssumeRole on resource: \
         arn:aws:iam::444455556666:role/tsp-kms. Check the credentials in the KMS config, and what they are allowed to do at the KMS."
    );
}

#[test]
fn a_wrong_clock_is_repaired_by_what_sts_says() {
    let aws = aws(&doc("eu-west-1", role()));
    let mut session = Session::default();
    let behind = now() - Duration::from_secs(900);
    let stamp = |call: &TokenCall| header(&call.request, "x-amz-date").to_owned();
    assert_eq!(
        stamp(&call(&*aws, &mut session, behind)),
        "20260115T100030Z"
    );
    let headers = format!("date: {}\r\n", httpdate::fmt_http_date(now()));
    let body = "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code><Message>Signature expired: \
        20260115T100030Z is now earlier than 20260115T101030Z (20260115T101530Z - 5 min.)</Message></Error></ErrorResponse>";
    let error = aws
        .read_token(
            &HttpAnswer {
                status: 403,
                headers: headers.as_bytes(),
                body: body.as_bytes(),
            },
            behind,
        )
        .unwrap_err();
    assert!(session.repair(&error));
    assert_eq!(
        stamp(&call(&*aws, &mut session, behind)),
        "20260115T101530Z"
    );
}

#[test]
fn equal_credentials_share_a_token_and_others_do_not() {
    let id = |doc: KmsConfigDoc| aws(&doc).credential().unwrap();
    let base = || doc("eu-west-1", role());
    let mut elsewhere = base();
    elsewhere.endpoint = Some("https://kms.internal".to_owned());
    elsewhere.id = 2;
    assert_eq!(id(base()), id(elsewhere));

    let change = |change: fn(&mut AssumeRoleDoc)| {
        let mut role = role();
        change(&mut role);
        doc("eu-west-1", role)
    };
    let mut other_roots = base();
    other_roots.ca_pem = Some("-----BEGIN CERTIFICATE-----".to_owned());
    let others = [
        base(),
        doc("eu-west-2", role()),
        other_roots,
        change(|role| role.role_arn.push('2')),
        change(|role| role.external_id = None),
        change(|role| role.external_id = Some(Secret::new("other".to_owned()))),
        change(|role| role.session_name = None),
        change(|role| role.duration_s = None),
        with(base(), |id, _, _| id.push('2')),
        with(base(), |_, token, _| {
            *token = Some(Secret::new("t".to_owned()));
        }),
        with(base(), |_, _, sts| {
            *sts = Some("https://sts.internal".to_owned());
        }),
    ];
    let count = others.len();
    let ids: std::collections::HashSet<_> = others.into_iter().map(id).collect();
    assert_eq!(ids.len(), count);

    let mut without = base();
    if let KmsKeyDoc::Aws { assume_role, .. } = &mut without.key {
        *assume_role = None;
    }
    let without = aws(&without);
    assert_eq!(without.credential(), None);
    let step = without.token_step(None, None, &mut Session::default(), now());
    assert_eq!(step.unwrap_err().operation(), KmsOperation::Token);
}

#[test]
fn a_wrong_role_is_refused() {
    let refused = |change: &dyn Fn(&mut AssumeRoleDoc)| {
        let mut role = role();
        change(&mut role);
        Kms::from_doc(&doc("eu-west-1", role)).map_err(|error| {
            assert_eq!(error.tsp_code().number(), 207);
            assert!(!format!("{error} {error:?}").contains("CaNaRy"));
            error.member()
        })
    };
    let arns = [
        "",
        "tsp-kms",
        "arn:aws:iam::444455556666:role/",
        "arn:aws:iam::444455556666:role/path/",
        "arn:aws:iam::444455556666:user/tsp",
        "arn:aws:iam::44445555666:role/tsp",
        "arn:aws:iam:eu-west-1:444455556666:role/tsp",
        "arn:aws:sts::444455556666:assumed-role/tsp/session",
        "arn:aws-cn:iam::444455556666:role/tsp",
        "arn:aws:iam::444455556666:role/a b",
        "arn:aws:iam::444455556666:role/ü",
        &format!("arn:aws:iam::444455556666:role/{}", "x".repeat(2048)),
    ];
    for arn in arns {
        let error = refused(&|role| arn.clone_into(&mut role.role_arn)).unwrap_err();
        assert_eq!(error, "roleArn", "{arn}");
    }
    for id in ["", "x", "CaNaRy id", "CaNaRy#", "ü", &"CaNaRy".repeat(300)] {
        let error = refused(&|role| role.external_id = Some(Secret::new(id.to_owned())));
        assert_eq!(error.unwrap_err(), "externalId", "{id}");
    }
    for name in ["", "x", "a b", "a/b", "a:b", &"x".repeat(65)] {
        let error = refused(&|role| role.session_name = Some(name.to_owned()));
        assert_eq!(error.unwrap_err(), "sessionName", "{name}");
    }
    for seconds in [0, 899, 43_201, u32::MAX] {
        let error = refused(&|role| role.duration_s = Some(seconds));
        assert_eq!(error.unwrap_err(), "durationS");
    }
    for seconds in [900, 43_200] {
        refused(&|role| role.duration_s = Some(seconds)).unwrap();
    }
    refused(&|role| role.role_arn = "arn:aws:iam::444455556666:role/a/b/c+=,.@-_".to_owned())
        .unwrap();
}

#[test]
fn nothing_of_a_role_prints_a_secret() {
    let mut role = role();
    role.external_id = Some(Secret::new("CANARY-external".to_owned()));
    let doc = with(doc("eu-west-1", role), |_, token, _| {
        *token = Some(Secret::new("CANARY-token".to_owned()));
    });
    let aws = aws(&doc);
    let call = call(&*aws, &mut Session::default(), now());
    assert!(String::from_utf8_lossy(call.request.body()).contains("CANARY-external"));
    let body = session_xml("2026-01-15T11:15:30Z").replace("session/", "CANARY/");
    let token = answer_at(None, &body, |answer| aws.read_token(answer, now())).unwrap();
    let step = TokenStep::Call(Box::new(call));
    for text in [
        format!("{aws:?} {aws:#?}"),
        format!("{step:?} {step:#?}"),
        format!("{token:?} {token:#?}"),
    ] {
        assert!(!text.contains("CANARY"), "{text}");
        assert!(!text.contains("wJalrXUtnFEMI"), "{text}");
    }
    let TokenStep::Call(call) = step else {
        unreachable!("it is one")
    };
    assert!(!format!("{call:?}").contains("CANARY"));
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic(
        status in prop_oneof![Just(200_u16), 0..1000_u16],
        date in prop_oneof![Just("Thu, 15 Jan 2026 10:15:30 GMT".to_owned()), "[ -~]{0,30}"],
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            "<AssumeRoleResponse><AssumeRoleResult><Credentials>(<(AccessKeyId|SecretAccessKey|SessionToken|Expiration)>.{0,30}(</[A-Za-z]{0,20}>)?){0,5}.{0,60}"
                .prop_map(String::into_bytes),
            "[0-9TZ:.+-]{0,40}".prop_map(|expiration| session_xml(&expiration).into_bytes()),
        ],
    ) {
        let aws = aws(&doc("eu-west-1", role()));
        let headers = format!("date: {date}\r\n");
        let answer = HttpAnswer { status, headers: headers.as_bytes(), body: &body };
        if let Err(error) = aws.read_token(&answer, now()) {
            prop_assert!(!error.sentence().is_empty());
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }
}
