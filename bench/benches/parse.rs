//! Request bodies: from bytes to what they ask.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::io;

use tsp_bench::{BATCH_ITEMS, Case, TENANT, WRAP_BODY, batch_wrap_body, body_with, config_id};
use tsp_wire::{api::Parser, edek};

/// A case that copies the body first, since parsing works in place. The copy is a few nanoseconds.
fn case<'a>(
    name: &'static str,
    body: &'a [u8],
    mut parse: impl FnMut(&mut Parser, &mut [u8]) + 'a,
) -> Case<'a> {
    let mut parser = Parser::new();
    let mut scratch = body.to_vec();
    Case::new(name, move || {
        scratch.copy_from_slice(body);
        parse(&mut parser, &mut scratch);
    })
}

fn main() -> io::Result<()> {
    let edek = edek::encode_unleased(config_id(), &[0x4c; 64]);
    let edek = serde_json::to_string(&base64(&edek)).unwrap();
    let unwrap = body_with(&format!("\"encryptedDocumentKey\":{edek}"));
    let batch = batch_wrap_body();

    let mut body = WRAP_BODY.as_bytes().to_vec();
    let mut parser = Parser::new();
    assert_eq!(parser.wrap(&mut body).unwrap().metadata.tenant_id, TENANT);
    let mut body = unwrap.clone();
    let request = parser.unwrap(&mut body).unwrap();
    assert!(edek::parse(request.encrypted_document_key).is_ok());
    let mut body = batch.clone();
    assert_eq!(
        parser.batch_wrap(&mut body).unwrap().document_ids.len(),
        BATCH_ITEMS
    );

    tsp_bench::main(
        "parse",
        vec![
            case("wrap", WRAP_BODY.as_bytes(), |parser, body| {
                drop(parser.wrap(body).unwrap())
            }),
            case("unwrap", &unwrap, |parser, body| {
                drop(parser.unwrap(body).unwrap())
            }),
            case("batch-wrap-100", &batch, |parser, body| {
                drop(parser.batch_wrap(body).unwrap())
            }),
            // What a general parser takes, to owned strings.
            case("wrap by serde_json", WRAP_BODY.as_bytes(), |_, body| {
                drop(serde_json::from_slice::<serde_json::Value>(body).unwrap());
            })
            .without_budget(),
        ],
    )
}

/// The answer to a wrap has the EDEK's base64 in it, so that no other encoder is needed here.
fn base64(edek: &[u8]) -> String {
    let answer = tsp_wire::api::wrapped(Vec::new(), &tsp_bench::dek(), edek);
    let answer: serde_json::Value = serde_json::from_slice(answer.as_ref()).unwrap();
    answer
        .get("edek")
        .and_then(|edek| edek.as_str())
        .unwrap()
        .to_owned()
}
