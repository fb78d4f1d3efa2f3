//! The server's strict TLS over both real back ends: versions, key exchange, resumption, certificates of clients.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore,
    SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tsp_rt::tls::{ClientCertificates, Hello, PemError, ServerTls, Tickets};
use tsp_rt::{Listener, Rt, bind_reuseport, timeout};

const LOCALHOST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const NAME: &str = "tsp.example";

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair {
            certificate,
            key: key.serialize_pem(),
        }
    }

    fn server(&self) -> Pair {
        self.sign(&CertificateParams::new(vec![NAME.to_owned()]).unwrap())
    }

    /// A client that calls itself by `names`, DNS names or URIs.
    fn client(&self, names: &[&str]) -> Pair {
        self.sign(&client_params(names))
    }
}

fn client_params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let san = |name: &&str| {
        let text = (*name).try_into().unwrap();
        if name.contains("://") {
            SanType::URI(text)
        } else {
            SanType::DnsName(text)
        }
    };
    params.subject_alt_names = names.iter().map(san).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Pair {
    fn tls(&self, clients: Option<&ClientCertificates>, tickets: &Tickets) -> ServerTls {
        ServerTls::strict(&self.certificate, self.key.as_bytes(), clients, tickets).unwrap()
    }
}

/// A client that trusts `authority` and shows `pair`, if it has one.
fn client(
    authority: &Authority,
    pair: Option<&Pair>,
    version: &'static SupportedProtocolVersion,
    group: Option<&'static dyn rustls::crypto::SupportedKxGroup>,
) -> Arc<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(group) = group {
        provider.kx_groups = vec![group];
    }
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

fn plain_client(authority: &Authority) -> Arc<ClientConfig> {
    client(authority, None, &rustls::version::TLS13, None)
}

/// Answers each message with itself, on each connection whose handshake succeeds.
fn serve<R: Rt>(rt: &R, tls: ServerTls) -> SocketAddr {
    let listener = bind_reuseport(LOCALHOST, 1).unwrap().remove(0);
    let mut listener = rt.adopt(listener).unwrap();
    let address = listener.local_addr().unwrap();
    let rt = rt.clone();
    rt.clone().spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            rt.spawn(async move {
                let Ok(hello) = Hello::read(stream).await else {
                    return;
                };
                let Ok(mut stream) = hello.accept(&tls).await else {
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

/// Connects and has a message come back.
async fn echo<R: Rt>(
    rt: &R,
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<R::Stream>> {
    let stream = rt.connect(address, support::HANG).await.unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let mut stream = TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await?;
    stream.write_all(b"ping").await?;
    let mut four = [0; 4];
    // By TLS 1.3 a client learns that it was refused when it reads.
    timeout(rt, support::HANG, stream.read_exact(&mut four))
        .await
        .unwrap()?;
    assert_eq!(&four, b"ping");
    Ok(stream)
}

on_both_backends! {
    async fn tls_1_3_alone_is_served_with_the_hybrid_key_exchange(rt) {
        let authority = Authority::new();
        let address = serve(&rt, authority.server().tls(None, &Tickets::new().unwrap()));
        let hybrid = client(&authority, None, &rustls::version::TLS13, Some(kx_group::X25519MLKEM768));
        let stream = echo(&rt, address, &hybrid).await.unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        // Who does not know it is served, too.
        let ordinary = client(&authority, None, &rustls::version::TLS13, Some(kx_group::X25519));
        echo(&rt, address, &ordinary).await.unwrap();
        let old = client(&authority, None, &rustls::version::TLS12, None);
        echo(&rt, address, &old).await.unwrap_err();
    }

    async fn a_session_resumes_also_under_the_next_certificate(rt) {
        let authority = Authority::new();
        let tickets = Tickets::new().unwrap();
        let first = serve(&rt, authority.server().tls(None, &tickets));
        let second = serve(&rt, authority.server().tls(None, &tickets));
        let other = serve(&rt, authority.server().tls(None, &Tickets::new().unwrap()));
        let config = plain_client(&authority);
        let kind = |stream: &TlsStream<R::Stream>| stream.get_ref().1.handshake_kind();
        let full = echo(&rt, first, &config).await.unwrap();
        assert_eq!(kind(&full), Some(HandshakeKind::Full));
        let resumed = echo(&rt, second, &config).await.unwrap();
        assert_eq!(kind(&resumed), Some(HandshakeKind::Resumed));
        let stranger = echo(&rt, other, &config).await.unwrap();
        assert_eq!(kind(&stranger), Some(HandshakeKind::Full));
    }

    async fn of_the_clients_those_with_an_allowed_name_of_the_right_authority_come_in(rt) {
        let (authority, callers, strangers) = (Authority::new(), Authority::new(), Authority::new());
        let clients = |names: &[&str]| ClientCertificates {
            roots_pem: callers.pem.clone(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let listed = clients(&["orders.example", "spiffe://example/ns/shop/sa/orders"]);
        let address = serve(&rt, authority.server().tls(Some(&listed), &Tickets::new().unwrap()));
        let show = |pair: &Pair| client(&authority, Some(pair), &rustls::version::TLS13, None);
        for names in [&["orders.example"][..], &["other.example", "spiffe://example/ns/shop/sa/orders"]] {
            let config = show(&callers.client(names));
            for _ in 0..2 {
                let stream = echo(&rt, address, &config).await.unwrap();
                assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full), "asked each time");
            }
        }
        for names in [&["other.example"][..], &["*.example"], &["spiffe://example/ns/shop/sa/other"]] {
            echo(&rt, address, &show(&callers.client(names))).await.unwrap_err();
        }
        echo(&rt, address, &show(&strangers.client(&["orders.example"]))).await.unwrap_err();
        let mut expired = client_params(&["orders.example"]);
        (expired.not_before, expired.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        echo(&rt, address, &show(&callers.sign(&expired))).await.unwrap_err();
        // A server's certificate is no client's.
        let mut server = client_params(&["orders.example"]);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        echo(&rt, address, &show(&callers.sign(&server))).await.unwrap_err();
        echo(&rt, address, &plain_client(&authority)).await.unwrap_err();

        // Without names, whomever the authority has signed.
        let any = serve(&rt, authority.server().tls(Some(&clients(&[])), &Tickets::new().unwrap()));
        echo(&rt, any, &show(&callers.client(&["other.example"]))).await.unwrap();
        echo(&rt, any, &plain_client(&authority)).await.unwrap_err();
    }
}

#[test]
fn what_cannot_be_served_is_refused_with_a_reason() {
    let authority = Authority::new();
    let (pair, other) = (authority.server(), authority.server());
    let tickets = Tickets::new().unwrap();
    let strict = |chain: &str, key: &str, clients: Option<&ClientCertificates>| {
        ServerTls::strict(chain, key.as_bytes(), clients, &tickets).unwrap_err()
    };
    assert_eq!(strict("", &pair.key, None), PemError::NoCertificate);
    assert_eq!(strict(&pair.certificate, "", None), PemError::NoKey);
    assert_eq!(
        strict(&pair.certificate, &pair.certificate, None),
        PemError::NoKey
    );
    let cut = pair.key.get(..80).unwrap();
    assert_eq!(strict(&pair.certificate, cut, None), PemError::Malformed);
    let garbled = pair.key.replacen('M', "*", 1);
    assert_eq!(
        strict(&pair.certificate, &garbled, None),
        PemError::Malformed
    );
    let mismatch = strict(&pair.certificate, &other.key, None);
    assert!(matches!(mismatch, PemError::Refused(_)), "{mismatch:?}");
    let nobody = ClientCertificates::default();
    assert_eq!(
        strict(&pair.certificate, &pair.key, Some(&nobody)),
        PemError::NoCertificate
    );
    let windows = pair.key.replace('\n', "\r\n");
    ServerTls::strict(&pair.certificate, windows.as_bytes(), None, &tickets).unwrap();
}
