//! The steps of a request that only a shard takes: API key, tables, leased keys, places, metrics.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::io;

use http::HeaderValue;
use tsp_bench::{Case, TENANT, config_id, dek, local_kms_key, snapshot_of};
use tsp_kms::LocalKms;
use tsp_shards::{
    ApiKeys,
    bench::{Lease, Metrics, Pools, Tables, allows},
};
use tsp_wire::{ApiKey, Dek, edek::EncryptedDeks};

/// Tenants in the tables.
const TENANTS: usize = 10_000;

fn main() -> io::Result<()> {
    let key = |text: &str| ApiKey::new(text.to_owned()).unwrap();
    let keys = ApiKeys::new(key("dGVzdC1hcGkta2V5"), Some(key("dGVzdC1hcGkta2V6")));
    let good = HeaderValue::from_static("cmk dGVzdC1hcGkta2V5");
    let bad = HeaderValue::from_static("cmk dGVzdC1hcGkta2V7");
    assert!(allows(&keys, Some(&good)) && !allows(&keys, Some(&bad)));

    let (leased_key, dek) = (Dek::fill_with(|bytes| bytes.fill(0x11)), dek());
    let wrapped = LocalKms::new(&local_kms_key()).wrap(TENANT, &leased_key, [1; 12]);
    let lease = Lease::new(&leased_key, config_id(), &wrapped);
    let edek = EncryptedDeks::from_bytes(&lease.wrap(&dek, &[2; 12]).unwrap()).unwrap();
    let entry = edek.encrypted_deks.first().unwrap();
    let unwrap = || lease.unwrap(&entry.leased_key_iv, &entry.encrypted_dek_data);
    assert_eq!(unwrap().unwrap().expose(), dek.expose());

    let tables = Tables::new(&snapshot_of(TENANTS));
    let last = format!("{TENANT}-{}", TENANTS - 1);
    assert_eq!(tables.primary(&last), Some(config_id()));
    assert_eq!(tables.primary("nobody"), None);

    let (pools, metrics) = (Pools::default(), Metrics::default());
    assert!(pools.admit() && pools.connection());

    tsp_bench::main(
        "shard parts",
        vec![
            Case::new("API key", || allows(&keys, Some(&good))),
            Case::new("primary config of one tenant in 10,000", || {
                tables.primary(&last)
            }),
            Case::new("leased wrap", || lease.wrap(&dek, &[2; 12])),
            Case::new("leased unwrap", unwrap),
            Case::new("a request's place", || pools.admit()),
            Case::new("a KMS connection's place", || pools.connection()),
            Case::new("metrics of a wrap", || metrics.count_a_wrap()),
        ],
    )
}
