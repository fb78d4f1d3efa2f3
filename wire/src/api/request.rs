//! Request bodies: the JSON tape, walked by hand into borrowed structs.
//!
//! Of duplicate members the last one counts, everywhere, and only it is checked. Unknown members are skipped in one
//! step however large they are. `null` in place of an optional member means absent.

mod decode;

use std::{borrow::Cow, fmt, mem};

use simd_json::{Buffers, Tape};
use smallvec::SmallVec;

use self::decode::{Decode, Members};
use super::DecodeError;
use crate::derive::{DerivationType, SecretType};

/// How deep objects and arrays may stand in each other. Requests need three; the rest is room for members that we
/// ignore. The parser keeps one stack entry per level, on the heap.
pub const NESTING_MAX: usize = 128;

/// How many values a body may hold, roughly: what is counted is commas, colons and opening brackets, those inside
/// strings too. Each takes up to 64 bytes of the parser's memory while it parses, besides two copies of the body, so
/// this bounds that to 64 MiB and leaves room for a million ids in a batch. (16 MiB of invalid JSON can take 100 MiB,
/// and reserve as much again without touching it, before it is found out.)
pub const VALUES_MAX: usize = 1 << 20;

/// Longest name of a security event, in bytes. The longest that a published SDK defines has 32.
pub const EVENT_BYTES_MAX: usize = 256;

/// Longest path that chooses a tenant secret, in bytes. It is stored for ever; those in use name a table or a field.
pub const SECRET_PATH_BYTES_MAX: usize = 1024;

/// Bodies above this size make the parser give its memory back afterwards, so that one big batch does not cost a
/// shard tens of megabytes for ever. Bytes.
const KEPT_BODY_BYTES_MAX: usize = 128 << 10;

/// The parser's first allocation, in bytes of body: a wrap with all fields set.
const FIRST_BODY_BYTES: usize = 2 << 10;

/// Who does what to what, as every request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// The tenant's id; valid as [`TenantId`] has it.
    pub tenant_id: &'a str,
    /// The user or service that asks. May be empty.
    pub requesting_id: &'a str,
    /// The kind of data, in the caller's words.
    pub data_label: Option<&'a str>,
    /// Where the end user's request came from. Free text, not always an address.
    pub source_ip: Option<&'a str>,
    /// The object that the key protects.
    pub object_id: Option<&'a str>,
    /// The caller's own correlation id.
    pub request_id: Option<&'a str>,
    /// Anything else the caller wants in the audit trail. Names are unique; numbers and booleans are their JSON text.
    pub custom_fields: CustomFields<'a>,
}

/// Custom fields: name and value. Up to two take no memory of their own.
pub type CustomFields<'a> = SmallVec<[(&'a str, Cow<'a, str>); 2]>;

/// `document/wrap`: make a DEK and wrap it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrapRequest<'a> {
    /// Who asks, for which tenant.
    pub metadata: Metadata<'a>,
}

/// `document/unwrap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwrapRequest<'a> {
    /// Who asks, for which tenant.
    pub metadata: Metadata<'a>,
    /// The EDEK in base64, not yet checked.
    pub encrypted_document_key: &'a str,
}

/// `document/batch-wrap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchWrapRequest<'a> {
    /// Who asks, for which tenant.
    pub metadata: Metadata<'a>,
    /// One DEK is wanted for each. Any strings, each once, in the order of the request.
    pub document_ids: Vec<&'a str>,
}

/// `document/batch-unwrap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchUnwrapRequest<'a> {
    /// Who asks, for which tenant.
    pub metadata: Metadata<'a>,
    /// Id and EDEK in base64, not yet checked. Ids are unique; if the EDEKs came as an array they are `0`, `1`, ….
    pub edeks: Vec<(Cow<'a, str>, &'a str)>,
}

/// `document/rekey`: unwrap for one tenant, wrap for another or the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RekeyRequest<'a> {
    /// Who asks; its tenant is the one that the EDEK belongs to now.
    pub metadata: Metadata<'a>,
    /// The EDEK in base64, not yet checked.
    pub encrypted_document_key: &'a str,
    /// The tenant whose EDEK it shall become; valid as [`TenantId`] has it.
    pub new_tenant_id: &'a str,
}

/// `key/derive-with-secret-path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeriveRequest<'a> {
    /// Who asks, for which tenant.
    pub metadata: Metadata<'a>,
    /// Secret path and its derivation paths. Each secret path stands there once, and each derivation path once below it;
    /// any of them may be empty, and a secret path has at most [`SECRET_PATH_BYTES_MAX`] bytes.
    pub paths: Vec<(&'a str, Vec<&'a str>)>,
    /// How the keys are derived.
    pub derivation: DerivationType,
    /// What they are for.
    pub secret_type: SecretType,
}

/// How often an application used one DEK without asking the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationCounts {
    /// Encryptions.
    pub wraps: u64,
    /// Decryptions.
    pub unwraps: u64,
}

/// `document/report-operations`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportOperationsRequest<'a> {
    /// Who reports, for which tenant.
    pub metadata: Metadata<'a>,
    /// EDEK in base64 (not checked, unique) and how often its DEK was used.
    pub operations: Vec<(&'a str, OperationCounts)>,
}

/// `event/security-event`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecurityEventRequest<'a> {
    /// Who did it, for which tenant.
    pub metadata: Metadata<'a>,
    /// Name of the event: 1 to [`EVENT_BYTES_MAX`] bytes, otherwise opaque.
    pub event: &'a str,
    /// When it happened, in milliseconds since 1970; `None` if the caller left it to us.
    pub timestamp_ms: Option<i64>,
}

/// Parses request bodies. One per shard: it owns the memory that parsing needs and uses it again.
pub struct Parser {
    buffers: Buffers,
    tape: Tape<'static>,
}

impl Parser {
    /// A parser with room for usual bodies; it grows with larger ones and shrinks after them.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffers: Buffers::with_max_depth(FIRST_BODY_BYTES, NESTING_MAX),
            tape: Tape(Vec::new()),
        }
    }

    /// Reads the body of `document/wrap`, unescaping strings in place.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong with the body.
    pub fn wrap<'a>(&mut self, body: &'a mut [u8]) -> Result<WrapRequest<'a>, DecodeError> {
        self.read(body)
    }

    /// Reads the body of `document/unwrap`, unescaping strings in place.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong with the body.
    pub fn unwrap<'a>(&mut self, body: &'a mut [u8]) -> Result<UnwrapRequest<'a>, DecodeError> {
        self.read(body)
    }

    /// Reads the body of `document/batch-wrap`, unescaping strings in place.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong with the body.
    pub fn batch_wrap<'a>(
        &mut self,
        body: &'a mut [u8],
    ) -> Result<BatchWrapRequest<'a>, DecodeError> {
        self.read(body)
    }

    /// Reads the body of `document/batch-unwrap`, unescaping strings in place.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong with the body.
    pub fn batch_unwrap<'a>(
        &mut self,
        body: &'a mut [u8],
    ) -> Result<BatchUnwrapRequest<'a>, DecodeError> {
        self.read(body)
    }

    /// Reads the body of `document/rekey`, unescaping strings in place.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong with the body.
    pub fn rekey<'a>(&mut self, body: &'a mut [u8]) -> Result<RekeyRequest<'a>, DecodeError> {
        self.read(body)
    }

    /// Reads the body of `key/derive-with-secret-path`, unescaping strings in place.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong with the body.
    pub fn derive<'a>(&mut self, body: &'a mut [u8]) -> Result<DeriveRequest<'a>, DecodeError> {
        self.read(body)
    }

    /// Reads the body of `document/report-operations`, unescaping strings in place.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong with the body.
    pub fn report_operations<'a>(
        &mut self,
        body: &'a mut [u8],
    ) -> Result<ReportOperationsRequest<'a>, DecodeError> {
        self.read(body)
    }

    /// Reads the body of `event/security-event`, unescaping strings in place.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong with the body.
    pub fn security_event<'a>(
        &mut self,
        body: &'a mut [u8],
    ) -> Result<SecurityEventRequest<'a>, DecodeError> {
        self.read(body)
    }

    fn read<'a, T: Decode<'a>>(&mut self, body: &'a mut [u8]) -> Result<T, DecodeError> {
        let body_bytes = body.len();
        // A body of fewer bytes cannot hold too many values, so most are not even looked at.
        if body_bytes > VALUES_MAX && value_marks(body) > VALUES_MAX {
            return Err(DecodeError::TooManyValues);
        }
        let mut tape = mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let result = match simd_json::fill_tape(body, &mut self.buffers, &mut tape) {
            Ok(()) => Members::of(tape.as_value()).and_then(|members| T::decode(&members)),
            Err(error) => Err(DecodeError::from_json(&error)),
        };
        self.tape = tape.reset();
        if body_bytes > KEPT_BODY_BYTES_MAX {
            *self = Self::new();
        }
        result
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Parser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The buffers hold what is left of the last body.
        f.debug_struct("Parser").finish_non_exhaustive()
    }
}

/// Counts the bytes that begin or separate values, wherever they stand.
fn value_marks(body: &[u8]) -> usize {
    let is_mark = |byte: &u8| u8::from(matches!(byte, b',' | b':' | b'[' | b'{'));
    // Summed in a byte per chunk, which compiles to SIMD; 255 of them cannot overflow it.
    body.chunks(255)
        .map(|chunk| usize::from(chunk.iter().map(is_mark).sum::<u8>()))
        .sum()
}

#[cfg(test)]
mod tests;
