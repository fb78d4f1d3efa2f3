//! Assertions that are signed with RSA keys of 2048 bits: Google's tokens and Entra's client assertions. A shard prepares
//! them; the signing goes to a thread of its own.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench ends at its first surprise"
)]

use std::io;

use tsp_bench::{Case, azure_kms, gcp_kms, now};
use tsp_kms::{RemoteKms, Session, Signed, TokenStep};

type Sign = Box<dyn FnOnce() -> Result<Signed, tsp_kms::KmsError> + Send>;

fn prepare(kms: &dyn RemoteKms) -> Sign {
    match kms.token_step(None, None, &mut Session::default(), now()) {
        Ok(TokenStep::Sign(sign)) => sign,
        other => panic!("nothing to sign: {other:?}"),
    }
}

fn main() -> io::Result<()> {
    let (gcp, azure) = (gcp_kms(), azure_kms());
    assert!(matches!(prepare(&*gcp)(), Ok(Signed::Token(_))));
    assert!(matches!(prepare(&*azure)(), Ok(Signed::Call(_))));
    tsp_bench::main(
        "assertion",
        vec![
            Case::new("gcp, on the shard", || prepare(&*gcp)),
            Case::new("gcp, with its RS256 signature", || {
                prepare(&*gcp)().unwrap()
            })
            .without_budget(),
            Case::new("azure, on the shard", || prepare(&*azure)),
            Case::new("azure, with its PS256 signature", || {
                prepare(&*azure)().unwrap()
            })
            .without_budget(),
        ],
    )
}
