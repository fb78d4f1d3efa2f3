//! The kill switch: drops all that is held in memory for a tenant, on every shard.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::oneshot;
use tsp_rt::mailbox;
use tsp_wire::TenantId;

use crate::shard::{Command, Forget, ShardControl};

/// Drops a tenant's keys on all shards of a process.
#[derive(Debug)]
pub struct Forgetter {
    shards: Box<[mailbox::Sender<Command>]>,
    /// Counts the calls, so that what was being asked before one of them is void after it.
    generation: AtomicU64,
}

/// A shard did not confirm that it has dropped the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotForgotten;

impl fmt::Display for NotForgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shard did not confirm that it has dropped the keys; try again")
    }
}

impl std::error::Error for NotForgotten {}

impl Forgetter {
    /// For the shards that `controls` belong to: all of a process.
    #[must_use]
    pub fn of(controls: &[ShardControl]) -> Self {
        Self {
            shards: controls.iter().map(ShardControl::commander).collect(),
            generation: AtomicU64::new(0),
        }
    }

    /// Drops leased keys, opened keys, secrets and tokens that are held for `tenant`, and wipes them. When this ends, every
    /// shard has done it, and nothing that was fetched before can be used any more; the next operation asks the KMS.
    /// Gives the number of shards. A tenant that is not known has no keys, which is no error.
    ///
    /// # Errors
    /// [`NotForgotten`]; the other shards have done it then. It is safe to try again.
    pub async fn forget(&self, tenant: &TenantId) -> Result<usize, NotForgotten> {
        let generation = self.generation.fetch_add(1, Relaxed) + 1;
        let mut all = Vec::with_capacity(self.shards.len());
        for shard in &self.shards {
            let (done, forgotten) = oneshot::channel();
            let tenant = tenant.clone();
            // Without room for it the sender is dropped, and the wait below fails.
            drop(shard.send(Command::Forget(Forget {
                tenant,
                generation,
                done,
            })));
            all.push(forgotten);
        }
        let mut result = Ok(self.shards.len());
        for forgotten in all {
            if forgotten.await.is_err() {
                result = Err(NotForgotten);
            }
        }
        result
    }
}
