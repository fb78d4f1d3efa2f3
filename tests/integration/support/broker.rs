//! Configuration brokers as `tsp-broker serve` runs them, admins at its command line, and whoever stands between a broker
//! and a proxy.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;
use tempfile::TempDir;
use tsp_loadtest::kmssim::Client;
use tsp_wire::account::env::ServiceAccount;

use super::{
    child,
    http::{self, Answer, Request},
    kmssim::Simulator,
    log::Log,
    proxy::{Io, Setup},
};

const PASSPHRASE: &str = "CANARY-passphrase";
const SETUP_TOKEN: &str = "CANARY-setup-token";

/// A vendor with a broker of its own.
#[derive(Debug)]
pub(crate) struct Vendor {
    folder: TempDir,
    broker: Option<(Child, Log)>,
    address: SocketAddr,
}

impl Vendor {
    /// One that has just been made.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let mut vendor = Self {
            folder: TempDir::new().expect("a temporary folder can be made"),
            broker: None,
            address: ([127, 0, 0, 1], 0).into(),
        };
        vendor.start_broker();
        let url = vendor.url();
        let name = ["--name", "Vendor", "--email", "ada@vendor.example"];
        vendor.admin(&[&["init", "--broker", &url], &name[..]].concat());
        vendor
    }

    /// Starts the broker, at the address that it had before.
    #[track_caller]
    pub(crate) fn start_broker(&mut self) {
        assert!(self.broker.is_none(), "it runs");
        let mut command = child::command(child::beside_tsp("tsp-broker"));
        command
            .args(["serve", "--listen", &self.address.to_string()])
            .env_clear()
            .env(
                "BROKER_DATABASE_URL",
                format!("sqlite://{}", self.database().display()),
            )
            .env("BROKER_SETUP_TOKEN", SETUP_TOKEN)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = child::spawn(command);
        let log = Log::default();
        log.follow(child.stderr.take().expect("stderr is a pipe"));
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        out.read_line(&mut line).expect("the pipe can be read");
        let address = line.trim().rsplit("//").next().map(str::parse);
        self.address = match address {
            Some(Ok(address)) => address,
            _ => panic!("no address in {line:?}:\n{}", log.tail()),
        };
        self.broker = Some((child, log));
    }

    /// Kills the broker as a loss of power would.
    pub(crate) fn kill_broker(&mut self) {
        if let Some((mut child, log)) = self.broker.take() {
            let _ = child.kill();
            let _ = child.wait();
            log.wait_for_end();
        }
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("broker.db")
    }

    /// All files that the database may have.
    pub(crate) fn files(&self) -> [PathBuf; 3] {
        ["", "-wal", "-shm"].map(|suffix| {
            let mut path = self.database().into_os_string();
            path.push(suffix);
            path.into()
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What an admin's command prints; it must succeed.
    #[track_caller]
    pub(crate) fn admin(&self, arguments: &[&str]) -> String {
        let output = child::command(child::beside_tsp("tsp-broker"))
            .args(arguments)
            .env_clear()
            .env("BROKER_PROFILE", self.folder.path().join("admin.json"))
            .env("BROKER_PASSPHRASE", PASSPHRASE)
            .env("BROKER_SETUP_TOKEN", SETUP_TOKEN)
            .stdin(Stdio::null())
            .output()
            .expect("setpriv is installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("it prints text")
    }

    /// A tenant with the KMS config that `content` describes as its primary. Gives the config's number.
    #[track_caller]
    pub(crate) fn tenant(&self, tenant: &str, content: &Value, options: &[&str]) -> String {
        self.admin(&["tenant", "create", tenant]);
        self.kms(tenant, content, options)
    }

    /// A KMS config, the primary one of a tenant that is there.
    #[track_caller]
    pub(crate) fn kms(&self, tenant: &str, content: &Value, options: &[&str]) -> String {
        let file = self.folder.path().join("kms.json");
        fs::write(&file, content.to_string()).expect("a file can be written");
        let file = file.to_str().expect("temporary paths are UTF-8");
        let id = self.admin(&[&["kms", "create", "--file", file], options].concat());
        let id = id.trim().to_owned();
        self.admin(&["kms", "assign", &id, tenant, "--primary"]);
        id
    }

    /// Gives a tenant a log system.
    #[track_caller]
    pub(crate) fn logging(&self, tenant: &str, content: &Value) {
        let file = self.folder.path().join("logging.json");
        fs::write(&file, content.to_string()).expect("a file can be written");
        let file = file.to_str().expect("temporary paths are UTF-8");
        self.admin(&["logging", "set", tenant, "--file", file]);
    }

    /// All tenants of a simulator, with their keys there.
    #[track_caller]
    pub(crate) fn tenants_of(&self, simulator: &Simulator) {
        for client in &simulator.clients {
            self.tenant(&client.tenant, &content_of(simulator, client), &[]);
        }
    }

    /// The file of variables of a new service account.
    #[track_caller]
    pub(crate) fn account(&self) -> Account {
        let file = self.admin(&["service-account", "create", "--name", "cluster"]);
        let lines = file.lines().filter_map(|line| line.split_once('='));
        let variables = lines.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Account(variables.collect())
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some((_, log)) = &self.broker
        {
            eprintln!("last lines of the broker:\n{}", log.tail());
        }
        self.kill_broker();
    }
}

/// A service account's variables.
#[derive(Clone, Debug)]
pub(crate) struct Account(pub(crate) HashMap<String, String>);

impl Account {
    /// The same at another address: of somebody who stands in between.
    pub(crate) fn by_way_of(&self, url: &str) -> Self {
        let mut account = self.clone();
        account.0.insert("CONFIG_BROKER_URL".into(), url.to_owned());
        account
    }

    /// What a program makes of it.
    #[track_caller]
    pub(crate) fn read(&self) -> ServiceAccount {
        ServiceAccount::from_variables(|name| self.0.get(name).cloned())
            .unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    /// A proxy of it, with the tests' API key. Its tenants may have KMSs on this machine.
    pub(crate) fn setup(&self, io: Io) -> Setup {
        let setup = Setup::without_config(io).env("TSP_KMS_ALLOW_ADDRESSES", "loopback");
        let mut variables = self.0.iter();
        variables
            .try_fold(setup, |setup, (name, value)| match name.as_str() {
                "API_KEY" => Some(setup),
                name => Some(setup.env(name, value)),
            })
            .expect("it never stops")
    }
}

/// A KMS config's content for a client of a simulator, as an admin writes it.
#[track_caller]
pub(crate) fn content_of(simulator: &Simulator, client: &Client) -> Value {
    let file = simulator.config_of(std::slice::from_ref(client));
    let mut file: toml::Table = toml::from_str(&file).expect("the simulator writes TOML");
    let mut kms = file["kms"].as_array_mut().expect("a list").swap_remove(0);
    let entry = kms.as_table_mut().expect("a table");
    entry.remove("id");
    entry.remove("leasing_allowed");
    entry.remove("ca_file");
    let mut content = serde_json::to_value(entry).expect("plain values");
    content["ca_pem"] = simulator.authority().certificate_pem.as_str().into();
    content
}

/// A LOCAL key's content.
pub(crate) fn local_content(byte: u8) -> Value {
    serde_json::json!({ "type": "LOCAL", "credentials": { "key": super::to_base64(&[byte; 32]) } })
}

/// A request that came to a [`Relay`].
#[derive(Clone, Debug)]
pub(crate) struct Relayed {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Relayed {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The same request to whoever it is meant for, with what was `changed` in its head.
    #[track_caller]
    pub(crate) fn forward(&self, to: SocketAddr, changed: &[(&str, &str)]) -> Answer {
        let method = if self.method == "GET" { "GET" } else { "POST" };
        let mut request = Request::new(method, &self.path).body(self.body.clone());
        for (name, value) in &self.headers {
            let name = name.to_ascii_lowercase();
            if [
                "authorization",
                "accept-encoding",
                "content-type",
                "if-none-match",
            ]
            .contains(&name.as_str())
            {
                request = request.header(&name, value);
            }
        }
        for (name, value) in changed {
            request = request.without(name);
            if !value.is_empty() {
                request = request.header(name, value);
            }
        }
        http::ask(to, &request)
    }
}

/// Bytes of an answer with a body.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Status\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if status != 304 {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// The same bytes again, for who passes an answer on.
pub(crate) fn passed_on(from: &Answer) -> Vec<u8> {
    let headers: Vec<_> = from
        .headers
        .iter()
        .filter(|(name, _)| {
            !["content-length", "connection", "transfer-encoding"].contains(&name.as_str())
        })
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    answer(from.status, &headers, &from.body)
}

/// What a [`Relay`] does with a request: the bytes that it sends back, of which `None` is that it says nothing at all and
/// keeps the connection.
pub(crate) type Manner = Box<dyn FnMut(&Relayed) -> Option<Vec<u8>> + Send>;

/// Somebody between proxy and broker, one connection per request. Lives as long as the test process.
#[derive(Clone)]
pub(crate) struct Relay {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
}

impl Relay {
    #[track_caller]
    pub(crate) fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let relay = Self {
            address,
            manner: Arc::new(Mutex::new(manner)),
        };
        let manner = Arc::clone(&relay.manner);
        thread::spawn(move || {
            let mut silent = Vec::new();
            for mut stream in listener.incoming().map_while(Result::ok) {
                let Some(request) = read_request(&stream) else {
                    continue;
                };
                let answer = (*manner.lock().unwrap())(&request);
                match answer {
                    // If the proxy is gone, it has its reasons.
                    Some(bytes) => drop(stream.write_all(&bytes)),
                    None => silent.push(stream),
                }
            }
        });
        relay
    }

    /// From now on.
    pub(crate) fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn read_request(stream: &TcpStream) -> Option<Relayed> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut request = Relayed {
        method,
        path,
        headers,
        body: Vec::new(),
    };
    let length = request.header("content-length").unwrap_or("0");
    request.body = vec![0; length.parse().ok()?];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

/// The broker's own manner.
pub(crate) fn honest(vendor: &Vendor) -> Manner {
    let address = vendor.address;
    Box::new(move |request| Some(passed_on(&request.forward(address, &[]))))
}

/// The broker's, but what its snapshots say is changed first.
pub(crate) fn changing(
    vendor: &Vendor,
    mut change: impl FnMut(&mut Value) + Send + 'static,
) -> Manner {
    let address = vendor.address;
    Box::new(move |request| {
        let plain = [("accept-encoding", ""), ("if-none-match", "")];
        let mut answer = request.forward(address, &plain);
        if answer.status == 200 {
            let mut snapshot = answer.json();
            change(&mut snapshot);
            answer.body = snapshot.to_string().into_bytes();
        }
        Some(passed_on(&answer))
    })
}

impl Vendor {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
