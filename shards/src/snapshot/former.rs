//! What becomes of snapshots that are no longer in force.
//!
//! A shard that lets go of the last reference to a large table would free it there, entry by entry, while its requests
//! wait. So whoever makes snapshots keeps the former ones until no shard has them.

use std::sync::Arc;

use super::{Configs, Snapshot};
use crate::secrets::SecretTable;

/// Parts of former snapshots that a shard may still have.
#[derive(Debug, Default)]
pub struct FormerSnapshots {
    configs: Vec<Arc<Configs>>,
    secrets: Vec<Arc<SecretTable>>,
}

impl FormerSnapshots {
    /// Keeps what `successor` does not share with `former`.
    pub fn keep(&mut self, former: Snapshot, successor: &Snapshot) {
        if !Arc::ptr_eq(&former.configs, &successor.configs) {
            self.configs.push(former.configs);
        }
        if !Arc::ptr_eq(&former.secrets, &successor.secrets) {
            self.secrets.push(former.secrets);
        }
    }

    /// Frees, here and now, what no shard has any more. Tells how many parts are still kept.
    pub fn release(&mut self) -> usize {
        // Nobody makes a new reference to what only this has.
        self.configs.retain(|part| Arc::strong_count(part) > 1);
        self.secrets.retain(|part| Arc::strong_count(part) > 1);
        self.configs.len() + self.secrets.len()
    }
}

#[cfg(test)]
mod tests {
    use tsp_wire::{SnapshotVersion, snapshot::SnapshotDoc};

    use super::*;

    fn empty(version: u64) -> Snapshot {
        let doc = SnapshotDoc {
            version: SnapshotVersion(version),
            kms: vec![],
            unusable: vec![],
            tenants: vec![],
            secrets: vec![],
        };
        Snapshot::from_doc(doc, true).0
    }

    #[test]
    fn a_part_is_kept_as_long_as_somebody_has_it() {
        let mut former = FormerSnapshots::default();
        let first = empty(1);
        let on_a_shard = first.clone();
        let (second, _) = first.with_secrets(SnapshotVersion(2), &[]);
        former.keep(first, &second);
        assert_eq!(
            former.release(),
            1,
            "the secrets; the second has the configs"
        );
        drop(on_a_shard);
        assert_eq!(former.release(), 0);
        let third = empty(3);
        former.keep(second, &third);
        assert_eq!(former.release(), 0, "nobody else had it");
    }
}
