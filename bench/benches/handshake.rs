//! What a TLS handshake with a KMS costs the proxy: in full, by the kind of the KMS's certificate, and resumed.
//!
//! Client and server talk over the simulator's network, in memory. Only the client's polls are timed: from the first byte
//! of the handshake to the first byte of an answer, since a server's tickets come with that.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, SignatureAlgorithm,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tsp_bench::Case;
use tsp_rt::{
    Listener as _, Rt as _,
    sim::{Sim, SimRt},
    tls::{self, ClientTls, ServerTls},
};

const NAME: &str = "kms.example";

/// Handshakes in one run of the simulator, which bounds the steps of a run.
const HANDSHAKES_MAX: u64 = 1_000;

/// An authority, one below it, and a certificate: as long a chain as the clouds' KMSs show.
struct Chain {
    root_pem: String,
    server: ServerTls,
}

impl Chain {
    fn new(kind: &'static SignatureAlgorithm) -> Self {
        let key = || KeyPair::generate_for(kind).unwrap();
        let authority = || {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let (root_key, middle_key, leaf_key) = (key(), key(), key());
        let root = authority().self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(authority(), root_key);
        let middle = authority().signed_by(&middle_key, &root_issuer).unwrap();
        let middle_issuer = Issuer::new(authority(), middle_key);
        let leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &middle_issuer).unwrap();
        let chain = format!("{}{}", leaf.pem(), middle.pem());
        Self {
            root_pem: root.pem(),
            server: ServerTls::from_pem(&chain, &leaf_key.serialize_pem()).unwrap(),
        }
    }

    fn client(&self) -> ClientTls {
        ClientTls::with_roots_pem(&self.root_pem).unwrap()
    }
}

/// Time that the polls of `future` take.
async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let (mut future, mut took) = (pin!(future), Duration::ZERO);
    std::future::poll_fn(move |cx| {
        #[expect(
            clippy::disallowed_methods,
            reason = "the simulator's time is not real"
        )]
        let now = Instant::now;
        let began = now();
        let polled = future.as_mut().poll(cx);
        took += now() - began;
        match polled {
            Poll::Ready(value) => Poll::Ready((value, took)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Shakes hands `count` times, each time as the client that `client` gives, and tells what that took.
fn shake(chain: &Chain, count: u64, resumes: bool, client: impl Fn() -> ClientTls) -> Duration {
    let (mut took, mut left) = (Duration::ZERO, count);
    while left > 0 {
        let now = left.min(HANDSHAKES_MAX);
        left -= now;
        let run = Sim::new(1).whole_transfers();
        took += run.run(async |rt| shake_in(&rt, chain, now, resumes, &client).await);
    }
    took
}

async fn shake_in(
    rt: &SimRt,
    chain: &Chain,
    count: u64,
    resumes: bool,
    client: &impl Fn() -> ClientTls,
) -> Duration {
    let address = SocketAddr::from(([10, 0, 0, 2], 443));
    let mut listener = rt.bind(address).unwrap();
    let (server, accepting) = (Rc::new(chain.server.clone()), rt.clone());
    rt.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = Rc::clone(&server);
            accepting.spawn(async move {
                let mut stream = tls::accept(stream, &server).await.unwrap();
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() {
                    stream.write_all(&byte).await.unwrap();
                }
            });
        }
    });
    let mut took = Duration::ZERO;
    // The first one is for the session: a server forgets old ones when it has met many clients.
    let first = u64::from(resumes);
    for number in 0..count + first {
        let (tls, stream) = (
            client(),
            rt.connect(address, Duration::from_secs(9)).await.unwrap(),
        );
        let (resumed, time) = timed(async {
            let mut stream = tls::connect(stream, &tls, NAME).await.unwrap();
            let mut byte = [7];
            stream.write_all(&byte).await.unwrap();
            stream.read_exact(&mut byte).await.unwrap();
            stream.is_resumed()
        })
        .await;
        if number >= first {
            assert_eq!(resumed, resumes);
            took += time;
        }
    }
    took
}

fn main() -> io::Result<()> {
    let [ecdsa, rsa] = [&PKCS_ECDSA_P256_SHA256, &PKCS_RSA_SHA256].map(Chain::new);
    let [of_ecdsa, of_rsa] = [&ecdsa, &rsa].map(Chain::client);
    tsp_bench::main(
        "handshake",
        vec![
            Case::timed("full, chain of ECDSA P-256", |count| {
                shake(&ecdsa, count, false, || ecdsa.client())
            }),
            Case::timed("resumed, chain of ECDSA P-256", |count| {
                shake(&ecdsa, count, true, || of_ecdsa.clone())
            }),
            Case::timed("full, chain of RSA 2048", |count| {
                shake(&rsa, count, false, || rsa.client())
            }),
            Case::timed("resumed, chain of RSA 2048", |count| {
                shake(&rsa, count, true, || of_rsa.clone())
            }),
        ],
    )
}
