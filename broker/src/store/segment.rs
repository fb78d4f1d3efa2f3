//! Rotation of a segment's key: everything that is sealed changes at one moment, or nothing.

use std::collections::BTreeMap;

use sqlx::{Any, Transaction};

use super::{Change, Result, Store, StoreError};
use crate::model::{Member, Rotation, Sealed, SealedContent};

type Contents = BTreeMap<i64, SealedContent>;

impl Store {
    /// All that a rotation has to seal anew: public keys of those who get the new key, and all envelopes.
    pub(crate) async fn sealed(&self, vendor: i64) -> Result<Sealed<Member>> {
        let mut tx = self.begin_reading().await?;
        sealed(&mut tx, vendor).await
    }
}

async fn sealed(tx: &mut Transaction<'static, Any>, vendor: i64) -> Result<Sealed<Member>> {
    let (version,): (i64,) = sqlx::query_as("SELECT version FROM vendors WHERE id = $1")
        .bind(vendor)
        .fetch_one(&mut **tx)
        .await?;
    let accounts: Vec<(i64, String, String)> = sqlx::query_as(
        "SELECT config, encryption_key, certificate FROM accounts WHERE vendor = $1 AND revoked = 0 AND kind = 'tsp'",
    )
    .bind(vendor)
    .fetch_all(&mut **tx)
    .await?;
    let admins: Vec<(i64, String, String)> = sqlx::query_as(
        "SELECT id, public_key, certificate FROM admins WHERE vendor = $1 AND role = 'admin' AND sealed_keys <> ''",
    )
    .bind(vendor)
    .fetch_all(&mut **tx)
    .await?;
    let kms = sqlx::query_as(
        "SELECT id, content_schema, revision, envelope FROM kms_configs WHERE vendor = $1 UNION ALL \
         SELECT k.id, k.content_schema, k.revision, a.envelope FROM assignments a JOIN kms_configs k ON k.id = a.kms \
         JOIN tenants t ON t.number = a.tenant WHERE t.vendor = $1 AND a.envelope <> ''",
    )
    .bind(vendor)
    .fetch_all(&mut **tx)
    .await?;
    let logging = sqlx::query_as(
        "SELECT l.id, l.content_schema, l.revision, l.envelope FROM logging_configs l \
         JOIN tenants t ON t.number = l.tenant WHERE t.vendor = $1",
    )
    .bind(vendor)
    .fetch_all(&mut **tx)
    .await?;
    Ok(Sealed {
        version,
        accounts: accounts.into_iter().map(member).collect(),
        admins: admins.into_iter().map(member).collect(),
        kms: contents(kms),
        logging: contents(logging),
    })
}

fn member((id, key, certificate): (i64, String, String)) -> (i64, Member) {
    (id, Member { key, certificate })
}

fn contents(rows: Vec<(i64, i64, i64, String)>) -> Contents {
    let content = |(id, schema, revision, envelope)| {
        let schema = u16::try_from(schema).unwrap_or(u16::MAX);
        let content = SealedContent {
            schema,
            revision,
            envelope,
        };
        (id, content)
    };
    rows.into_iter().map(content).collect()
}

impl Change {
    /// Puts a new segment key, and everything sealed for it, in the place of the old.
    pub(crate) async fn rotate(&mut self, rotation: &Rotation) -> Result<()> {
        let there = sealed(&mut self.tx, self.vendor).await?;
        let new = &rotation.sealed;
        let same = |new: &Contents, there: &Contents| {
            let pairs = new.iter().zip(there);
            new.len() == there.len()
                && pairs.into_iter().all(|((new_id, new), (id, content))| {
                    (new_id, new.revision, new.schema) == (id, content.revision, content.schema)
                })
        };
        // The change itself counted the version up by one.
        if new.version + 1 != self.number
            || !new.accounts.keys().eq(there.accounts.keys())
            || !new.admins.keys().eq(there.admins.keys())
            || !same(&new.kms, &there.kms)
            || !same(&new.logging, &there.logging)
            || i64::from(rotation.segment.epoch) != self.epoch + 1
        {
            return Err(StoreError::Conflict(
                "something was changed meanwhile: begin the rotation anew",
            ));
        }
        sqlx::query(
            "UPDATE vendors SET epoch = $1, segment_public = $2, segment_signature = $3 WHERE id = $4",
        )
        .bind(i64::from(rotation.segment.epoch))
        .bind(&rotation.segment.public_key)
        .bind(&rotation.segment.signature)
        .bind(self.vendor)
        .execute(&mut *self.tx)
        .await?;
        let envelopes = |contents: &Contents| -> Vec<(i64, String)> {
            let pair = |(id, content): (&i64, &SealedContent)| (*id, content.envelope.clone());
            contents.iter().map(pair).collect()
        };
        let texts = |texts: &BTreeMap<i64, String>| -> Vec<(i64, String)> {
            texts.iter().map(|(id, text)| (*id, text.clone())).collect()
        };
        for (statement, values) in [
            (
                "UPDATE accounts SET sealed_key = $1 WHERE config = $2 AND vendor = $3",
                texts(&new.accounts),
            ),
            (
                "UPDATE admins SET sealed_keys = $1 WHERE id = $2 AND vendor = $3",
                texts(&new.admins),
            ),
            (
                "UPDATE kms_configs SET envelope = $1 WHERE id = $2 AND vendor = $3",
                envelopes(&new.kms),
            ),
            (
                // Those that tenants made, as they are sealed to this vendor.
                "UPDATE assignments SET envelope = $1 WHERE kms = $2 AND envelope <> '' \
                 AND tenant IN (SELECT number FROM tenants WHERE vendor = $3)",
                envelopes(&new.kms),
            ),
            (
                "UPDATE logging_configs SET envelope = $1 WHERE id = $2 \
                 AND tenant IN (SELECT number FROM tenants WHERE vendor = $3)",
                envelopes(&new.logging),
            ),
        ] {
            for (id, value) in values {
                sqlx::query(statement)
                    .bind(value)
                    .bind(id)
                    .bind(self.vendor)
                    .execute(&mut *self.tx)
                    .await?;
            }
        }
        Ok(())
    }
}
