//! Brokers, admins, proxies and databases for the tests.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tsp_wire::{
    account::{
        SECRETS_PATH, SNAPSHOT_PATH, SecretOffer, SecretOutcome, SecretsAnswer, SecretsRequest,
        SnapshotAnswer, env::ServiceAccount, token,
    },
    derive::SecretType,
    edek,
};

/// How long a process may take to do what it takes moments to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const PASSPHRASE: &str = "CANARY-passphrase";
const SETUP_TOKEN: &str = "CANARY-setup-token";

/// Where a broker keeps what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// Runs a test on both stores.
pub(crate) fn on_both(test: fn(World)) {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        // Shown only if the test fails.
        eprintln!("on {kind:?}");
        test(World::new(kind));
    }
}

/// A command that dies with this thread.
pub(crate) fn mortal(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// One vendor's broker, admin and database.
pub(crate) struct World {
    pub(crate) kind: Kind,
    pub(crate) folder: TempDir,
    pub(crate) database_url: String,
    pub(crate) broker: Broker,
    port: u16,
}

impl World {
    /// A vendor that has just been made.
    pub(crate) fn new(kind: Kind) -> Self {
        Self::with(kind, &[])
    }

    /// The same with more variables for the broker.
    pub(crate) fn with(kind: Kind, variables: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database_url = match kind {
            Kind::Sqlite => format!("sqlite://{}/broker.db", folder.path().display()),
            Kind::Postgres => postgres().database(),
        };
        let broker = Broker::start_with(folder.path(), &database_url, 0, variables);
        let world = Self {
            kind,
            folder,
            database_url,
            port: broker.port,
            broker,
        };
        let broker = world.broker.url();
        world.admin(&[
            "init",
            "--broker",
            &broker,
            "--name",
            "Vendor",
            "--email",
            "ada@vendor.example",
        ]);
        world
    }

    /// Kills the broker as a loss of power would, and starts it anew at the same address.
    pub(crate) fn kill_and_restart(&mut self) {
        self.broker.kill();
        self.broker = Broker::start(self.folder.path(), &self.database_url, self.port);
    }

    /// Ends the broker for good.
    pub(crate) fn stop(&mut self) {
        self.broker.kill();
    }

    /// Another broker on the same database.
    pub(crate) fn replica(&self) -> Broker {
        Broker::start(self.folder.path(), &self.database_url, 0)
    }

    /// Runs a command of an admin's with a profile of their own.
    pub(crate) fn run_as(&self, who: &str, arguments: &[&str]) -> Output {
        mortal(env!("CARGO_BIN_EXE_tsp-broker"))
            .args(arguments)
            .env_clear()
            .env(
                "BROKER_PROFILE",
                self.folder.path().join(format!("{who}.json")),
            )
            .env("BROKER_PASSPHRASE", PASSPHRASE)
            .env("BROKER_SETUP_TOKEN", SETUP_TOKEN)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("setpriv is installed")
    }

    /// What an admin's command prints; it must succeed.
    pub(crate) fn admin(&self, arguments: &[&str]) -> String {
        self.admin_as("admin", arguments)
    }

    /// The same of another admin.
    pub(crate) fn admin_as(&self, who: &str, arguments: &[&str]) -> String {
        let output = self.run_as(who, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command says that is refused.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        self.refused_as("admin", arguments)
    }

    /// The same of another admin.
    pub(crate) fn refused_as(&self, who: &str, arguments: &[&str]) -> String {
        let output = self.run_as(who, arguments);
        assert!(!output.status.success(), "{arguments:?} was not refused");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// A KMS config of type LOCAL, assigned to the tenant as its primary. Gives its number.
    pub(crate) fn local_kms(&self, tenant: &str) -> String {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let file = self.file(
            "local.json",
            &format!(r#"{{"type":"LOCAL","credentials":{{"key":"{key}"}}}}"#),
        );
        let id = self.admin(&["kms", "create", "--file", &file]);
        let id = id.trim().to_owned();
        self.admin(&["kms", "assign", &id, tenant, "--primary"]);
        id
    }

    /// A new service account.
    pub(crate) fn account(&self, arguments: &[&str]) -> ServiceAccount {
        let mut all = vec!["service-account", "create", "--name", "cluster"];
        all.extend(arguments);
        account_of(&self.admin(&all))
    }
}

/// The account in a file of variables.
pub(crate) fn account_of(file: &str) -> ServiceAccount {
    ServiceAccount::from_variables(|name| {
        let lines = file.lines().filter_map(|line| line.split_once('='));
        lines
            .filter(|(found, _)| *found == name)
            .map(|(_, value)| value.to_owned())
            .next()
    })
    .unwrap()
}

/// A broker's process.
pub(crate) struct Broker {
    child: Child,
    pub(crate) port: u16,
    pub(crate) log: PathBuf,
}

impl Broker {
    fn start(folder: &Path, database_url: &str, port: u16) -> Self {
        Self::start_with(folder, database_url, port, &[])
    }

    fn start_with(
        folder: &Path,
        database_url: &str,
        port: u16,
        variables: &[(&str, String)],
    ) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = folder.join(format!("broker-{number}.log"));
        let mut child = mortal(env!("CARGO_BIN_EXE_tsp-broker"))
            .args(["serve", "--listen", &format!("127.0.0.1:{port}")])
            .env_clear()
            .env("BROKER_DATABASE_URL", database_url)
            .env("BROKER_SETUP_TOKEN", SETUP_TOKEN)
            .env("RUST_LOG", "debug,sqlx=info")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .expect("setpriv is installed");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().parse();
        let port = port.unwrap_or_else(|_| panic!("{}", fs::read_to_string(&log).unwrap()));
        Self { child, port, log }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it without waiting for its end.
    pub(crate) fn kill_now(&self) {
        self.signal(rustix::process::Signal::KILL);
    }

    /// Stops it: it neither answers nor ends.
    pub(crate) fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// One request on a connection of its own. `None` if the broker went away before it answered.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Option<Answer> {
        send(self.port, method, path, headers, body)
    }

    /// A request of a service account's, with a good token.
    pub(crate) fn ask(
        &self,
        account: &ServiceAccount,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Option<Answer> {
        let request = token::Request { method, path, body };
        let token = signed(account, &request, now_s());
        let headers = format!("authorization: Bearer {token}\r\n{headers}");
        self.send(method, path, &headers, body)
    }

    pub(crate) fn snapshot(&self, account: &ServiceAccount) -> SnapshotAnswer {
        let answer = self.ask(account, "GET", SNAPSHOT_PATH, "", b"").unwrap();
        assert_eq!(answer.status, 200, "{}", self.log());
        SnapshotAnswer::from_json(&answer.body).unwrap()
    }

    /// Offers one secret; `None` if no answer came.
    pub(crate) fn offer(
        &self,
        account: &ServiceAccount,
        tenant: &str,
        path: &str,
        kms: &str,
        blob: &[u8],
    ) -> Option<SecretOutcome> {
        let kms = tsp_wire::KmsConfigId::new(kms.parse().unwrap()).unwrap();
        let request = SecretsRequest {
            secrets: vec![SecretOffer {
                tenant: tenant.to_owned(),
                secret_type: SecretType::Deterministic,
                path: path.to_owned(),
                edek: edek::encode_unleased(kms, blob),
            }],
        };
        let body = serde_json::to_vec(&request).unwrap();
        let answer = self.ask(account, "POST", SECRETS_PATH, "", &body)?;
        assert_eq!(answer.status, 200, "{}", self.log());
        let answer: SecretsAnswer = serde_json::from_slice(&answer.body).unwrap();
        answer.secrets.into_iter().next()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One request on a connection of its own. `None` if the process went away before it answered.
pub(crate) fn send(
    port: u16,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> Option<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: broker\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let body = bytes[end + 4..].to_vec();
    let length = header(&head, "content-length").map(|length| length.parse::<usize>().unwrap());
    if length.is_some_and(|length| length != body.len()) {
        return None;
    }
    let status = head.split(' ').nth(1)?.parse().unwrap();
    Some(Answer { status, head, body })
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .next()
}

pub(crate) fn now_s() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests' processes share the machine's clock"
    )]
    let now = SystemTime::now();
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// A token for a request, made at `now`.
pub(crate) fn signed(account: &ServiceAccount, request: &token::Request<'_>, now: i64) -> String {
    let mut id = [0; token::ID_BYTES];
    getrandom::fill(&mut id).unwrap();
    token::sign(account.id, &account.signing_key, request, now, id).unwrap()
}

/// A PostgreSQL server of this test process.
struct Postgres {
    port: u16,
    bin: PathBuf,
    data: PathBuf,
}

fn postgres() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start)
}

impl Postgres {
    fn start() -> Self {
        let versions =
            fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: ./x setup");
        let bin = versions
            .map(|version| version.unwrap().path().join("bin"))
            .max()
            .expect("PostgreSQL is installed: ./x setup");
        let (ready, started) = mpsc::channel();
        let programs = bin.clone();
        // The kernel ends the server with the thread that started it, so that one stays.
        thread::spawn(move || {
            let folder = tempfile::tempdir().unwrap();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let data = folder.path().join("data");
            fs::create_dir(&data).unwrap();
            let root = rustix::process::geteuid().is_root();
            if root {
                let owned = Command::new("chown").arg("postgres").arg(&data).status();
                assert!(owned.unwrap().success(), "chown");
            }
            // It refuses to run as root.
            let as_postgres = |program: &str| {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "QUIT"]);
                if root {
                    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
                }
                command.arg(programs.join(program)).current_dir("/");
                command
            };
            let made = as_postgres("initdb")
                .args([
                    "--username=postgres",
                    "--auth=trust",
                    "--encoding=UTF8",
                    "--no-sync",
                ])
                .arg("-D")
                .arg(&data)
                .output()
                .unwrap();
            assert!(
                made.status.success(),
                "{}",
                String::from_utf8_lossy(&made.stderr)
            );
            loop {
                // Free a moment ago: if somebody took it meanwhile, the server ends, and the next one is tried.
                let port = TcpListener::bind("127.0.0.1:0")
                    .unwrap()
                    .local_addr()
                    .unwrap()
                    .port();
                let mut server = as_postgres("postgres")
                    .arg("-D")
                    .arg(&data)
                    .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", ""])
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                let log = BufReader::new(server.stderr.take().unwrap());
                for line in log.lines().map_while(Result::ok) {
                    if line.contains("ready to accept connections") {
                        ready.send((port, data.clone())).unwrap();
                    }
                }
                let _ = server.wait();
            }
        });
        let (port, data) = started.recv_timeout(PATIENCE).expect("PostgreSQL starts");
        Self { port, bin, data }
    }

    /// A new, empty database.
    fn database(&self) -> String {
        let name = Self::next_name();
        self.run(&self.url("postgres"), &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    fn next_name() -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        format!("broker{}", NUMBER.fetch_add(1, Ordering::Relaxed))
    }

    fn url(&self, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    fn run(&self, url: &str, statement: &str) {
        let done = Command::new(self.bin.join("psql"))
            .arg(url)
            .args(["-c", statement])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{statement}: {errors}");
    }
}

/// Changes the database behind the broker's back: PostgreSQL's alone.
pub(crate) fn sql(world: &World, statement: &str) {
    postgres().run(&world.database_url, statement);
}

/// The database's own files, all of them, with its log of changes.
pub(crate) fn database_files(world: &World) -> Vec<u8> {
    let folder = match world.kind {
        Kind::Sqlite => return dumped(world),
        Kind::Postgres => &postgres().data,
    };
    postgres().run(&world.database_url, "CHECKPOINT");
    let mut bytes = Vec::new();
    let mut folders = vec![folder.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map_while(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                // One that went away meanwhile holds nothing.
                bytes.extend(fs::read(path).unwrap_or_default());
            }
        }
    }
    bytes
}

/// All that the database holds, as text or as bytes.
pub(crate) fn dumped(world: &World) -> Vec<u8> {
    match world.kind {
        Kind::Postgres => {
            let dump = Command::new(postgres().bin.join("pg_dump"))
                .arg(&world.database_url)
                .output()
                .unwrap();
            assert!(dump.status.success());
            dump.stdout
        }
        Kind::Sqlite => ["broker.db", "broker.db-wal"]
            .iter()
            .flat_map(|name| fs::read(world.folder.path().join(name)).unwrap_or_default())
            .collect(),
    }
}
