//! The operations of AWS KMS on symmetric keys.

mod request;

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Aws, Caller, Error, account_of, region_of};
use crate::kmssim::{
    crypto::{Gcm, NONCE_BYTES, Random, Seed, TAG_BYTES},
    exchange::{Denied, Failure, Operation, Refusal, Reply, Verdict, json_object},
    sim,
    world::{AwsKeyDoc, AwsKeyState, WorldError},
};

use self::request::*;

/// The API's own limits, in bytes (KMS API Reference, `Encrypt` and `Decrypt`).
const PLAINTEXT_BYTES_MAX: usize = 4096;
const BLOB_BYTES_MAX: usize = 6144;
/// Characters of an encryption context, as JSON.
const CONTEXT_CHARS_MAX: usize = 8192;
/// Rotations of one key: more than daily ones for a century.
const ROTATIONS_MAX: u32 = 100_000;

/// The only algorithm of symmetric keys.
const ALGORITHM: &str = "SYMMETRIC_DEFAULT";

/// In our words, what a value of `X-Amz-Target` asks for.
pub(super) fn operation(target: &str) -> Operation {
    match target {
        "TrentService.Encrypt" => Operation::Wrap,
        "TrentService.Decrypt" => Operation::Unwrap,
        "TrentService.GenerateDataKey" => Operation::DataKey,
        "TrentService.ReEncrypt" => Operation::ReEncrypt,
        "TrentService.DescribeKey" => Operation::Lookup,
        _ => Operation::Other,
    }
}

/// A key, and what its secrets are derived from.
#[derive(Debug)]
pub(in crate::kmssim) struct Key {
    pub(in crate::kmssim) doc: AwsKeyDoc,
    pub(in crate::kmssim) denied: Denied,
    seed: Seed,
    /// What blobs name it by; the same in all regions of a multi-region key.
    pub(super) handle: [u8; HANDLE_BYTES],
}

const HANDLE_BYTES: usize = 16;

impl Key {
    pub(super) fn new(doc: &AwsKeyDoc, seed: &Seed) -> Result<Self, WorldError> {
        let parts: Vec<_> = doc.arn.split(':').collect();
        let is_arn = matches!(parts.as_slice(), ["arn", _, "kms", _, account, key]
            if account.len() == 12 && key.len() > "key/".len() && key.starts_with("key/"));
        if !is_arn {
            return Err(WorldError::new(format!(
                "aws: {:?} is no ARN of a key",
                doc.arn
            )));
        }
        if doc.aliases.iter().any(|alias| !alias.starts_with("alias/")) {
            return Err(WorldError::new(format!(
                "aws: an alias of {} lacks alias/",
                doc.arn
            )));
        }
        if doc.rotations > ROTATIONS_MAX {
            return Err(WorldError::new(format!(
                "aws: {} was rotated too often",
                doc.arn
            )));
        }
        let handle = seed.derive(&[b"aws-handle", identity(&doc.arn).as_bytes()]);
        Ok(Self {
            doc: doc.clone(),
            denied: Denied::default(),
            seed: seed.clone(),
            handle: std::array::from_fn(|index| handle.get(index).copied().unwrap_or_default()),
        })
    }

    /// The id after `key/`.
    pub(super) fn id(&self) -> &str {
        self.doc.arn.rsplit('/').next().unwrap_or_default()
    }

    pub(super) fn alias_arn(&self, alias: &str) -> String {
        let (scope, _) = self.doc.arn.rsplit_once(':').unwrap_or_default();
        format!("{scope}:{alias}")
    }

    /// From now on it encrypts with new material.
    pub(in crate::kmssim) fn rotate(&mut self) {
        self.doc.rotations = (self.doc.rotations + 1).min(ROTATIONS_MAX);
    }

    fn material(&self, rotation: u32) -> [u8; 32] {
        let identity = identity(&self.doc.arn).as_bytes();
        self.seed
            .derive(&[b"aws-key", identity, &rotation.to_be_bytes()])
    }

    /// As answers name the material.
    fn material_id(&self, rotation: u32) -> String {
        let identity = identity(&self.doc.arn).as_bytes();
        hex::encode(
            self.seed
                .derive(&[b"aws-material-id", identity, &rotation.to_be_bytes()]),
        )
    }

    fn seal(&self, plaintext: &[u8], context: &Context, random: &mut Random) -> Vec<u8> {
        let head = Head {
            handle: self.handle,
            rotation: self.doc.rotations,
        };
        let mut blob = head.encode(&self.seed);
        let aad = [blob.as_slice(), &context.canonical()].concat();
        let nonce: [u8; NONCE_BYTES] = random.bytes();
        let (text, tag) = Gcm::new(&self.material(head.rotation)).seal(nonce, &aad, plaintext);
        blob.extend_from_slice(&nonce);
        blob.extend_from_slice(&text);
        blob.extend_from_slice(&tag);
        blob
    }

    fn open(&self, blob: &Blob<'_>, context: &Context) -> Option<Vec<u8>> {
        if blob.head.rotation > self.doc.rotations {
            return None;
        }
        let aad = [blob.head_bytes, &context.canonical()].concat();
        let (text, tag) = blob
            .text
            .split_at_checked(blob.text.len().checked_sub(TAG_BYTES)?)?;
        Gcm::new(&self.material(blob.head.rotation)).open(blob.nonce, &aad, text, tag)
    }
}

/// What a key's secrets hang on: its ARN, but without the region if it is a multi-region key.
fn identity(arn: &str) -> &str {
    match arn.rsplit_once('/') {
        Some((_, id)) if id.starts_with("mrk-") => id,
        _ => arn,
    }
}

/// The first part of a blob: names the key, so that `Decrypt` needs no `KeyId`.
#[derive(Clone, Copy, Debug)]
struct Head {
    handle: [u8; HANDLE_BYTES],
    rotation: u32,
}

/// What every blob begins with; real ones of symmetric keys do too.
const MAGIC: [u8; 5] = [0x01, 0x02, 0x02, 0x00, 0x78];
/// Bytes that tell a blob of a deleted key from a forged one.
const CHECK_BYTES: usize = 8;
const HEAD_BYTES: usize = MAGIC.len() + HANDLE_BYTES + 4 + CHECK_BYTES;

impl Head {
    fn encode(self, seed: &Seed) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.handle);
        bytes.extend_from_slice(&self.rotation.to_be_bytes());
        let check = seed.derive(&[b"aws-blob", &bytes]);
        bytes.extend_from_slice(check.get(..CHECK_BYTES).unwrap_or(&check));
        bytes
    }
}

/// A blob, taken apart.
struct Blob<'a> {
    head: Head,
    head_bytes: &'a [u8],
    nonce: [u8; NONCE_BYTES],
    /// Ciphertext and tag.
    text: &'a [u8],
}

impl<'a> Blob<'a> {
    /// `None` if KMS with this seed cannot have made it.
    fn parse(bytes: &'a [u8], seed: &Seed) -> Option<Self> {
        let (head_bytes, rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let (nonce, text) = rest.split_first_chunk()?;
        let (handle, rest) = head_bytes.strip_prefix(&MAGIC)?.split_first_chunk()?;
        let (rotation, _) = rest.split_first_chunk()?;
        let head = Head {
            handle: *handle,
            rotation: u32::from_be_bytes(*rotation),
        };
        (head.encode(seed) == head_bytes).then_some(Self {
            head,
            head_bytes,
            nonce: *nonce,
            text,
        })
    }
}

impl Aws {
    /// Does what a signed request asks for.
    pub(super) fn operate(
        &mut self,
        operation: &str,
        body: &[u8],
        caller: &Caller,
        region: &str,
        cx: &mut sim::Context<'_>,
    ) -> Result<Reply, Error> {
        let answer = match operation {
            "Encrypt" => self.encrypt(parse(body)?, caller, region, cx),
            "Decrypt" => self.decrypt(parse(body)?, caller, region, cx),
            "GenerateDataKey" => self.generate_data_key(parse(body)?, caller, region, cx),
            "ReEncrypt" => self.re_encrypt(parse(body)?, caller, region, cx),
            "DescribeKey" => self.describe_key(parse(body)?, caller, region, cx),
            other => Err(Error::refused(
                Refusal::Protocol,
                "UnknownOperationException",
                format!("there is no operation {other} here"),
            )),
        }?;
        Ok(Reply::new(
            Verdict::Answered,
            200,
            "application/x-amz-json-1.1",
            answer.to_string(),
        ))
    }

    fn encrypt(
        &self,
        request: Encrypt,
        caller: &Caller,
        region: &str,
        cx: &mut sim::Context<'_>,
    ) -> Result<Value, Error> {
        let context = request.encryption_context.check()?;
        let plaintext = within(request.plaintext, "plaintext", PLAINTEXT_BYTES_MAX)?;
        let key_id = request.key_id.ok_or_else(|| missing("keyId"))?;
        let key = self.usable_key(&key_id, "kms:Encrypt", caller, region, cx)?;
        check_algorithm(request.encryption_algorithm.as_deref())?;
        check_dry_run(request.dry_run)?;
        Ok(json!({
            "CiphertextBlob": BASE64.encode(key.seal(&plaintext, &context, cx.random)),
            "KeyId": key.doc.arn,
            "EncryptionAlgorithm": ALGORITHM,
        }))
    }

    fn decrypt(
        &self,
        request: Decrypt,
        caller: &Caller,
        region: &str,
        cx: &mut sim::Context<'_>,
    ) -> Result<Value, Error> {
        let context = request.encryption_context.check()?;
        let blob = within(request.ciphertext_blob, "ciphertextBlob", BLOB_BYTES_MAX)?;
        check_algorithm(request.encryption_algorithm.as_deref())?;
        let key_id = request.key_id.as_deref();
        let (key, rotation, plaintext) =
            self.open(&blob, key_id, &context, "kms:Decrypt", caller, region, cx)?;
        check_dry_run(request.dry_run)?;
        Ok(json!({
            "Plaintext": BASE64.encode(plaintext),
            "KeyId": key.doc.arn,
            "EncryptionAlgorithm": ALGORITHM,
            "KeyMaterialId": key.material_id(rotation),
        }))
    }

    fn generate_data_key(
        &self,
        request: GenerateDataKey,
        caller: &Caller,
        region: &str,
        cx: &mut sim::Context<'_>,
    ) -> Result<Value, Error> {
        let context = request.encryption_context.check()?;
        let bytes = match (request.key_spec.as_deref(), request.number_of_bytes) {
            (Some("AES_256"), None) => 32,
            (Some("AES_128"), None) => 16,
            (None, Some(bytes @ 1..=1024)) => bytes,
            _ => {
                return Err(validation(
                    "exactly one of KeySpec and NumberOfBytes must be given",
                ));
            }
        };
        let key_id = request.key_id.ok_or_else(|| missing("keyId"))?;
        let key = self.usable_key(&key_id, "kms:GenerateDataKey", caller, region, cx)?;
        check_dry_run(request.dry_run)?;
        let plaintext = cx.random.vec(bytes);
        Ok(json!({
            "CiphertextBlob": BASE64.encode(key.seal(&plaintext, &context, cx.random)),
            "Plaintext": BASE64.encode(plaintext),
            "KeyId": key.doc.arn,
            "KeyMaterialId": key.material_id(key.doc.rotations),
        }))
    }

    fn re_encrypt(
        &self,
        request: ReEncrypt,
        caller: &Caller,
        region: &str,
        cx: &mut sim::Context<'_>,
    ) -> Result<Value, Error> {
        let from = request.source_encryption_context.check()?;
        let to = request.destination_encryption_context.check()?;
        let blob = within(request.ciphertext_blob, "ciphertextBlob", BLOB_BYTES_MAX)?;
        let destination = request
            .destination_key_id
            .ok_or_else(|| missing("destinationKeyId"))?;
        let source_id = request.source_key_id.as_deref();
        let (source, rotation, plaintext) = self.open(
            &blob,
            source_id,
            &from,
            "kms:ReEncryptFrom",
            caller,
            region,
            cx,
        )?;
        let key = self.usable_key(&destination, "kms:ReEncryptTo", caller, region, cx)?;
        check_dry_run(request.dry_run)?;
        Ok(json!({
            "CiphertextBlob": BASE64.encode(key.seal(&plaintext, &to, cx.random)),
            "SourceKeyId": source.doc.arn,
            "KeyId": key.doc.arn,
            "SourceEncryptionAlgorithm": ALGORITHM,
            "DestinationEncryptionAlgorithm": ALGORITHM,
            "SourceKeyMaterialId": source.material_id(rotation),
            "DestinationKeyMaterialId": key.material_id(key.doc.rotations),
        }))
    }

    fn describe_key(
        &self,
        request: DescribeKey,
        caller: &Caller,
        region: &str,
        cx: &mut sim::Context<'_>,
    ) -> Result<Value, Error> {
        let key_id = request.key_id.ok_or_else(|| missing("keyId"))?;
        let key = self.key(&key_id, caller, region, cx)?;
        check_permission(key, "kms:DescribeKey", caller)?;
        let state = match key.doc.state {
            AwsKeyState::Enabled => "Enabled",
            AwsKeyState::Disabled => "Disabled",
            AwsKeyState::PendingDeletion | AwsKeyState::Deleted => "PendingDeletion",
            AwsKeyState::PendingImport => "PendingImport",
            AwsKeyState::Unavailable => "Unavailable",
            AwsKeyState::Creating => "Creating",
        };
        Ok(json!({ "KeyMetadata": {
            "AWSAccountId": account_of(&key.doc.arn),
            "Arn": key.doc.arn,
            "KeyId": key.id(),
            "Enabled": key.doc.state == AwsKeyState::Enabled,
            "KeyState": state,
            "KeyUsage": key.doc.usage,
            "KeySpec": ALGORITHM,
            "CustomerMasterKeySpec": ALGORITHM,
            "EncryptionAlgorithms": [ALGORITHM],
            "KeyManager": "CUSTOMER",
            "Origin": "AWS_KMS",
            "MultiRegion": key.id().starts_with("mrk-"),
            "Description": "",
        } }))
    }

    /// The key that `key_id` names for this caller here: an id, `alias/…`, or the ARN of either.
    fn key(
        &self,
        key_id: &str,
        caller: &Caller,
        region: &str,
        cx: &mut sim::Context<'_>,
    ) -> Result<&Key, Error> {
        cx.subject.keys.push(key_id.to_owned());
        let not_found = |message: String| {
            Err(Error::failed(
                Failure::NotFound,
                "NotFoundException",
                message,
            ))
        };
        let scope = || {
            format!(
                "arn:{}:kms:{region}:{}:",
                partition_of(region),
                caller.account
            )
        };
        let arn = if key_id.starts_with("arn:") {
            if region_of(key_id) != region {
                return not_found(format!("Invalid arn {}", region_of(key_id)));
            }
            key_id.to_owned()
        } else if key_id.starts_with("alias/") {
            scope() + key_id
        } else if key_id.is_empty() || key_id.len() > 2048 {
            return Err(validation("keyId must have 1 to 2048 characters"));
        } else if key_id.contains([':', '/']) {
            return not_found(format!("Invalid keyId '{key_id}'"));
        } else {
            format!("{}key/{key_id}", scope())
        };
        let found = if arn.contains(":alias/") {
            match self.aliases.get(&arn) {
                Some(arn) => self.keys.get(arn),
                None => return not_found(format!("Alias {arn} is not found.")),
            }
        } else {
            self.keys.get(&arn)
        };
        match found.filter(|key| key.doc.state != AwsKeyState::Deleted) {
            Some(key) => {
                cx.subject.keys.push(key.doc.arn.clone());
                Ok(key)
            }
            None => not_found(format!("Key '{arn}' does not exist")),
        }
    }

    /// As [`Self::key`], if the caller may use it and it can be used.
    fn usable_key(
        &self,
        key_id: &str,
        action: &str,
        caller: &Caller,
        region: &str,
        cx: &mut sim::Context<'_>,
    ) -> Result<&Key, Error> {
        let key = self.key(key_id, caller, region, cx)?;
        check_permission(key, action, caller)?;
        self.check_usable(key)?;
        Ok(key)
    }

    fn check_usable(&self, key: &Key) -> Result<(), Error> {
        let arn = &key.doc.arn;
        let invalid = |state: &str| {
            let message = format!("{arn} is {state}.");
            Err(Error::failed(
                Failure::KeyState,
                "KMSInvalidStateException",
                message,
            ))
        };
        if self
            .closed_accounts
            .iter()
            .any(|account| account == account_of(arn))
        {
            let message = "The account that owns the key was closed.";
            return Err(Error::failed(
                Failure::Account,
                "AccessDeniedException",
                message,
            ));
        }
        if key.doc.usage != "ENCRYPT_DECRYPT" {
            let message = format!(
                "{arn} key usage is {} which is not valid for Encrypt.",
                key.doc.usage
            );
            return Err(Error::failed(
                Failure::KeyState,
                "InvalidKeyUsageException",
                message,
            ));
        }
        match key.doc.state {
            AwsKeyState::Enabled => Ok(()),
            AwsKeyState::Disabled => {
                let message = format!("{arn} is disabled.");
                Err(Error::failed(
                    Failure::KeyState,
                    "DisabledException",
                    message,
                ))
            }
            AwsKeyState::PendingDeletion | AwsKeyState::Deleted => invalid("pending deletion"),
            AwsKeyState::PendingImport => invalid("pending import"),
            AwsKeyState::Unavailable => invalid("unavailable"),
            AwsKeyState::Creating => invalid("being created"),
        }
    }

    /// Decrypts a blob. If a key is named, it must be the blob's.
    #[expect(
        clippy::too_many_arguments,
        reason = "all of it is part of the question"
    )]
    fn open(
        &self,
        bytes: &[u8],
        key_id: Option<&str>,
        context: &Context,
        action: &str,
        caller: &Caller,
        region: &str,
        cx: &mut sim::Context<'_>,
    ) -> Result<(&Key, u32, Vec<u8>), Error> {
        let named = key_id
            .map(|key_id| self.key(key_id, caller, region, cx))
            .transpose()?;
        let blob = Blob::parse(bytes, &self.seed).ok_or_else(does_not_decrypt)?;
        let key = self.key_of(&blob.head, region);
        if let Some(named) = named
            && key.is_none_or(|key| key.doc.arn != named.doc.arn)
        {
            return Err(Error::failed(
                Failure::Ciphertext,
                "IncorrectKeyException",
                "The key ID in the request does not identify a CMK that can perform this operation.",
            ));
        }
        let unknown = || {
            Error::failed(
                Failure::Permission,
                "AccessDeniedException",
                "The ciphertext refers to a customer master key that does not exist, does not exist in this region, \
                 or you are not allowed to access.",
            )
        };
        let key = key
            .filter(|key| key.doc.state != AwsKeyState::Deleted)
            .ok_or_else(unknown)?;
        if named.is_none() {
            cx.subject.keys.push(key.doc.arn.clone());
            check_permission(key, action, caller).map_err(|_| unknown())?;
        } else {
            check_permission(key, action, caller)?;
        }
        self.check_usable(key)?;
        let plaintext = key.open(&blob, context).ok_or_else(does_not_decrypt)?;
        Ok((key, blob.head.rotation, plaintext))
    }

    fn key_of(&self, head: &Head, region: &str) -> Option<&Key> {
        let arns = self.handles.get(&head.handle)?;
        let arn = arns.iter().find(|arn| region_of(arn) == region)?;
        self.keys.get(arn)
    }
}

fn check_permission(key: &Key, action: &str, caller: &Caller) -> Result<(), Error> {
    let arn = &key.doc.arn;
    let allowed = if key.doc.allows.is_empty() {
        caller.account == account_of(arn)
    } else {
        caller.is_among(&key.doc.allows)
    };
    let operation = match action {
        "kms:Decrypt" | "kms:ReEncryptFrom" => Operation::Unwrap,
        "kms:DescribeKey" => Operation::Lookup,
        _ => Operation::Wrap,
    };
    if allowed && !key.denied.denies(operation) {
        return Ok(());
    }
    Err(Error::failed(
        Failure::Permission,
        "AccessDeniedException",
        format!(
            "User: {} is not authorized to perform: {action} on resource: {arn} \
             because no resource-based policy allows the {action} action",
            caller.arn
        ),
    ))
}

/// The partition that a region is in, from the endpoint rules of the AWS SDKs.
pub(super) fn partition_of(region: &str) -> &'static str {
    const PREFIXES: [(&str, &str); 7] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("eusc-", "aws-eusc"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
    ];
    PREFIXES
        .iter()
        .find(|(prefix, _)| region.starts_with(prefix))
        .map_or("aws", |(_, partition)| partition)
}
