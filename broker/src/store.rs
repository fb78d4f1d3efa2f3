//! The database: SQLite in a file, or PostgreSQL, by the same statements.
//!
//! Every change of a vendor's goes through [`Store::change`]: one transaction that first counts the vendor's version up, which
//! locks the vendor against other changes (also of other replicas), and last appends to the audit trail. So changes of a
//! vendor happen one after the other, each is a line in the trail, and a snapshot's version is the number of the last line.
//!
//! Bytes are stored as base64, as the APIs carry them; truth values as 0 and 1; times as Unix seconds.

mod account;
mod admin;
mod bridge;
mod kms;
mod organization;
mod schema;
mod segment;
mod tags;
mod tenant;

use std::fmt;

use sha2::{Digest as _, Sha256};
use sqlx::{Any, AnyPool, Connection as _, Row as _, Transaction, any::AnyPoolOptions};

use crate::model::ChangeDoc;

pub(crate) use self::{account::Account, admin::Admin, admin::is_email};

/// Connections to the database. A request holds one for a few statements.
const CONNECTIONS_MAX: u32 = 8;

/// Longest text that names something for people, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 256;

/// Lines of the audit trail in one answer.
pub(crate) const CHANGES_MAX: i64 = 10_000;

/// The store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: AnyPool,
    sqlite: bool,
}

/// Why the store did not do it.
#[derive(Debug)]
pub(crate) enum StoreError {
    /// The database's fault.
    Database(sqlx::Error),
    /// There is no such thing.
    NotFound(&'static str),
    /// A rule is in the way: the sentence says which.
    Refused(&'static str),
    /// The state is another one than the caller knew.
    Conflict(&'static str),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(why) => write!(f, "database: {why}"),
            Self::NotFound(why) | Self::Refused(why) | Self::Conflict(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<sqlx::Error> for StoreError {
    fn from(why: sqlx::Error) -> Self {
        if why
            .as_database_error()
            .is_some_and(sqlx::error::DatabaseError::is_unique_violation)
        {
            return Self::Conflict("there is one of this number, name or address already");
        }
        Self::Database(why)
    }
}

pub(crate) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A change under way. Dropped without [`Change::commit`], nothing happened.
pub(crate) struct Change {
    pub(crate) tx: Transaction<'static, Any>,
    pub(crate) vendor: i64,
    pub(crate) number: i64,
    pub(crate) epoch: i64,
    pub(crate) at: i64,
    actor: String,
    chain: String,
}

impl Store {
    /// Opens the database and brings its schema up to date.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let sqlite = url.starts_with("sqlite:");
        let mut url = url.to_owned();
        if sqlite && !url.contains("mode=") && !url.contains(":memory:") {
            url.push_str(if url.contains('?') { "&" } else { "?" });
            url.push_str("mode=rwc");
        }
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if sqlite {
                        // WAL lets readers read while one writes; FULL makes a commit survive a loss of power.
                        for pragma in [
                            "PRAGMA busy_timeout = 10000",
                            "PRAGMA journal_mode = WAL",
                            "PRAGMA synchronous = FULL",
                            "PRAGMA foreign_keys = ON",
                        ] {
                            sqlx::query(pragma).execute(&mut *connection).await?;
                        }
                    }
                    Ok(())
                })
            })
            .connect(&url)
            .await?;
        let store = Self { pool, sqlite };
        schema::migrate(&store).await?;
        Ok(store)
    }

    /// Begins a transaction that will write.
    async fn begin(&self) -> Result<Transaction<'static, Any>> {
        let begin = if self.sqlite {
            // Else two that read first would both wait for the other to end.
            "BEGIN IMMEDIATE"
        } else {
            "BEGIN"
        };
        Ok(self.pool.begin_with(begin).await?)
    }

    /// Begins a transaction that sees one state.
    async fn begin_reading(&self) -> Result<Transaction<'static, Any>> {
        let begin = if self.sqlite {
            "BEGIN"
        } else {
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        };
        Ok(self.pool.begin_with(begin).await?)
    }

    /// Begins a change of a vendor's.
    pub(crate) async fn change(&self, vendor: i64, actor: &str, at: i64) -> Result<Change> {
        let tx = self.begin().await?;
        Change::begin(tx, vendor, actor, at).await
    }

    /// Numbers that no object has or will have but the caller's.
    pub(crate) async fn reserve(&self, count: i64) -> Result<i64> {
        let mut tx = self.begin().await?;
        let first = reserve(&mut tx, count).await?;
        tx.commit().await?;
        Ok(first)
    }

    /// Remembers a token's number until `forget_s`; false if it was taken before.
    pub(crate) async fn take_once(&self, id: &str, forget_s: i64) -> Result<bool> {
        let taken = sqlx::query(
            "INSERT INTO taken (id, forget) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING",
        )
        .bind(id)
        .bind(forget_s)
        .execute(&self.pool)
        .await?;
        Ok(taken.rows_affected() == 1)
    }

    /// Deletes what is over.
    pub(crate) async fn forget(&self, now: i64) -> Result<()> {
        for statement in [
            "DELETE FROM taken WHERE forget <= $1",
            "DELETE FROM sessions WHERE expires <= $1",
            "DELETE FROM login_failures WHERE forget <= $1",
        ] {
            sqlx::query(statement).bind(now).execute(&self.pool).await?;
        }
        Ok(())
    }

    /// Whether the database answers.
    pub(crate) async fn ping(&self) -> Result<()> {
        let mut connection = self.pool.acquire().await?;
        connection.ping().await?;
        Ok(())
    }

    /// The audit trail after line `after`, oldest first, `lines_max` lines of it.
    pub(crate) async fn changes(
        &self,
        vendor: i64,
        after: i64,
        lines_max: i64,
    ) -> Result<Vec<ChangeDoc>> {
        let rows = sqlx::query(
            "SELECT number, at, actor, action, object, detail, hash FROM changes WHERE vendor = $1 AND number > $2 \
             ORDER BY number LIMIT $3",
        )
        .bind(vendor)
        .bind(after)
        .bind(lines_max)
        .fetch_all(&self.pool)
        .await?;
        let line = |row: &sqlx::any::AnyRow| {
            Ok(ChangeDoc {
                number: row.try_get(0)?,
                at: row.try_get(1)?,
                actor: row.try_get(2)?,
                action: row.try_get(3)?,
                object: row.try_get(4)?,
                detail: row.try_get(5)?,
                hash: row.try_get(6)?,
            })
        };
        rows.iter().map(line).collect()
    }
}

async fn reserve(tx: &mut Transaction<'static, Any>, count: i64) -> Result<i64> {
    let (next,): (i64,) = sqlx::query_as("UPDATE numbers SET next = next + $1 RETURNING next")
        .bind(count)
        .fetch_one(&mut **tx)
        .await?;
    Ok(next - count)
}

impl Change {
    /// Begins a change of a vendor's in a transaction that will write.
    async fn begin(
        tx: Transaction<'static, Any>,
        vendor: i64,
        actor: &str,
        at: i64,
    ) -> Result<Self> {
        let mut change = Self {
            tx,
            vendor,
            number: 0,
            epoch: 0,
            at,
            actor: String::new(),
            chain: String::new(),
        };
        change.turn_to(vendor, actor).await?;
        Ok(change)
    }

    /// Goes on as a change of another vendor's, once what was done is in the trail of the first.
    async fn turn_to(&mut self, vendor: i64, actor: &str) -> Result<()> {
        let row: Option<(i64, i64, String)> = sqlx::query_as(
            "UPDATE vendors SET version = version + 1 WHERE id = $1 RETURNING version, epoch, chain",
        )
        .bind(vendor)
        .fetch_optional(&mut *self.tx)
        .await?;
        (self.number, self.epoch, self.chain) =
            row.ok_or(StoreError::NotFound("there is no such vendor"))?;
        self.vendor = vendor;
        self.actor = actor.to_owned();
        Ok(())
    }

    /// Appends to the audit trail, and makes the change last.
    pub(crate) async fn commit(
        mut self,
        action: &str,
        object: impl fmt::Display,
        detail: &serde_json::Value,
    ) -> Result<i64> {
        self.note(action, object, detail).await?;
        self.tx.commit().await?;
        Ok(self.number)
    }

    /// Appends to the audit trail.
    async fn note(
        &mut self,
        action: &str,
        object: impl fmt::Display,
        detail: &serde_json::Value,
    ) -> Result<()> {
        let mut line = ChangeDoc {
            number: self.number,
            at: self.at,
            actor: self.actor.clone(),
            action: action.to_owned(),
            object: object.to_string(),
            detail: detail.to_string(),
            hash: String::new(),
        };
        line.hash = chained(&self.chain, &line);
        sqlx::query(
            "INSERT INTO changes (vendor, number, at, actor, action, object, detail, hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(self.vendor)
        .bind(line.number)
        .bind(line.at)
        .bind(line.actor)
        .bind(line.action)
        .bind(line.object)
        .bind(line.detail)
        .bind(&line.hash)
        .execute(&mut *self.tx)
        .await?;
        sqlx::query("UPDATE vendors SET chain = $1 WHERE id = $2")
            .bind(line.hash)
            .bind(self.vendor)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Refuses what was sealed for another epoch than the current one.
    pub(crate) fn check_epoch(&self, epoch: u32) -> Result<()> {
        if i64::from(epoch) == self.epoch {
            Ok(())
        } else {
            Err(StoreError::Conflict(
                "it is sealed for another epoch of the segment's key than the current one",
            ))
        }
    }
}

/// The hash of a line of the audit trail that follows the line with the hash `before`.
pub(crate) fn chained(before: &str, line: &ChangeDoc) -> String {
    let text = serde_json::json!([
        before,
        line.number,
        line.at,
        line.actor,
        line.action,
        line.object,
        line.detail
    ]);
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text.to_string()) {
        use fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Whether `text` can name something for people.
pub(crate) fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
}
