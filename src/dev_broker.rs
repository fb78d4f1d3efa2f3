//! `tsp dev --broker`: a real `tsp-broker` beside the proxy, with a made-up vendor, tenants on LOCAL keys and service
//! accounts, made by the commands that an admin would give; and a real `tsp-logdriver` that takes the proxy's events.
//!
//! All of it is in a folder that goes with the process. LOCAL keys are what a KMS without a cloud can be; a proxy takes them
//! from a broker only here, and where `TSP_ALLOW_LOCAL_KMS` says so.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tsp_wire::account::env::ServiceAccount;
use zeroize::Zeroizing;

use crate::{config::Problem, source::dev};

/// The programs, which lie beside this one.
const PROGRAM: &str = "tsp-broker";
const LOGDRIVER: &str = "tsp-logdriver";

/// In the folder: what the logdriver logs, and the events, since no tenant has named a log system.
const LOGDRIVER_OUTPUT: &str = "logdriver.jsonl";

/// Ids of the made-up tenants, as `tsp-broker try-out` makes them; keys may be leased from the last one.
const TENANTS: [&str; 3] = ["tenant-a", "tenant-b", "tenant-leased"];

/// How the folders are called.
const FOLDER_PREFIX: &str = "tsp-dev-";

/// In each folder: locked as long as its process lives.
const LOCK: &str = "lock";

/// Ids of the made-up tenants.
pub(crate) fn tenant_ids() -> Vec<&'static str> {
    TENANTS.to_vec()
}

/// A broker and a logdriver that end with this process, and what an admin needs.
#[derive(Debug)]
pub(crate) struct DevBroker {
    child: Child,
    /// Started once the proxy has events.
    logdriver: Option<Child>,
    program: PathBuf,
    logdriver_program: PathBuf,
    folder: PathBuf,
    /// Tells others that the folder is in use.
    _lock: File,
    url: String,
    passphrase: String,
    setup_token: String,
}

impl DevBroker {
    /// Starts the broker and makes the vendor. Takes some seconds: each command derives the admin's keys from a passphrase.
    ///
    /// # Errors
    /// What could not be done.
    pub(crate) fn start() -> Result<(Self, ServiceAccount), Problem> {
        let failed = |why: String| Problem::new("--broker", why);
        let [program, logdriver_program] = programs().map_err(failed)?;
        let io_failed = |why: io::Error| failed(why.to_string());
        let word = || dev::random::<16>().map(|bytes| URL_SAFE_NO_PAD.encode(*bytes));
        let parent = std::env::temp_dir();
        remove_left_over(&parent);
        let folder = parent.join(format!("{FOLDER_PREFIX}{}", word().map_err(io_failed)?));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(io_failed)?;
        let lock = lock(&folder).map_err(io_failed)?;
        let setup_token = word().map_err(io_failed)?;
        let child = match spawn(&program, &folder, &setup_token) {
            Ok(child) => child,
            Err(why) => {
                // It is empty but for a log.
                let _ = fs::remove_dir_all(&folder);
                return Err(failed(format!(
                    "{} cannot be started: {why}",
                    program.display()
                )));
            }
        };
        // From here on dropping it cleans up.
        let mut broker = Self {
            child,
            logdriver: None,
            program,
            logdriver_program,
            folder,
            _lock: lock,
            url: String::new(),
            passphrase: word().map_err(io_failed)?,
            setup_token,
        };
        let account = broker.make_vendor().map_err(failed)?;
        Ok((broker, account))
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Starts the logdriver, on the events that the proxy has at `events`; gives the file that it writes.
    ///
    /// # Errors
    /// What could not be done.
    pub(crate) fn start_logdriver(&mut self, events: SocketAddr) -> io::Result<PathBuf> {
        let path = self.folder.join(LOGDRIVER_OUTPUT);
        let output = File::create(&path)?;
        let logdriver = Command::new(&self.logdriver_program)
            .arg("--die-with-parent")
            .env(
                "TSP_SERVICE_ACCOUNT_FILE",
                self.folder.join("logdriver.env"),
            )
            .env("LOGDRIVER_EVENT_PRODUCER_URL", format!("tcp://{events}"))
            .env("LOGDRIVER_STORE", self.folder.join("events"))
            .env("LOGDRIVER_STORE_FREE_MIN", "0")
            .env("LOGDRIVER_HEALTH_BIND_ADDRESS", "127.0.0.1:0")
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        self.logdriver = Some(logdriver);
        Ok(path)
    }

    /// What an admin's shell sets, so that `tsp-broker`'s commands act for the made-up vendor.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [
            ("BROKER_PROFILE", self.profile().display().to_string()),
            ("BROKER_PASSPHRASE", self.passphrase.clone()),
        ]
    }

    /// How an admin calls the program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    fn profile(&self) -> PathBuf {
        self.folder.join("admin.json")
    }

    fn make_vendor(&mut self) -> Result<ServiceAccount, String> {
        let out = self.child.stdout.take().ok_or("it has no output")?;
        let mut line = String::new();
        BufReader::new(out)
            .read_line(&mut line)
            .map_err(|why| why.to_string())?;
        let url = line.trim().rsplit(' ').next().unwrap_or_default();
        if !url.starts_with("http://") {
            let log = fs::read_to_string(self.folder.join("broker.log")).unwrap_or_default();
            return Err(format!("the broker did not start: {}", log.trim_end()));
        }
        url.clone_into(&mut self.url);
        let url = self.url.clone();
        let folder = self.folder.display().to_string();
        self.admin(&["try-out", "--folder", &folder, "--broker", &url])?;
        let variables = fs::read_to_string(self.folder.join("proxy.env")).map(Zeroizing::new);
        let variables = variables.map_err(|why| why.to_string())?;
        let account = ServiceAccount::from_variables(|name| {
            let mut lines = variables.lines().filter_map(|line| line.split_once('='));
            let found = lines.find(|(found, _)| *found == name);
            found.map(|(_, value)| value.to_owned())
        });
        account.map_err(|problems| format!("the service account is not complete: {problems:?}"))
    }

    /// What an admin's command prints.
    fn admin(&self, arguments: &[&str]) -> Result<Zeroizing<String>, String> {
        let output = Command::new(&self.program)
            .args(arguments)
            .envs(self.variables())
            .env("BROKER_SETUP_TOKEN", &self.setup_token)
            .env_remove("CONFIG_BROKER_URL")
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .map_err(|why| why.to_string())?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!(
                "`{PROGRAM} {}`: {}",
                arguments.join(" "),
                why.trim_end()
            ));
        }
        String::from_utf8(output.stdout)
            .map(Zeroizing::new)
            .map_err(|_| format!("`{PROGRAM} {}` prints no text", arguments.join(" ")))
    }
}

impl Drop for DevBroker {
    fn drop(&mut self) {
        // Nothing in it outlives this process anyway.
        for child in self.logdriver.iter_mut().chain([&mut self.child]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Locks a new folder. The lock is there only once it is locked, and goes with this process, however that ends.
fn lock(folder: &Path) -> io::Result<File> {
    let draft = folder.join("lock.new");
    let lock = File::create_new(&draft)?;
    lock.lock()?;
    fs::rename(draft, folder.join(LOCK))?;
    Ok(lock)
}

/// Removes what processes left behind that were killed. What cannot be removed is somebody else's.
fn remove_left_over(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with(FOLDER_PREFIX) {
            continue;
        }
        let folder = entry.path();
        if File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

fn programs() -> Result<[PathBuf; 2], String> {
    let own = std::env::current_exe().map_err(|why| why.to_string())?;
    let programs = [PROGRAM, LOGDRIVER].map(|name| own.with_file_name(name));
    match programs.iter().find(|program| !program.exists()) {
        None => Ok(programs),
        Some(missing) => Err(format!(
            "{} is not there; `cargo build --bins` makes it, and so does `./x dev --broker`",
            missing.display()
        )),
    }
}

fn spawn(program: &Path, folder: &Path, setup_token: &str) -> io::Result<Child> {
    let log = File::create(folder.join("broker.log"))?;
    let database = format!("sqlite://{}", folder.join("broker.db").display());
    // This thread is the process's first, and lives as long.
    Command::new(program)
        .args(["serve", "--listen", "127.0.0.1:0", "--die-with-parent"])
        .env("BROKER_DATABASE_URL", database)
        .env("BROKER_SETUP_TOKEN", setup_token)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_the_dead_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let folder = parent.path().join(name);
            fs::create_dir(&folder).unwrap();
            folder
        };
        let (alive, dead) = (made("tsp-dev-alive"), made("tsp-dev-dead"));
        let (new, other) = (made("tsp-dev-new"), made("other"));
        let held = lock(&alive).unwrap();
        drop((lock(&dead).unwrap(), lock(&other).unwrap()));
        remove_left_over(parent.path());
        assert!(alive.exists() && new.exists() && other.exists() && !dead.exists());
        drop(held);
        remove_left_over(parent.path());
        assert!(!alive.exists());
    }
}
