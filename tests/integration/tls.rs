//! TLS on the API's port: who is let in, and new certificates under load.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Output,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType, date_time_ymd,
};
use rustix::process::Signal;
use scopeguard::defer;
use serde_json::Value;
use tempfile::TempDir;
use tsp_loadtest::{
    calls::Call,
    client::{Client, Target},
};
use tsp_rt::tls::ClientTls;

use crate::support::{
    child,
    config::two_local_tenants,
    http::{self, Connection},
    metadata,
    metrics::Metrics,
    on_both,
    proxy::{API_KEY, Io, Proxy, Setup, replace_file},
    text, until,
};

/// New certificates in a test; `TSP_TEST_ROTATIONS` in the environment is another number.
const ROTATIONS: u64 = 20;

/// A certificate authority in a folder of its own.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder can be made");
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new(Vec::new()).expect("there are no names");
        // Two of one name would be taken for one.
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("it can be signed");
        fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("it can be written");
        let issuer = Issuer::new(params, key);
        Self { folder, issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pem(&self) -> String {
        fs::read_to_string(self.path("ca.pem")).expect("it was written")
    }

    /// A certificate and a key, as PEM.
    fn sign(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("it can be signed");
        (certificate.pem(), key.serialize_pem())
    }

    /// Puts a new certificate and key for the proxy in place of the last ones.
    fn renew(&self) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("these are names");
        let (certificate, key) = self.sign(&params);
        replace_file(&self.path("key.pem"), &key);
        replace_file(&self.path("tsp.pem"), &certificate);
    }

    /// Writes a client's certificate and key, and gives curl's options that show them.
    fn client(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Vec<String> {
        let mut params = CertificateParams::new(Vec::new()).expect("there are no names");
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().expect("a name"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let (certificate, key) = self.sign(&params);
        let (certificate_file, key_file) = (self.path("client.pem"), self.path("client.key"));
        fs::write(&certificate_file, certificate).expect("it can be written");
        fs::write(&key_file, key).expect("it can be written");
        let shown = |path: &Path| path.to_str().expect("temporary paths are UTF-8").to_owned();
        let (certificate, key) = (shown(&certificate_file), shown(&key_file));
        vec!["--cert".to_owned(), certificate, "--key".to_owned(), key]
    }

    fn setup(&self, io: Io) -> Setup {
        self.renew();
        Setup::serve(io, &two_local_tenants())
            .env(
                "TSP_TLS_CERTIFICATE",
                self.path("tsp.pem").to_str().unwrap(),
            )
            .env("TSP_TLS_KEY", self.path("key.pem").to_str().unwrap())
    }

    fn target(&self, proxy: &Proxy) -> Target {
        let tls = ClientTls::with_roots_pem(&self.pem()).expect("a certificate");
        Target::new(proxy.http, "localhost", API_KEY)
            .expect("an address and a key are headers")
            .with_tls(tls, "localhost")
    }

    /// Wraps with curl.
    fn curl(&self, proxy: &Proxy, options: &[String]) -> Output {
        child::command("curl")
            .args(["--silent", "--show-error", "--fail", "--cacert"])
            .arg(self.path("ca.pem"))
            .args(options)
            .args([
                "-H",
                &format!("Authorization: cmk {API_KEY}"),
                "-d",
                &metadata("acme").to_string(),
            ])
            .arg(format!(
                "https://localhost:{}/api/1/document/wrap",
                proxy.http.port()
            ))
            .args([
                "--connect-to",
                &format!("localhost::127.0.0.1:{}", proxy.http.port()),
            ])
            .output()
            .expect("curl is installed")
    }
}

#[track_caller]
fn served(curl: &Output) {
    assert!(
        curl.status.success(),
        "{}",
        String::from_utf8_lossy(&curl.stderr)
    );
    let wrapped: Value = serde_json::from_slice(&curl.stdout).unwrap();
    text(&wrapped, "dek");
}

fn options(options: &[&str]) -> Vec<String> {
    options.iter().map(|option| (*option).to_owned()).collect()
}

fn handshakes(proxy: &Proxy, kind: &str) -> f64 {
    Metrics::read(proxy.health).count("tsp_tls_handshakes_total", &[("handshake", kind)])
}

/// Waits for a line that says `what` after line `from` of the log.
#[track_caller]
fn told(proxy: &Proxy, from: usize, what: &str) -> Value {
    let says = |line: &Value| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains(what))
    };
    proxy.log.wait_json(from, what, says).0
}

on_both! {
    fn the_api_speaks_tls_1_3_and_health_stays_in_the_clear(io) {
        let authority = Authority::new("tsp");
        let proxy = authority.setup(io).start();
        let line = proxy.log.wait_json(0, "line that tells the addresses", |line| line["http"].is_string()).0;
        assert_eq!(line["certificate"].as_str().map(str::len), Some(64), "{line}");
        served(&authority.curl(&proxy, &[]));
        assert!(!authority.curl(&proxy, &options(&["--tls-max", "1.2"])).status.success());
        assert!(!Authority::new("other").curl(&proxy, &[]).status.success(), "a stranger's authority");
        let mut plain = Connection::open(proxy.http);
        plain.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert!(plain.try_answer().is_err(), "no answer in the clear");
        assert_eq!(http::get(proxy.health, "/ready").status, 200);
        assert_eq!(handshakes(&proxy, "full"), 1.0);
        assert!(handshakes(&proxy, "failed") >= 2.0);
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.wait_for_end().code, Some(0));
    }

    fn clients_need_a_certificate_of_the_authority_with_a_listed_name(io) {
        let (authority, callers) = (Authority::new("tsp"), Authority::new("callers"));
        let proxy = authority
            .setup(io)
            .env("TSP_TLS_CLIENT_CA", callers.path("ca.pem").to_str().unwrap())
            .env("TSP_TLS_CLIENT_NAMES", "orders.example, spiffe://example/billing")
            .start();
        let asks = |who: &Authority, name: &str, change: fn(&mut CertificateParams)| {
            authority.curl(&proxy, &who.client(name, change))
        };
        served(&asks(&callers, "orders.example", |_| {}));
        served(&asks(&callers, "other.example", |params| {
            params.subject_alt_names.push(SanType::URI("spiffe://example/billing".try_into().unwrap()));
        }));
        let from = proxy.log.len();
        let refused = |curl: &Output| assert!(!curl.status.success(), "{}", String::from_utf8_lossy(&curl.stdout));
        refused(&asks(&callers, "other.example", |_| {}));
        let line = told(&proxy, from, "TLS handshake");
        assert!(line["why"].as_str().is_some_and(|why| why.contains("certificate")), "{line}");
        refused(&asks(&Authority::new("strangers"), "orders.example", |_| {}));
        refused(&asks(&callers, "orders.example", |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }));
        refused(&authority.curl(&proxy, &[]));
        assert_eq!((handshakes(&proxy, "full"), handshakes(&proxy, "failed")), (2.0, 4.0));
        served(&asks(&callers, "orders.example", |_| {}));
    }

    fn a_handshake_that_does_not_go_on_is_cut_off(io) {
        let authority = Authority::new("tsp");
        let proxy = authority.setup(io).start();
        let silent = TcpStream::connect(proxy.http).unwrap();
        let mut half = Connection::open(proxy.http);
        half.send(&[0x16, 3, 1, 2]).unwrap();
        served(&authority.curl(&proxy, &[]));
        assert!(half.is_ended_by_peer());
        drop(silent);
        let closed = Metrics::read(proxy.health).count("tsp_connections_closed_total", &[("limit", "handshake_timeout")]);
        assert!(closed >= 1.0, "{closed}");
    }

    fn new_certificates_fail_no_request_and_a_bad_one_is_not_taken(io) {
        let authority = Authority::new("tsp");
        let proxy = authority.setup(io).start();
        let target = authority.target(&proxy);
        let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        let rotations = std::env::var("TSP_TEST_ROTATIONS").map_or(ROTATIONS, |n| n.parse().unwrap());
        thread::scope(|scope| {
            for kept in [true, false] {
                let (target, over, asked) = (target.clone(), &over, &asked);
                scope.spawn(move || tsp_rt::run_here(async |rt| {
                    defer!(over.store(true, Ordering::Relaxed));
                    let call = Call::wrap("acme");
                    let mut client = Client::new(rt.clone(), target.clone());
                    while !over.load(Ordering::Relaxed) {
                        if !kept {
                            client = Client::new(rt.clone(), target.clone());
                        }
                        client.call(&call).await.expect("no request fails");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }).unwrap());
            }
            // Whatever fails here or there, nobody goes on for ever.
            defer!(over.store(true, Ordering::Relaxed));
            let mut from = proxy.log.len();
            for _ in 0..rotations {
                authority.renew();
                proxy.signal(Signal::HUP);
                // Whichever look comes first takes it, also one that nobody asked for.
                told(&proxy, from, "the client API has a new certificate");
                from = proxy.log.len();
            }
            // What is wrong is told once, and the last good one serves.
            let good = fs::read_to_string(authority.path("tsp.pem")).unwrap();
            replace_file(&authority.path("tsp.pem"), "no certificate at all");
            proxy.signal(Signal::HUP);
            let line = told(&proxy, from, "the last good certificate stays in force");
            assert!(line["message"].as_str().unwrap().contains("TSP_TLS_CERTIFICATE"), "{line}");
            let before = asked.load(Ordering::Relaxed);
            until("requests go on", || {
                assert!(!over.load(Ordering::Relaxed), "a request failed");
                asked.load(Ordering::Relaxed) >= before + 10
            });
            replace_file(&authority.path("tsp.pem"), &good);
        });
        let metrics = Metrics::read(proxy.health);
        assert!(metrics.count("tsp_tls_reloads_total", &[]) >= rotations as f64);
        assert!(metrics.count("tsp_tls_reload_failures_total", &[]) >= 1.0);
        assert!(handshakes(&proxy, "resumed") > 0.0, "tickets outlive certificates");
        assert!(asked.load(Ordering::Relaxed) > rotations);
        served(&authority.curl(&proxy, &[]));
    }
}

#[test]
fn files_that_cannot_be_used_end_the_start_with_all_that_is_wrong() {
    let authority = Authority::new("tsp");
    let missing = authority.path("nothing.pem");
    let ended = authority
        .setup(Io::Epoll)
        .env("TSP_TLS_KEY", missing.to_str().unwrap())
        .env("TSP_TLS_CLIENT_NAMES", "a.example")
        .run_to_end();
    assert_eq!(ended.code, Some(64));
    assert!(
        ended
            .output
            .contains("TSP_TLS_CLIENT_NAMES: is of no use without TSP_TLS_CLIENT_CA"),
        "{}",
        ended.output
    );
    let ended = authority
        .setup(Io::Epoll)
        .env("TSP_TLS_KEY", missing.to_str().unwrap())
        .run_to_end();
    assert_eq!(ended.code, Some(64));
    assert!(ended.output.contains("TSP_TLS_KEY: "), "{}", ended.output);
    let (_, stranger) = authority.sign(&CertificateParams::new(Vec::new()).unwrap());
    let setup = authority.setup(Io::Epoll);
    replace_file(&authority.path("key.pem"), &stranger);
    let ended = setup.argument("check").run_to_end();
    assert_eq!(ended.code, Some(64));
    assert!(
        ended.output.contains("TSP_TLS_CERTIFICATE, TSP_TLS_KEY: "),
        "{}",
        ended.output
    );
}
