//! The names of sealed keys that were asked for lately, so that not every use of one hashes it anew.

use super::{KeyId, Purpose};
use tsp_wire::TenantId;

/// Places for names. A shard whose tenants take turns with this many leased keys finds nearly all of them.
const PLACES: usize = 256;

/// Longest sealed key whose name is kept, in bytes; longer ones, which no KMS makes of a key of 32 bytes with common settings,
/// are hashed each time. With [`PLACES`] it bounds the memory of a shard to 256 KiB.
const SEALED_BYTES_MAX: usize = 768;

/// Remembers names by what they were made of, whole: a wrong one is never given.
#[derive(Debug)]
pub(super) struct Names {
    places: Vec<Option<Place>>,
}

#[derive(Debug)]
struct Place {
    purpose: Purpose,
    tenant: TenantId,
    sealed: Vec<u8>,
    id: KeyId,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { places: Vec::new() }
    }

    /// The name of `sealed`.
    pub(super) fn of(&mut self, purpose: Purpose, tenant: &TenantId, sealed: &[u8]) -> KeyId {
        if sealed.len() > SEALED_BYTES_MAX {
            return KeyId::opened(purpose, tenant, sealed);
        }
        if self.places.is_empty() {
            self.places.resize_with(PLACES, || None);
        }
        let Some(place) = self.places.get_mut(place_of(sealed)) else {
            return KeyId::opened(purpose, tenant, sealed);
        };
        if let Some(known) = place
            && known.sealed == sealed
            && known.purpose == purpose
            && known.tenant == *tenant
        {
            return known.id;
        }
        let id = KeyId::opened(purpose, tenant, sealed);
        match place {
            Some(known) => {
                known.sealed.clear();
                known.sealed.extend_from_slice(sealed);
                known.tenant = tenant.clone();
                known.purpose = purpose;
                known.id = id;
            }
            None => {
                *place = Some(Place {
                    purpose,
                    tenant: tenant.clone(),
                    sealed: sealed.to_vec(),
                    id,
                });
            }
        }
        id
    }
}

/// From the middle, which is ciphertext whatever KMS it is of. Who makes two keys meet in a place only has them hashed.
fn place_of(sealed: &[u8]) -> usize {
    let middle = sealed.get(sealed.len() / 2..).and_then(<[u8]>::first_chunk);
    let [a, b] = middle.copied().unwrap_or([0; 2]);
    usize::from(u16::from_be_bytes([a, b])) % PLACES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_that_of_the_key_whatever_was_asked_before(
            questions in prop::collection::vec((any::<bool>(), 0..3_u8, 0..6_u8, 0..900_usize), 1..100)
        ) {
            let mut names = Names::new();
            for (secret, tenant, byte, length) in questions {
                let purpose = if secret { Purpose::Secret } else { Purpose::Leased };
                let tenant = TenantId::new(&format!("tenant-{tenant}")).unwrap();
                // Few lengths and bytes, so that many meet in one place and some come again.
                let sealed = vec![byte; length / 100 * 100 + 7];
                let id = names.of(purpose, &tenant, &sealed);
                prop_assert_eq!(id, KeyId::opened(purpose, &tenant, &sealed));
                prop_assert!(names.places.len() <= PLACES);
            }
        }
    }
}
