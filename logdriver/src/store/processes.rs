//! What the store knows of the proxies' processes: where each was heard, which number each of its shards gives next, and
//! whether it ended in order.

use std::{collections::HashMap, net::SocketAddr};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::OpenError;

/// Shards of proxies whose numbers are followed. Each start of a proxy brings as many as it has shards.
pub const SHARDS_MAX: usize = 4096;

/// Shards that a start takes over, the latest: so many that there is room for those that come.
const SHARDS_KEPT_MAX: usize = SHARDS_MAX / 2;

/// What is known of a shard of a proxy's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Where it was heard.
    pub address: SocketAddr,
    /// The number that it gives next.
    pub next: u64,
    /// When its last event happened, in ms since 1970.
    pub event_ms: i64,
    /// Whether nothing more is expected: it ended in order, or nobody was there to hear how it ended.
    pub ended: bool,
}

/// Shards by their process and number.
pub type Shards = HashMap<(u64, u16), Shard>;

/// A process that ended without saying so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Died {
    pub(super) instance: u64,
    /// When it was first heard, in ms since 1970.
    pub(super) since_ms: i64,
    /// When the last event happened that came of it.
    pub(super) event_ms: i64,
}

// How a shard is, in the table.
const FOLLOWED: i64 = 0;
const ENDED: i64 = 1;
/// It died, and not every tenant has been told.
const DIED: i64 = 2;

/// Those heard last.
pub(super) fn shards(connection: &Connection) -> Result<Shards, OpenError> {
    let latest = "SELECT instance, shard, address, next, event_ms, state FROM shard ORDER BY at_ms DESC LIMIT ?1";
    let mut statement = connection.prepare(latest)?;
    let most = i64::try_from(SHARDS_KEPT_MAX).unwrap_or(i64::MAX);
    let mut rows = statement.query([most])?;
    let mut shards = Shards::new();
    while let Some(row) = rows.next()? {
        let address: String = row.get(2)?;
        let known = address.parse();
        let shard = Shard {
            // Of tables before version 3, which said nothing of it.
            address: known.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
            next: row.get::<_, i64>(3)?.cast_unsigned(),
            event_ms: row.get(4)?,
            ended: row.get::<_, i64>(5)? != FOLLOWED,
        };
        shards.insert((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?), shard);
    }
    Ok(shards)
}

/// Takes over what `news` has of shards. Late numbers change nothing; [`note`] has the same rule for the table.
pub(crate) fn take(shards: &mut Shards, news: &Shards) {
    for (key, news) in news {
        let shard = shards.entry(*key).or_insert(*news);
        if news.next < shard.next {
            continue;
        }
        *shard = Shard {
            event_ms: news.event_ms.max(shard.event_ms),
            ended: news.ended || (shard.ended && news.next == shard.next),
            ..*news
        };
    }
}

/// Notes what was heard. Late numbers, and those of a batch that comes again, change nothing.
pub(super) fn note(
    transaction: &Transaction<'_>,
    shards: &Shards,
    now_ms: i64,
) -> rusqlite::Result<()> {
    let mut upsert = transaction.prepare_cached(
        "INSERT INTO shard (instance, shard, address, next, since_ms, event_ms, at_ms, state) \
         VALUES (?1, ?2, ?3, ?4, ?6, ?5, ?6, ?7) \
         ON CONFLICT DO UPDATE SET address = excluded.address, next = excluded.next, \
         event_ms = max(event_ms, excluded.event_ms), at_ms = excluded.at_ms, state = excluded.state \
         WHERE excluded.next > next OR (excluded.next = next AND excluded.state > state)",
    )?;
    for ((instance, number), shard) in shards {
        let state = if shard.ended { ENDED } else { FOLLOWED };
        upsert.execute(params![
            instance.cast_signed(),
            number,
            shard.address.to_string(),
            shard.next.cast_signed(),
            shard.event_ms,
            now_ms,
            state
        ])?;
    }
    Ok(())
}

/// Notes that a process died. `None` if it is not one that was followed.
pub(super) fn bury(transaction: &Transaction<'_>, instance: u64) -> rusqlite::Result<Option<Died>> {
    let died = "UPDATE shard SET state = ?2 WHERE instance = ?1 AND state = ?3";
    if transaction.execute(died, params![instance.cast_signed(), DIED, FOLLOWED])? == 0 {
        return Ok(None);
    }
    let of = format!("{UNTOLD} AND instance = ?2 GROUP BY instance");
    transaction
        .query_row(&of, params![DIED, instance.cast_signed()], died_of)
        .optional()
}

/// Processes that died and of which not every tenant has been told.
pub(super) fn untold(connection: &Connection) -> Result<Vec<Died>, OpenError> {
    let mut statement = connection.prepare(&format!("{UNTOLD} GROUP BY instance"))?;
    let rows = statement.query_map([DIED], died_of)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

const UNTOLD: &str = "SELECT instance, min(since_ms), max(event_ms) FROM shard WHERE state = ?1";

fn died_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Died> {
    Ok(Died {
        instance: row.get::<_, i64>(0)?.cast_unsigned(),
        since_ms: row.get(1)?,
        event_ms: row.get(2)?,
    })
}

/// Everybody has been told that a process died.
pub(super) fn told(transaction: &Transaction<'_>, instance: u64) -> rusqlite::Result<()> {
    let told = "UPDATE shard SET state = ?2 WHERE instance = ?1";
    transaction.execute(told, params![instance.cast_signed(), ENDED])?;
    Ok(())
}

/// From now on nobody hears how a process ends.
pub(super) fn leave(connection: &Connection) -> rusqlite::Result<()> {
    let left = "UPDATE shard SET state = ?1 WHERE state = ?2";
    connection.execute(left, [ENDED, FOLLOWED])?;
    Ok(())
}
