//! The four remote KMSs as `kmssim` plays them: it checks every signature and token, misbehaves when it is told to, and
//! counts. In this process, on a thread of its own, and behind TLS.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use serde_json::Value;
use tempfile::TempDir;
use tsp_loadtest::kmssim::{Authority, Kmssim, Options, TspConfig};
pub(crate) use tsp_loadtest::kmssim::{Client, ClientKey, Provider, Sample, SampleShape};

use super::{
    config::{As, local_kms, tenant},
    http::{self, Request},
    proxy::{Io, Proxy, Setup},
};

/// The tenant beside those of the sample; its key is in the configuration file.
pub(crate) const LOCAL_TENANT: &str = "tenant-local";

/// Number of its KMS config, beyond those of the sample.
const LOCAL_KMS: u32 = 900;

/// A running simulator with a sample world of its own. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Simulator {
    running: Kmssim,
    /// What the tenants know, from `tenant-1` on.
    pub(crate) clients: Vec<Client>,
    /// Holds the certificate of the authority that proxies are to trust.
    folder: TempDir,
}

impl Simulator {
    /// One tenant per provider.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::with(&SampleShape::default())
    }

    #[track_caller]
    pub(crate) fn with(shape: &SampleShape) -> Self {
        Self::of(Ipv4Addr::LOCALHOST, Sample::new(shape))
    }

    /// The same on another address of the loopback, which is none of the names in the certificate.
    #[track_caller]
    pub(crate) fn listening_on(address: Ipv4Addr, shape: &SampleShape) -> Self {
        Self::of(address, Sample::new(shape))
    }

    /// A world that was made, or changed, by the test.
    #[track_caller]
    pub(crate) fn of(address: Ipv4Addr, sample: Sample) -> Self {
        let clients = sample.clients.clone();
        let options = Options {
            listen: SocketAddr::from((address, 0)),
            ..Options::on_loopback(sample)
        };
        let running = Kmssim::start(options)
            .unwrap_or_else(|why| panic!("the simulator does not start: {why}"));
        let folder = TempDir::new().expect("a temporary folder can be made");
        let simulator = Self {
            running,
            clients,
            folder,
        };
        let pem = &simulator.running.authority().certificate_pem;
        std::fs::write(simulator.ca_file(), pem).expect("a file can be written");
        simulator
    }

    /// Where its control API is.
    pub(crate) fn control_url(&self) -> String {
        self.running.control_url()
    }

    /// Its endpoints' URL.
    pub(crate) fn url(&self) -> String {
        self.running.url()
    }

    /// The same without TLS.
    pub(crate) fn plain_url(&self) -> String {
        let url = self.running.plain_url();
        url.expect("it listens without TLS too")
    }

    /// Where it serves TLS.
    pub(crate) fn address(&self) -> SocketAddr {
        self.running.address()
    }

    /// The pin of its certificate's key.
    pub(crate) fn spki_pin(&self) -> &str {
        self.running.spki_pin()
    }

    /// Who signed its certificate.
    pub(crate) fn authority(&self) -> &Authority {
        self.running.authority()
    }

    /// The file of the authority that signed its certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The first tenant whose key is at `provider`, with all it knows.
    #[track_caller]
    pub(crate) fn client(&self, provider: Provider) -> &Client {
        let mut clients = self.clients.iter();
        let found = clients.find(|client| client.key.provider() == provider);
        found.expect("the sample has such a tenant")
    }

    /// Its name.
    #[track_caller]
    pub(crate) fn tenant(&self, provider: Provider) -> &str {
        &self.client(provider).tenant
    }

    /// The tenants' configuration file: those of the sample, and [`LOCAL_TENANT`].
    pub(crate) fn config(&self) -> String {
        self.config_of(&self.clients)
    }

    /// A proxy that is to serve these tenants, and may lease keys from their KMSs.
    pub(crate) fn leasing(&self, io: Io) -> Setup {
        Setup::serve(io, &self.config_with(&self.clients, true))
    }

    /// The same for clients that were changed, such as to a wrong secret.
    pub(crate) fn config_of(&self, clients: &[Client]) -> String {
        self.config_with(clients, false)
    }

    fn config_with(&self, clients: &[Client], leasing_allowed: bool) -> String {
        let ca_file = self.ca_file();
        let config = TspConfig {
            url: &self.running.url(),
            ca_file: Some(&ca_file),
            leasing_allowed,
        };
        let mut text = config.text(clients);
        text.push_str(&local_kms(LOCAL_KMS, 0x99));
        text.push_str(&tenant(LOCAL_TENANT, &[(LOCAL_KMS, As::Primary)]));
        text
    }

    /// A proxy that is to serve these tenants.
    pub(crate) fn setup(&self, io: Io) -> Setup {
        Setup::serve(io, &self.config())
    }

    /// The same, serving.
    #[track_caller]
    pub(crate) fn proxy(&self, io: Io) -> Proxy {
        self.setup(io).start()
    }

    /// An order to the control API, whose `GET /` tells what there is. `Value::Null` is no body.
    #[track_caller]
    pub(crate) fn order(&self, method: &'static str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::new(method, path).body(body);
        let answer = http::ask(self.running.control_address(), &request);
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
        answer.json()
    }

    /// What it counted since the start, or since the last `POST /reset`.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Value {
        self.order("GET", "/metrics", &Value::Null)
    }

    /// Requests for `operation` at `provider`, such as `wrap` or `token`.
    #[track_caller]
    pub(crate) fn requests(&self, provider: Provider, operation: &str) -> u64 {
        let counts = &self.metrics()["providers"][provider.as_str()][operation];
        counts["requests"].as_u64().unwrap_or_default()
    }

    /// Fails if there was a request that a correct client would not have sent.
    #[track_caller]
    pub(crate) fn assert_refused_none(&self) {
        let refused = self.order("GET", "/requests/refused", &Value::Null);
        assert_eq!(refused, Value::Array(Vec::new()));
        let metrics = self.metrics();
        assert_eq!(metrics["strays"], 0, "{metrics}");
    }
}
