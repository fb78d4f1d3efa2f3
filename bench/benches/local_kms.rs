//! The local KMS, alone and with everything that a wrap or unwrap does besides I/O.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::io;

use serde_json::Value;
use tsp_bench::{Case, TENANT, WRAP_BODY, body_with, config_id, dek, local_kms};
use tsp_rt::Rt as _;
use tsp_wire::{
    Dek,
    api::{self, Parser},
    edek,
};

fn main() -> io::Result<()> {
    tsp_rt::run_here(async |rt| {
        let (kms, dek) = (local_kms(), dek());
        let blob = kms.wrap(TENANT, &dek, [9; 12]);
        assert_eq!(kms.unwrap(TENANT, &blob).unwrap().expose(), dek.expose());
        assert!(kms.unwrap("tenant-b", &blob).is_err());

        // Body in, answer out.
        let mut parser = Parser::new();
        let mut scratch = WRAP_BODY.as_bytes().to_vec();
        let kms = &kms;
        let random = rt.clone();
        let mut wrap = move || {
            scratch.copy_from_slice(WRAP_BODY.as_bytes());
            let request = parser.wrap(&mut scratch).unwrap();
            let dek = Dek::fill_with(|bytes| random.random(bytes));
            let mut nonce = [0; 12];
            random.random(&mut nonce);
            let blob = kms.wrap(request.metadata.tenant_id, &dek, nonce);
            api::wrapped(Vec::new(), &dek, &edek::encode_unleased(config_id(), &blob))
        };
        let answer: Value = serde_json::from_slice(wrap().as_ref()).unwrap();
        let member = |name| answer.get(name).and_then(Value::as_str).unwrap().to_owned();

        let body = body_with(&format!("\"encryptedDocumentKey\":\"{}\"", member("edek")));
        let mut parser = Parser::new();
        let mut scratch = body.clone();
        let mut unwrap = move || {
            scratch.copy_from_slice(&body);
            let request = parser.unwrap(&mut scratch).unwrap();
            let edek = edek::parse(request.encrypted_document_key).unwrap();
            let entry = edek.encrypted_deks.first().unwrap();
            api::unwrapped(
                Vec::new(),
                &kms.unwrap(request.metadata.tenant_id, &entry.encrypted_dek_data)
                    .unwrap(),
            )
        };
        let answer: Value = serde_json::from_slice(unwrap().as_ref()).unwrap();
        assert_eq!(
            answer.get("dek").and_then(Value::as_str),
            Some(member("dek").as_str())
        );

        tsp_bench::main(
            "local",
            vec![
                Case::new("wrap", || kms.wrap(TENANT, &dek, [9; 12])),
                Case::new("unwrap", || kms.unwrap(TENANT, &blob).unwrap()),
                Case::new("whole wrap without I/O", wrap),
                Case::new("whole unwrap without I/O", unwrap),
            ],
        )
    })?
}
