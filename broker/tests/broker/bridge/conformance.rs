//! The API keeps to its own description: a stranger reads it, and tries.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};

use super::Bridge;
use crate::support::{Kind, World, mortal};

/// Cases that schemathesis makes up per operation, beside those that cover each rule of the description.
const EXAMPLES_MAX: &str = "10";

/// Each run tries the same, but for what it makes of answers.
const SEED: &str = "1";

/// Longest time for a run, in seconds: many times what one takes.
const RUN_S_MAX: &str = "300";

/// The one check that is left out: that what the description allows is granted. Rules that are none of a shape stand in the
/// way: that a tenant, a config, a tag is there, which is told by 400 or 422 as in the public API; that an address is one.
const NOT_CHECKED: &str = "positive_data_acceptance";

#[test]
fn the_description_has_the_25_operations() {
    let world = World::new(Kind::Sqlite);
    let bridge = Bridge::start(&world);
    let answer = bridge.send("GET", "/openapi.json", "", b"");
    let document: Value = serde_json::from_slice(&answer.body).unwrap();
    let paths = document["paths"].as_object().unwrap().values();
    let operations: usize = paths.map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!(operations, 25);
    assert_eq!(document["servers"][0]["url"], "/api");
}

/// Runs schemathesis, with these lines of configuration.
#[track_caller]
fn finds_nothing(world: &World, bridge: &Bridge, configuration: &str) {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let program: PathBuf = program.unwrap().join("schemathesis/bin/schemathesis");
    assert!(
        program.exists(),
        "schemathesis is not installed: run ./x setup"
    );
    // It is read from the current folder.
    world.file("schemathesis.toml", configuration);
    let output = mortal("timeout")
        .args([RUN_S_MAX, "setpriv", "--pdeathsig", "KILL"])
        .arg(program)
        .args(["run", "--no-color", "--continue-on-failure"])
        .args(["--phases", "coverage,fuzzing,stateful"])
        .args(["--checks", "all", "--exclude-checks", NOT_CHECKED])
        .args(["--max-examples", EXAMPLES_MAX, "--seed", SEED])
        .args(["--generation-database", "none"])
        .args(["--header", &format!("Authorization: vab:1:{}", bridge.key)])
        .args(["--header", "icl-requestor-id: schemathesis"])
        .arg(format!("http://127.0.0.1:{}/openapi.json", bridge.port))
        .current_dir(world.folder.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()
        .expect("setpriv is installed");
    let found = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    // Shown only if the test fails.
    eprintln!("{found}\n{errors}");
    assert!(output.status.success(), "{}", output.status);
}

#[test]
fn schemathesis_finds_nothing() {
    let world = World::new(Kind::Sqlite);
    let bridge = Bridge::start(&world);
    finds_nothing(&world, &bridge, "");
}

#[test]
fn schemathesis_finds_nothing_at_what_is_there() {
    let world = World::new(Kind::Sqlite);
    let bridge = Bridge::start(&world);
    bridge.tenant("acme");
    let kms = bridge.aws("secret", true);
    let path = format!("/1/kms/configs/{kms}/tenants/acme");
    bridge.good("POST", &path, None);
    bridge.good("PUT", &path, Some(&json!({ "primary": true })));
    let tenant = bridge.good("GET", "/1/tenants/acme", None);
    let tag = &tenant["tags"][0]["id"];
    let there = format!(
        "[parameters]\n\"path.tenantId\" = \"acme\"\n\"path.kmsConfigId\" = {kms}\n\"path.tagId\" = {tag}\n"
    );
    finds_nothing(&world, &bridge, &there);
}
