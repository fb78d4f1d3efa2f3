//! The thread that reads: a tenant's next events, in order, and what among them cannot be read.

use std::{path::Path, sync::Arc};

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};

use super::{
    OpenError, block, schema,
    seal::{Binding, Kind, Opener, RootKey},
};
use crate::sink::Event;

/// Most blocks that one read looks at: a trickle makes blocks of one event.
const BLOCKS_MAX: i64 = 4096;

/// What is asked of the reader.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) tenant: Arc<str>,
    pub(super) events_max: usize,
    /// Of their JSON. A first event that is larger comes alone.
    pub(super) bytes_max: usize,
    pub(super) answer: oneshot::Sender<Batch>,
}

/// A tenant's next events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In the order of their sequences, without a gap but where something is corrupt.
    pub events: Vec<Event>,
    /// Blocks before, between or after them that cannot be read.
    pub corrupt: Vec<Corrupt>,
    /// When the first was stored, in ms since 1970.
    pub stored_ms: Option<i64>,
    /// Whether the disk refused to be read: then this is not all, and worth another try.
    pub failed: bool,
}

/// A block that was changed on disk, or that the disk does not give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// Its row.
    pub block: i64,
    /// The sequence of its first event.
    pub first: u64,
    /// How many events it had.
    pub events: u64,
}

impl Corrupt {
    /// The sequence of its last event.
    #[must_use]
    pub fn last(&self) -> u64 {
        (self.first + self.events).saturating_sub(1)
    }
}

pub(super) struct Reader {
    connection: Connection,
    opener: Opener,
}

/// One row of the index: enough to know what a block should have.
struct Row {
    id: i64,
    first: i64,
    events: i64,
    stored_ms: i64,
}

impl Reader {
    pub(super) fn open(folder: &Path, root: &RootKey) -> Result<Self, OpenError> {
        let connection = schema::reader(folder)?;
        let runs = schema::runs(&connection)?;
        let opener = Opener::new(root, runs.iter().map(|(run, salt)| (*run, salt.as_slice())));
        Ok(Self { connection, opener })
    }

    pub(super) fn run(self, mut reads: mpsc::Receiver<Read>) {
        while let Some(read) = reads.blocking_recv() {
            let batch = self.read(&read).unwrap_or_else(|why| {
                tracing::warn!(tenant_id = &*read.tenant, "events cannot be read: {why}");
                Batch {
                    failed: true,
                    ..Batch::default()
                }
            });
            // Who asked may have ended.
            let _ = read.answer.send(batch);
        }
    }

    fn read(&self, read: &Read) -> rusqlite::Result<Batch> {
        let mut batch = Batch::default();
        let known = self
            .connection
            .query_row(
                "SELECT number, settled FROM tenant WHERE name = ?1",
                [&*read.tenant],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
            )
            .optional()?;
        let Some((tenant, settled)) = known else {
            return Ok(batch);
        };
        let mut bytes = 0;
        for row in self.rows(tenant, settled)? {
            let Some(events) = self.block(tenant, &row)? else {
                batch.corrupt.push(Corrupt {
                    block: row.id,
                    first: unsigned(row.first),
                    events: unsigned(row.events),
                });
                continue;
            };
            batch.stored_ms.get_or_insert(row.stored_ms);
            for event in events {
                if event.sequence <= unsigned(settled) {
                    continue;
                }
                let full = batch.events.len() >= read.events_max
                    || bytes + event.json.len() > read.bytes_max;
                if full && !batch.events.is_empty() {
                    return Ok(batch);
                }
                bytes += event.json.len();
                batch.events.push(event);
            }
        }
        Ok(batch)
    }

    /// Of the index alone, so that a damaged block does not keep the next from being found.
    fn rows(&self, tenant: i64, settled: i64) -> rusqlite::Result<Vec<Row>> {
        let mut statement = self.connection.prepare(
            "SELECT id, first, events, stored_ms FROM block INDEXED BY block_of \
             WHERE tenant = ?1 AND first + events > ?2 + 1 ORDER BY first LIMIT ?3",
        )?;
        let rows = statement.query_map(params![tenant, settled, BLOCKS_MAX], |row| {
            Ok(Row {
                id: row.get(0)?,
                first: row.get(1)?,
                events: row.get(2)?,
                stored_ms: row.get(3)?,
            })
        })?;
        rows.collect()
    }

    /// The events of a block; `None` if it is corrupt.
    fn block(&self, tenant: i64, row: &Row) -> rusqlite::Result<Option<Vec<Event>>> {
        let sealed = self
            .connection
            .query_row(
                "SELECT run, nonce, content FROM block WHERE id = ?1",
                [row.id],
                |row| {
                    let content: Vec<u8> = row.get(2)?;
                    Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, content))
                },
            )
            .optional();
        let sealed = match sealed {
            Ok(sealed) => sealed,
            Err(why) if is_corrupt(&why) => None,
            Err(why) => return Err(why),
        };
        let Some((run, nonce, content)) = sealed else {
            return Ok(None);
        };
        let binding = Binding {
            kind: Kind::Block,
            tenant,
            first: row.first,
            events: row.events,
        };
        let opened = self.opener.open(binding, run, nonce, &content);
        let events = usize::try_from(row.events).unwrap_or_default();
        Ok(opened.and_then(|opened| block::read(opened, unsigned(row.first), events)))
    }
}

/// Whether the database is damaged there, as against not to be had at the moment.
pub(super) fn is_corrupt(why: &rusqlite::Error) -> bool {
    use rusqlite::{
        Error,
        ErrorCode::{DatabaseCorrupt, NotADatabase},
    };
    let code = why.sqlite_error_code();
    matches!(
        why,
        Error::InvalidColumnType(..) | Error::IntegralValueOutOfRange(..)
    ) || matches!(code, Some(DatabaseCorrupt | NotADatabase))
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
