//! Derived keys: from a secret in memory to bytes of the answer.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::io;

use serde_json::Value;
use tsp_bench::{BATCH_ITEMS, Case, dek};
use tsp_wire::{
    TenantSecretId,
    api::{DeriveAnswer, Derived, DerivedPath},
    derive::{DerivationType, Deriver},
};

fn main() -> io::Result<()> {
    let (secret, sha512) = (dek(), DerivationType::Sha512);
    let deriver = Deriver::new(&secret, "acme", sha512);
    let names: Vec<_> = (0..BATCH_ITEMS)
        .map(|item| format!("customers.{item:04}"))
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let secrets = [Derived {
        secret: TenantSecretId::new(9001).unwrap(),
        current: true,
    }];
    let answer = || {
        let path = DerivedPath {
            secret_path: "customers",
            derivation_paths: &names,
            secrets: &secrets,
        };
        let mut answer = DeriveAnswer::new(true, sha512, std::iter::once(path));
        answer.begin_path("customers");
        for name in &names {
            answer.push_pair(name, &secrets, |_| Some(deriver.derive(name)));
        }
        answer.finish()
    };

    let json: Value = serde_json::from_slice(answer().as_ref()).unwrap();
    let pairs = json.pointer("/derivedKeys/customers").unwrap();
    assert_eq!(pairs.as_object().unwrap().len(), BATCH_ITEMS);

    tsp_bench::main(
        "derive",
        vec![
            Case::new("deriver", || Deriver::new(&secret, "acme", sha512)),
            Case::new("key", || deriver.derive("customers.ssn")),
            Case::new("answer-100", answer),
        ],
    )
}
