use serde_json::{Value, json};

use super::*;

const PEM: &str = "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n";

/// One full configuration of each kind.
fn samples() -> Vec<Value> {
    vec![
        json!({"type": "STDOUT"}),
        json!({"type": "SPLUNK", "hecUrl": "https://splunk.example.com:8088", "token": "canary", "index": "i",
            "source": "s", "sourcetype": "_json", "acknowledge": true, "caPem": PEM}),
        json!({"type": "GCP", "projectId": "acme-1", "logId": "tsp-events", "client_email": "a@b", "private_key": "canary",
            "private_key_id": "k", "endpoint": "https://logging.example", "tokenEndpoint": "https://t.example/token", "caPem": PEM}),
        json!({"type": "DATADOG", "site": "datadoghq.eu", "apiKey": "canary", "service": "s", "tags": "env:prod",
            "endpoint": "https://intake.example", "caPem": PEM}),
        json!({"type": "SUMO_LOGIC", "collectorUrl": "https://collectors.example/receiver/v1/http/canary==", "category": "c",
            "name": "n", "host": "h", "caPem": PEM}),
        json!({"type": "AZURE", "tenantGuid": "t-1", "clientId": "c-1", "clientSecret": "canary",
            "dceUrl": "https://dce.example", "dcrImmutableId": "dcr-1", "streamName": "Custom-Tsp_CL",
            "authority": "https://login.example", "caPem": PEM}),
        json!({"type": "CLOUDWATCH", "region": "eu-central-1", "logGroup": "/tsp/events", "logStream": "acme",
            "accessKeyId": "AKIA", "secretAccessKey": "canary", "sessionToken": "canary",
            "assumeRole": {"roleArn": "arn", "externalId": "canary", "sessionName": "s", "durationS": 900},
            "endpoint": "https://logs.example", "stsEndpoint": "https://sts.example", "caPem": PEM}),
        json!({"type": "OTLP", "url": "https://collector.example:4318/v1/logs", "headers": {"api-key": "canary"}, "caPem": PEM}),
        json!({"type": "WEBHOOK", "url": "https://hook.example/a?b=c", "headers": {"Authorization": "Bearer canary"},
            "hmacSecret": "canary-0123456789abcdef0123456789abcdef", "caPem": PEM}),
        json!({"type": "SYSLOG", "host": "syslog.example", "port": 6514, "caPem": PEM, "clientCertificate": format!("{PEM}canary"),
            "facility": 10, "appName": "tsp", "messageBytesMax": 65536}),
    ]
}

fn parse(value: &Value) -> Result<SinkConfig, SinkConfigError> {
    SinkConfig::parse(&serde_json::to_vec(value).unwrap())
}

#[test]
fn a_full_configuration_of_each_kind_is_read_and_prints_no_secret() {
    let mut kinds = Vec::new();
    for sample in samples() {
        let config = parse(&sample).unwrap_or_else(|why| panic!("{sample}: {why}"));
        assert_eq!(config.kind(), sample["type"]);
        assert!(
            !format!("{config:?} {config:#?}").contains("canary"),
            "{sample}"
        );
        kinds.push(config.kind());
    }
    assert_eq!(kinds, TYPES);
}

#[test]
fn a_missing_or_unknown_member_is_named() {
    for sample in samples() {
        let mut more = sample.clone();
        more["surprise-canary"] = json!(1);
        let why = parse(&more).unwrap_err().to_string();
        assert!(
            why.contains("unknown member") && !why.contains("canary"),
            "{why}"
        );
        let members = sample.as_object().unwrap();
        for name in members.keys() {
            let mut less = members.clone();
            less.remove(name);
            if let Err(why) = parse(&Value::Object(less)) {
                assert!(why.to_string().contains(name.as_str()), "{name}: {why}");
            }
            let mut other = members.clone();
            other[name] = json!([["canary"]]);
            let why = parse(&Value::Object(other)).unwrap_err().to_string();
            assert!(!why.contains("canary"), "{name}: {why}");
        }
    }
    assert!(
        SinkConfig::parse(b"no")
            .unwrap_err()
            .to_string()
            .contains("not JSON")
    );
    assert!(
        SinkConfig::parse(b"{}")
            .unwrap_err()
            .to_string()
            .contains("type")
    );
    let why = parse(&json!({"type": "S3"})).unwrap_err().to_string();
    assert!(why.contains("SPLUNK") && why.contains("SYSLOG"), "{why}");
}

#[test]
fn what_cannot_be_right_is_refused_by_the_members_name() {
    for (kind, member, value) in [
        ("SPLUNK", "hecUrl", json!("splunk.example.com")),
        ("SPLUNK", "hecUrl", json!("ftp://splunk.example.com")),
        ("SPLUNK", "hecUrl", json!("https://user@splunk.example.com")),
        ("SPLUNK", "hecUrl", json!("https://")),
        ("SPLUNK", "hecUrl", json!("https://a:0")),
        ("SPLUNK", "hecUrl", json!("https://a:99999")),
        ("SPLUNK", "hecUrl", json!("https://a/\r\nx: y")),
        ("SPLUNK", "hecUrl", json!("https://a/#b")),
        ("SPLUNK", "token", json!("a b")),
        ("SPLUNK", "index", json!("a\nb")),
        ("SPLUNK", "caPem", json!("certificate")),
        ("GCP", "projectId", json!("a/b")),
        ("GCP", "logId", json!("a b")),
        ("DATADOG", "site", json!("datadoghq.com/x")),
        ("SUMO_LOGIC", "collectorUrl", json!("x")),
        ("AZURE", "dcrImmutableId", json!("../x")),
        ("AZURE", "streamName", json!("..")),
        ("CLOUDWATCH", "logGroup", json!("a b")),
        ("CLOUDWATCH", "logStream", json!("a:b")),
        ("OTLP", "headers", json!({"host": "x"})),
        ("OTLP", "headers", json!({"X-Tsp-Signature": "x"})),
        ("OTLP", "headers", json!({"a": "x\r\ny"})),
        ("WEBHOOK", "hmacSecret", json!("short")),
        ("SYSLOG", "host", json!("a/b")),
        ("SYSLOG", "port", json!(0)),
        ("SYSLOG", "facility", json!(24)),
        ("SYSLOG", "appName", json!("a b")),
        ("SYSLOG", "messageBytesMax", json!(100)),
    ] {
        let mut sample = samples()
            .into_iter()
            .find(|sample| sample["type"] == kind)
            .unwrap();
        sample[member] = value.clone();
        let why = parse(&sample).unwrap_err().to_string();
        assert!(
            why.starts_with(&format!("`{member}` must be")),
            "{value}: {why}"
        );
    }
}

#[test]
fn urls_may_have_ports_and_addresses() {
    for url in [
        "https://a",
        "http://127.0.0.1:8088/x",
        "https://[::1]:1",
        "https://[2001:db8::1]/a?b",
        "https://a-b.example.com/x/y==",
    ] {
        assert!(is_url("url", url).is_ok(), "{url}");
    }
}
