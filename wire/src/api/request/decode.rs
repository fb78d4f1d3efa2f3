//! From the members of a body to a request: which members, of which types, and what is said when one is wrong.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use simd_json::{
    ValueType,
    prelude::{TypedScalarValue as _, TypedValue as _, ValueAsScalar as _, ValueIntoString as _},
    tape::{Array, Object, Value},
};

use super::{
    BatchUnwrapRequest, BatchWrapRequest, CustomFields, DeriveRequest, EVENT_BYTES_MAX, Metadata,
    OperationCounts, RekeyRequest, ReportOperationsRequest, SECRET_PATH_BYTES_MAX,
    SecurityEventRequest, UnwrapRequest, WrapRequest,
};
use crate::{
    TenantId,
    api::DecodeError,
    derive::{DerivationType, SecretType},
};

/// Up to so many members are compared pairwise to find duplicates; above, a hash table is cheaper.
const PAIRWISE_MEMBERS_MAX: usize = 8;

/// A request that can be read from the members of its body.
pub(super) trait Decode<'a>: Sized {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError>;
}

/// The members of a body that any request knows.
#[derive(Default)]
pub(super) struct Members<'t, 'a> {
    tenant_id: Option<Value<'t, 'a>>,
    icl_fields: Option<Value<'t, 'a>>,
    custom_fields: Option<Value<'t, 'a>>,
    encrypted_document_key: Option<Value<'t, 'a>>,
    document_ids: Option<Value<'t, 'a>>,
    edeks: Option<Value<'t, 'a>>,
    new_tenant_id: Option<Value<'t, 'a>>,
    operations: Option<Value<'t, 'a>>,
    paths: Option<Value<'t, 'a>>,
    derivation_type: Option<Value<'t, 'a>>,
    secret_type: Option<Value<'t, 'a>>,
    event: Option<Value<'t, 'a>>,
    timestamp_millis: Option<Value<'t, 'a>>,
}

/// The members of `iclFields`.
#[derive(Default)]
struct IclFields<'t, 'a> {
    requesting_id: Option<Value<'t, 'a>>,
    data_label: Option<Value<'t, 'a>>,
    source_ip: Option<Value<'t, 'a>>,
    object_id: Option<Value<'t, 'a>>,
    request_id: Option<Value<'t, 'a>>,
    event: Option<Value<'t, 'a>>,
}

impl<'t, 'a> Members<'t, 'a> {
    pub(super) fn of(body: Value<'t, 'a>) -> Result<Self, DecodeError> {
        let object = body.as_object().ok_or(DecodeError::NotAnObject)?;
        let mut members = Self::default();
        for (name, value) in &object {
            match name {
                "tenantId" => members.tenant_id = Some(value),
                "iclFields" => members.icl_fields = Some(value),
                "customFields" => members.custom_fields = Some(value),
                "encryptedDocumentKey" => members.encrypted_document_key = Some(value),
                "documentIds" => members.document_ids = Some(value),
                "edeks" => members.edeks = Some(value),
                "newTenantId" => members.new_tenant_id = Some(value),
                "operations" => members.operations = Some(value),
                "paths" => members.paths = Some(value),
                "derivationType" => members.derivation_type = Some(value),
                "secretType" => members.secret_type = Some(value),
                "event" => members.event = Some(value),
                "timestampMillis" => members.timestamp_millis = Some(value),
                _ => {}
            }
        }
        Ok(members)
    }
}

impl<'t, 'a> IclFields<'t, 'a> {
    fn of(members: &Members<'t, 'a>) -> Result<Self, DecodeError> {
        let object = object_in(members.icl_fields, "iclFields")?;
        let mut fields = Self::default();
        for (name, value) in &object {
            match name {
                "requestingId" => fields.requesting_id = Some(value),
                "dataLabel" => fields.data_label = Some(value),
                "sourceIp" => fields.source_ip = Some(value),
                "objectId" => fields.object_id = Some(value),
                "requestId" => fields.request_id = Some(value),
                "event" => fields.event = Some(value),
                _ => {}
            }
        }
        Ok(fields)
    }
}

impl<'a> Decode<'a> for Metadata<'a> {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError> {
        let tenant_id = tenant_id_in(members.tenant_id, "tenantId")?;
        let fields = IclFields::of(members)?;
        Ok(Self {
            tenant_id,
            requesting_id: string_in(fields.requesting_id, "iclFields.requestingId")?,
            data_label: optional_string_in(fields.data_label, "iclFields.dataLabel")?,
            source_ip: optional_string_in(fields.source_ip, "iclFields.sourceIp")?,
            object_id: optional_string_in(fields.object_id, "iclFields.objectId")?,
            request_id: optional_string_in(fields.request_id, "iclFields.requestId")?,
            custom_fields: custom_fields_in(members.custom_fields)?,
        })
    }
}

impl<'a> Decode<'a> for WrapRequest<'a> {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            metadata: Metadata::decode(members)?,
        })
    }
}

impl<'a> Decode<'a> for UnwrapRequest<'a> {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            metadata: Metadata::decode(members)?,
            encrypted_document_key: string_in(
                members.encrypted_document_key,
                "encryptedDocumentKey",
            )?,
        })
    }
}

impl<'a> Decode<'a> for BatchWrapRequest<'a> {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            metadata: Metadata::decode(members)?,
            document_ids: document_ids_in(members.document_ids)?,
        })
    }
}

impl<'a> Decode<'a> for BatchUnwrapRequest<'a> {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            metadata: Metadata::decode(members)?,
            edeks: edeks_in(members.edeks)?,
        })
    }
}

impl<'a> Decode<'a> for RekeyRequest<'a> {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            metadata: Metadata::decode(members)?,
            encrypted_document_key: string_in(
                members.encrypted_document_key,
                "encryptedDocumentKey",
            )?,
            new_tenant_id: tenant_id_in(members.new_tenant_id, "newTenantId")?,
        })
    }
}

impl<'a> Decode<'a> for DeriveRequest<'a> {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            metadata: Metadata::decode(members)?,
            paths: paths_in(members.paths)?,
            derivation: derivation_in(members.derivation_type)?,
            secret_type: secret_type_in(members.secret_type)?,
        })
    }
}

impl<'a> Decode<'a> for ReportOperationsRequest<'a> {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            metadata: Metadata::decode(members)?,
            operations: operations_in(members.operations)?,
        })
    }
}

impl<'a> Decode<'a> for SecurityEventRequest<'a> {
    fn decode(members: &Members<'_, 'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            metadata: Metadata::decode(members)?,
            event: event_in(members)?,
            timestamp_ms: timestamp_in(members.timestamp_millis)?,
        })
    }
}

/// `None` for an absent member and for `null`.
fn given<'t, 'a>(value: Option<Value<'t, 'a>>) -> Option<Value<'t, 'a>> {
    value.filter(|value| !value.is_null())
}

fn wrong_type(field: &'static str, expected: &'static str, value: Value<'_, '_>) -> DecodeError {
    let found = match value.value_type() {
        ValueType::Null => "null",
        ValueType::Bool => "a boolean",
        ValueType::String => "a string",
        ValueType::Array => "an array",
        ValueType::Object => "an object",
        ValueType::I64
        | ValueType::I128
        | ValueType::U64
        | ValueType::U128
        | ValueType::F64
        | ValueType::Extended(_)
        | ValueType::Custom(_) => "a number",
    };
    DecodeError::WrongType {
        field,
        expected,
        found,
    }
}

fn string_in<'a>(
    value: Option<Value<'_, 'a>>,
    field: &'static str,
) -> Result<&'a str, DecodeError> {
    let value = value.ok_or(DecodeError::Missing { field })?;
    value
        .into_string()
        .ok_or_else(|| wrong_type(field, "a string", value))
}

fn optional_string_in<'a>(
    value: Option<Value<'_, 'a>>,
    field: &'static str,
) -> Result<Option<&'a str>, DecodeError> {
    match given(value) {
        None => Ok(None),
        Some(value) => match value.into_string() {
            Some(text) => Ok(Some(text)),
            None => Err(wrong_type(field, "a string or null", value)),
        },
    }
}

fn object_in<'t, 'a>(
    value: Option<Value<'t, 'a>>,
    field: &'static str,
) -> Result<Object<'t, 'a>, DecodeError> {
    let value = value.ok_or(DecodeError::Missing { field })?;
    value
        .as_object()
        .ok_or_else(|| wrong_type(field, "an object", value))
}

fn tenant_id_in<'a>(
    value: Option<Value<'_, 'a>>,
    field: &'static str,
) -> Result<&'a str, DecodeError> {
    let text = string_in(value, field)?;
    if TenantId::is_valid(text) {
        return Ok(text);
    }
    const { assert!(TenantId::BYTES_MAX == 256, "the text below says so") }
    let must = if text.is_empty() {
        "not be empty"
    } else if text.len() > TenantId::BYTES_MAX {
        "have at most 256 bytes"
    } else {
        "hold no control characters"
    };
    Err(DecodeError::Invalid { field, must })
}

/// Positions of the members that a later one of the same name replaces. An empty set does not allocate.
fn replaced_members(object: &Object<'_, '_>) -> HashSet<usize> {
    let mut replaced = HashSet::new();
    if object.len() <= PAIRWISE_MEMBERS_MAX {
        for (position, name) in object.keys().enumerate() {
            if object.keys().skip(position + 1).any(|later| later == name) {
                replaced.insert(position);
            }
        }
    } else {
        let mut last = HashMap::with_capacity(object.len());
        for (position, name) in object.keys().enumerate() {
            replaced.extend(last.insert(name, position));
        }
    }
    replaced
}

/// The members that count: of those with the same name, the last.
fn members_of<'t, 'a>(object: &Object<'t, 'a>) -> impl Iterator<Item = (&'a str, Value<'t, 'a>)> {
    let replaced = replaced_members(object);
    object
        .iter()
        .enumerate()
        .filter(move |(position, _)| !replaced.contains(position))
        .map(|(_, member)| member)
}

fn custom_fields_in<'a>(value: Option<Value<'_, 'a>>) -> Result<CustomFields<'a>, DecodeError> {
    let Some(value) = given(value) else {
        return Ok(CustomFields::new());
    };
    let object = value
        .as_object()
        .ok_or_else(|| wrong_type("customFields", "an object or null", value))?;
    let mut fields = CustomFields::with_capacity(object.len());
    for (name, value) in members_of(&object) {
        if !value.is_null() {
            let text = scalar_text(value).ok_or_else(|| {
                wrong_type(
                    "customFields.*",
                    "a string, a number, a boolean or null",
                    value,
                )
            })?;
            fields.push((name, text));
        }
    }
    Ok(fields)
}

/// A string as it is; a number or boolean as JSON spells it; `None` for what has parts.
fn scalar_text<'a>(value: Value<'_, 'a>) -> Option<Cow<'a, str>> {
    if let Some(text) = value.into_string() {
        Some(Cow::Borrowed(text))
    } else if let Some(flag) = value.as_bool() {
        Some(Cow::Borrowed(if flag { "true" } else { "false" }))
    } else if let Some(number) = value.as_i64() {
        Some(Cow::Owned(number.to_string()))
    } else if let Some(number) = value.as_u64() {
        Some(Cow::Owned(number.to_string()))
    } else {
        let number = serde_json::Number::from_f64(value.as_f64()?)?;
        Some(Cow::Owned(number.to_string()))
    }
}

fn document_ids_in<'a>(value: Option<Value<'_, 'a>>) -> Result<Vec<&'a str>, DecodeError> {
    const FIELD: &str = "documentIds";
    let value = value.ok_or(DecodeError::Missing { field: FIELD })?;
    let array = value
        .as_array()
        .ok_or_else(|| wrong_type(FIELD, "an array of strings", value))?;
    strings_once(&array, "documentIds[*]")
}

/// The strings of an array, each once, in their order.
fn strings_once<'a>(
    array: &Array<'_, 'a>,
    field: &'static str,
) -> Result<Vec<&'a str>, DecodeError> {
    let mut seen = HashSet::with_capacity(array.len());
    let mut strings = Vec::with_capacity(array.len());
    for value in array {
        let string = value
            .into_string()
            .ok_or_else(|| wrong_type(field, "a string", value))?;
        if seen.insert(string) {
            strings.push(string);
        }
    }
    Ok(strings)
}

fn paths_in<'a>(value: Option<Value<'_, 'a>>) -> Result<Vec<(&'a str, Vec<&'a str>)>, DecodeError> {
    let object = object_in(value, "paths")?;
    let mut paths = Vec::with_capacity(object.len());
    for (secret_path, value) in members_of(&object) {
        const { assert!(SECRET_PATH_BYTES_MAX == 1024, "the text below says so") }
        if secret_path.len() > SECRET_PATH_BYTES_MAX {
            return Err(DecodeError::Invalid {
                field: "paths",
                must: "have no member whose name is longer than 1024 bytes",
            });
        }
        let array = value
            .as_array()
            .ok_or_else(|| wrong_type("paths.*", "an array of strings", value))?;
        paths.push((secret_path, strings_once(&array, "paths.*[*]")?));
    }
    Ok(paths)
}

fn derivation_in(value: Option<Value<'_, '_>>) -> Result<DerivationType, DecodeError> {
    let field = "derivationType";
    match string_in(value, field)? {
        "sha512" => Ok(DerivationType::Sha512),
        "sha256" => Ok(DerivationType::Sha256),
        _ => Err(DecodeError::Invalid {
            field,
            must: "be `sha512` or `sha256`; this proxy has no `argon2`",
        }),
    }
}

fn secret_type_in(value: Option<Value<'_, '_>>) -> Result<SecretType, DecodeError> {
    let field = "secretType";
    SecretType::from_text(string_in(value, field)?).ok_or(DecodeError::Invalid {
        field,
        must: "be `search`, `deterministic` or `vector`",
    })
}

fn edeks_in<'a>(value: Option<Value<'_, 'a>>) -> Result<Vec<(Cow<'a, str>, &'a str)>, DecodeError> {
    const FIELD: &str = "edeks";
    let value = value.ok_or(DecodeError::Missing { field: FIELD })?;
    if let Some(array) = value.as_array() {
        // PHP spells a map whose keys are 0, 1, … like this.
        let mut edeks = Vec::with_capacity(array.len());
        for (index, value) in array.iter().enumerate() {
            let edek = string_in(Some(value), "edeks[*]")?;
            edeks.push((Cow::Owned(index.to_string()), edek));
        }
        return Ok(edeks);
    }
    let object = value.as_object().ok_or_else(|| {
        wrong_type(
            FIELD,
            "an object from ids to EDEKs in base64, or an array of them",
            value,
        )
    })?;
    let mut edeks = Vec::with_capacity(object.len());
    for (id, value) in members_of(&object) {
        edeks.push((Cow::Borrowed(id), string_in(Some(value), "edeks.*")?));
    }
    Ok(edeks)
}

fn operations_in<'a>(
    value: Option<Value<'_, 'a>>,
) -> Result<Vec<(&'a str, OperationCounts)>, DecodeError> {
    let object = object_in(value, "operations")?;
    let mut operations = Vec::with_capacity(object.len());
    for (edek, value) in members_of(&object) {
        let counts = object_in(Some(value), "operations.*")?;
        let (mut wraps, mut unwraps) = (None, None);
        for (name, value) in &counts {
            match name {
                "wraps" => wraps = Some(value),
                "unwraps" => unwraps = Some(value),
                _ => {}
            }
        }
        let counts = OperationCounts {
            wraps: count_in(wraps, "operations.*.wraps")?,
            unwraps: count_in(unwraps, "operations.*.unwraps")?,
        };
        operations.push((edek, counts));
    }
    Ok(operations)
}

/// A whole number from 0; absent or `null` is 0.
fn count_in(value: Option<Value<'_, '_>>, field: &'static str) -> Result<u64, DecodeError> {
    let Some(value) = given(value) else {
        return Ok(0);
    };
    if let Some(count) = value.as_u64() {
        return Ok(count);
    }
    let must = "be a whole number from 0";
    if value.as_i64().is_some() || value.as_f64().is_some() {
        return Err(DecodeError::Invalid { field, must });
    }
    Err(wrong_type(field, "a number", value))
}

/// The event's name: in `iclFields` from most SDKs, at top level from alloy.
fn event_in<'a>(members: &Members<'_, 'a>) -> Result<&'a str, DecodeError> {
    let (value, field) = match given(IclFields::of(members)?.event) {
        Some(value) => (Some(value), "iclFields.event"),
        None => match given(members.event) {
            Some(value) => (Some(value), "event"),
            None => (None, "iclFields.event"),
        },
    };
    let event = string_in(value, field)?;
    const { assert!(EVENT_BYTES_MAX == 256, "the text below says so") }
    match event {
        "" => Err(DecodeError::Invalid {
            field,
            must: "not be empty",
        }),
        _ if event.len() > EVENT_BYTES_MAX => Err(DecodeError::Invalid {
            field,
            must: "have at most 256 bytes",
        }),
        // The Go SDK sends these two without the prefix that all others put.
        "ENFORCE_RETENTION_POLICY" => Ok("PERIODIC_ENFORCE_RETENTION_POLICY"),
        "CREATE_BACKUP" => Ok("PERIODIC_CREATE_BACKUP"),
        _ => Ok(event),
    }
}

/// Milliseconds since 1970. Fractions are cut off. What no `i64` can hold becomes the nearest that can: it is as
/// absurd as any other time millions of years away, and an audit event is worth more than its clock.
fn timestamp_in(value: Option<Value<'_, '_>>) -> Result<Option<i64>, DecodeError> {
    let Some(value) = given(value) else {
        return Ok(None);
    };
    if let Some(whole) = value.as_i64() {
        return Ok(Some(whole));
    }
    if value.as_u64().is_some() {
        return Ok(Some(i64::MAX));
    }
    let Some(number) = value.as_f64() else {
        return Err(wrong_type(
            "timestampMillis",
            "a number of milliseconds since 1970, or null",
            value,
        ));
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "saturates and cuts, which is what we want"
    )]
    let whole = number as i64;
    Ok(Some(whole))
}
