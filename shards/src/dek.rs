//! DEKs: made here, wrapped and unwrapped by the tenant's KMS, and opened here when they lie under a leased key.

use std::{rc::Rc, time::Instant};

use crate::{
    buffers::Buffer,
    error::OpError,
    keyring::{self, Purpose},
    metrics::KeyOperation,
    shard::Core,
    snapshot::{KmsHandle, Tenant},
    upstream::Operation,
};
use aes_gcm::{
    Aes256Gcm, KeyInit as _, Nonce, Tag,
    aead::{AeadInOut as _, inout::InOutBuf},
};
use tsp_kms::{HttpAnswer, Kms, KmsOperation, Session, Token};
use tsp_rt::Rt;
use tsp_wire::{
    Dek,
    edek::{self, Entry, InvalidEdek, LeasedForm},
};

/// Makes a DEK from the shard's own generator.
pub(crate) fn generate<R: Rt>(rt: &R) -> Dek {
    Dek::fill_with(|bytes| rt.random(bytes))
}

/// The config that encrypts for `tenant`.
pub(crate) fn primary(tenant: &Tenant) -> Result<&Rc<KmsHandle>, OpError> {
    let missing = || OpError::NoPrimaryKmsConfig {
        tenant: tenant.id.as_str().into(),
    };
    tenant.primary.as_ref().ok_or_else(missing)
}

/// Wraps `dek` with a config of `tenant`'s and gives the EDEK.
///
/// Takes one KMS call, or none under a lease or with the local KMS. Ends by `deadline`.
pub(crate) async fn wrap<'a, R: Rt>(
    core: &'a Core<R>,
    tenant: &Tenant,
    config: &KmsHandle,
    dek: &Dek,
    deadline: Instant,
) -> Result<Buffer<'a>, OpError> {
    let lease = if config.leasing_allowed && config.kms.is_some() {
        keyring::lease(core, tenant, config, deadline).await?
    } else {
        None
    };
    let sealed = lease.as_ref().and_then(|lease| {
        let mut iv = [0; LeasedForm::IV_BYTES];
        core.rt.random(&mut iv);
        let data = seal_leased(lease.lease.key.cipher()?, &iv, dek)?;
        let mut edek = core.buffers.take();
        lease.lease.form.write(&mut edek, &iv, &data);
        Some(edek)
    });
    let edek = match sealed {
        Some(edek) => edek,
        None => {
            let blob = wrap_key(core, tenant, config, dek, deadline).await?;
            Buffer::of(edek::encode_unleased(config.id, &blob), &core.buffers)
        }
    };
    core.metrics.key_operation(KeyOperation::Wrap);
    Ok(edek)
}

/// Has the KMS of a config of `tenant`'s encrypt `key`, a DEK or another key of its size, and gives what it made.
pub(crate) async fn wrap_key<R: Rt>(
    core: &Core<R>,
    tenant: &Tenant,
    config: &KmsHandle,
    key: &Dek,
    deadline: Instant,
) -> Result<Vec<u8>, OpError> {
    let kms = config
        .kms
        .as_ref()
        .ok_or(OpError::KmsConfigBroken(config.id))?;
    Ok(match &**kms {
        Kms::Local(local) => {
            let mut nonce = [0; 12];
            core.rt.random(&mut nonce);
            local.wrap(tenant.id.as_str(), key, nonce)
        }
        Kms::Remote(remote) => {
            let operation = Operation {
                tenant,
                config,
                kms,
                remote: &**remote,
                operation: KmsOperation::Wrap,
                request: |token: Option<&Token>, session: &mut Session, now| {
                    remote.wrap_request(key, token, session, now)
                },
                answer: |answer: &HttpAnswer<'_>| remote.read_wrap(answer),
            };
            // In a place of its own, so that requests that need no KMS are small.
            Box::pin(core.upstream.operate(&core.tokens, operation, deadline)).await?
        }
    })
}

/// An EDEK that has been read and whose config may decrypt for the tenant.
pub(crate) struct Opened<'a> {
    pub(crate) entry: Entry<'a>,
    pub(crate) config: &'a Rc<KmsHandle>,
}

/// Reads a serialized EDEK and finds its config: the first entry that names an active config of `tenant`'s, primary or not.
pub(crate) fn read<'a>(tenant: &'a Tenant, edek: &'a [u8]) -> Result<Opened<'a>, OpError> {
    let (mut first, mut opened) = (None, None);
    // All of them, as the last tells whether they are an EDEK.
    for entry in edek::entries(edek)? {
        let entry = entry?;
        first.get_or_insert(entry.kms_config_id);
        if opened.is_none() {
            let config = tenant.active(entry.kms_config_id);
            opened = config.map(|config| Opened { entry, config });
        }
    }
    let config = first.ok_or(InvalidEdek::NoEntry)?;
    opened.ok_or_else(|| OpError::KmsConfigNotActive {
        tenant: tenant.id.as_str().into(),
        config,
    })
}

/// Unwraps an EDEK's DEK. Takes one KMS call, or none where its leased key is held, or with the local KMS. `now` may
/// be a moment old. Ends by `deadline`.
pub(crate) async fn unwrap<R: Rt>(
    core: &Core<R>,
    tenant: &Tenant,
    edek: &Opened<'_>,
    (now, deadline): (Instant, Instant),
) -> Result<Dek, OpError> {
    let entry = &edek.entry;
    let dek = if entry.leased_key_id == 0 {
        unwrap_key(
            core,
            tenant,
            edek.config,
            entry.encrypted_dek_data,
            deadline,
        )
        .await?
    } else {
        // The leased key travels inside the EDEK, itself wrapped by the KMS.
        let sealed = entry.encrypted_leased_key_data;
        let held = keyring::open(core, tenant, Purpose::Leased, sealed, (now, deadline)).await?;
        let cipher = held.key.cipher().ok_or(OpError::InvalidLeasedEdek(
            "Provided EDEK is leased, but its key is for another purpose.",
        ))?;
        open_leased(cipher, entry.leased_key_iv, entry.encrypted_dek_data)
            .map_err(OpError::InvalidLeasedEdek)?
    };
    core.metrics.key_operation(KeyOperation::Unwrap);
    Ok(dek)
}

/// Has the KMS of a config of `tenant`'s decrypt what [`wrap_key`] gave.
pub(crate) async fn unwrap_key<R: Rt>(
    core: &Core<R>,
    tenant: &Tenant,
    config: &KmsHandle,
    blob: &[u8],
    deadline: Instant,
) -> Result<Dek, OpError> {
    let kms = config
        .kms
        .as_ref()
        .ok_or(OpError::KmsConfigBroken(config.id))?;
    Ok(match &**kms {
        Kms::Local(local) => local.unwrap(tenant.id.as_str(), blob)?,
        Kms::Remote(remote) => {
            let operation = Operation {
                tenant,
                config,
                kms,
                remote: &**remote,
                operation: KmsOperation::Unwrap,
                request: |token: Option<&Token>, session: &mut Session, now| {
                    remote.unwrap_request(blob, token, session, now)
                },
                answer: |answer: &HttpAnswer<'_>| remote.read_unwrap(answer),
            };
            // In a place of its own, so that requests that need no KMS are small.
            Box::pin(core.upstream.operate(&core.tokens, operation, deadline)).await?
        }
    })
}

/// Encrypts a DEK under a leased key: AES-256-GCM, no additional data. `None` never comes of a key of 32 bytes.
pub(crate) fn seal_leased(
    leased_key: &Aes256Gcm,
    iv: &[u8; LeasedForm::IV_BYTES],
    dek: &Dek,
) -> Option<[u8; LeasedForm::DATA_BYTES]> {
    let mut data = [0; LeasedForm::DATA_BYTES];
    let (encrypted, tag) = data.split_at_mut(Dek::LEN);
    let buffer = InOutBuf::new(dek.expose(), encrypted).ok()?;
    let made = leased_key
        .encrypt_inout_detached(&Nonce::from(*iv), b"", buffer)
        .ok()?;
    tag.copy_from_slice(&made);
    Some(data)
}

/// Opens the DEK of a leased EDEK: AES-256-GCM under the leased key, no additional data.
///
/// # Errors
/// What does not fit, in words for the caller: wrong sizes, or an authentication failure.
pub(crate) fn open_leased(
    leased_key: &Aes256Gcm,
    iv: &[u8],
    data: &[u8],
) -> Result<Dek, &'static str> {
    let nonce: &[u8; 12] = iv
        .try_into()
        .map_err(|_| "Provided EDEK is leased, but its IV does not have 12 bytes.")?;
    let sealed: &[u8; Dek::LEN + 16] = data
        .try_into()
        .map_err(|_| "Provided EDEK is leased, but its data does not have 48 bytes.")?;
    let (ciphertext, tag) = sealed.split_at(Dek::LEN);
    let tag = Tag::try_from(tag).map_err(|_| "Provided EDEK is leased, but has no tag.")?;
    Dek::try_fill_with(|dek| {
        dek.copy_from_slice(ciphertext);
        leased_key
            .decrypt_inout_detached(&Nonce::from(*nonce), b"", dek.as_mut_slice().into(), &tag)
            .map_err(|_| "Provided EDEK does not open under its leased key.")
    })
}

/// Opens the DEK of a leased EDEK whose leased key is at hand, for who recovers data without a proxy.
///
/// # Errors
/// What does not fit, in words for a person.
pub fn open_with_leased_key(leased_key: &Dek, iv: &[u8], data: &[u8]) -> Result<Dek, &'static str> {
    open_leased(&Aes256Gcm::new(leased_key.expose().into()), iv, data)
}
