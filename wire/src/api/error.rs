//! Why a request body was not understood.

use std::fmt;

use simd_json::ErrorType;

use super::request::{NESTING_MAX, VALUES_MAX};

/// Why a request body was not understood. The client caused every one of these; the answer is
/// [`TspCode::InvalidRequest`](crate::TspCode::InvalidRequest).
///
/// `Display` is what stands between `Request body: ` and the full stop in the message for the client: it names the
/// member and what is expected of it, and never repeats a value, since values are customers' data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// No bytes, or white space only.
    Empty,
    /// Not JSON as RFC 8259 defines it.
    NotJson {
        /// Offset in bytes from the start of the body, where the parser knows it.
        at: Option<usize>,
    },
    /// JSON must be UTF-8.
    NotUtf8,
    /// More than [`NESTING_MAX`] objects and arrays inside each other.
    TooDeep,
    /// More than about [`VALUES_MAX`] values.
    TooManyValues,
    /// JSON, but not an object.
    NotAnObject,
    /// A required member is absent.
    Missing {
        /// Path of the member, such as `iclFields.requestingId`.
        field: &'static str,
    },
    /// A member has another type than it must.
    WrongType {
        /// Path of the member.
        field: &'static str,
        /// What it must be, with its article.
        expected: &'static str,
        /// What it is, with its article.
        found: &'static str,
    },
    /// A member has the right type and a value that cannot be.
    Invalid {
        /// Path of the member.
        field: &'static str,
        /// What it must be or must not be; follows "must".
        must: &'static str,
    },
}

impl DecodeError {
    /// What the JSON parser's error means for the client.
    pub(super) fn from_json(error: &simd_json::Error) -> Self {
        let kind = error.error();
        if *kind == ErrorType::Eof {
            Self::Empty
        } else if *kind == ErrorType::DepthLimitExceeded {
            Self::TooDeep
        } else if *kind == ErrorType::InvalidUtf8 {
            Self::NotUtf8
        } else {
            // Where the parser names a character it knows the offset; elsewhere the offset is a placeholder.
            Self::NotJson {
                at: error.character().map(|_| error.index()),
            }
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty; a JSON object is expected"),
            Self::NotJson { at: Some(at) } => write!(f, "not valid JSON at byte {at}"),
            Self::NotJson { at: None } => f.write_str("not valid JSON"),
            Self::NotUtf8 => f.write_str("not valid UTF-8, which JSON must be"),
            Self::TooDeep => {
                write!(
                    f,
                    "more than {NESTING_MAX} objects or arrays inside each other"
                )
            }
            Self::TooManyValues => {
                write!(
                    f,
                    "more than {VALUES_MAX} values; send several smaller requests"
                )
            }
            Self::NotAnObject => f.write_str("a JSON object is expected"),
            Self::Missing { field } => write!(f, "missing field `{field}`"),
            Self::WrongType {
                field,
                expected,
                found,
            } => {
                write!(f, "field `{field}` must be {expected}, not {found}")
            }
            Self::Invalid { field, must } => write!(f, "field `{field}` must {must}"),
        }
    }
}

impl std::error::Error for DecodeError {}
