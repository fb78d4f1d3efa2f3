//! Strings in JSON.

use std::borrow::Cow;

use serde::Deserialize;

/// A string that borrows from the body if nothing in it is escaped.
#[derive(Debug, Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);
