//! All faults of the table at once: a tenant and a KMS config for each, simulators, broken endpoints, one configuration file.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "most questions about how a fault is made are about one kind of it"
)]

use std::{net::Ipv4Addr, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tsp_loadtest::kmssim::TspConfig;

use super::{
    broken::{Site, host_aliases},
    table::{Fault, Made, Proof, Tried, faults},
};
use crate::support::{
    config::{As, tenant},
    kmssim::{Client, ClientKey, Provider, Sample, SampleShape, Simulator},
    proxy::{Io, Setup},
};

/// A fault with its tenant.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) provider: Provider,
    pub(super) fault: Fault,
    /// Its place in its provider's table.
    place: usize,
    /// Number of its KMS config.
    pub(super) kms: usize,
    pub(super) tenant: String,
    /// What the simulator knows the tenant by.
    key: ClientKey,
    /// Which simulator.
    simulator: usize,
}

impl Row {
    fn parts(&self) -> Vec<Made> {
        match self.fault.made {
            Made::Both(parts) => parts.to_vec(),
            made => vec![made],
        }
    }

    pub(super) fn is_damaged(&self) -> bool {
        matches!(self.fault.made, Made::Damaged)
    }
}

/// Tenants whose KMSs can be one simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    proof: Proof,
    ahead_s: i64,
}

impl Kind {
    fn of(fault: &Fault) -> Self {
        Self {
            proof: fault.proof,
            ahead_s: match fault.made {
                Made::Ahead(seconds) => seconds,
                _ => 0,
            },
        }
    }

    fn shape(self, providers: Vec<Provider>) -> SampleShape {
        let other = self.proof == Proof::Other;
        SampleShape {
            tenants: providers.len(),
            providers,
            aws_roles: other,
            gcp_token_endpoint: other,
            azure_certificates: other,
            ..SampleShape::default()
        }
    }
}

/// Everything that the proxy of this table meets.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) rows: Vec<Row>,
    simulators: Vec<Simulator>,
    sites: Vec<Site>,
    /// The configuration file in which what is to be unwrapped later can be wrapped.
    pub(super) before: String,
    /// The one with all faults.
    pub(super) after: String,
    /// The same, one for each provider.
    pub(super) parts: Vec<String>,
    folder: TempDir,
}

impl Scene {
    /// Starts what is needed. Faults that owners make later are not made yet.
    pub(super) fn new() -> Self {
        let all = Provider::ALL.into_iter().flat_map(|provider| {
            let faults = faults(provider).into_iter().enumerate();
            faults.map(move |(place, fault)| (provider, place, fault))
        });
        let all: Vec<_> = all.collect();
        let mut kinds: Vec<Kind> = Vec::new();
        for (.., fault) in &all {
            let kind = Kind::of(fault);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let mut scene = Self {
            rows: Vec::new(),
            simulators: Vec::new(),
            sites: Vec::new(),
            before: String::new(),
            after: String::new(),
            parts: Vec::new(),
            folder: TempDir::new().expect("a temporary folder can be made"),
        };
        for kind in kinds {
            let of_kind: Vec<_> = all
                .iter()
                .filter(|(.., fault)| Kind::of(fault) == kind)
                .copied()
                .collect();
            scene.add(kind, &of_kind);
        }
        // As on the page.
        scene.rows.sort_by_key(|row| {
            let provider = Provider::ALL
                .iter()
                .position(|known| *known == row.provider);
            (provider, row.place)
        });
        scene.write_files();
        std::fs::write(scene.host_aliases(), host_aliases()).expect("a file can be written");
        scene
    }

    /// Where `HOSTALIASES` is to point.
    fn host_aliases(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    /// A process that is to serve or examine one of the configuration files.
    pub(super) fn setup(&self, io: Io, config: &str) -> Setup {
        let path = self.host_aliases();
        let path = path.to_str().expect("temporary paths are UTF-8");
        Setup::serve(io, config).env("HOSTALIASES", path)
    }

    fn add(&mut self, kind: Kind, faults: &[(Provider, usize, Fault)]) {
        let providers = faults.iter().map(|(provider, ..)| *provider).collect();
        let mut sample = Sample::new(&kind.shape(providers));
        let clients = sample.clients.clone();
        for ((provider, place, fault), client) in faults.iter().zip(clients) {
            let kms = self.rows.len() + 1;
            let row = Row {
                provider: *provider,
                fault: *fault,
                place: *place,
                kms,
                tenant: format!("fault-{kms}"),
                key: client.key,
                simulator: self.simulators.len(),
            };
            for part in row.parts() {
                if let Made::World(change) = part {
                    change(&mut sample.world, &row.key);
                }
            }
            self.rows.push(row);
        }
        let simulator = Simulator::of(Ipv4Addr::LOCALHOST, sample);
        if kind.ahead_s != 0 {
            simulator.order("POST", "/clock", &json!({ "skew_s": kind.ahead_s }));
        }
        self.simulators.push(simulator);
    }

    fn write_files(&mut self) {
        let (mut before, mut after) = (File::default(), File::default());
        for row in &self.rows {
            let simulator = &self.simulators[row.simulator];
            let good = entry(row, simulator);
            let mut faulty = good.clone();
            for part in row.parts() {
                match part {
                    Made::Config(members) => {
                        for (path, value) in members {
                            set(&mut faulty, path, value);
                        }
                    }
                    Made::Endpoint(what) => {
                        let site = Site::new(what, simulator.authority(), row.kms);
                        set(&mut faulty, "endpoint", &site.url);
                        if row.provider == Provider::Thales {
                            set(&mut faulty, "key_path.serviceUrl", &site.url);
                        }
                        self.sites.push(site);
                    }
                    Made::TokenEndpoint(what) => {
                        let site = Site::new(what, simulator.authority(), row.kms);
                        let url = &site.url;
                        match row.provider {
                            Provider::Aws => set(&mut faulty, "stsEndpoint", url),
                            Provider::Gcp => {
                                set(&mut faulty, "tokenEndpoint", &format!("{url}/token"));
                            }
                            Provider::Azure => set(&mut faulty, "authority", url),
                            Provider::Thales => panic!("its log-in has no endpoint of its own"),
                        }
                        self.sites.push(site);
                    }
                    _ => {}
                }
            }
            let first = if row.fault.tried == Tried::Unwrap {
                good
            } else {
                faulty.clone()
            };
            before.add(row, first);
            after.add(row, faulty);
        }
        self.before = before.text();
        self.parts = Provider::ALL
            .iter()
            .map(|provider| after.part(*provider).text())
            .collect();
        self.after = after.text();
    }

    /// Makes the faults that owners and providers make, and has the simulators misbehave.
    pub(super) fn strike(&self) {
        for row in &self.rows {
            for part in row.parts() {
                self.strike_one(row, part);
            }
        }
    }

    /// Fails if a simulator was told to misbehave and never came to it: then nothing was tested there.
    pub(super) fn assert_struck(&self) {
        for simulator in &self.simulators {
            let faults = simulator.order("GET", "/faults", &Value::Null);
            for fault in faults.as_array().expect("it is a list") {
                assert_ne!(fault["hits"], 0, "{fault}");
            }
        }
    }

    fn strike_one(&self, row: &Row, part: Made) {
        let provider = row.provider.as_str();
        let simulator = &self.simulators[row.simulator];
        let fault = |operation: &str, mut rule: Value| {
            let name = if operation == "token" {
                credential(&row.key)
            } else {
                key(&row.key)
            };
            rule["target"] = json!({ "provider": provider, "operation": operation, "key": name });
            if row.fault.tried == Tried::Once {
                rule["count"] = json!(1);
            }
            simulator.order("POST", "/faults", &rule);
        };
        match part {
            Made::Key(action) => {
                let order = json!({ "provider": provider, "key": key(&row.key), "action": action });
                simulator.order("POST", "/keys", &order);
            }
            Made::KeyFor(action, operation) => {
                let order = json!({ "provider": provider, "key": key(&row.key), "action": action, "operation": operation });
                simulator.order("POST", "/keys", &order);
            }
            Made::Credential(action) => {
                let order = json!({ "provider": provider, "credential": credential(&row.key), "action": action });
                simulator.order("POST", "/credentials", &order);
            }
            Made::Account(action) => {
                let order =
                    json!({ "provider": provider, "account": account(&row.key), "action": action });
                simulator.order("POST", "/accounts", &order);
            }
            Made::Says(operation, code, message) => {
                fault(
                    operation,
                    json!({ "kind": "code", "code": code, "message": message }),
                );
            }
            Made::SaysOk(operation, code, message) => {
                fault(
                    operation,
                    json!({ "kind": "ok_error", "code": code, "message": message }),
                );
            }
            Made::Answers(operation, status, media_type, body) => {
                let rule = json!({ "kind": "status", "status": status, "media_type": media_type, "body": body });
                fault(operation, rule);
            }
            Made::Changes(operation, members) => {
                let patch: Value = serde_json::from_str(members).expect("the table holds JSON");
                fault(operation, json!({ "kind": "patch", "patch": patch }));
            }
            Made::Throttles(operation, wait_s) => {
                fault(
                    operation,
                    json!({ "kind": "throttle", "retry_after_s": wait_s }),
                );
            }
            Made::Does(operation, kind) => fault(operation, json!({ "kind": kind })),
            Made::Config(_)
            | Made::World(_)
            | Made::Endpoint(_)
            | Made::TokenEndpoint(_)
            | Made::Ahead(_)
            | Made::Damaged => {}
            Made::Both(_) => panic!("the parts of two are none"),
        }
    }
}

/// What the simulator knows the key by.
fn key(key: &ClientKey) -> &str {
    match key {
        ClientKey::Aws { key_id, .. } | ClientKey::Thales { key_id, .. } => key_id,
        ClientKey::Gcp { crypto_key_id, .. } => crypto_key_id,
        ClientKey::Azure { key_name, .. } => key_name,
    }
}

/// What it knows the credential by: the one of this tenant alone.
fn credential(key: &ClientKey) -> &str {
    match key {
        ClientKey::Aws {
            access_key_id,
            role_arn,
            ..
        } => role_arn.as_ref().unwrap_or(access_key_id),
        ClientKey::Gcp { client_email, .. } => client_email,
        ClientKey::Azure { client_id, .. } => client_id,
        ClientKey::Thales { username, .. } => username,
    }
}

/// What it knows the account, project or vault by.
fn account(key: &ClientKey) -> &str {
    match key {
        ClientKey::Aws { key_id, .. } => key_id.split(':').nth(4).expect("it is an ARN"),
        ClientKey::Gcp { project_id, .. } => project_id,
        ClientKey::Azure { vault_base_url, .. } => vault_base_url.trim_start_matches("https://"),
        ClientKey::Thales { .. } => "",
    }
}

/// A row's good entry in the configuration file.
fn entry(row: &Row, simulator: &Simulator) -> toml::Table {
    let ca_file = simulator.ca_file();
    let config = TspConfig {
        url: &format!("https://localhost:{}", simulator.address().port()),
        ca_file: Some(&ca_file),
        leasing_allowed: false,
    };
    let client = Client {
        tenant: row.tenant.clone(),
        kms: row.kms,
        key: row.key.clone(),
    };
    let file: toml::Table = config.text(&[client]).parse().expect("it is TOML");
    let entry = file["kms"][0].as_table();
    entry.expect("it has an entry").clone()
}

/// Sets a member by its path, such as `credentials.password`.
fn set(entry: &mut toml::Table, path: &str, value: &str) {
    let (table, name) = match path.split_once('.') {
        Some((table, name)) => {
            let table = entry[table].as_table_mut();
            (table.expect("it is a table"), name)
        }
        None => (entry, path),
    };
    let value = match value.parse() {
        Ok(number) => toml::Value::Integer(number),
        Err(_) => value.into(),
    };
    table.insert(name.to_owned(), value);
}

/// A configuration file in the making.
#[derive(Debug, Default)]
struct File {
    rows: Vec<(Provider, toml::Table, String)>,
}

impl File {
    fn add(&mut self, row: &Row, entry: toml::Table) {
        let kms = u32::try_from(row.kms).expect("there are not so many");
        let tenant = tenant(&row.tenant, &[(kms, As::Primary)]);
        self.rows.push((row.provider, entry, tenant));
    }

    fn part(&self, provider: Provider) -> Self {
        let rows = self.rows.iter().filter(|(known, ..)| *known == provider);
        Self {
            rows: rows.cloned().collect(),
        }
    }

    fn text(&self) -> String {
        let kms: Vec<_> = self
            .rows
            .iter()
            .map(|(_, entry, _)| entry.clone())
            .collect();
        let mut file = toml::Table::new();
        file.insert("version".to_owned(), 1.into());
        file.insert("kms".to_owned(), kms.into());
        let mut text = toml::to_string(&file).expect("it can be written");
        for (_, _, tenant) in &self.rows {
            text.push_str(tenant);
        }
        text
    }
}
