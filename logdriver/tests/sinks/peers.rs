//! Strangers, in Python below target/: see tests/peers.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{OnceLock, mpsc::channel},
    thread,
};

use serde_json::Value;

use crate::child_command;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The target folder: three above this test's program.
pub(crate) fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(3).unwrap().to_owned()
}

#[track_caller]
fn python() -> PathBuf {
    let python = target().join("peers/bin/python");
    assert!(
        python.exists(),
        "the stand-ins are not installed: run ./x setup"
    );
    python
}

fn script(name: &str) -> PathBuf {
    root().join("tests/peers").join(name)
}

/// Runs a script, and reads the JSON that it prints.
#[track_caller]
fn ask(name: &str, arguments: &[&str], input: &[u8]) -> Value {
    let mut child = child_command(python())
        .arg(script(name))
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{name} failed: run ./x setup if packages are missing"
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A request to export logs, as Google's protobuf reads it by OpenTelemetry's own definitions.
pub(crate) fn otlp_as_json(message: &[u8]) -> Value {
    ask("otlp_read.py", &[], message)
}

/// Unix time in milliseconds.
pub(crate) fn now_ms() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "moto refuses what is old by this clock"
    )]
    let now = std::time::SystemTime::now();
    let since = now
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// The moto that all tests share. Its own process ends when ours closes its standard input, or dies.
pub(crate) struct Moto {
    pub(crate) facts: Value,
    _child: Child,
}

pub(crate) fn moto() -> &'static Moto {
    static MOTO: OnceLock<Moto> = OnceLock::new();
    MOTO.get_or_init(|| {
        let (answer, made) = channel();
        // The thread that starts a child must outlive it; a test's own does not.
        thread::spawn(move || {
            let mut child = child_command(python())
                .arg(script("moto_peer.py"))
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            let out = child.stdout.take().unwrap();
            BufReader::new(out).read_line(&mut line).unwrap();
            let facts = serde_json::from_str(&line).expect("moto starts: run ./x setup if not");
            let _ = answer.send(Moto {
                facts,
                _child: child,
            });
            loop {
                thread::park();
            }
        });
        made.recv().unwrap()
    })
}

impl Moto {
    /// A stream's events as boto3 reads them.
    #[track_caller]
    pub(crate) fn events_of(&self, stream: &str) -> Value {
        let reader = &self.facts["reader"];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let arguments = [
            text(&self.facts["url"]),
            text(&self.facts["region"]),
            text(&reader["access_key_id"]),
            text(&reader["secret_access_key"]),
            text(&self.facts["logs"]["group"]),
            stream.to_owned(),
        ];
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        ask("logs_read.py", &arguments, b"")
    }
}
