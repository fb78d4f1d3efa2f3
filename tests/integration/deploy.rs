//! What stands in deploy/: by the tools that it is written for, and with a running proxy. deploy/test.py, deploy/live.py,
//! loadtest/rolling.py and loadtest/rotations.py have the checks.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::support::{
    broker::{Account, Vendor, local_content},
    child,
    log::Log,
    metadata, on_both,
    peers::{source_folder, target_folder},
    proxy::{Io, Proxy},
    text,
};

/// What `./x setup` has made for the checks; `None` if it has not been run.
fn python() -> Option<Command> {
    let python = target_folder().join("deploy/bin/python");
    if python.exists() {
        return Some(child::command(python));
    }
    let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!is_ci, "{} is not there", python.display());
    eprintln!(
        "skipped: {} is not there; ./x setup makes it",
        python.display()
    );
    None
}

/// Runs a script of deploy/; every line that begins with `not ok` is a failure.
#[track_caller]
fn assert_ok(mut command: Command, oks_min: usize) {
    let output = command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = output.expect("setpriv is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    eprintln!("{text}");
    assert!(
        output.status.success() && !text.contains("not ok"),
        "{text}"
    );
    let ok = text.lines().filter(|line| line.starts_with("ok ")).count();
    let skipped = text.lines().filter(|line| line.starts_with("skipped "));
    let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let skipped = if is_ci { 0 } else { skipped.count() };
    assert!(ok + skipped >= oks_min, "only {ok} checks:\n{text}");
}

#[test]
fn manifests_units_rules_and_dashboards_are_what_their_tools_want() {
    let Some(mut command) = python() else { return };
    command.arg(source_folder().join("deploy/test.py"));
    assert_ok(command, 10);
}

/// A program that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A logdriver of that service account, which writes events to its standard output. Gives the address of its metrics as well.
fn logdriver(account: &Account, proxy: &Proxy, store: &Path) -> (Running, String) {
    let producer = proxy.event.expect("the event socket's address is told");
    let mut command = child::command(child::beside_tsp("tsp-logdriver"));
    command
        .envs(account.0.iter().filter(|(name, _)| *name != "API_KEY"))
        .env("LOGDRIVER_EVENT_PRODUCER_URL", format!("tcp://{producer}"))
        .env("LOGDRIVER_STORE", store)
        .env("LOGDRIVER_STORE_FREE_MIN", "0")
        .env("LOGDRIVER_BUFFER_POLL_INTERVAL", "20")
        .env("LOGDRIVER_HEALTH_BIND_ADDRESS", "127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = child::spawn(command);
    let log = Log::default();
    log.follow(child.stdout.take().expect("stdout is a pipe"));
    let serving = log.wait_json(0, "line that tells the address", |line| {
        line["message"] == "serving"
    });
    (Running(child), text(&serving.0, "health").to_owned())
}

#[test]
fn a_real_prometheus_runs_every_query_over_a_live_proxy_broker_and_logdriver() {
    let Some(mut command) = python() else { return };
    let vendor = Vendor::new();
    vendor.tenant("acme", &local_content(1), &[]);
    let proxy = vendor
        .account()
        .setup(Io::Epoll)
        .env("TSP_ALLOW_LOCAL_KMS", "true")
        .start();
    proxy.wait_for_ready(200);
    let store = TempDir::new().expect("a temporary folder can be made");
    let (_logdriver, logdriver) = logdriver(&vendor.account(), &proxy, store.path());
    for _ in 0..10 {
        proxy.call("document/wrap", &metadata("acme"));
        proxy.call("document/wrap", &metadata("nobody"));
    }
    let broker = vendor.url();
    let broker = broker.trim_start_matches("http://");
    command
        .arg(source_folder().join("deploy/live.py"))
        .args(["--seconds", "4"])
        .arg(format!("tsp={}", proxy.health))
        .arg(format!("tsp-broker={broker}"))
        .arg(format!("tsp-logdriver={logdriver}"));
    assert_ok(command, 4);
}

on_both! {
    fn proxies_are_restarted_one_after_the_other_without_a_failed_request(io) {
        let mut command = child::command("python3");
        command
            .arg(source_folder().join("loadtest/rolling.py"))
            .args(["--rounds", "1", "--requests", "1000", "--clients", "8", "--tsp"])
            .arg(env!("CARGO_BIN_EXE_tsp"))
            .env("TSP_IO", io.as_str());
        assert_ok(command, 1);
    }

    fn keys_and_certificates_are_rotated_under_load_without_a_failed_request(io) {
        let mut command = child::command("python3");
        command
            .arg(source_folder().join("loadtest/rotations.py"))
            .args(["--rotations", "3", "--clients", "8", "--tsp"])
            .arg(env!("CARGO_BIN_EXE_tsp"))
            .env("TSP_IO", io.as_str());
        assert_ok(command, 1);
    }
}
