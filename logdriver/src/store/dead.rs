//! Dead letters, for a person to look at: `tsp-logdriver dead`.

use std::path::Path;

use rusqlite::{Connection, Row};
use zeroize::Zeroizing;

use super::{
    OpenError, RootKey, block,
    reader::unsigned,
    schema,
    seal::{Binding, Kind, Opener},
};
use crate::sink::Event;

/// Reads the dead letters of a store, also while a logdriver uses it.
pub struct DeadLetters {
    connection: Connection,
    opener: Opener,
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeadLetters")
    }
}

/// Events that will not be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Whose; empty if that could not be told.
    pub tenant: String,
    /// Why.
    pub reason: String,
    /// Since when, in ms since 1970.
    pub at_ms: i64,
    /// Sequence of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// The event; absent if it cannot be read any more.
    pub event: Option<Event>,
}

impl DeadLetters {
    /// Opens a store's dead letters; `secret` is that of its service account, if it has one.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(folder: &Path, secret: Option<&Zeroizing<Vec<u8>>>) -> Result<Self, OpenError> {
        let root = match secret {
            Some(secret) => RootKey::derive(secret),
            None => RootKey::derive(&schema::own_secret(folder)?),
        };
        let connection = schema::reader(folder)?;
        let runs = schema::runs(&connection)?;
        let opener = Opener::new(
            &root,
            runs.iter().map(|(run, salt)| (*run, salt.as_slice())),
        );
        Ok(Self { connection, opener })
    }

    /// Tells them all, oldest first.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn each(&self, mut tell: impl FnMut(Letter)) -> Result<(), OpenError> {
        let mut statement = self.connection.prepare(
            "SELECT coalesce(tenant.name, ''), dead.tenant, dead.first, dead.events, dead.at_ms, dead.reason, \
             dead.run, dead.nonce, dead.content FROM dead LEFT JOIN tenant ON tenant.number = dead.tenant \
             ORDER BY dead.id",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            tell(self.letter(row)?);
        }
        Ok(())
    }

    fn letter(&self, row: &Row<'_>) -> rusqlite::Result<Letter> {
        let binding = Binding {
            kind: Kind::Dead,
            tenant: row.get(1)?,
            first: row.get(2)?,
            events: row.get(3)?,
        };
        let content: Vec<u8> = row.get(8)?;
        let (first, count) = (unsigned(binding.first), unsigned(binding.events));
        let opened = self
            .opener
            .open(binding, row.get(6)?, row.get(7)?, &content);
        let events = opened.and_then(|opened| block::read(opened, first, 1));
        Ok(Letter {
            tenant: row.get(0)?,
            reason: row.get(5)?,
            at_ms: row.get(4)?,
            first,
            count,
            event: events.and_then(|mut events| events.pop()),
        })
    }
}
