//! What is in a logging configuration: where a tenant's security events go, and what proves the tenant there.
//!
//! ```json
//! {"type":"SPLUNK","hecUrl":"https://splunk.example.com:8088","token":"…","index":"security"}
//! ```
//!
//! `docs/logdriver-sinks.md` has every kind with its members. Here is only their form: whoever seals a configuration checks it
//! by the same code as the logdriver that opens it.

use std::fmt;

use serde::{Deserialize, Deserializer, de::IgnoredAny};

use crate::{Secret, json::data_error, snapshot::AssumeRoleDoc};

/// The one schema of the content.
pub const SCHEMA: u16 = 1;

/// The kinds of log systems, as `type` spells them.
pub const TYPES: [&str; 10] = [
    "STDOUT",
    "SPLUNK",
    "GCP",
    "DATADOG",
    "SUMO_LOGIC",
    "AZURE",
    "CLOUDWATCH",
    "OTLP",
    "WEBHOOK",
    "SYSLOG",
];

/// Longest URL, in bytes: a host name has at most 253, and what collectors append is short.
const URL_BYTES_MAX: usize = 2048;
/// Longest name of an index, a stream, a tag and the like, in bytes: the longest of the log systems' own limits.
const NAME_BYTES_MAX: usize = 512;
/// Longest secret that travels in a header, in bytes.
const SECRET_BYTES_MAX: usize = 4096;
/// Longest PEM text, in bytes: the whole public set of authorities has about 200 KiB.
const PEM_BYTES_MAX: usize = 256 * 1024;
/// Most headers of a webhook or a collector.
const HEADERS_MAX: usize = 16;

/// What is wrong with a logging configuration: the member, and what is expected there. Never holds a value of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkConfigError(String);

impl fmt::Display for SinkConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SinkConfigError {}

impl From<serde_json::Error> for SinkConfigError {
    fn from(why: serde_json::Error) -> Self {
        Self(data_error(&why))
    }
}

/// A logging configuration whose form is right.
#[derive(Debug)]
pub enum SinkConfig {
    /// The logdriver's own standard output.
    Stdout,
    /// Splunk's HTTP Event Collector.
    Splunk(Splunk),
    /// Google Cloud Logging.
    Gcp(Gcp),
    /// Datadog.
    Datadog(Datadog),
    /// Sumo Logic.
    SumoLogic(SumoLogic),
    /// Azure Monitor.
    Azure(Azure),
    /// AWS CloudWatch Logs.
    CloudWatch(CloudWatch),
    /// Whatever speaks OTLP over HTTP.
    Otlp(Otlp),
    /// Any HTTPS server.
    Webhook(Webhook),
    /// Syslog over TLS.
    Syslog(Syslog),
}

impl SinkConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// The first member that cannot be right, and what is expected there.
    pub fn parse(content: &[u8]) -> Result<Self, SinkConfigError> {
        Ok(match kind(content)? {
            "STDOUT" => {
                let Stdout { .. } = serde_json::from_slice(content)?;
                Self::Stdout
            }
            "SPLUNK" => Self::Splunk(read(content)?),
            "GCP" => Self::Gcp(read(content)?),
            "DATADOG" => Self::Datadog(read(content)?),
            "SUMO_LOGIC" => Self::SumoLogic(read(content)?),
            "AZURE" => Self::Azure(read(content)?),
            "CLOUDWATCH" => Self::CloudWatch(read(content)?),
            "OTLP" => Self::Otlp(read(content)?),
            "WEBHOOK" => Self::Webhook(read(content)?),
            _ => Self::Syslog(read(content)?),
        })
    }

    /// The kind, as `type` spells it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stdout => "STDOUT",
            Self::Splunk(_) => "SPLUNK",
            Self::Gcp(_) => "GCP",
            Self::Datadog(_) => "DATADOG",
            Self::SumoLogic(_) => "SUMO_LOGIC",
            Self::Azure(_) => "AZURE",
            Self::CloudWatch(_) => "CLOUDWATCH",
            Self::Otlp(_) => "OTLP",
            Self::Webhook(_) => "WEBHOOK",
            Self::Syslog(_) => "SYSLOG",
        }
    }
}

fn kind(content: &[u8]) -> Result<&'static str, SinkConfigError> {
    #[derive(Deserialize)]
    struct Typed {
        r#type: String,
    }
    let Typed { r#type } = serde_json::from_slice(content)?;
    let known = TYPES.into_iter().find(|known| *known == r#type);
    known.ok_or_else(|| SinkConfigError(format!("`type` must be one of {}", TYPES.join(", "))))
}

/// A kind's members, and what can be said of them without asking anybody.
trait Members: for<'de> Deserialize<'de> {
    fn check(&self) -> Result<(), SinkConfigError>;
}

fn read<T: Members>(content: &[u8]) -> Result<T, SinkConfigError> {
    let members: T = serde_json::from_slice(content)?;
    members.check()?;
    Ok(members)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stdout {
    #[serde(rename = "type")]
    _type: IgnoredAny,
}

/// Splunk's HTTP Event Collector.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Splunk {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// Where the collector listens, such as `https://splunk.example.com:8088`.
    pub hec_url: String,
    /// The collector's token.
    #[serde(deserialize_with = "secret")]
    pub token: Secret<String>,
    /// The index, if not the token's own.
    pub index: Option<String>,
    /// What the events' `source` is to be.
    pub source: Option<String>,
    /// What the events' `sourcetype` is to be.
    pub sourcetype: Option<String>,
    /// Whether the token has indexer acknowledgement switched on, so that events count as delivered when they are
    /// indexed.
    #[serde(default)]
    pub acknowledge: bool,
    /// The certificates to trust instead of the public authorities'.
    pub ca_pem: Option<String>,
}

impl Members for Splunk {
    fn check(&self) -> Result<(), SinkConfigError> {
        is_url("hecUrl", &self.hec_url)?;
        is_secret("token", &self.token)?;
        are_names(&[
            ("index", self.index.as_deref()),
            ("source", self.source.as_deref()),
            ("sourcetype", self.sourcetype.as_deref()),
        ])?;
        is_pem("caPem", self.ca_pem.as_deref())
    }
}

/// Google Cloud Logging, by a service account.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gcp {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// The project that the log is in.
    #[serde(rename = "projectId")]
    pub project_id: String,
    /// The log's id, such as `tsp-security-events`.
    #[serde(rename = "logId")]
    pub log_id: String,
    /// The service account.
    pub client_email: String,
    /// Its private key (RSA) in PEM.
    #[serde(deserialize_with = "secret")]
    pub private_key: Secret<String>,
    /// The id of the private key.
    pub private_key_id: Option<String>,
    /// URL that replaces the public API's.
    pub endpoint: Option<String>,
    /// URL, with its path, that replaces Google's public token endpoint.
    #[serde(rename = "tokenEndpoint")]
    pub token_endpoint: Option<String>,
    /// The certificates to trust instead of the public authorities'.
    #[serde(rename = "caPem")]
    pub ca_pem: Option<String>,
}

impl Members for Gcp {
    fn check(&self) -> Result<(), SinkConfigError> {
        let project = self.project_id.bytes();
        let mut project = project.filter(|byte| !b"-.:_".contains(byte));
        expect(
            "projectId",
            !self.project_id.is_empty()
                && self.project_id.len() <= 128
                && project.all(|byte| byte.is_ascii_alphanumeric()),
            "the id of a Google Cloud project, such as acme-prod-1234",
        )?;
        let log = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-.".contains(&byte);
        expect(
            "logId",
            (1..=NAME_BYTES_MAX).contains(&self.log_id.len()) && self.log_id.bytes().all(log),
            "1 to 512 letters, digits, or characters of /_-.",
        )?;
        is_url_or_absent("endpoint", self.endpoint.as_deref())?;
        is_url_or_absent("tokenEndpoint", self.token_endpoint.as_deref())?;
        is_pem("caPem", self.ca_pem.as_deref())
    }
}

/// Datadog's intake of logs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Datadog {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// The site, such as `datadoghq.eu`.
    pub site: String,
    /// An API key.
    #[serde(deserialize_with = "secret")]
    pub api_key: Secret<String>,
    /// What the events' `service` is to be.
    pub service: Option<String>,
    /// Tags, as in `env:prod,team:security`.
    pub tags: Option<String>,
    /// URL that replaces the site's public intake.
    pub endpoint: Option<String>,
    /// The certificates to trust instead of the public authorities'.
    pub ca_pem: Option<String>,
}

impl Members for Datadog {
    fn check(&self) -> Result<(), SinkConfigError> {
        expect(
            "site",
            is_host(&self.site),
            "the site of the Datadog account, such as datadoghq.com or datadoghq.eu",
        )?;
        is_secret("apiKey", &self.api_key)?;
        are_names(&[
            ("service", self.service.as_deref()),
            ("tags", self.tags.as_deref()),
        ])?;
        is_url_or_absent("endpoint", self.endpoint.as_deref())?;
        is_pem("caPem", self.ca_pem.as_deref())
    }
}

/// An HTTP source of Sumo Logic.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SumoLogic {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// The source's address. Whoever has it can write there.
    #[serde(deserialize_with = "secret")]
    pub collector_url: Secret<String>,
    /// Overrides the source's category.
    pub category: Option<String>,
    /// Overrides the source's name.
    pub name: Option<String>,
    /// Overrides the source's host.
    pub host: Option<String>,
    /// The certificates to trust instead of the public authorities'.
    pub ca_pem: Option<String>,
}

impl Members for SumoLogic {
    fn check(&self) -> Result<(), SinkConfigError> {
        is_url("collectorUrl", self.collector_url.expose())?;
        are_names(&[
            ("category", self.category.as_deref()),
            ("name", self.name.as_deref()),
            ("host", self.host.as_deref()),
        ])?;
        is_pem("caPem", self.ca_pem.as_deref())
    }
}

/// Azure Monitor's Logs Ingestion API, by an application of Entra ID.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Azure {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// The Entra tenant of the application.
    pub tenant_guid: String,
    /// The application.
    pub client_id: String,
    /// Its secret.
    #[serde(deserialize_with = "secret")]
    pub client_secret: Secret<String>,
    /// The data collection endpoint, or the rule's own one.
    pub dce_url: String,
    /// The data collection rule's immutable id.
    pub dcr_immutable_id: String,
    /// The stream of the rule, such as `Custom-TspEvents_CL`.
    pub stream_name: String,
    /// URL that replaces the cloud's public token authority.
    pub authority: Option<String>,
    /// The certificates to trust instead of the public authorities'.
    pub ca_pem: Option<String>,
}

impl Members for Azure {
    fn check(&self) -> Result<(), SinkConfigError> {
        is_secret("clientSecret", &self.client_secret)?;
        is_url("dceUrl", &self.dce_url)?;
        for (member, text) in [
            ("tenantGuid", &self.tenant_guid),
            ("clientId", &self.client_id),
            ("dcrImmutableId", &self.dcr_immutable_id),
            ("streamName", &self.stream_name),
        ] {
            let sound = (1..=128).contains(&text.len())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
                && text.bytes().any(|byte| byte != b'.');
            expect(
                member,
                sound,
                "1 to 128 letters, digits, or characters of -._",
            )?;
        }
        is_url_or_absent("authority", self.authority.as_deref())?;
        is_pem("caPem", self.ca_pem.as_deref())
    }
}

/// A stream of AWS CloudWatch Logs, by keys or by a role.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloudWatch {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// The region of the log group.
    pub region: String,
    /// The log group, which exists.
    pub log_group: String,
    /// The stream in it, which is made if the credentials may.
    pub log_stream: String,
    /// The access key.
    pub access_key_id: String,
    /// Its secret.
    #[serde(deserialize_with = "secret")]
    pub secret_access_key: Secret<String>,
    /// Goes with temporary credentials.
    #[serde(default, deserialize_with = "optional_secret")]
    pub session_token: Option<Secret<String>>,
    /// The role to assume. Absent: the keys write by themselves.
    #[serde(default, deserialize_with = "role")]
    pub assume_role: Option<AssumeRoleDoc>,
    /// URL that replaces the region's public host of CloudWatch Logs.
    pub endpoint: Option<String>,
    /// URL that replaces the region's public host of AWS STS.
    pub sts_endpoint: Option<String>,
    /// The certificates to trust instead of the public authorities'.
    pub ca_pem: Option<String>,
}

impl Members for CloudWatch {
    fn check(&self) -> Result<(), SinkConfigError> {
        let group = |byte: u8| byte.is_ascii_alphanumeric() || b"_/.#-".contains(&byte);
        expect(
            "logGroup",
            (1..=512).contains(&self.log_group.len()) && self.log_group.bytes().all(group),
            "the name of a log group: 1 to 512 letters, digits, or characters of _/.#-",
        )?;
        let stream = |c: char| !matches!(c, ':' | '*') && !c.is_control();
        expect(
            "logStream",
            (1..=512).contains(&self.log_stream.len()) && self.log_stream.chars().all(stream),
            "the name of a log stream: 1 to 512 characters but : and *",
        )?;
        is_url_or_absent("endpoint", self.endpoint.as_deref())?;
        is_url_or_absent("stsEndpoint", self.sts_endpoint.as_deref())?;
        is_pem("caPem", self.ca_pem.as_deref())
    }
}

/// Whatever takes logs by OTLP over HTTP.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Otlp {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// The whole URL, such as `https://collector.example.com:4318/v1/logs`.
    pub url: String,
    /// Headers to send, such as a collector's key.
    #[serde(default, deserialize_with = "headers")]
    pub headers: Vec<(String, Secret<String>)>,
    /// The certificates to trust instead of the public authorities'.
    pub ca_pem: Option<String>,
}

impl Members for Otlp {
    fn check(&self) -> Result<(), SinkConfigError> {
        is_url("url", &self.url)?;
        are_headers(&self.headers)?;
        is_pem("caPem", self.ca_pem.as_deref())
    }
}

/// Any HTTPS server that takes a JSON array.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// Where to post.
    pub url: String,
    /// What both sides know, for the signature.
    #[serde(deserialize_with = "secret")]
    pub hmac_secret: Secret<String>,
    /// Headers to send.
    #[serde(default, deserialize_with = "headers")]
    pub headers: Vec<(String, Secret<String>)>,
    /// The certificates to trust instead of the public authorities'.
    pub ca_pem: Option<String>,
}

impl Members for Webhook {
    fn check(&self) -> Result<(), SinkConfigError> {
        is_url("url", &self.url)?;
        let secret = self.hmac_secret.expose();
        expect(
            "hmacSecret",
            (32..=SECRET_BYTES_MAX).contains(&secret.len()),
            "at least 32 characters that nobody can guess, such as `openssl rand -hex 32` prints",
        )?;
        are_headers(&self.headers)?;
        is_pem("caPem", self.ca_pem.as_deref())
    }
}

/// Syslog over TLS (RFC 5425).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Syslog {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// The collector's name or address.
    pub host: String,
    /// Its port; 6514 if absent.
    #[serde(default = "syslog_port")]
    pub port: u16,
    /// The certificates to trust instead of the public authorities'.
    pub ca_pem: Option<String>,
    /// A certificate to show and its private key, both in one PEM text.
    #[serde(default, deserialize_with = "optional_secret")]
    pub client_certificate: Option<Secret<String>>,
    /// The facility, 0 to 23; 13 (log audit) if absent.
    #[serde(default = "audit_facility")]
    pub facility: u8,
    /// The messages' `APP-NAME`; `tsp` if absent.
    #[serde(default = "app_name")]
    pub app_name: String,
    /// Largest message that the collector takes without cutting it, in bytes; 8192 if absent. A larger event becomes a
    /// dead letter.
    #[serde(default = "message_bytes")]
    pub message_bytes_max: usize,
}

fn syslog_port() -> u16 {
    6514
}

fn audit_facility() -> u8 {
    13
}

fn app_name() -> String {
    "tsp".to_owned()
}

/// What every receiver should take (RFC 5425, section 4.3.1).
fn message_bytes() -> usize {
    8192
}

impl Members for Syslog {
    fn check(&self) -> Result<(), SinkConfigError> {
        expect("host", is_host(&self.host), "a host name or an IP address")?;
        expect("port", self.port != 0, "1 to 65535")?;
        expect("facility", self.facility < 24, "0 to 23")?;
        expect(
            "appName",
            (1..=48).contains(&self.app_name.len())
                && self.app_name.bytes().all(|byte| byte.is_ascii_graphic()),
            "1 to 48 visible ASCII characters",
        )?;
        expect(
            "messageBytesMax",
            (2048..=1024 * 1024).contains(&self.message_bytes_max),
            "2048 to 1048576",
        )?;
        let pem = self.client_certificate.as_ref();
        is_pem("clientCertificate", pem.map(|pem| pem.expose().as_str()))?;
        is_pem("caPem", self.ca_pem.as_deref())
    }
}

fn expect(member: &str, sound: bool, expected: &str) -> Result<(), SinkConfigError> {
    if sound {
        Ok(())
    } else {
        Err(SinkConfigError(format!("`{member}` must be {expected}")))
    }
}

/// A URL of `http` or `https` without a user or a fragment. Plain `http` is refused later, wherever it would leave the
/// operator's own networks.
fn is_url(member: &str, url: &str) -> Result<(), SinkConfigError> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let sound = rest.is_some_and(|rest| {
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        is_host(host)
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
            && url.len() <= URL_BYTES_MAX
            && url
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&byte))
    });
    expect(
        member,
        sound,
        "a URL that begins with https://, without a user, a fragment or blanks",
    )
}

fn is_url_or_absent(member: &str, url: Option<&str>) -> Result<(), SinkConfigError> {
    url.map_or(Ok(()), |url| is_url(member, url))
}

/// A DNS name or an IP address; IPv6 with or without brackets.
fn is_host(text: &str) -> bool {
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']').unwrap_or_default();
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    text.parse::<std::net::IpAddr>().is_ok()
        || (text.len() <= 253
            && text.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            }))
}

/// What can stand in a header.
fn is_secret(member: &str, secret: &Secret<String>) -> Result<(), SinkConfigError> {
    let text = secret.expose();
    expect(
        member,
        (1..=SECRET_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic()),
        "visible ASCII characters in one line without blanks",
    )
}

fn are_names(names: &[(&str, Option<&str>)]) -> Result<(), SinkConfigError> {
    names.iter().try_for_each(|(member, name)| {
        let sound = name.is_none_or(|name| {
            (1..=NAME_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        });
        expect(
            member,
            sound,
            "absent, or 1 to 512 visible ASCII characters",
        )
    })
}

fn is_pem(member: &str, pem: Option<&str>) -> Result<(), SinkConfigError> {
    let sound = pem.is_none_or(|pem| {
        pem.len() <= PEM_BYTES_MAX && pem.contains("-----BEGIN CERTIFICATE-----")
    });
    expect(
        member,
        sound,
        "absent, or one or more certificates in PEM, at most 256 KiB",
    )
}

fn are_headers(headers: &[(String, Secret<String>)]) -> Result<(), SinkConfigError> {
    /// What HTTP itself needs, and what we say ourselves.
    const OURS: [&str; 7] = [
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "te",
        "transfer-encoding",
    ];
    let sound = |(name, value): &(String, Secret<String>)| {
        let lower = name.to_ascii_lowercase();
        (1..=128).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !OURS.contains(&lower.as_str())
            && !lower.starts_with("x-tsp-")
            && value.expose().len() <= SECRET_BYTES_MAX
            && value
                .expose()
                .bytes()
                .all(|byte| (b' '..=b'~').contains(&byte))
    };
    expect(
        "headers",
        headers.len() <= HEADERS_MAX && headers.iter().all(sound),
        "at most 16 headers in visible ASCII, none of HTTP's own and none that begins with x-tsp-",
    )
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
    String::deserialize(from).map(Secret::new)
}

fn optional_secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}

fn headers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, Secret<String>)>, D::Error> {
    let map = std::collections::BTreeMap::<String, String>::deserialize(from)?;
    Ok(map
        .into_iter()
        .map(|(name, value)| (name, Secret::new(value)))
        .collect())
}

fn role<'de, D: Deserializer<'de>>(from: D) -> Result<Option<AssumeRoleDoc>, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Role {
        role_arn: String,
        #[serde(default, deserialize_with = "optional_secret")]
        external_id: Option<Secret<String>>,
        session_name: Option<String>,
        duration_s: Option<u32>,
    }
    let role = Option::<Role>::deserialize(from)?;
    Ok(role.map(|role| AssumeRoleDoc {
        role_arn: role.role_arn,
        external_id: role.external_id,
        session_name: role.session_name,
        duration_s: role.duration_s,
    }))
}

#[cfg(test)]
mod tests;
