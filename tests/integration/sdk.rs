//! The published SDKs, unmodified, against whole proxies: on local keys, on keys at moto and on keys at all four remote
//! KMSs as kmssim plays them, with every signature checked.

use std::process::{Command, Stdio};

use crate::support::{
    broker::Vendor,
    child,
    config::{self, As, AwsKms, tenant},
    kmssim::{Provider, Simulator},
    on_both,
    peers::{Peer, source_folder, target_folder},
    proxy::{Io, Proxy, Setup},
};

/// Number of checks that each SDK must have run, so that a script that stops early is no success.
const NODE_CHECKS: usize = 9;
const PYTHON_CHECKS: usize = 10;

/// Likewise for the second opinion, which uses both SDKs.
const SECOND_OPINION_CHECKS: usize = 16;

/// Two tenants, each with a key of its own at moto.
#[track_caller]
fn at_moto(io: Io) -> Proxy {
    let moto = Peer::moto();
    let file = config::file(&[
        AwsKms::at(moto, 1, 0).toml(),
        AwsKms::at(moto, 2, 1).toml(),
        tenant("tenant-a", &[(1, As::Primary)]),
        tenant("tenant-b", &[(2, As::Primary)]),
    ]);
    Setup::serve(io, &file).start()
}

/// Runs a script that prints one line per check, `ok …` or `not ok …`.
#[track_caller]
fn assert_checks(mut command: Command, checks_min: usize) {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = output.expect("setpriv is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("not ok "))
        .collect();
    assert!(failed.is_empty(), "{}\nof\n{text}", failed.join("\n"));
    let checks = text.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(
        checks >= checks_min,
        "only {checks} checks of {checks_min}; run ./x setup if the packages are missing:\n{text}"
    );
}

/// Two tenants with different KMS configs.
type Two<'a> = [&'a str; 2];

/// Those of `tsp dev` and of [`at_moto`].
const TWO: Two<'_> = ["tenant-a", "tenant-b"];

/// What both of our scripts take: URL, key, two tenants, a tenant that is not there.
fn script_arguments(command: &mut Command, proxy: &Proxy, [tenant, other]: Two<'_>) {
    command.args([&proxy.base_url(), &proxy.api_key, tenant, other]);
    command.arg("tenant-nobody-knows");
}

#[track_caller]
fn node(proxy: &Proxy, tenants: Two<'_>) {
    let folder = target_folder().join("sdk/node");
    let mut command = child::command(folder.join("node"));
    command
        .env("NODE_PATH", folder.join("node_modules"))
        .arg(source_folder().join("tests/sdk/node/smoke.cjs"));
    script_arguments(&mut command, proxy, tenants);
    assert_checks(command, NODE_CHECKS);
}

#[track_caller]
fn python(proxy: &Proxy, tenants: Two<'_>) {
    let mut command = child::command(target_folder().join("sdk/python/bin/python"));
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(source_folder().join("tests/sdk/python/smoke.py"));
    script_arguments(&mut command, proxy, tenants);
    assert_checks(command, PYTHON_CHECKS);
}

/// A second opinion: a smoke test of the same SDKs that was written without this code, if `./x test` found one.
#[track_caller]
fn second_opinion(proxy: &Proxy, [tenant, other]: Two<'_>) {
    let Some(program) = std::env::var_os("TSP_TEST_CLIENTS") else {
        eprintln!("skipped: TSP_TEST_CLIENTS names no program");
        return;
    };
    let mut command = child::command(program);
    command.args([
        "--base-url",
        &proxy.base_url(),
        "--api-key",
        &proxy.api_key,
        "--tenant",
        tenant,
        "--tenant2",
        other,
    ]);
    command
        .arg("--cache")
        .arg(target_folder().join("sdk/clients"));
    assert_checks(command, SECOND_OPINION_CHECKS);
}

/// Runs `checks` with a tenant at AWS and one at Google, then with one at Azure and one at Thales.
#[track_caller]
fn at_all_kmss(io: Io, checks: fn(&Proxy, Two<'_>)) {
    let simulator = Simulator::start();
    let proxy = simulator.proxy(io);
    for two in [
        [Provider::Aws, Provider::Gcp],
        [Provider::Azure, Provider::Thales],
    ] {
        checks(&proxy, two.map(|provider| simulator.tenant(provider)));
    }
    simulator.assert_refused_none();
}

/// The same tenants, from a broker where they were sealed; it keeps their secrets too.
#[track_caller]
fn through_a_broker(io: Io, checks: fn(&Proxy, Two<'_>)) {
    let simulator = Simulator::start();
    let vendor = Vendor::new();
    vendor.tenants_of(&simulator);
    let account = vendor.account();
    // The one that the vendor's admin was given: it must be of a form that every SDK takes.
    let api_key = account.0["API_KEY"].clone();
    let mut proxy = account.setup(io).env("API_KEY_2", &api_key).start();
    proxy.api_key = api_key;
    proxy.wait_for_ready(200);
    for two in [
        [Provider::Aws, Provider::Gcp],
        [Provider::Azure, Provider::Thales],
    ] {
        checks(&proxy, two.map(|provider| simulator.tenant(provider)));
    }
    simulator.assert_refused_none();
    let secrets = vendor.admin(&["secrets", "export"]);
    eprintln!(
        "tenant secrets at the broker: {}",
        secrets.lines().count() - 1
    );
}

on_both! {
    fn node_on_local_keys(io) {
        node(&Setup::dev(io).start(), TWO);
    }

    fn node_on_keys_at_moto(io) {
        node(&at_moto(io), TWO);
    }

    fn node_on_keys_at_all_kmss(io) {
        at_all_kmss(io, node);
    }

    fn node_through_a_broker(io) {
        through_a_broker(io, node);
    }

    fn python_through_a_broker(io) {
        through_a_broker(io, python);
    }

    fn python_on_local_keys(io) {
        python(&Setup::dev(io).start(), TWO);
    }

    fn python_on_keys_at_moto(io) {
        python(&at_moto(io), TWO);
    }

    fn python_on_keys_at_all_kmss(io) {
        at_all_kmss(io, python);
    }

    fn a_second_opinion_on_local_keys(io) {
        second_opinion(&Setup::dev(io).start(), TWO);
    }

    fn a_second_opinion_on_keys_at_moto(io) {
        second_opinion(&at_moto(io), TWO);
    }

    fn a_second_opinion_on_keys_at_all_kmss(io) {
        at_all_kmss(io, second_opinion);
    }
}
