//! The vendor bridge as a process: its 25 operations, on both stores, with a proxy's view of what came of them.

mod conformance;
mod operations;
mod refusals;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Value, json};

use crate::support::{Answer, World, mortal, send};

/// A bridge's process.
pub(crate) struct Bridge {
    child: Child,
    pub(crate) port: u16,
    pub(crate) key: String,
    log: PathBuf,
}

impl Bridge {
    /// A bridge of the world's vendor.
    pub(crate) fn start(world: &World) -> Self {
        let file = world.admin(&[
            "service-account",
            "create",
            "--name",
            "bridge",
            "--type",
            "bridge",
        ]);
        Self::with(world, &file, &[]).unwrap()
    }

    /// A bridge with this file of variables. `None` if it ends.
    pub(crate) fn with(world: &World, file: &str, more: &[(&str, &str)]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = world.folder.path().join(format!("bridge-{number}.log"));
        let variables: Vec<_> = file
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let mut child = mortal(env!("CARGO_BIN_EXE_tsp-broker"))
            .args(["bridge", "--listen", "127.0.0.1:0"])
            .env_clear()
            .envs(variables.iter().copied())
            .env("RUST_LOG", "debug")
            .envs(more.iter().copied())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .expect("setpriv is installed");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let mut key = variables.iter().filter(|(name, _)| *name == "API_KEY");
        let key = key
            .next()
            .map(|(_, key)| (*key).to_owned())
            .unwrap_or_default();
        let Some(port) = line
            .trim()
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
        else {
            let _ = child.wait();
            return None;
        };
        Some(Self {
            child,
            port,
            key,
            log,
        })
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One request, with what a caller presents.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let headers = format!(
            "authorization: vab:1:{}\r\nicl-requestor-id: billing\r\n",
            self.key
        );
        let body = body.map(ToString::to_string).unwrap_or_default();
        let answer = self.send(method, &format!("/api{path}"), &headers, body.as_bytes());
        let json = serde_json::from_slice(&answer.body).unwrap_or_default();
        (answer.status, json)
    }

    /// The same, which must succeed.
    pub(crate) fn good(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.ask(method, path, body);
        assert_eq!(status, 200, "{method} {path}: {answer}\n{}", self.log());
        answer
    }

    /// The same, which must be refused with this status.
    pub(crate) fn bad(
        &self,
        status: u16,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> String {
        let (found, answer) = self.ask(method, path, body);
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert_eq!(answer["statusCode"], status, "{answer}");
        answer["message"].as_str().unwrap().to_owned()
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        send(self.port, method, path, headers, body).unwrap()
    }

    /// A new tenant with the default tag.
    pub(crate) fn tenant(&self, id: &str) {
        self.good("POST", "/1/tenants", Some(&json!({ "id": id, "name": id })));
    }

    /// A new KMS config at AWS. Gives its number.
    pub(crate) fn aws(&self, secret: &str, leasing: bool) -> i64 {
        let config = json!({ "config": aws(secret), "leasingAllowed": leasing });
        let made = self.good("POST", "/1/kms/configs", Some(&config));
        made["id"].as_i64().unwrap()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn aws(secret: &str) -> Value {
    json!({
        "type": "AWS", "version": 1,
        "keyPath": { "keyID": "alias/acme", "region": "eu-central-1" },
        "credentials": { "accessKeyId": "AKIDEXAMPLE", "secretAccessKey": secret },
    })
}
