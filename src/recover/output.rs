//! What `tsp recover` prints: keys in the shape of the input.

use std::io::{self, Write};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::Value;
use tsp_wire::{
    Dek,
    derive::{DerivationType, Deriver},
};
use zeroize::Zeroizing;

use super::input::{Input, Item, Shape};
use crate::secrets::Record;

/// Writes results one by one.
pub(super) struct Output<'a, W> {
    shape: Shape,
    derive: &'a [String],
    out: &'a mut W,
    first: bool,
}

impl<'a, W: Write> Output<'a, W> {
    pub(super) fn new(input: &Input, derive: &'a [String], out: &'a mut W) -> Self {
        Self {
            shape: input.shape,
            derive,
            out,
            first: true,
        }
    }

    pub(super) fn begin(&mut self) -> io::Result<()> {
        match self.shape {
            Shape::Lines | Shape::Secrets => Ok(()),
            Shape::Array => self.out.write_all(b"["),
            Shape::Object => self.out.write_all(b"{"),
        }
    }

    /// The next result: `None` for what could not be opened, and for an empty line.
    pub(super) fn push(&mut self, item: &Item, key: Option<&Dek>) -> io::Result<()> {
        if self.shape == Shape::Secrets {
            return match (&item.record, key) {
                (Some(record), Some(key)) => self.push_secret(record, key),
                (Some(_), None) | (None, _) => Ok(()),
            };
        }
        let keys = match (key, &item.tenant) {
            (None, _) => Zeroizing::new(String::new()),
            (Some(key), Some(tenant)) if !self.derive.is_empty() => self.derived(key, tenant),
            (Some(key), _) => base64(key.expose()),
        };
        match self.shape {
            Shape::Lines | Shape::Secrets => writeln!(self.out, "{}", *keys),
            Shape::Array | Shape::Object => {
                let comma = if self.first { "" } else { "," };
                self.first = false;
                write!(self.out, "{comma}\n  ")?;
                if self.shape == Shape::Object {
                    write!(self.out, "{}: ", Value::from(item.name.as_str()))?;
                }
                if key.is_some() {
                    write!(self.out, "\"{}\"", *keys)
                } else {
                    self.out.write_all(b"null")
                }
            }
        }
    }

    pub(super) fn end(&mut self) -> io::Result<()> {
        let close = if self.first { "" } else { "\n" };
        match self.shape {
            Shape::Lines | Shape::Secrets => {}
            Shape::Array => writeln!(self.out, "{close}]")?,
            Shape::Object => writeln!(self.out, "{close}}}")?,
        }
        self.out.flush()
    }

    /// One line of JSON per secret, or per secret and derivation path.
    fn push_secret(&mut self, record: &Record, secret: &Dek) -> io::Result<()> {
        let text = |text: &str| Value::from(text);
        let place = &record.place;
        let start = format!(
            r#"{{"id":{},"tenant":{},"type":"{}","path":{},"status":"{}""#,
            record.id,
            text(&place.tenant),
            place.secret_type,
            text(&place.path),
            record.status
        );
        if self.derive.is_empty() {
            let secret = base64(secret.expose());
            return writeln!(self.out, r#"{start},"secret":"{}"}}"#, *secret);
        }
        let deriver = Deriver::new(secret, &place.tenant, DerivationType::Sha512);
        for path in self.derive {
            let key = base64(deriver.derive(path).expose());
            let path = text(path);
            writeln!(
                self.out,
                r#"{start},"derivationPath":{path},"derivedKey":"{}"}}"#,
                *key
            )?;
        }
        Ok(())
    }

    /// The keys for all derivation paths, with a tab between two.
    fn derived(&self, secret: &Dek, tenant: &str) -> Zeroizing<String> {
        let deriver = Deriver::new(secret, tenant, DerivationType::Sha512);
        // Room for all, so that no copy is left behind.
        let mut keys = Zeroizing::new(String::with_capacity(self.derive.len() * 89));
        for path in self.derive {
            if !keys.is_empty() {
                keys.push('\t');
            }
            keys.push_str(&base64(deriver.derive(path).expose()));
        }
        keys
    }
}

fn base64(key: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(BASE64.encode(key))
}
