//! Requests and answers of the HTTP API under `/api/1/`, as JSON.
//!
//! Requests are parsed in place by SIMD and borrow from the body. Answers that hold a key are written into a buffer
//! of known size that is wiped when dropped.

mod answer;
mod error;
mod request;

pub use answer::{
    BatchAnswer, DeriveAnswer, Derived, DerivedPath, SecretBuf, VOID, error, unwrapped, wrapped,
};
pub use error::DecodeError;
pub use request::{
    BatchUnwrapRequest, BatchWrapRequest, CustomFields, DeriveRequest, EVENT_BYTES_MAX, Metadata,
    NESTING_MAX, OperationCounts, Parser, RekeyRequest, ReportOperationsRequest,
    SECRET_PATH_BYTES_MAX, SecurityEventRequest, UnwrapRequest, VALUES_MAX, WrapRequest,
};
