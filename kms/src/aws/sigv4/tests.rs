use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// `20260115T101530Z` in Unix seconds.
fn unix_s(stamp: &str) -> i64 {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    time::PrimitiveDateTime::parse(stamp, &format)
        .unwrap()
        .assume_utc()
        .unix_timestamp()
}

fn signer(
    access_key_id: &str,
    secret: &str,
    token: Option<&str>,
    region: &str,
    service: &'static str,
) -> Signer {
    Signer::new(
        access_key_id.to_owned(),
        Secret::new(secret.to_owned()),
        token.map(|token| Secret::new(token.to_owned())),
        region.to_owned(),
        service,
    )
}

fn service(name: &str) -> &'static str {
    ["kms", "sts"]
        .into_iter()
        .find(|service| *service == name)
        .unwrap()
}

/// One case of the file: every intermediate value must be the one that botocore found.
fn check(case: &Value) {
    let (input, expect) = (&case["input"], &case["expect"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let signer = signer(
        &text(&input["access_key_id"]),
        &text(&input["secret_access_key"]),
        input["session_token"].as_str(),
        &text(&input["region"]),
        service(&text(&input["service"])),
    );
    let stamp = Stamp::new(unix_s(&text(&input["timestamp"])));
    let mut headers: Vec<(String, String)> = input["headers_before_signing"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), text(value)))
        .collect();
    headers.push(("x-amz-date".to_owned(), stamp.time().to_owned()));
    headers.extend(
        signer
            .session_token()
            .map(|t| ("x-amz-security-token".to_owned(), t.to_owned())),
    );
    headers.sort();
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| Some((name.as_str(), value.as_str())))
        .collect();
    let body = text(&input["body_utf8"]);

    let mut canonical = Vec::new();
    canonical_request(&headers, body.as_bytes(), |bytes| {
        canonical.extend_from_slice(bytes)
    });
    assert_eq!(
        String::from_utf8(canonical.clone()).unwrap(),
        text(&expect["canonical_request"])
    );
    let hash = hex(Sha256::digest(&canonical).into());
    assert_eq!(
        signer.string_to_sign(&stamp, &hash),
        text(&expect["string_to_sign"])
    );
    let mut cached = None;
    let authorization = signer.sign(&headers, body.as_bytes(), &stamp, &mut cached);
    assert_eq!(
        ::hex::encode(cached.unwrap().secret.expose()),
        text(&expect["signing_key_hex"])
    );
    assert_eq!(authorization, text(&expect["authorization"]));
    assert!(authorization.ends_with(&text(&expect["signature"])));
}

macro_rules! vectors {
    ($($name:ident: $case:literal,)*) => {
        $(
            #[test]
            fn $name() {
                check(cases().iter().find(|case| case["name"] == $case).unwrap());
            }
        )*

        #[test]
        fn every_vector_has_a_test() {
            let tested = [$($case),*];
            assert!(cases().iter().all(|case| tested.contains(&case["name"].as_str().unwrap())));
            assert_eq!(cases().len(), tested.len());
        }
    };
}

fn cases() -> Vec<Value> {
    let file: Value =
        serde_json::from_str(include_str!("../../../tests/data/aws-sigv4-kms.json")).unwrap();
    file["cases"].as_array().unwrap().clone()
}

vectors! {
    encrypt_with_a_key_id: "encrypt-us-east-1-key-id",
    encrypt_with_an_arn_and_a_context: "encrypt-us-east-1-arn-context",
    encrypt_with_a_session_token: "encrypt-eu-west-1-session-token",
    encrypt_at_a_government_fips_host: "encrypt-us-gov-west-1-fips",
    encrypt_in_china: "encrypt-cn-north-1",
    encrypt_at_a_dual_stack_host: "encrypt-eu-central-1-dualstack",
    encrypt_through_private_link: "encrypt-privatelink-host",
    encrypt_at_an_endpoint_with_a_port: "encrypt-custom-endpoint-port",
    encrypt_in_the_last_second_of_a_year: "encrypt-last-second-of-year",
    encrypt_in_the_first_second_of_a_day: "encrypt-first-second-of-day",
    encrypt_with_more_than_ascii: "encrypt-unicode-alias-and-context",
    decrypt: "decrypt-us-west-2",
    generate_data_key: "generate-data-key",
    re_encrypt: "re-encrypt",
    describe_key: "describe-key",
    a_header_with_runs_of_spaces: "encrypt-extra-spaces-in-header",
    assume_role_in_a_region: "sts-assume-role-eu-west-1",
    assume_role_at_the_global_host: "sts-assume-role-global",
    assume_role_from_a_session: "sts-assume-role-cn-chained-session",
}

#[test]
fn a_signing_key_is_kept_for_its_day_and_no_longer() {
    let signer = signer(
        "AKIAIOSFODNN7EXAMPLE",
        "secret/with+signs",
        None,
        "eu-west-1",
        "kms",
    );
    let headers = [Some(("host", "kms.eu-west-1.amazonaws.com"))];
    let before_midnight = unix_s("20251231T235959Z");
    let mut cached = None;
    let mut sign = |unix_s| {
        let authorization = signer.sign(&headers, b"", &Stamp::new(unix_s), &mut cached);
        let fresh = signer.sign(&headers, b"", &Stamp::new(unix_s), &mut None);
        assert_eq!(authorization, fresh, "a kept key signs like a fresh one");
        (authorization, *cached.as_ref().unwrap().secret.expose())
    };
    let (first, first_key) = sign(before_midnight - 3600);
    let (second, second_key) = sign(before_midnight);
    let (third, third_key) = sign(before_midnight + 1);
    assert!(
        first.contains("/20251231/")
            && second.contains("/20251231/")
            && third.contains("/20260101/")
    );
    assert_eq!(first_key, second_key);
    assert_ne!(second_key, third_key);
    // A clock that is set back gets the earlier day's key again.
    assert_eq!(sign(before_midnight).1, first_key);
}

#[test]
fn a_changed_secret_or_region_does_not_sign_with_the_old_key() {
    let headers = [Some(("host", "kms.eu-west-1.amazonaws.com"))];
    let stamp = Stamp::new(unix_s("20260115T101530Z"));
    let mut cached = None;
    for (secret, region) in [
        ("one", "eu-west-1"),
        ("two", "eu-west-1"),
        ("two", "eu-west-2"),
    ] {
        let signer = signer("AKIAIOSFODNN7EXAMPLE", secret, None, region, "kms");
        let kept = signer.sign(&headers, b"", &stamp, &mut cached);
        assert_eq!(kept, signer.sign(&headers, b"", &stamp, &mut None));
    }
}

#[test]
fn stamps_stay_in_the_years_that_can_be_spelt() {
    assert_eq!(Stamp::new(-1).time(), "19700101T000000Z");
    assert_eq!(Stamp::new(i64::MAX).time(), "99991231T235959Z");
    assert_eq!(Stamp::new(951_782_400).time(), "20000229T000000Z");
}

/// What the general-purpose path of `aws-sigv4` signs.
fn oracle(
    signer: &Signer,
    secret: &str,
    host: &str,
    target: &str,
    body: &[u8],
    unix_s: u64,
) -> String {
    let credentials = Credentials::new(
        &signer.access_key_id,
        secret,
        signer.session_token().map(str::to_owned),
        None,
        "test",
    );
    let identity = credentials.into();
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(unix_s);
    let params = SigningParams::builder()
        .identity(&identity)
        .region(&signer.region)
        .name(signer.service)
        .time(time)
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let url = format!("https://{host}/");
    let headers = [
        ("content-type", "application/x-amz-json-1.1"),
        ("host", host),
        ("x-amz-target", target),
    ];
    let request =
        SignableRequest::new("POST", &url, headers.into_iter(), SignableBody::Bytes(body)).unwrap();
    let (instructions, _) = sign(request, &params).unwrap().into_parts();
    let mut headers = instructions.headers();
    headers
        .find(|(name, _)| *name == "authorization")
        .unwrap()
        .1
        .to_owned()
}

proptest! {
    #[test]
    fn signatures_equal_those_of_the_general_signer(
        access_key_id in "[A-Z0-9]{16,20}",
        secret in "[A-Za-z0-9/+]{1,64}",
        token in proptest::option::of("[A-Za-z0-9/+=]{1,400}"),
        region in "[a-z]{2}-[a-z]{4,9}-[1-9]",
        host in "[a-z0-9]{1,20}(\\.[a-z0-9-]{1,20}[a-z])?(:[1-9][0-9]{0,3})?",
        target in "TrentService\\.[A-Z][A-Za-z]{2,12}",
        body in proptest::collection::vec(any::<u8>(), 0..600),
        unix_s in 0..=4_102_444_800_u64,
    ) {
        let signer = signer(&access_key_id, &secret, token.as_deref(), &region, "kms");
        let stamp = Stamp::new(i64::try_from(unix_s).unwrap());
        let headers = [
            Some(("content-type", "application/x-amz-json-1.1")),
            Some(("host", host.as_str())),
            Some(("x-amz-date", stamp.time())),
            signer.session_token().map(|token| ("x-amz-security-token", token)),
            Some(("x-amz-target", target.as_str())),
        ];
        let ours = signer.sign(&headers, &body, &stamp, &mut None);
        prop_assert_eq!(ours, oracle(&signer, &secret, &host, &target, &body, unix_s));
    }
}
