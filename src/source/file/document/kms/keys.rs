//! The key of one `[[kms]]` entry, one function per kind of KMS.
//!
//! Each reads `key_path`, `credentials` and the members that only its kind has, telling every mistake of form; what it
//! gives back fetches the credentials. Members have the names that the providers' own files and consoles give them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tsp_wire::{
    Secret,
    snapshot::{AssumeRoleDoc, GcpTokenKind, KmsKeyDoc},
};
use zeroize::Zeroizing;

use super::{
    super::form::{Form, Table},
    Fetch, Named, RawKey,
};

/// Size of a LOCAL key, in bytes.
const LOCAL_KEY_BYTES: usize = 32;

/// Names of [`GcpTokenKind`].
const TOKEN_KINDS: [(&str, GcpTokenKind); 2] = [
    ("self-signed", GcpTokenKind::SelfSigned),
    ("endpoint", GcpTokenKind::Endpoint),
];

pub(super) fn local<'d>(form: &mut Form<'_>, table: &Table<'d>) -> Option<RawKey<'d>> {
    if table.member("key_path").is_some() {
        form.required_table(table, "key_path", &[]);
    }
    let credentials = form.required_table(table, "credentials", &["key"])?;
    let key = form.required_credential(&credentials, "key")?;
    Some(Box::new(move |fetch| {
        let key = local_key(&fetch.raw(key)?);
        if key.is_none() {
            fetch.whys.push(format!(
                "credentials: key is not base64 of {LOCAL_KEY_BYTES} bytes"
            ));
        }
        Some(KmsKeyDoc::Local { key: key? })
    }))
}

fn local_key(text: &str) -> Option<Secret<[u8; LOCAL_KEY_BYTES]>> {
    // Base64 decodes in groups, so the buffer has room for a little more than a key.
    let mut buffer = Zeroizing::new([0u8; LOCAL_KEY_BYTES + 4]);
    let bytes = STANDARD.decode_slice(text, buffer.as_mut_slice()).ok()?;
    let key: Zeroizing<[u8; LOCAL_KEY_BYTES]> =
        Zeroizing::new(buffer.get(..bytes)?.try_into().ok()?);
    Some(Secret::new(*key))
}

pub(super) fn aws<'d>(form: &mut Form<'_>, table: &Table<'d>) -> Option<RawKey<'d>> {
    const CREDENTIALS: [&str; 7] = [
        "accessKeyId",
        "secretAccessKey",
        "sessionToken",
        "roleArn",
        "externalId",
        "sessionName",
        "durationS",
    ];
    let [key_id, region] = form.key_path(table, ["keyID", "region"]);
    let sts_endpoint = form.optional(table, "stsEndpoint", Form::string);
    let credentials = form.required_table(table, "credentials", &CREDENTIALS)?;
    let access_key_id = form.required_credential(&credentials, "accessKeyId");
    let secret_access_key = form.required_credential(&credentials, "secretAccessKey");
    let session_token = form.optional_credential(&credentials, "sessionToken");
    let role_arn = form.optional_credential(&credentials, "roleArn");
    let external_id = form.optional_credential(&credentials, "externalId");
    let session_name = form.optional_credential(&credentials, "sessionName");
    let duration_s = form.optional(&credentials, "durationS", Form::seconds);
    if credentials.member("roleArn").is_none() {
        for (place, member) in [
            (table, "stsEndpoint"),
            (&credentials, "externalId"),
            (&credentials, "sessionName"),
            (&credentials, "durationS"),
        ] {
            if let Some((at, _)) = place.member(member) {
                let why = format!(
                    "{}: {member} goes with roleArn, which is missing",
                    place.what
                );
                form.problem(at, why);
            }
        }
    }
    let (key_id, region) = (key_id?, region?);
    let (access_key_id, secret_access_key) = (access_key_id?, secret_access_key?);
    Some(Box::new(move |fetch| {
        let access_key_id = fetch.text(access_key_id);
        let secret_access_key = fetch.secret(secret_access_key);
        let session_token = given(session_token, |token| fetch.secret(token));
        let assume_role = given(role_arn, |arn| {
            role(fetch, arn, external_id, session_name, duration_s)
        });
        Some(KmsKeyDoc::Aws {
            key_id: key_id.to_owned(),
            region: region.to_owned(),
            access_key_id: access_key_id?,
            secret_access_key: secret_access_key?,
            session_token: session_token?,
            assume_role: assume_role?,
            sts_endpoint: sts_endpoint.map(str::to_owned),
        })
    }))
}

fn role(
    fetch: &mut Fetch<'_>,
    arn: Named<'_>,
    external_id: Option<Named<'_>>,
    session_name: Option<Named<'_>>,
    duration_s: Option<u32>,
) -> Option<AssumeRoleDoc> {
    let role_arn = fetch.text(arn);
    let external_id = given(external_id, |id| fetch.secret(id));
    let session_name = given(session_name, |name| fetch.text(name));
    Some(AssumeRoleDoc {
        role_arn: role_arn?,
        external_id: external_id?,
        session_name: session_name?,
        duration_s,
    })
}

pub(super) fn gcp<'d>(form: &mut Form<'_>, table: &Table<'d>) -> Option<RawKey<'d>> {
    let path = ["projectId", "locationId", "keyRingId", "cryptoKeyId"];
    let [project_id, location_id, key_ring_id, crypto_key_id] = form.key_path(table, path);
    let token_endpoint = form.optional(table, "tokenEndpoint", Form::string);
    let token = form.optional(table, "tokenKind", |form, what, at, value| {
        let name = form.string(what, at, value)?;
        let kind = TOKEN_KINDS.iter().find(|(known, _)| *known == name);
        if kind.is_none() {
            let [(first, _), (second, _)] = TOKEN_KINDS;
            form.problem(at, format!("{what} is neither {first} nor {second}"));
        }
        Some(kind?.1)
    });
    let members = ["client_email", "private_key", "private_key_id"];
    let credentials = form.required_table(table, "credentials", &members)?;
    let client_email = form.required_credential(&credentials, "client_email");
    let private_key = form.required_credential(&credentials, "private_key");
    let private_key_id = form.optional_credential(&credentials, "private_key_id");
    let (project_id, location_id) = (project_id?, location_id?);
    let (key_ring_id, crypto_key_id) = (key_ring_id?, crypto_key_id?);
    let (client_email, private_key) = (client_email?, private_key?);
    Some(Box::new(move |fetch| {
        let client_email = fetch.text(client_email);
        let private_key = fetch.secret(private_key);
        let private_key_id = given(private_key_id, |id| fetch.text(id));
        Some(KmsKeyDoc::Gcp {
            client_email: client_email?,
            private_key: private_key?,
            private_key_id: private_key_id?,
            project_id: project_id.to_owned(),
            location_id: location_id.to_owned(),
            key_ring_id: key_ring_id.to_owned(),
            crypto_key_id: crypto_key_id.to_owned(),
            token: token.unwrap_or_default(),
            token_endpoint: token_endpoint.map(str::to_owned),
        })
    }))
}

pub(super) fn azure<'d>(form: &mut Form<'_>, table: &Table<'d>) -> Option<RawKey<'d>> {
    let [vault_base_url, key_name] = form.key_path(table, ["vaultBaseUrl", "keyName"]);
    let algorithm = form.optional(table, "algorithm", Form::string);
    let authority = form.optional(table, "authority", Form::string);
    let members = [
        "clientId",
        "clientSecret",
        "clientCertificate",
        "tenantGuid",
    ];
    let credentials = form.required_table(table, "credentials", &members)?;
    let client_id = form.required_credential(&credentials, "clientId");
    let client_secret = form.optional_credential(&credentials, "clientSecret");
    let client_certificate = form.optional_credential(&credentials, "clientCertificate");
    let tenant_guid = form.required_credential(&credentials, "tenantGuid");
    let proofs = ["clientSecret", "clientCertificate"];
    let proofs = proofs.map(|member| credentials.member(member).is_some());
    if proofs == [false, false] || proofs == [true, true] {
        let why = format!(
            "{} must have either clientSecret or clientCertificate",
            credentials.what
        );
        form.problem(credentials.at, why);
        return None;
    }
    let (vault_base_url, key_name) = (vault_base_url?, key_name?);
    let (client_id, tenant_guid) = (client_id?, tenant_guid?);
    Some(Box::new(move |fetch| {
        let client_id = fetch.text(client_id);
        let client_secret = given(client_secret, |secret| fetch.secret(secret));
        let client_certificate = given(client_certificate, |pem| fetch.secret(pem));
        let tenant_guid = fetch.text(tenant_guid);
        Some(KmsKeyDoc::Azure {
            client_id: client_id?,
            client_secret: client_secret?,
            client_certificate: client_certificate?,
            tenant_guid: tenant_guid?,
            vault_base_url: vault_base_url.to_owned(),
            key_name: key_name.to_owned(),
            algorithm: algorithm.map(str::to_owned),
            authority: authority.map(str::to_owned),
        })
    }))
}

pub(super) fn thales<'d>(form: &mut Form<'_>, table: &Table<'d>) -> Option<RawKey<'d>> {
    let [service_url, key_id] = form.key_path(table, ["serviceUrl", "keyId"]);
    let server_name = form.optional(table, "serverName", Form::string);
    let spki_pin = form.optional(table, "spkiPin", Form::string);
    let members = ["username", "password", "authDomain", "connection"];
    let credentials = form.required_table(table, "credentials", &members)?;
    let username = form.required_credential(&credentials, "username");
    let password = form.required_credential(&credentials, "password");
    let auth_domain = form.optional_credential(&credentials, "authDomain");
    let connection = form.optional_credential(&credentials, "connection");
    let (service_url, key_id) = (service_url?, key_id?);
    let (username, password) = (username?, password?);
    Some(Box::new(move |fetch| {
        let username = fetch.text(username);
        let password = fetch.secret(password);
        let auth_domain = given(auth_domain, |domain| fetch.text(domain));
        let connection = given(connection, |connection| fetch.text(connection));
        // Where they are empty, CipherTrust's own defaults hold.
        Some(KmsKeyDoc::Thales {
            username: username?,
            password: password?,
            auth_domain: auth_domain?.unwrap_or_default(),
            connection: connection?.unwrap_or_default(),
            service_url: service_url.to_owned(),
            key_id: key_id.to_owned(),
            server_name: server_name.map(str::to_owned),
            spki_pin: spki_pin.map(str::to_owned),
        })
    }))
}

/// What is not in the file is no failure: `Some(None)`. What is there and cannot be fetched is one: `None`.
fn given<'a, T>(
    member: Option<Named<'a>>,
    fetch: impl FnOnce(Named<'a>) -> Option<T>,
) -> Option<Option<T>> {
    match member {
        None => Some(None),
        Some(member) => fetch(member).map(Some),
    }
}

impl Form<'_> {
    /// The members of `key_path`, all of them required.
    fn key_path<'d, const N: usize>(
        &mut self,
        table: &Table<'d>,
        members: [&'static str; N],
    ) -> [Option<&'d str>; N] {
        match self.required_table(table, "key_path", &members) {
            None => [None; N],
            Some(path) => members.map(|member| self.required(&path, member, Self::string)),
        }
    }

    fn seconds(&mut self, what: &str, at: usize, value: &toml::de::DeValue<'_>) -> Option<u32> {
        let seconds = self.integer(what, at, value)?;
        let in_range = u32::try_from(seconds).ok();
        in_range.or_else(|| {
            self.problem(at, format!("{what} must be a number of seconds"));
            None
        })
    }
}
