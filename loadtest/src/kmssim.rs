//! Four simulated KMSs that check every request: AWS KMS with STS, Google Cloud KMS with its token endpoint, Azure Key
//! Vault and Managed HSM with Entra, and Thales CipherTrust Manager.
//!
//! They wrap and unwrap with real cryptography, behind TLS with an authority of their own, on one port for all. Every
//! signature is computed again, every token is verified, and what is refused is kept with the reason. Latency, quotas, errors and half-broken
//! behaviour are set by a control API (`GET /` there tells how).
//!
//! # How it is built
//!
//! A `sim` takes a whole request and the time and gives a plan: a well-formed answer, or a script of bytes that no HTTP
//! library would send. It knows no socket and no clock, so that tests pass in requests that others signed at a time long
//! past. `serve` carries requests in and plans out, on one core. Each provider is a module that owns its part of the world.
//!
//! What the signature checks do not share: AWS's are `scratchstack-aws-signature`'s, those of assertions
//! `jsonwebtoken`'s. The proxy's own code takes no part.
//!

mod aws;
mod azure;
mod certificate;
mod control;
mod crypto;
mod exchange;
mod gcp;
mod journal;
mod knobs;
mod raw;
mod route;
mod serve;
mod sim;
#[cfg(test)]
mod testing;
mod thales;
mod token;
mod tsp_config;
mod world;

use std::{
    cell::RefCell,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::{Duration, SystemTime},
};

use tsp_rt::{Backend, CoreEnd, CoreMain, CoreThread, Rt, mailbox, tls};

pub use self::{
    aws::AwsErrorStyle,
    certificate::{Authority, CertificateKind},
    exchange::{Operation, Provider},
    tsp_config::TspConfig,
    world::{
        AwsAccessKeyDoc, AwsDoc, AwsKeyDoc, AwsKeyState, AwsRoleDoc, AzureAppDoc, AzureDoc,
        AzureKeyDoc, AzureKeyKind, AzureKeyState, AzureSecretDoc, AzureVaultDoc, AzureVaultState,
        AzureVersionDoc, Client, ClientKey, CredentialState, GcpDoc, GcpKeyDoc, GcpProjectDoc,
        GcpProjectState, GcpPublicKeyDoc, GcpServiceAccountDoc, GcpVersionState, Sample,
        SampleShape, ThalesDoc, ThalesKeyDoc, ThalesKeyState, ThalesUserDoc, ThalesVersionDoc,
        WorldDoc, WorldError,
    },
};
use self::{
    control::Control,
    serve::Service,
    sim::{Clock, Sim},
};

/// How to start a simulator.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to serve TLS; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where to serve without TLS, if at all.
    pub plain: Option<SocketAddr>,
    /// Where the control API is. Keep it on the loopback: it gives the credentials away.
    pub control: SocketAddr,
    /// What the KMSs know.
    pub world: WorldDoc,
    /// Keys and credentials that the control API tells under `/clients`.
    pub clients: Vec<Client>,
    /// Decides about faults, latencies and nonces.
    pub seed: u64,
    /// Who signs the certificate; `None` makes one.
    pub authority: Option<Authority>,
    /// What is wrong with the certificate, if anything.
    pub certificate: CertificateKind,
    /// Names for the certificate, besides those of the clouds and of this machine.
    pub names: Vec<String>,
    /// Lets the simulated clock stand still.
    pub frozen_at: Option<SystemTime>,
    /// What holds from the start, and again after a reset.
    pub rules: Vec<Rule>,
    /// The CPU that it stays on; `None` leaves the scheduler free.
    pub cpu: Option<usize>,
}

/// A rule, in the JSON that the control API takes for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// As for `POST /latency`.
    Latency(String),
    /// As for `POST /quota`.
    Quota(String),
    /// As for `POST /faults`.
    Fault(String),
}

impl Options {
    /// Free ports on the loopback, TLS and plain, for a sample world.
    #[must_use]
    pub fn on_loopback(sample: Sample) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: any,
            plain: Some(any),
            control: any,
            seed: sample.world.seed,
            world: sample.world,
            clients: sample.clients,
            authority: None,
            certificate: CertificateKind::Good,
            names: Vec::new(),
            frozen_at: None,
            rules: Vec::new(),
            cpu: None,
        }
    }
}

/// Why a simulator does not start.
#[derive(Debug)]
pub enum StartError {
    /// The world is none.
    World(WorldError),
    /// A rule is none; the text says why.
    Rule(String),
    /// The authority cannot sign.
    Certificate(String),
    /// A port, or the thread.
    Io(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::World(error) => write!(f, "the world cannot be used: {error}"),
            Self::Rule(why) => write!(f, "a rule cannot be used: {why}"),
            Self::Certificate(why) => write!(f, "no certificate: {why}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

impl From<WorldError> for StartError {
    fn from(error: WorldError) -> Self {
        Self::World(error)
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rcgen::Error> for StartError {
    fn from(error: rcgen::Error) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// A running simulator, on a thread of its own. Dropping it stops it.
#[derive(Debug)]
pub struct Kmssim {
    tls: SocketAddr,
    plain: Option<SocketAddr>,
    control: SocketAddr,
    authority: Authority,
    spki_pin: String,
    stop: Option<mailbox::Sender<()>>,
    thread: Option<CoreThread>,
}

impl Kmssim {
    /// Starts it; when this returns it serves.
    ///
    /// # Errors
    /// [`StartError`] tells whether world, certificate or ports are to blame.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let authority = match options.authority {
            Some(authority) => authority,
            None => Authority::generate()?,
        };
        let issued = authority.issue(&options.names, options.certificate)?;
        let server_tls = tls::ServerTls::from_pem(&issued.certificate_pem, &issued.key_pem)
            .map_err(|error| StartError::Certificate(error.to_string()))?;
        // Whether world and rules can be used must be known before the thread starts, which makes its own.
        drop(started(
            &options.world,
            options.seed,
            Clock::Skewed(0),
            &options.rules,
        )?);
        let tls_socket = bind_cutting(options.listen)?;
        let plain_socket = options.plain.map(bind_cutting).transpose()?;
        let control_socket = bind(options.control)?;
        let address = |socket: &std::net::TcpListener| socket.local_addr();
        let (tls, control) = (address(&tls_socket)?, address(&control_socket)?);
        let plain = plain_socket.as_ref().map(address).transpose()?;
        let (stop, stopped) = mailbox::bounded(1);
        let core = Core {
            world: options.world,
            clients: serde_json::json!(options.clients),
            seed: options.seed,
            clock: options.frozen_at.map_or(Clock::Skewed(0), Clock::Frozen),
            rules: options.rules,
            server_tls,
            tls_socket,
            plain_socket,
            control_socket,
            stopped,
        };
        let thread = tsp_rt::spawn_core(Backend::Epoll, "kmssim", options.cpu, core)?;
        Ok(Self {
            tls,
            plain,
            control,
            authority,
            spki_pin: issued.spki_pin,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// `https://localhost:PORT`, if it listens on the loopback or on all addresses.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", named(self.tls))
    }

    /// `http://localhost:PORT`, if there is a port without TLS.
    #[must_use]
    pub fn plain_url(&self) -> Option<String> {
        self.plain.map(|plain| format!("http://{}", named(plain)))
    }

    /// Where the control API is.
    #[must_use]
    pub fn control_url(&self) -> String {
        format!("http://{}", named(self.control))
    }

    /// Where TLS is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.tls
    }

    /// Where the control API is.
    #[must_use]
    pub fn control_address(&self) -> SocketAddr {
        self.control
    }

    /// What it has counted, as `GET /metrics` of the control API tells it. Blocks; never call it on a core.
    ///
    /// # Errors
    /// If the control API cannot be asked.
    pub fn metrics(&self) -> io::Result<serde_json::Value> {
        let answer = tsp_rt::run_here(async |rt| control::ask(rt, self.control, "/metrics").await);
        Ok(serde_json::from_slice(&answer??)?)
    }

    /// Who signed the certificate: what clients must trust.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The pin of its certificate's public key, which is new at each start: `sha256/` and the base64 of the hash of its
    /// `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn spki_pin(&self) -> &str {
        &self.spki_pin
    }

    /// Waits until it ends by itself, which it does only if it died; the text says of what.
    ///
    /// # Errors
    /// The text of the panic.
    pub fn join(mut self) -> Result<(), String> {
        match self.thread.take().map(CoreThread::join) {
            Some(CoreEnd::Died(why)) => Err(why),
            Some(CoreEnd::Ended) | None => Ok(()),
        }
    }
}

impl Drop for Kmssim {
    fn drop(&mut self) {
        // The core waits for this end to close.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn started(world: &WorldDoc, seed: u64, clock: Clock, rules: &[Rule]) -> Result<Sim, StartError> {
    let mut sim = Sim::new(world.clone(), seed, clock)?;
    for rule in rules {
        control::take(&mut sim, rule).map_err(StartError::Rule)?;
    }
    Ok(sim)
}

/// What clients call the address.
fn named(address: SocketAddr) -> String {
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let mut sockets = tsp_rt::bind_reuseport(address, 1)?;
    Ok(sockets.pop().ok_or(io::ErrorKind::AddrNotAvailable)?)
}

/// As [`bind`], so that dropping a connection cuts it; see `serve`.
fn bind_cutting(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = bind(address)?;
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// What the thread starts with.
struct Core {
    world: WorldDoc,
    clients: serde_json::Value,
    seed: u64,
    clock: Clock,
    rules: Vec<Rule>,
    server_tls: tls::ServerTls,
    tls_socket: std::net::TcpListener,
    plain_socket: Option<std::net::TcpListener>,
    control_socket: std::net::TcpListener,
    stopped: mailbox::Receiver<()>,
}

impl CoreMain for Core {
    async fn run<R: Rt>(self, rt: R) {
        #[expect(
            clippy::expect_used,
            reason = "the same world and rules were tried before, with success"
        )]
        let sim = started(&self.world, self.seed, self.clock, &self.rules)
            .expect("a world that was tried");
        drop(self.world);
        let service = Service::new(rt.clone(), Rc::new(RefCell::new(sim)));
        let control = Control::new(Rc::clone(&service), self.clients, self.rules);
        let adopted = (
            rt.adopt(self.tls_socket),
            rt.adopt(self.control_socket),
            self.plain_socket.map(|socket| rt.adopt(socket)).transpose(),
        );
        let (Ok(tls), Ok(control_listener), Ok(plain)) = adopted else {
            return;
        };
        rt.spawn(Rc::clone(&service).listen(tls, Some(self.server_tls)));
        if let Some(plain) = plain {
            rt.spawn(Rc::clone(&service).listen(plain, None));
        }
        rt.spawn(control.listen(control_listener));
        let mut stopped = self.stopped;
        // Nobody ever sends: it ends when the other side is dropped.
        stopped.recv().await;
    }
}
