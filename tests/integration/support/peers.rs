//! Strangers that play AWS KMS: moto for cryptography and policies, ministack for AWS's own error bodies. Both check
//! every signature. Started once per test process, on free ports; see tests/peers.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    sync::OnceLock,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

use super::child;

/// Credentials of one user at a stand-in.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
}

/// One stand-in for AWS.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    facts: Value,
    /// For a stand-in behind TLS: the file of the CA to trust.
    pub(crate) ca_file: Option<PathBuf>,
    _folder: TempDir,
}

impl Peer {
    /// A moto of the caller's own, which may be stopped.
    #[track_caller]
    pub(crate) fn start_moto() -> Self {
        Self::start("moto_peer.py", false)
    }

    /// The moto that all tests share.
    pub(crate) fn moto() -> &'static Self {
        static MOTO: OnceLock<Peer> = OnceLock::new();
        MOTO.get_or_init(Self::start_moto)
    }

    /// The same behind TLS, with a certificate of a CA made for this run.
    pub(crate) fn moto_tls() -> &'static Self {
        static MOTO: OnceLock<Peer> = OnceLock::new();
        MOTO.get_or_init(|| Self::start("moto_peer.py", true))
    }

    pub(crate) fn ministack() -> &'static Self {
        static MINISTACK: OnceLock<Peer> = OnceLock::new();
        MINISTACK.get_or_init(|| Self::start("ministack_peer.py", false))
    }

    #[track_caller]
    fn start(script: &str, tls: bool) -> Self {
        let python = target_folder().join("peers/bin/python");
        assert!(
            python.exists(),
            "the stand-ins for AWS are not installed: run ./x setup"
        );
        let folder = TempDir::new().expect("a temporary folder can be made");
        let mut command = child::command(python);
        command.arg(source_folder().join("tests/peers").join(script));
        let mut ca_file = None;
        if tls {
            let made = make_certificates(&folder);
            command
                .arg("--cert")
                .arg(&made.certificate)
                .arg("--key")
                .arg(&made.key);
            ca_file = Some(made.ca);
        }
        let log = folder.path().join("log");
        // What it writes there is shown when it does not start.
        let errors = std::fs::File::create(&log).expect("a file can be made");
        command
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = child::spawn(command);
        let mut line = String::new();
        let read =
            BufReader::new(child.stdout.take().expect("stdout is a pipe")).read_line(&mut line);
        let facts = read.ok().and_then(|_| serde_json::from_str(&line).ok());
        let Some(facts) = facts else {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "{script} did not start; run ./x setup if packages are missing. It wrote:\n{log}"
            );
        };
        Self {
            child,
            facts,
            ca_file,
            _folder: folder,
        }
    }

    #[track_caller]
    pub(crate) fn fact(&self, name: &str) -> &str {
        self.facts[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {}", self.facts))
    }

    pub(crate) fn url(&self) -> &str {
        self.fact("url")
    }

    /// A key that [`Self::user`] may use.
    #[track_caller]
    pub(crate) fn key(&self, index: usize) -> &str {
        self.facts["keys"][index]
            .as_str()
            .unwrap_or_else(|| panic!("no such key in {}", self.facts))
    }

    /// A user that may encrypt and decrypt.
    pub(crate) fn user(&self) -> User {
        self.user_called("user")
    }

    #[track_caller]
    pub(crate) fn user_called(&self, name: &str) -> User {
        let field = |field: &str| {
            self.facts[name][field]
                .as_str()
                .unwrap_or_else(|| panic!("no {name}.{field}"))
                .to_owned()
        };
        User {
            access_key_id: field("access_key_id"),
            secret_access_key: field("secret_access_key"),
        }
    }

    /// Ends the stand-in; returns when its port answers nobody any more.
    pub(crate) fn stop(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("the child is ours");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where cargo builds, and `./x setup` installs.
pub(crate) fn target_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it lies in the target folder")
        .to_owned()
}

/// The root of this repository.
pub(crate) fn source_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// A CA and a certificate for the loopback address, as files in `folder`.
pub(crate) fn make_certificates(folder: &TempDir) -> Certificates {
    let mut ca_params = CertificateParams::new([]).expect("no name is a bad one");
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key can be made");
    let ca = ca_params.self_signed(&ca_key).expect("a CA can be made");
    let issuer = Issuer::new(ca_params, ca_key);
    let key = KeyPair::generate().expect("a key can be made");
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let params = CertificateParams::new(names).expect("both are good names");
    let certificate = params.signed_by(&key, &issuer).expect("the CA signs it");
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file can be made");
        path
    };
    Certificates {
        ca: write("ca.pem", ca.pem()),
        certificate: write("tls.crt", certificate.pem()),
        key: write("tls.key", key.serialize_pem()),
    }
}
