//! EDEKs: protobuf and base64, both ways.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::io;

use tsp_bench::{Case, config_id};
use tsp_wire::edek;

/// An EDEK of a local KMS's blob, from the documentation of the API.
const LOCAL: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";

fn main() -> io::Result<()> {
    let parsed = edek::parse(LOCAL).unwrap();
    let entry = parsed.encrypted_deks.first().unwrap();
    assert_eq!(entry.kms_config_id, config_id().number());
    let blob = entry.encrypted_dek_data.as_slice();
    let encoded = edek::encode_unleased(config_id(), blob);
    assert_eq!(edek::EncryptedDeks::from_bytes(&encoded).unwrap(), parsed);

    tsp_bench::main(
        "edek",
        vec![
            Case::new("encode", || edek::encode_unleased(config_id(), blob)),
            Case::new("parse", || edek::parse(LOCAL).unwrap()),
        ],
    )
}
