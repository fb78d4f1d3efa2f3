//! What `tsp recover` takes: EDEKs one per line, or as JSON, or a file of tenant secrets.

use serde_json::Value;
use tsp_wire::edek::{self, EncryptedDeks, InvalidEdek};

use crate::secrets::{Record, file};

/// The input, and in which shape it came: the output has the same.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) shape: Shape,
    pub(super) items: Vec<Item>,
}

/// The shape of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One EDEK per line. An empty line stays one.
    Lines,
    /// A JSON array of EDEKs.
    Array,
    /// A JSON object of names to EDEKs.
    Object,
    /// A file of tenant secrets.
    Secrets,
}

/// One thing to open.
#[derive(Debug)]
pub(super) struct Item {
    /// Where it stands, for messages.
    pub(super) place: String,
    /// Its name in a JSON object.
    pub(super) name: String,
    /// Whose it is, if that is known.
    pub(super) tenant: Option<String>,
    /// `None` for an empty line.
    pub(super) edek: Option<Result<EncryptedDeks, InvalidEdek>>,
    /// What else is known of a tenant secret.
    pub(super) record: Option<Record>,
}

/// Finds out what `text` is, and takes it apart. `tenant` is that of what names none.
///
/// # Errors
/// What is wrong with it as a whole; a single bad EDEK is for later.
pub(super) fn parse(text: &str, tenant: Option<&str>) -> Result<Input, String> {
    match text.trim_start().as_bytes().first() {
        Some(b'{') if is_file_of_secrets(text) => return secrets(text),
        Some(b'[' | b'{') => {}
        Some(_) | None => return Ok(lines(text, tenant)),
    }
    let json: Value =
        serde_json::from_str(text).map_err(|why| format!("looks like JSON, and is none: {why}"))?;
    match json {
        Value::Array(edeks) => {
            let named = (0_usize..).map(|index| (format!("item {index}"), String::new()));
            items(Shape::Array, named.zip(edeks), tenant)
        }
        Value::Object(edeks) => {
            let named = |(name, edek)| ((format!("{name:?}"), name), edek);
            items(Shape::Object, edeks.into_iter().map(named), tenant)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err("is neither an array nor an object".to_owned())
        }
    }
}

fn is_file_of_secrets(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    serde_json::from_str::<Value>(first).is_ok_and(|head| head.get("format").is_some())
}

fn secrets(text: &str) -> Result<Input, String> {
    let secrets = file::parse(text.as_bytes())?;
    let item = |record: &Record| Item {
        place: format!("secret {} ({})", record.id, record.place),
        name: String::new(),
        tenant: Some(record.place.tenant.clone()),
        edek: Some(EncryptedDeks::from_bytes(&record.edek)),
        record: Some(record.clone()),
    };
    Ok(Input {
        shape: Shape::Secrets,
        items: secrets.records().iter().map(item).collect(),
    })
}

fn items(
    shape: Shape,
    named: impl Iterator<Item = ((String, String), Value)>,
    tenant: Option<&str>,
) -> Result<Input, String> {
    let item = |((place, name), edek): (_, Value)| {
        let text = edek
            .as_str()
            .ok_or_else(|| format!("{place}: an EDEK is a string"))?;
        Ok(Item {
            edek: Some(edek::parse(text)),
            place,
            name,
            tenant: tenant.map(str::to_owned),
            record: None,
        })
    };
    Ok(Input {
        shape,
        items: named.map(item).collect::<Result<_, String>>()?,
    })
}

fn lines(text: &str, tenant: Option<&str>) -> Input {
    let item = |(index, line): (usize, &str)| Item {
        place: format!("line {}", index + 1),
        name: String::new(),
        tenant: tenant.map(str::to_owned),
        edek: (!line.trim().is_empty()).then(|| edek::parse(line)),
        record: None,
    };
    Input {
        shape: Shape::Lines,
        items: text.lines().enumerate().map(item).collect(),
    }
}
