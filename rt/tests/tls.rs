//! TLS over both real back ends: who is trusted, who is not, and that sessions resume.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tsp_rt::tls::{self, ClientTls, MaybeTls, PemError, ServerTls, SpkiPin, TlsStream};
use tsp_rt::{Listener, NetError, Rt, Stream, bind_reuseport};

const LOCALHOST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const LONG: Duration = Duration::from_secs(60);
const NAME: &str = "kms.example";

/// A certificate authority of our own, as PEM, and what signs with it.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn server(&self, name: &str) -> ServerTls {
        self.server_with_key(name, &KeyPair::generate().unwrap())
    }

    fn server_with_key(&self, name: &str, key: &KeyPair) -> ServerTls {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        ServerTls::from_pem(&certificate.pem(), &key.serialize_pem()).unwrap()
    }

    fn client(&self) -> ClientTls {
        ClientTls::with_roots_pem(&self.pem).unwrap()
    }
}

/// The pin as `openssl pkey -pubin -outform der | openssl dgst -sha256` makes it.
fn pin_of(key: &KeyPair) -> SpkiPin {
    SpkiPin(Sha256::digest(key.subject_public_key_info()).into())
}

/// Serves TLS at an address of its own: answers each message with itself.
fn serve<R: Rt>(rt: &R, tls: ServerTls) -> SocketAddr {
    let mut listener = rt
        .adopt(bind_reuseport(LOCALHOST, 1).unwrap().remove(0))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let rt = rt.clone();
    rt.clone().spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            rt.spawn(async move {
                let Ok(mut stream) = tls::accept(stream, &tls).await else {
                    return;
                };
                let mut bytes = [0; 16];
                while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                    stream.write_all(bytes.get(..count).unwrap()).await.unwrap();
                }
            });
        }
    });
    address
}

async fn connect<R: Rt>(
    rt: &R,
    address: SocketAddr,
    tls: &ClientTls,
    name: &str,
) -> Result<TlsStream<R::Stream>, NetError> {
    let stream = rt.connect(address, LONG).await.unwrap();
    tls::connect(stream, tls, name).await
}

async fn echo(stream: &mut impl Stream) {
    stream.write_all(b"ping").await.unwrap();
    let mut four = [0; 4];
    stream.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
}

on_both_backends! {
    async fn a_certificate_of_the_given_authority_is_accepted(rt) {
        let authority = Authority::new();
        let address = serve(&rt, authority.server(NAME));
        let mut stream = connect(&rt, address, &authority.client(), NAME).await.unwrap();
        assert!(!stream.is_resumed());
        echo(&mut stream).await;
        assert!(!stream.is_stale());
    }

    async fn an_address_may_be_the_name(rt) {
        let authority = Authority::new();
        let address = serve(&rt, authority.server("127.0.0.1"));
        let mut stream = connect(&rt, address, &authority.client(), "127.0.0.1").await.unwrap();
        echo(&mut stream).await;
    }

    async fn a_strangers_certificate_is_refused_for_good(rt) {
        let authority = Authority::new();
        let address = serve(&rt, Authority::new().server(NAME));
        for tls in [authority.client(), ClientTls::public()] {
            let error = connect(&rt, address, &tls, NAME).await.unwrap_err();
            assert!(matches!(error, NetError::Certificate(tsp_rt::CertificateFault::Issuer, _)), "{error:?}");
            assert!(!error.is_retryable());
            assert!(error.to_string().starts_with("certificate refused: "), "{error}");
        }
    }

    async fn a_certificate_for_another_name_is_refused(rt) {
        let authority = Authority::new();
        let address = serve(&rt, authority.server("other.example"));
        let error = connect(&rt, address, &authority.client(), NAME).await.unwrap_err();
        assert!(matches!(error, NetError::Certificate(tsp_rt::CertificateFault::Name, _)), "{error:?}");
        let error = connect(&rt, address, &authority.client(), "not a name").await.unwrap_err();
        assert!(matches!(error, NetError::Tls(_)), "{error:?}");
    }

    async fn a_pin_is_asked_for_besides_the_rest(rt) {
        let (authority, key) = (Authority::new(), KeyPair::generate().unwrap());
        let address = serve(&rt, authority.server_with_key(NAME, &key));
        let pin = pin_of(&key);
        let tls = authority.client().pinned(pin);
        echo(&mut connect(&rt, address, &tls, NAME).await.unwrap()).await;

        // The error says which key was met.
        let other = pin_of(&KeyPair::generate().unwrap());
        let tls = authority.client().pinned(other);
        let error = connect(&rt, address, &tls, NAME).await.unwrap_err();
        assert_eq!(error, NetError::Pin(pin));
        assert_eq!((error.kind(), error.is_retryable()), ("pin", false));
        assert!(error.to_string().contains(&pin.to_string()), "{error}");

        // A good pin makes up for nothing else: neither an unknown authority nor a wrong name.
        for (tls, name) in [
            (ClientTls::public(), NAME),
            (Authority::new().client(), NAME),
            (authority.client(), "other.example"),
        ] {
            let error = connect(&rt, address, &tls.pinned(pin), name).await.unwrap_err();
            assert!(matches!(error, NetError::Certificate(..)), "{error:?}");
        }
    }

    async fn a_session_from_before_the_pin_is_not_resumed(rt) {
        let authority = Authority::new();
        let address = serve(&rt, authority.server(NAME));
        let tls = authority.client();
        echo(&mut connect(&rt, address, &tls, NAME).await.unwrap()).await;
        let pinned = tls.clone().pinned(pin_of(&KeyPair::generate().unwrap()));
        let error = connect(&rt, address, &pinned, NAME).await.unwrap_err();
        assert!(matches!(error, NetError::Pin(_)), "{error:?}");
        let mut again = connect(&rt, address, &tls, NAME).await.unwrap();
        echo(&mut again).await;
        assert!(again.is_resumed());
    }

    async fn a_second_connection_resumes_the_session(rt) {
        let authority = Authority::new();
        let address = serve(&rt, authority.server(NAME));
        let tls = authority.client();
        let mut first = connect(&rt, address, &tls, NAME).await.unwrap();
        // TLS 1.3 sends the tickets after the handshake: they come with the first bytes read.
        echo(&mut first).await;
        assert!(!first.is_resumed());
        // Clones share the sessions.
        let mut second = connect(&rt, address, &tls.clone(), NAME).await.unwrap();
        echo(&mut second).await;
        assert!(second.is_resumed());
        let mut other = connect(&rt, address, &authority.client(), NAME).await.unwrap();
        echo(&mut other).await;
        assert!(!other.is_resumed());
    }

    async fn a_cut_during_the_handshake_is_a_reset_and_may_be_retried(rt) {
        let mut listener = rt.adopt(bind_reuseport(LOCALHOST, 1).unwrap().remove(0)).unwrap();
        let address = listener.local_addr().unwrap();
        rt.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 8]).await;
        });
        let error = connect(&rt, address, &ClientTls::public(), NAME).await.unwrap_err();
        assert_eq!(error, NetError::Reset);
        assert!(error.is_retryable());
    }

    async fn a_far_end_that_does_not_speak_tls_is_told(rt) {
        let mut listener = rt.adopt(bind_reuseport(LOCALHOST, 1).unwrap().remove(0)).unwrap();
        let address = listener.local_addr().unwrap();
        rt.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
        });
        let error = connect(&rt, address, &ClientTls::public(), NAME).await.unwrap_err();
        assert!(matches!(error, NetError::Tls(_)), "{error:?}");
    }

    async fn a_closed_connection_is_stale_through_tls(rt) {
        let authority = Authority::new();
        let server = authority.server(NAME);
        let mut listener = rt.adopt(bind_reuseport(LOCALHOST, 1).unwrap().remove(0)).unwrap();
        let address = listener.local_addr().unwrap();
        rt.spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tls::accept(stream, &server).await.unwrap();
            let mut four = [0; 4];
            stream.read_exact(&mut four).await.unwrap();
            stream.write_all(&four).await.unwrap();
            // A close notification, then FIN.
            stream.shutdown().await.unwrap();
        });
        let stream = connect(&rt, address, &authority.client(), NAME).await.unwrap();
        let mut stream = MaybeTls::from(stream);
        echo(&mut stream).await;
        while !stream.is_stale() {
            rt.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    async fn plain_streams_pass_through(rt) {
        let mut listener = rt.adopt(bind_reuseport(LOCALHOST, 1).unwrap().remove(0)).unwrap();
        let near = rt.connect(listener.local_addr().unwrap(), LONG).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let (mut near, mut far) = (MaybeTls::Plain(near), MaybeTls::Plain(far));
        near.write_all(b"clear").await.unwrap();
        near.shutdown().await.unwrap();
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "clear");
        assert!(far.is_stale());
    }
}

#[test]
fn pem_texts_that_are_of_no_use_are_refused_with_a_reason() {
    let refusal = |pem: &str| ClientTls::with_roots_pem(pem).unwrap_err();
    assert_eq!(refusal(""), PemError::NoCertificate);
    assert_eq!(refusal("no PEM at all"), PemError::NoCertificate);
    let cut = "-----BEGIN CERTIFICATE-----\nMIIB";
    assert_eq!(refusal(cut), PemError::Malformed);
    let wrong = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(refusal(wrong), PemError::Refused(_)));
    assert_eq!(refusal(&wrong.repeat(1001)), PemError::TooMany);

    let authority = Authority::new();
    let error = ServerTls::from_pem(&authority.pem, "").unwrap_err();
    assert_eq!(error, PemError::NoKey);
    let stranger = KeyPair::generate().unwrap().serialize_pem();
    let error = ServerTls::from_pem(&authority.pem, &stranger).unwrap_err();
    assert!(matches!(error, PemError::Refused(_)), "{error:?}");
}
