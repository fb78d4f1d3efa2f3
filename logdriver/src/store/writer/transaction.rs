//! One transaction: all or nothing, and nothing in memory changes before it is on disk.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{CHECKPOINT_EVENTS, State, TENANTS_MAX, TOLD_MAX, Tenant, signed};
use crate::{
    chain::Head,
    clock, notice,
    sink::Event,
    store::{
        Append, Arrived, Corrupt, Settle, Shards, block, incoming,
        processes::{self, Died},
        seal::{Binding, Kind},
    },
};

/// Bytes after which a tenant's events go into a further block.
const BLOCK_BYTES_FULL: usize = 1024 * 1024;

/// How long dead letters are kept, and how many bytes of all of them.
const DEAD_AGE_MS: i64 = 30 * 24 * 60 * 60 * 1000;
const DEAD_BYTES_MAX: i64 = 10 * 1024 * 1024 * 1024;

/// How long the last batch and the last numbers of a proxy are remembered, in ms. A proxy's process has a new number at each start.
const PRODUCERS_AGE_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// What a transaction did, to be taken over once it is on disk.
#[derive(Default)]
pub(super) struct Done {
    pub(super) tenants: HashMap<Arc<str>, Tenant>,
    pub(super) producers: HashMap<u64, u64>,
    pub(super) arrived: Vec<Arrived>,
    pub(super) stored: u64,
    /// Events of batches that were there already.
    pub(super) repeated: u64,
    /// Events that were settled.
    pub(super) gone: i64,
    /// Events in blocks that cannot be read.
    pub(super) corrupt: u64,
    /// What is no event.
    pub(super) strange: u64,
    /// Processes that are newly known to have died.
    pub(super) died: Vec<Died>,
    /// How many of the last tenants of the first death were told of it, and whether none is left.
    pub(super) told: usize,
    pub(super) all_told: bool,
}

/// An event on its way to its place.
struct Placed<'a> {
    tenant: &'a str,
    id: &'a str,
    timestamp_ms: i64,
    json: &'a [u8],
    /// When it came, in ms since 1970, if it is a proxy's.
    heard_ms: Option<i64>,
}

/// A tenant's events of this transaction.
struct Lane {
    tenant: Tenant,
    block: Vec<u8>,
    /// Sequence of the block's first event, and how many there are.
    first: u64,
    events: u64,
    json_bytes: i64,
    arrived: Arrived,
}

impl State {
    /// Writes all of it.
    pub(super) fn commit(
        &mut self,
        connection: &Connection,
        appends: &[Append],
        settles: &[Settle],
    ) -> rusqlite::Result<Done> {
        // Checkpoints and notices are events, so they wait while there is no room for events.
        let makes_room = appends.is_empty() && !settles.is_empty();
        let due = if makes_room { Vec::new() } else { self.due() };
        let transaction = connection.unchecked_transaction()?;
        let mut done = Done::default();
        let mut lanes = HashMap::new();
        let now_ms = clock::now_ms();
        // Once for all of them: a commit has hundreds of messages of one shard.
        let mut shards = Shards::new();
        for append in appends {
            processes::take(&mut shards, &append.shards);
        }
        processes::note(&transaction, &shards, now_ms)?;
        for append in appends {
            self.append(&transaction, append, now_ms, &mut lanes, &mut done)?;
        }
        if !makes_room {
            self.tell(&transaction, now_ms, &mut lanes, &mut done)?;
        }
        for name in due {
            self.checkpoint(&transaction, &name, &mut lanes, &mut done)?;
        }
        for (name, mut lane) in lanes {
            self.flush(&transaction, &mut lane)?;
            let tenant = lane.tenant;
            let mut update = transaction.prepare_cached(
                "UPDATE tenant SET sequence = ?2, hash = ?3, unchecked = ?4, heard_ms = ?5 WHERE number = ?1",
            )?;
            update.execute(params![
                tenant.number,
                signed(tenant.head.sequence),
                tenant.head.hash.0.as_slice(),
                signed(tenant.unchecked),
                tenant.heard_ms
            ])?;
            done.tenants.insert(name, tenant);
            done.arrived.push(lane.arrived);
        }
        for settle in settles {
            self.settle(&transaction, settle, &mut done)?;
        }
        transaction.commit()?;
        Ok(done)
    }

    fn append(
        &mut self,
        transaction: &Transaction<'_>,
        append: &Append,
        now_ms: i64,
        lanes: &mut HashMap<Arc<str>, Lane>,
        done: &mut Done,
    ) -> rusqlite::Result<()> {
        for instance in &append.died {
            done.died.extend(processes::bury(transaction, *instance)?);
        }
        if let Some(batch) = append.batch {
            let known = done.producers.get(&batch.instance);
            let known = known.or_else(|| self.producers.get(&batch.instance));
            if known == Some(&batch.number) {
                done.repeated += u64::try_from(append.events.len()).unwrap_or(u64::MAX);
                return Ok(());
            }
            done.producers.insert(batch.instance, batch.number);
            transaction.execute(
                "INSERT OR REPLACE INTO producer (instance, batch, at_ms) VALUES (?1, ?2, ?3)",
                params![
                    batch.instance.cast_signed(),
                    batch.number.cast_signed(),
                    now_ms
                ],
            )?;
        }
        for event in &append.events {
            let id = match event.sequence {
                Some(number) => number.id(),
                None => self.ids.next().ok_or_else(no_random)?,
            };
            let placed = Placed {
                tenant: &event.tenant,
                id: id.as_str(),
                timestamp_ms: event.timestamp_ms,
                json: &event.with_id(id.as_str()),
                heard_ms: Some(now_ms),
            };
            if !self.place(transaction, &placed, lanes, done)? {
                self.strange(transaction, event.json(), done)?;
            }
        }
        for strange in &append.strange {
            self.strange(transaction, strange, done)?;
        }
        Ok(())
    }

    /// Puts an event behind the tenant's last one. `false` if it is no object of JSON.
    fn place(
        &mut self,
        transaction: &Transaction<'_>,
        event: &Placed<'_>,
        lanes: &mut HashMap<Arc<str>, Lane>,
        done: &mut Done,
    ) -> rusqlite::Result<bool> {
        let mut tenant = event.tenant;
        if self.tenants.len() >= TENANTS_MAX && !self.tenants.contains_key(tenant) {
            tenant = "";
        }
        if !lanes.contains_key(tenant) {
            let lane = self.lane(transaction, tenant)?;
            lanes.insert(Arc::clone(&lane.arrived.tenant), lane);
        }
        let Some(lane) = lanes.get_mut(tenant) else {
            return Ok(false);
        };
        let Ok(json) = lane.tenant.head.append(self.logdriver, event.json) else {
            return Ok(false);
        };
        lane.push(event.id, event.timestamp_ms, &json);
        lane.tenant.unchecked += 1;
        lane.tenant.heard_ms = event.heard_ms.unwrap_or(lane.tenant.heard_ms);
        done.stored += 1;
        if lane.tenant.unchecked >= CHECKPOINT_EVENTS {
            self.write_checkpoint(lane, done)?;
        }
        if lane.block.len() >= BLOCK_BYTES_FULL {
            self.flush(transaction, lane)?;
        }
        Ok(true)
    }

    /// Tells some of those tenants of a death that have not been told.
    fn tell(
        &mut self,
        transaction: &Transaction<'_>,
        now_ms: i64,
        lanes: &mut HashMap<Arc<str>, Lane>,
        done: &mut Done,
    ) -> rusqlite::Result<()> {
        let Some(untold) = self.untold.front() else {
            return Ok(());
        };
        let died = untold.died;
        let tenants: Vec<_> = untold
            .tenants
            .iter()
            .rev()
            .take(TOLD_MAX)
            .cloned()
            .collect();
        done.told = tenants.len();
        done.all_told = tenants.len() == untold.tenants.len();
        for tenant in tenants {
            // The same when a crash has it told again.
            let of = [
                &self.logdriver.0.to_be_bytes(),
                &died.instance.to_be_bytes(),
                tenant.as_bytes(),
            ];
            let id = incoming::id(b"tsp-logdriver death v1", &of);
            let (instance, last_ms) = (died.instance, died.event_ms);
            let placed = Placed {
                tenant: &tenant,
                id: id.as_str(),
                timestamp_ms: now_ms,
                json: &notice::proxy_died(&tenant, instance, last_ms, now_ms, id.as_str()),
                heard_ms: None,
            };
            // It is JSON.
            self.place(transaction, &placed, lanes, done)?;
        }
        if done.all_told {
            processes::told(transaction, died.instance)?;
        }
        Ok(())
    }

    fn checkpoint(
        &mut self,
        transaction: &Transaction<'_>,
        tenant: &Arc<str>,
        lanes: &mut HashMap<Arc<str>, Lane>,
        done: &mut Done,
    ) -> rusqlite::Result<()> {
        if !lanes.contains_key(tenant) {
            let lane = self.lane(transaction, tenant)?;
            lanes.insert(Arc::clone(tenant), lane);
        }
        match lanes.get_mut(tenant) {
            Some(lane) if lane.tenant.unchecked > 0 => self.write_checkpoint(lane, done),
            Some(_) | None => Ok(()),
        }
    }

    /// An event that says where the chain stands, behind what it speaks of.
    fn write_checkpoint(&mut self, lane: &mut Lane, done: &mut Done) -> rusqlite::Result<()> {
        let id = self.ids.next().ok_or_else(no_random)?;
        let (logdriver, now_ms) = (self.logdriver, clock::now_ms());
        let name = Arc::clone(&lane.arrived.tenant);
        let head = &mut lane.tenant.head;
        let json = head
            .checkpoint(logdriver, &name, now_ms, id.as_str(), &self.signing)
            .and_then(|json| head.append(logdriver, &json).ok());
        lane.tenant.unchecked = 0;
        if let Some(json) = json {
            lane.push(id.as_str(), now_ms, &json);
            done.stored += 1;
        }
        Ok(())
    }

    /// The tenant as it is, with a row of its own.
    fn lane(&self, transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<Lane> {
        let (name, tenant) = match self.tenants.get_key_value(name) {
            Some((name, tenant)) => (Arc::clone(name), tenant.clone()),
            None => {
                let head = Head::start(self.logdriver, name);
                transaction.execute(
                    "INSERT INTO tenant (name, sequence, hash, unchecked, settled) VALUES (?1, 0, ?2, 0, 0)",
                    params![name, head.hash.0.as_slice()],
                )?;
                let tenant = Tenant {
                    number: transaction.last_insert_rowid(),
                    head,
                    unchecked: 0,
                    heard_ms: 0,
                };
                (name.into(), tenant)
            }
        };
        Ok(Lane {
            tenant,
            block: Vec::new(),
            first: 0,
            events: 0,
            json_bytes: 0,
            arrived: Arrived {
                tenant: name,
                events: 0,
                bytes: 0,
            },
        })
    }

    /// Writes the block of a lane.
    fn flush(&mut self, transaction: &Transaction<'_>, lane: &mut Lane) -> rusqlite::Result<()> {
        if lane.events == 0 {
            return Ok(());
        }
        let binding = Binding {
            kind: Kind::Block,
            tenant: lane.tenant.number,
            first: signed(lane.first),
            events: signed(lane.events),
        };
        let sealed = self.sealer.seal(binding, &lane.block);
        let sealed = sealed.ok_or_else(|| own("the content is too large to be sealed"))?;
        let mut insert = transaction.prepare_cached(
            "INSERT INTO block (tenant, first, events, bytes, stored_ms, run, nonce, content) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        insert.execute(params![
            binding.tenant,
            binding.first,
            binding.events,
            lane.json_bytes,
            clock::now_ms(),
            sealed.run,
            sealed.nonce,
            sealed.content
        ])?;
        lane.block.clear();
        (lane.events, lane.json_bytes) = (0, 0);
        Ok(())
    }

    fn settle(
        &mut self,
        transaction: &Transaction<'_>,
        settle: &Settle,
        done: &mut Done,
    ) -> rusqlite::Result<()> {
        let known = transaction
            .query_row(
                "SELECT number, settled FROM tenant WHERE name = ?1",
                [&*settle.tenant],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
            )
            .optional()?;
        let Some((tenant, settled)) = known else {
            return Ok(());
        };
        for (event, reason) in &settle.dead {
            self.bury(transaction, tenant, event, reason)?;
        }
        for corrupt in &settle.corrupt {
            done.corrupt += corrupt.events;
            keep_corrupt(transaction, tenant, corrupt);
        }
        let upto = signed(settle.upto).max(settled);
        done.gone += upto - settled;
        transaction.execute(
            "UPDATE tenant SET settled = ?2 WHERE number = ?1",
            [tenant, upto],
        )?;
        let removed = transaction.execute(
            "DELETE FROM block WHERE id IN (SELECT id FROM block INDEXED BY block_of \
             WHERE tenant = ?1 AND first <= ?2 AND first + events <= ?2 + 1)",
            [tenant, upto],
        );
        // A damaged block may not let itself be removed. It lies before `settled`, so nobody reads it again.
        match removed {
            Err(why) if crate::store::reader::is_corrupt(&why) => Ok(()),
            other => other.map(drop),
        }
    }

    fn bury(
        &mut self,
        transaction: &Transaction<'_>,
        tenant: i64,
        event: &Event,
        reason: &str,
    ) -> rusqlite::Result<()> {
        let mut content = Vec::with_capacity(event.json.len() + block::HEAD_BYTES);
        block::push(&mut content, &event.id, event.timestamp_ms, &event.json);
        let first = signed(event.sequence);
        self.insert_dead(transaction, tenant, first, &content, reason)
    }

    /// Keeps what is no event among the dead letters of nobody.
    fn strange(
        &mut self,
        transaction: &Transaction<'_>,
        bytes: &[u8],
        done: &mut Done,
    ) -> rusqlite::Result<()> {
        done.strange += 1;
        let id = self.ids.next();
        let mut content = Vec::with_capacity(bytes.len() + block::HEAD_BYTES);
        let id = id.as_ref().map_or("", |id| id.as_str());
        block::push(&mut content, id, clock::now_ms(), bytes);
        self.insert_dead(transaction, 0, 0, &content, "it is no event")
    }

    fn insert_dead(
        &mut self,
        transaction: &Transaction<'_>,
        tenant: i64,
        first: i64,
        content: &[u8],
        reason: &str,
    ) -> rusqlite::Result<()> {
        let binding = Binding {
            kind: Kind::Dead,
            tenant,
            first,
            events: 1,
        };
        let sealed = self.sealer.seal(binding, content);
        let sealed = sealed.ok_or_else(|| own("the content is too large to be sealed"))?;
        transaction.execute(
            "INSERT INTO dead (tenant, first, events, bytes, at_ms, reason, run, nonce, content) \
             VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                tenant,
                first,
                i64::try_from(content.len()).unwrap_or(i64::MAX),
                clock::now_ms(),
                reason,
                sealed.run,
                sealed.nonce,
                sealed.content
            ],
        )?;
        Ok(())
    }
}

impl Lane {
    fn push(&mut self, id: &str, timestamp_ms: i64, json: &[u8]) {
        if self.events == 0 {
            self.first = self.tenant.head.sequence;
        }
        block::push(&mut self.block, id, timestamp_ms, json);
        let bytes = i64::try_from(json.len()).unwrap_or(i64::MAX);
        self.events += 1;
        self.json_bytes += bytes;
        self.arrived.events += 1;
        self.arrived.bytes += bytes;
    }
}

/// Keeps a damaged block among the dead letters, as it is, if the disk gives it back.
fn keep_corrupt(transaction: &Transaction<'_>, tenant: i64, corrupt: &Corrupt) {
    let kept = transaction.execute(
        "INSERT INTO dead (tenant, first, events, bytes, at_ms, reason, run, nonce, content) \
         SELECT tenant, first, events, bytes, ?2, 'damaged on disk', run, nonce, content FROM block WHERE id = ?1",
        params![corrupt.block, clock::now_ms()],
    );
    tracing::error!(
        tenant,
        block = corrupt.block,
        first_sequence = corrupt.first,
        events = corrupt.events,
        kept = kept.is_ok(),
        "a block of events is damaged on disk and is skipped; its tenant will see the gap"
    );
}

/// Removes dead letters that are too old or too many, oldest first, and what is known of proxies that are long gone. Gives
/// the number of the former.
pub(super) fn expire(connection: &Connection) -> rusqlite::Result<u64> {
    let now = clock::now_ms();
    let mut expired = connection.execute(
        "DELETE FROM dead WHERE at_ms < ?1",
        [now.saturating_sub(DEAD_AGE_MS)],
    )?;
    let bytes = "SELECT coalesce(sum(bytes), 0) FROM dead";
    while connection.query_row(bytes, [], |row| row.get::<_, i64>(0))? > DEAD_BYTES_MAX {
        expired += connection.execute(
            "DELETE FROM dead WHERE id IN (SELECT id FROM dead ORDER BY id LIMIT 1000)",
            [],
        )?;
    }
    if expired > 0 {
        tracing::warn!(
            dead_letters = expired,
            "dead letters expired and were removed"
        );
    }
    for table in ["producer", "shard"] {
        connection.execute(
            &format!("DELETE FROM {table} WHERE at_ms < ?1"),
            [now.saturating_sub(PRODUCERS_AGE_MS)],
        )?;
    }
    Ok(u64::try_from(expired).unwrap_or(u64::MAX))
}

fn own(why: &'static str) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(why.into())
}

fn no_random() -> rusqlite::Error {
    own("the kernel has no random bytes")
}
