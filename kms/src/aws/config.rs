//! What a configuration for AWS KMS may hold. What comes out of here cannot make a request that is not one.

use std::ops::RangeInclusive;

use tsp_wire::{
    Secret,
    snapshot::{AssumeRoleDoc, KmsConfigDoc},
};

use super::{
    AwsKms, Credentials,
    sigv4::Signer,
    sts::{Role, RoleMembers},
};
use crate::{ConfigError, Endpoint, config::visible, http::Roots};

/// Longest access key id, in bytes: the API's own limit.
pub(super) const ACCESS_KEY_ID_BYTES_MAX: usize = 128;
/// Longest secret access key, in bytes: real ones have 40.
pub(super) const SECRET_ACCESS_KEY_BYTES_MAX: usize = 256;
/// Longest session token, in bytes: real ones stay below 4 KiB, and it travels in a header.
pub(super) const SESSION_TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Longest key id, in bytes: the API's own limit.
const KEY_ID_BYTES_MAX: usize = 2048;

/// The members of a configuration that only AWS has.
pub(crate) struct AwsKey<'a> {
    pub(crate) key_id: &'a str,
    pub(crate) region: &'a str,
    pub(crate) access_key_id: &'a str,
    pub(crate) secret_access_key: &'a Secret<String>,
    pub(crate) session_token: Option<&'a Secret<String>>,
    pub(crate) assume_role: Option<&'a AssumeRoleDoc>,
    pub(crate) sts_endpoint: Option<&'a str>,
}

impl AwsKms {
    /// Checks a configuration.
    pub(crate) fn from_doc(doc: &KmsConfigDoc, key: &AwsKey<'_>) -> Result<Self, ConfigError> {
        let partition = check_region(key.region)?;
        let unwrap_names_key = check_key_id(key.key_id, partition)?;
        check_keys(key.access_key_id, key.secret_access_key, key.session_token)?;
        let endpoint =
            Endpoint::from_doc(doc, &format!("kms.{}.{}", key.region, partition.suffix))?;
        let key_id_json = serde_json::Value::from(key.key_id).to_string();
        let copy = |secret: &Secret<String>| Secret::new(secret.expose().clone());
        let signer = |service| {
            Signer::new(
                key.access_key_id.to_owned(),
                copy(key.secret_access_key),
                key.session_token.map(copy),
                key.region.to_owned(),
                service,
            )
        };
        let credentials = match key.assume_role {
            None => Credentials::Configured(signer(Self::SERVICE)),
            Some(role) => {
                let members = check_role(role, partition)?;
                let endpoint = match key.sts_endpoint {
                    Some(url) => Endpoint::from_url("stsEndpoint", url, doc)?,
                    None => {
                        let host = format!("sts.{}.{}", key.region, partition.suffix);
                        Endpoint::at(&host, Roots::from_doc(doc)?)
                    }
                };
                let role = Role::new(endpoint, signer(Role::SERVICE), &members, Self::SERVICE);
                Credentials::Role(Box::new(role))
            }
        };
        Ok(Self {
            host: endpoint.host_header(),
            endpoint,
            credentials,
            key_id_json,
            unwrap_names_key,
        })
    }
}

/// Checks what signs.
pub(super) fn check_keys(
    access_key_id: &str,
    secret_access_key: &Secret<String>,
    session_token: Option<&Secret<String>>,
) -> Result<(), ConfigError> {
    if !is_access_key_id(access_key_id) {
        return Err(ConfigError::new(
            "accessKeyId",
            "an AWS access key id, such as AKIA followed by 16 letters and digits",
        ));
    }
    if !visible(secret_access_key.expose(), SECRET_ACCESS_KEY_BYTES_MAX) {
        return Err(ConfigError::new(
            "secretAccessKey",
            "an AWS secret access key: 40 visible characters without blanks",
        ));
    }
    if session_token.is_some_and(|t| !visible(t.expose(), SESSION_TOKEN_BYTES_MAX)) {
        return Err(ConfigError::new(
            "sessionToken",
            "absent, or the session token that goes with temporary credentials, in one line without blanks",
        ));
    }
    Ok(())
}

/// Whether `id` can be the id of an access key.
pub(super) fn is_access_key_id(id: &str) -> bool {
    (1..=ACCESS_KEY_ID_BYTES_MAX).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Shortest and longest ARN of a role, in bytes: the API's own limits, as all below.
const ROLE_ARN_BYTES: RangeInclusive<usize> = 20..=2048;
/// Shortest and longest external id, in bytes.
const EXTERNAL_ID_BYTES: RangeInclusive<usize> = 2..=1224;
/// Shortest and longest name of a session, in bytes.
const SESSION_NAME_BYTES: RangeInclusive<usize> = 2..=64;
/// Shortest and longest life of a session, in seconds.
const DURATION_S: RangeInclusive<u32> = 900..=43_200;

/// The name under which the role's account logs our sessions, if the configuration has none.
const SESSION_NAME: &str = "tenant-security-proxy";

pub(super) fn check_role<'a>(
    role: &'a AssumeRoleDoc,
    partition: &Partition,
) -> Result<RoleMembers<'a>, ConfigError> {
    // Letters, digits and `_=,.@-`, which all of the members may hold, and `+`.
    fn spelt_of(text: &str, bytes: &RangeInclusive<usize>, more: &[u8]) -> bool {
        let one = |byte: u8| {
            byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte) || more.contains(&byte)
        };
        bytes.contains(&text.len()) && text.bytes().all(one)
    }

    if !is_role_arn(&role.role_arn, partition) || !ROLE_ARN_BYTES.contains(&role.role_arn.len()) {
        return Err(ConfigError::new(
            "roleArn",
            format!(
                "the ARN of a role in the partition of the configured region: \
                 arn:{}:iam::ACCOUNT:role/NAME",
                partition.name
            ),
        ));
    }
    let external_id = role.external_id.as_ref().map(|id| id.expose().as_str());
    if external_id.is_some_and(|id| !spelt_of(id, &EXTERNAL_ID_BYTES, b":/")) {
        return Err(ConfigError::new(
            "externalId",
            "2 to 1224 letters, digits, or characters of _+=,.@:/-",
        ));
    }
    let session_name = role.session_name.as_deref().unwrap_or(SESSION_NAME);
    if !spelt_of(session_name, &SESSION_NAME_BYTES, b"") {
        return Err(ConfigError::new(
            "sessionName",
            "2 to 64 letters, digits, or characters of _+=,.@-",
        ));
    }
    if role.duration_s.is_some_and(|s| !DURATION_S.contains(&s)) {
        return Err(ConfigError::new(
            "durationS",
            "900 to 43200 seconds, and no more than the role allows",
        ));
    }
    Ok(RoleMembers {
        arn: &role.role_arn,
        external_id,
        session_name,
        duration_s: role.duration_s,
    })
}

/// Whether `arn` is `arn:PARTITION:iam::ACCOUNT:role/NAME`, perhaps with a path before the name.
fn is_role_arn(arn: &str, partition: &Partition) -> bool {
    let parts: Vec<_> = arn.splitn(6, ':').collect();
    let ["arn", arn_partition, "iam", "", account, resource] = parts.as_slice() else {
        return false;
    };
    let name = resource.strip_prefix("role/").unwrap_or_default();
    *arn_partition == partition.name
        && is_account(account)
        && !name.is_empty()
        && !name.ends_with('/')
        // A path may hold all that is visible.
        && name.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A partition of AWS: regions that share accounts, and the domain that serves them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// As ARNs name it.
    name: &'static str,
    /// What its regions begin with.
    region_prefix: &'static str,
    /// What the hosts of its services end with.
    pub(super) suffix: &'static str,
}

const fn partition(
    name: &'static str,
    region_prefix: &'static str,
    suffix: &'static str,
) -> Partition {
    Partition {
        name,
        region_prefix,
        suffix,
    }
}

/// The commercial partition, also for regions of a shape that is not known yet.
const COMMERCIAL: Partition = partition("aws", "", "amazonaws.com");

/// All others, from the AWS SDKs' endpoint rules.
const PARTITIONS: [Partition; 7] = [
    partition("aws-cn", "cn-", "amazonaws.com.cn"),
    partition("aws-us-gov", "us-gov-", "amazonaws.com"),
    partition("aws-eusc", "eusc-", "amazonaws.eu"),
    partition("aws-iso", "us-iso-", "c2s.ic.gov"),
    partition("aws-iso-b", "us-isob-", "sc2s.sgov.gov"),
    partition("aws-iso-e", "eu-isoe-", "cloud.adc-e.uk"),
    partition("aws-iso-f", "us-isof-", "csp.hci.ic.gov"),
];

impl Partition {
    fn of_region(region: &str) -> &'static Self {
        PARTITIONS
            .iter()
            .find(|partition| region.starts_with(partition.region_prefix))
            .unwrap_or(&COMMERCIAL)
    }
}

pub(super) fn check_region(region: &str) -> Result<&'static Partition, ConfigError> {
    if is_region(region) {
        Ok(Partition::of_region(region))
    } else {
        Err(ConfigError::new(
            "region",
            "an AWS region in lower case, such as eu-central-1",
        ))
    }
}

/// Whether `region` can be one: it becomes a label of a host name and a part of the signature's scope.
fn is_region(region: &str) -> bool {
    (1..=63).contains(&region.len())
        && region
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !region.starts_with('-')
        && !region.ends_with('-')
}

/// Checks a key's id, and tells whether an unwrap may name it: it may unless it is an alias.
fn check_key_id(key_id: &str, partition: &Partition) -> Result<bool, ConfigError> {
    let wrong = || {
        ConfigError::new(
            "keyID",
            "a key id, `alias/` and a name, or the ARN of either \
             (arn:PARTITION:kms:REGION:ACCOUNT:key/ID or …:alias/NAME)",
        )
    };
    if key_id.len() > KEY_ID_BYTES_MAX {
        return Err(wrong());
    }
    let Some(arn) = key_id.strip_prefix("arn:") else {
        return resource(key_id, "").ok_or_else(wrong);
    };
    let mut parts = arn.splitn(5, ':');
    let mut part = || parts.next().ok_or_else(wrong);
    let (arn_partition, service, region, account) = (part()?, part()?, part()?, part()?);
    let names_key = resource(part()?, "key/").ok_or_else(wrong)?;
    if service != AwsKms::SERVICE || !is_account(account) || !is_region(region) {
        return Err(wrong());
    }
    if arn_partition != partition.name || Partition::of_region(region) != partition {
        return Err(ConfigError::new(
            "keyID",
            format!(
                "a key in the partition of the configured region: arn:{}:kms:…",
                partition.name
            ),
        ));
    }
    Ok(names_key)
}

/// Whether `text` names a key (true) or an alias (false); `None` if neither.
fn resource(text: &str, key_prefix: &str) -> Option<bool> {
    if let Some(name) = text.strip_prefix("alias/") {
        let sound = !name.is_empty() && !name.chars().any(|c| c.is_control() || c.is_whitespace());
        return sound.then_some(false);
    }
    let id = text.strip_prefix(key_prefix)?;
    let sound = !id.is_empty()
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    sound.then_some(true)
}
