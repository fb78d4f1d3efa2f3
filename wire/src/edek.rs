//! EDEKs: the protobuf message that clients store beside their data, and give back to have it unwrapped.
//!
//! `proto/edek.proto` documents the wire form. Customers keep these bytes for years, so the form never changes.

mod entry;

use std::fmt;

use base64::Engine as _;
use prost::Message as _;

use crate::{KmsConfigId, base64::BASE64};

pub use entry::{Entry, entries};

/// Longest EDEK that is looked at, in decoded bytes. AWS KMS makes the longest ciphertexts, at most 6 144 bytes; a
/// leased EDEK holds one of them. It bounds what a hostile one can make us allocate: an
/// empty entry takes two bytes here and a hundred in memory.
pub const EDEK_BYTES_MAX: usize = 16 << 10;

/// One DEK as one KMS config wrapped it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EncryptedDek {
    /// Not leased: what the KMS made of the DEK. Leased: AES-256-GCM ciphertext and tag under the leased key, 48 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub encrypted_dek_data: Vec<u8>,
    /// The KMS config, from 1.
    #[prost(int32, tag = "2")]
    pub kms_config_id: i32,
    /// 0 if not leased; else the leased key's id, from 1.
    #[prost(int32, tag = "3")]
    pub leased_key_id: i32,
    /// Leased only: the nonce of AES-GCM, 12 bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub leased_key_iv: Vec<u8>,
    /// Leased only: the leased key as the KMS wrapped it, a serialized [`EncryptedDeks`] with one entry.
    #[prost(bytes = "vec", tag = "5")]
    pub encrypted_leased_key_data: Vec<u8>,
    /// Set by some clients to what they like, never by us. Bytes, so that no value of it makes the EDEK unreadable.
    #[prost(bytes = "vec", tag = "6")]
    pub tenant_id: Vec<u8>,
}

/// What is called an EDEK everywhere else. We write exactly one entry and accept several.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EncryptedDeks {
    /// The entries; what uses them takes the first whose KMS config is active for the tenant.
    #[prost(message, repeated, tag = "1")]
    pub encrypted_deks: Vec<EncryptedDek>,
}

impl EncryptedDeks {
    /// Reads a serialized message, such as [`EncryptedDek::encrypted_leased_key_data`].
    ///
    /// # Errors
    /// [`InvalidEdek`] if the bytes are too many, are not this message, or hold no entry.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidEdek> {
        if bytes.len() > EDEK_BYTES_MAX {
            return Err(InvalidEdek::TooLong);
        }
        let edek = Self::decode(bytes).map_err(|_| InvalidEdek::NotProtobuf)?;
        if edek.encrypted_deks.is_empty() {
            return Err(InvalidEdek::NoEntry);
        }
        Ok(edek)
    }
}

/// Why something given as an EDEK is none. The client caused it; the code is
/// [`TspCode::InvalidProvidedEdek`](crate::TspCode::InvalidProvidedEdek), and `Display` is the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidEdek {
    /// Not base64 in the standard alphabet, or ended in bits that no encoder leaves.
    NotBase64,
    /// More than [`EDEK_BYTES_MAX`] bytes.
    TooLong,
    /// Not the protobuf message.
    NotProtobuf,
    /// The message, with nothing in it.
    NoEntry,
}

impl fmt::Display for InvalidEdek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = match self {
            Self::NotBase64 => "it is not valid base64 in the standard alphabet",
            Self::TooLong => "it is longer than any EDEK",
            Self::NotProtobuf => "it could not be decoded",
            Self::NoEntry => "it is empty",
        };
        // The first words are what some clients' own tests search for.
        write!(f, "Provided EDEK didn't contain IronCore EDEKs ({detail}).")
    }
}

impl std::error::Error for InvalidEdek {}

/// The bytes of an EDEK as clients send it. Missing padding and surrounding ASCII white space do not matter.
///
/// # Errors
/// [`InvalidEdek`] if they are too many or not base64.
pub fn decode(base64_text: &str) -> Result<Vec<u8>, InvalidEdek> {
    let mut bytes = Vec::new();
    decode_into(base64_text, &mut bytes)?;
    Ok(bytes)
}

/// The same in memory that has been used before; what it held is gone.
///
/// # Errors
/// As of [`decode`]; what `bytes` holds then is of no use.
pub fn decode_into(base64_text: &str, bytes: &mut Vec<u8>) -> Result<(), InvalidEdek> {
    bytes.clear();
    let text = base64_text.trim_ascii();
    if text.len() > EDEK_BYTES_MAX.div_ceil(3) * 4 {
        return Err(InvalidEdek::TooLong);
    }
    BASE64
        .decode_vec(text, bytes)
        .map_err(|_| InvalidEdek::NotBase64)
}

/// Reads an EDEK as clients send it, into memory of its own.
///
/// # Errors
/// [`InvalidEdek`] says in which way it is none.
pub fn parse(base64_text: &str) -> Result<EncryptedDeks, InvalidEdek> {
    EncryptedDeks::from_bytes(&decode(base64_text)?)
}

/// Serializes an EDEK that is not leased: one entry, fields in ascending order.
#[must_use]
pub fn encode_unleased(id: KmsConfigId, blob: &[u8]) -> Vec<u8> {
    let entry = EncryptedDek {
        encrypted_dek_data: blob.to_vec(),
        kms_config_id: id.number(),
        ..EncryptedDek::default()
    };
    EncryptedDeks {
        encrypted_deks: vec![entry],
    }
    .encode_to_vec()
}

/// What all EDEKs under one leased key have in common: everything but the IV and the encrypted DEK.
///
/// Making an EDEK of it is one copy and two patches, so a wrap under a lease encodes nothing.
#[derive(Debug)]
pub struct LeasedForm {
    bytes: Box<[u8]>,
    data_at: usize,
    iv_at: usize,
}

impl LeasedForm {
    /// AES-256-GCM ciphertext and tag of a DEK, in bytes.
    pub const DATA_BYTES: usize = 48;
    /// The IV of AES-GCM, in bytes.
    pub const IV_BYTES: usize = 12;

    /// The form for a leased key of config `id`. `leased_key_id` is from 1; `wrapped` is the leased key as the KMS wrapped
    /// it, a serialized [`EncryptedDeks`] as [`encode_unleased`] makes it.
    #[must_use]
    pub fn new(id: KmsConfigId, leased_key_id: i32, wrapped: &[u8]) -> Self {
        let entry = EncryptedDek {
            encrypted_dek_data: vec![0; Self::DATA_BYTES],
            kms_config_id: id.number(),
            leased_key_id,
            leased_key_iv: vec![0; Self::IV_BYTES],
            encrypted_leased_key_data: wrapped.to_vec(),
            ..EncryptedDek::default()
        };
        // Fields stand in ascending order, so both gaps are found from the end: IV, then the last field; data before the ids.
        let last = bytes_field_len(wrapped.len());
        let ids = int_field_len(id.number()) + int_field_len(leased_key_id);
        let bytes = EncryptedDeks {
            encrypted_deks: vec![entry],
        }
        .encode_to_vec();
        let iv_at = bytes.len() - last - Self::IV_BYTES;
        let iv_head = bytes_field_len(Self::IV_BYTES) - Self::IV_BYTES;
        Self {
            data_at: iv_at - iv_head - ids - Self::DATA_BYTES,
            iv_at,
            bytes: bytes.into(),
        }
    }

    /// Makes `edek` the EDEK that holds `data`, encrypted under the leased key with `iv`.
    pub fn write(
        &self,
        edek: &mut Vec<u8>,
        iv: &[u8; Self::IV_BYTES],
        data: &[u8; Self::DATA_BYTES],
    ) {
        edek.clear();
        edek.extend_from_slice(&self.bytes);
        let mut put = |at: usize, part: &[u8]| {
            if let Some(gap) = edek.get_mut(at..at + part.len()) {
                gap.copy_from_slice(part);
            }
        };
        put(self.data_at, data);
        put(self.iv_at, iv);
    }
}

/// Length of a field of `len` bytes, with its key and its length in front. Keys of fields 1 to 15 take one byte.
fn bytes_field_len(len: usize) -> usize {
    1 + prost::length_delimiter_len(len) + len
}

/// Length of a field that holds a number from 1, with its key.
fn int_field_len(number: i32) -> usize {
    1 + prost::length_delimiter_len(usize::try_from(number).unwrap_or(0))
}

/// Whether alloy would take these bytes for its own document header instead of an EDEK.
///
/// It looks at the fifth and sixth byte only. Where the EDEK is not leased and shorter than 128 bytes, those are the
/// first two of what the KMS made, so a KMS whose ciphertexts start like this must not be used without a prefix.
#[must_use]
pub fn looks_like_alloy_header(edek: &[u8]) -> bool {
    let (Some(kind), Some(zero)) = (edek.get(4), edek.get(5)) else {
        return false;
    };
    matches!(kind >> 4, 0 | 4 | 8) && matches!(kind & 0x0f, 0..=2) && *zero == 0
}

#[cfg(test)]
mod tests;
