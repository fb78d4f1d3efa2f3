//! What stands in deploy/: by the tools that it is written for, and with a running proxy. deploy/test.py, deploy/live.py,
//! loadtest/rolling.py and loadtest/rotations.py have the checks.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::{
    broker::{Vendor, local_content},
    child,
    logdriver::Logdriver,
    metadata, on_both,
    peers::{source_folder, target_folder},
    proxy::Io,
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

#[test]
fn a_real_prometheus_runs_every_query_over_a_live_proxy_broker_and_logdriver() {
    let Some(mut command) = python() else { return };
    let vendor = Vendor::new();
    vendor.tenant("acme", &local_content(1), &[]);
    let proxy = vendor
        .account()
        .setup(Io::Epoll)
        .env("TSP_ALLOW_LOCAL_KMS", "true")
        // Nobody is there, but then there are the metrics of tracing.
        .env("TSP_TRACE_ENDPOINT", "http://127.0.0.1:9/v1/traces")
        .start();
    proxy.wait_for_ready(200);
    let store = TempDir::new().expect("a temporary folder can be made");
    let logdriver = Logdriver::of(&vendor.account(), &proxy, &store);
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
        .arg(format!("tsp-logdriver={}", logdriver.health()));
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
