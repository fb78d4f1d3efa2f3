//! Configuration files, piece by piece.

use std::fmt::Write as _;

use super::{
    peers::{Peer, User},
    to_base64,
};

/// A KMS config with the key that `key_seed` stands for, held in the file itself.
pub(crate) fn local_kms(id: u32, key_seed: u8) -> String {
    local_kms_with_key(id, &[key_seed; 32])
}

pub(crate) fn local_kms_with_key(id: u32, key: &[u8; 32]) -> String {
    format!(
        "[[kms]]\nid = {id}\ntype = \"LOCAL\"\ncredentials = {{ key = \"{}\" }}\n",
        to_base64(key)
    )
}

/// The same KMS config, from which keys may be leased.
pub(crate) fn leased(config: &str) -> String {
    config.replacen("\ntype", "\nleasing_allowed = true\ntype", 1)
}

/// A KMS config at AWS, or at something that plays AWS.
#[derive(Clone, Debug)]
pub(crate) struct AwsKms {
    pub(crate) id: u32,
    pub(crate) key_id: String,
    pub(crate) endpoint: String,
    pub(crate) user: User,
    pub(crate) ca_file: Option<String>,
}

impl AwsKms {
    /// Key number `key` of a stand-in, with the user that may use it.
    pub(crate) fn at(peer: &Peer, id: u32, key: usize) -> Self {
        Self {
            id,
            key_id: peer.key(key).to_owned(),
            endpoint: peer.url().to_owned(),
            user: peer.user(),
            ca_file: peer
                .ca_file
                .as_ref()
                .map(|path| path.to_str().expect("temporary paths are UTF-8").to_owned()),
        }
    }

    /// Made-up credentials for a server that does not look at them.
    pub(crate) fn unchecked(id: u32, endpoint: &str) -> Self {
        let user = User {
            access_key_id: "AKIATESTTESTTESTTEST".into(),
            secret_access_key: "not-a-secret".into(),
        };
        let key_id = "11111111-2222-3333-4444-555555555555".into();
        Self {
            id,
            key_id,
            endpoint: endpoint.to_owned(),
            user,
            ca_file: None,
        }
    }

    pub(crate) fn with_key_id(mut self, key_id: &str) -> Self {
        key_id.clone_into(&mut self.key_id);
        self
    }

    pub(crate) fn with_user(mut self, user: User) -> Self {
        self.user = user;
        self
    }

    pub(crate) fn with_secret(mut self, secret: &str) -> Self {
        secret.clone_into(&mut self.user.secret_access_key);
        self
    }

    pub(crate) fn toml(&self) -> String {
        let Self {
            id,
            key_id,
            endpoint,
            user,
            ca_file,
        } = self;
        let User {
            access_key_id,
            secret_access_key,
        } = user;
        let mut text = format!(
            "[[kms]]\nid = {id}\ntype = \"AWS\"\nkey_path = {{ keyID = \"{key_id}\", region = \"us-east-1\" }}\n\
             credentials = {{ accessKeyId = \"{access_key_id}\", secretAccessKey = \"{secret_access_key}\" }}\n\
             endpoint = \"{endpoint}\"\n"
        );
        if endpoint.starts_with("http:") {
            text.push_str("allow_insecure = true\n");
        }
        if let Some(file) = ca_file {
            writeln!(text, "ca_file = \"{file}\"").expect("a String takes everything");
        }
        text
    }
}

/// How a KMS config is assigned to a tenant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum As {
    Primary,
    Active,
    Disabled,
}

pub(crate) fn tenant(id: &str, assignments: &[(u32, As)]) -> String {
    let assignments: Vec<_> = assignments
        .iter()
        .map(|(kms, how)| match how {
            As::Primary => format!("{{ kms = {kms}, primary = true }}"),
            As::Active => format!("{{ kms = {kms} }}"),
            As::Disabled => format!("{{ kms = {kms}, active = false }}"),
        })
        .collect();
    format!(
        "[[tenant]]\nid = \"{id}\"\nassignments = [{}]\n",
        assignments.join(", ")
    )
}

/// A whole file.
pub(crate) fn file(pieces: &[String]) -> String {
    format!("version = 1\n{}", pieces.concat())
}

/// The usual one: `acme` and `globex` on local keys of their own.
pub(crate) fn two_local_tenants() -> String {
    file(&[
        local_kms(1, 0x11),
        local_kms(2, 0x22),
        tenant("acme", &[(1, As::Primary)]),
        tenant("globex", &[(2, As::Primary)]),
    ])
}
