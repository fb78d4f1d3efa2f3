//! Requests and answers, as `serde_json` reads and writes them: borrowed from the body wherever nothing is escaped.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::text::Text;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WrapRequest<'a> {
    #[serde(borrow)]
    pub(super) tenant_id: Text<'a>,
    #[serde(borrow, rename = "iclFields")]
    _icl_fields: IclFields<'a>,
    #[serde(rename = "customFields")]
    _custom_fields: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UnwrapRequest<'a> {
    #[serde(borrow)]
    pub(super) tenant_id: Text<'a>,
    #[serde(borrow, rename = "iclFields")]
    _icl_fields: IclFields<'a>,
    #[serde(rename = "customFields")]
    _custom_fields: Option<IgnoredAny>,
    #[serde(borrow)]
    pub(super) encrypted_document_key: Text<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BatchWrapRequest<'a> {
    #[serde(borrow)]
    pub(super) tenant_id: Text<'a>,
    #[serde(borrow, rename = "iclFields")]
    _icl_fields: IclFields<'a>,
    #[serde(rename = "customFields")]
    _custom_fields: Option<IgnoredAny>,
    #[serde(borrow)]
    pub(super) document_ids: Vec<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BatchUnwrapRequest<'a> {
    #[serde(borrow)]
    pub(super) tenant_id: Text<'a>,
    #[serde(borrow, rename = "iclFields")]
    _icl_fields: IclFields<'a>,
    #[serde(rename = "customFields")]
    _custom_fields: Option<IgnoredAny>,
    #[serde(borrow)]
    pub(super) edeks: Edeks<'a>,
}

/// Checked for their types and then passed over, since no events are made of them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IclFields<'a> {
    #[serde(borrow, rename = "requestingId")]
    _requesting_id: Text<'a>,
    #[serde(borrow, rename = "dataLabel")]
    _data_label: Option<Text<'a>>,
    #[serde(borrow, rename = "sourceIp")]
    _source_ip: Option<Text<'a>>,
    #[serde(borrow, rename = "objectId")]
    _object_id: Option<Text<'a>>,
    #[serde(borrow, rename = "requestId")]
    _request_id: Option<Text<'a>>,
}

/// Id and EDEK; the ids of an array are its places.
pub(super) struct Edeks<'a>(pub(super) Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Edeks<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Edeks<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("EDEKs by id, or an array of EDEKs")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut edeks = Vec::new();
                while let Some((id, edek)) = map.next_entry::<Text<'de>, Text<'de>>()? {
                    edeks.push((id.0, edek.0));
                }
                Ok(Edeks(edeks))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut edeks = Vec::new();
                while let Some(edek) = array.next_element::<Text<'de>>()? {
                    edeks.push((edeks.len().to_string().into(), edek.0));
                }
                Ok(Edeks(edeks))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[derive(Serialize)]
pub(super) struct Wrapped<'a> {
    pub(super) dek: &'a str,
    pub(super) edek: &'a str,
}

#[derive(Serialize)]
pub(super) struct Unwrapped<'a> {
    pub(super) dek: &'a str,
}

#[derive(Serialize)]
pub(super) struct ErrorAnswer<'a> {
    pub(super) code: u16,
    pub(super) message: &'a str,
}

/// What came of a batch, by id in the order of the request.
#[derive(Serialize)]
#[serde(bound = "T: Serialize")]
pub(super) struct BatchAnswer<'a, T> {
    #[serde(serialize_with = "as_map")]
    pub(super) keys: Vec<(&'a str, T)>,
    #[serde(serialize_with = "as_map")]
    pub(super) failures: Vec<(&'a str, super::Failure)>,
}

#[derive(Serialize)]
pub(super) struct OwnedWrapped {
    pub(super) dek: String,
    pub(super) edek: String,
}

#[derive(Serialize)]
pub(super) struct OwnedUnwrapped {
    pub(super) dek: String,
}

fn as_map<S: Serializer, T: Serialize>(
    pairs: &[(&str, T)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(id, value)| (id, value)))
}
