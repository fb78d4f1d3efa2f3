//! The shape of the workspace: which crate may use which, who may hold `unsafe`, what no tracked file may say.
//!
//! A failure here is a design decision waiting to be made. If the new shape is meant, change the constant in the same
//! commit and say why.

#![expect(clippy::expect_used, clippy::panic, reason = "tests panic to fail")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, TargetKind};
use tsp_shards::Limits;
use tsp_wire::TspCode;

/// Which crate of ours uses which, outside tests. One way, without a circle; `tsp-rt` and `tsp-wire` use none.
const ARROWS: &[(&str, &[&str])] = &[
    ("tsp", &["tsp-kms", "tsp-rt", "tsp-shards", "tsp-wire"]),
    ("tsp-bench", &["tsp-kms", "tsp-shards", "tsp-wire"]),
    ("tsp-broker", &["tsp-wire"]),
    ("tsp-kms", &["tsp-wire"]),
    ("tsp-loadtest", &["tsp-rt", "tsp-wire"]),
    // Google, Entra and AWS want the same tokens and signatures from a sink as from a KMS; `kms` does no I/O.
    ("tsp-logdriver", &["tsp-kms", "tsp-wire"]),
    ("tsp-reference", &["tsp-wire"]),
    ("tsp-shards", &["tsp-kms", "tsp-rt", "tsp-wire"]),
];

/// What only tests and benches use on top: the simulated clock and network, the simulated KMSs as the far end of whole
/// proxies, and the budget of what an operation may cost. Nothing of it is built into the product.
const TEST_ARROWS: &[(&str, &[&str])] = &[
    ("tsp", &["tsp-bench", "tsp-loadtest"]),
    ("tsp-bench", &["tsp-rt"]),
    ("tsp-reference", &["tsp-loadtest", "tsp-shards"]),
    ("tsp-shards", &["tsp-rt"]),
];

/// The one crate that names glommio and may hold `unsafe`: the kernel as we see it.
const KERNEL_CRATE: &str = "tsp-rt";

/// Lines of one source file before its unit tests. Most have 100 to 500; past this one a file wants to be two.
const SOURCE_LINES_MAX: usize = 700;

/// Lines of one file of tests, or of one source file with its unit tests.
const TESTED_LINES_MAX: usize = 1_200;

/// Bytes of any tracked file but lock files: nothing generated or binary belongs here unnoticed.
const TRACKED_BYTES_MAX: u64 = 256 * 1024;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(
            [
                "--locked",
                "--offline",
                "--filter-platform",
                "x86_64-unknown-linux-gnu",
            ]
            .map(String::from),
        )
        .exec()
        .expect("cargo metadata tells about this workspace")
}

fn ours(metadata: &Metadata) -> Vec<&Package> {
    metadata.workspace_packages()
}

/// What git tracks, or would track after `git add`: paths relative to the root.
fn tracked() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output()
        .expect("git is installed");
    assert!(output.status.success(), "these checks need a git checkout");
    let listing = String::from_utf8(output.stdout).expect("our paths are UTF-8");
    let paths: Vec<_> = listing
        .split_terminator('\0')
        .map(PathBuf::from)
        .filter(|path| root().join(path).is_file())
        .collect();
    assert!(paths.len() > 30, "git lists only {} files", paths.len());
    paths
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(root().join(path)).expect("a listed file can be read"))
        .into_owned()
}

fn toml_of(path: &Path) -> toml::Table {
    read(path)
        .parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// The crate whose folder holds `path`.
fn crate_of<'a>(metadata: &'a Metadata, path: &Path) -> &'a Package {
    let absolute = root().join(path);
    ours(metadata)
        .into_iter()
        .filter(|package| {
            absolute.starts_with(
                package
                    .manifest_path
                    .parent()
                    .expect("a manifest lies in a folder"),
            )
        })
        .max_by_key(|package| package.manifest_path.as_str().len())
        .expect("every source file belongs to a crate")
}

/// The lines of a Rust file, numbered from 1, without comments. Good enough to look for words.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| {
        let code = line
            .find("//")
            .and_then(|at| line.get(..at))
            .unwrap_or(line);
        (index + 1, code)
    })
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .any(|found| found == word)
}

/// Fails with all findings at once, one a line.
fn assert_none(findings: &[String], rule: &str) {
    assert!(findings.is_empty(), "{rule}\n{}", findings.join("\n"));
}

/// The arrows from each of our crates that has any of the wanted kind.
fn arrows(wanted: impl Fn(DependencyKind) -> bool) -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let ours = ours(&metadata);
    let names: BTreeSet<_> = ours.iter().map(|package| package.name.as_str()).collect();
    let to = |package: &Package| {
        let dependencies = package.dependencies.iter();
        dependencies
            .filter(|to| wanted(to.kind) && names.contains(to.name.as_str()))
            .map(|to| to.name.clone())
            .collect::<BTreeSet<_>>()
    };
    let all = ours
        .iter()
        .map(|package| (package.name.to_string(), to(package)));
    all.filter(|(_, to)| !to.is_empty()).collect()
}

/// A list of arrows in the form that [`arrows`] has.
fn decided(arrows: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
    let names = |to: &[&str]| to.iter().map(|name| (*name).to_owned()).collect();
    arrows
        .iter()
        .map(|(from, to)| ((*from).to_owned(), names(to)))
        .collect()
}

#[test]
fn arrows_between_our_crates_are_the_ones_decided() {
    assert_eq!(
        arrows(|kind| kind != DependencyKind::Development),
        decided(ARROWS),
        "an arrow between crates is a design decision: change ARROWS in the same commit"
    );
    assert_eq!(
        arrows(|kind| kind == DependencyKind::Development),
        decided(TEST_ARROWS),
        "so is one of their tests: change TEST_ARROWS in the same commit"
    );
}

#[test]
fn tests_and_benches_add_no_arrow_that_makes_a_circle() {
    let metadata = metadata();
    for package in ours(&metadata) {
        for dependency in package
            .dependencies
            .iter()
            .filter(|dependency| dependency.name.starts_with("tsp"))
        {
            let back = ARROWS
                .iter()
                .find(|(from, _)| *from == dependency.name)
                .map_or(&[][..], |(_, to)| to);
            assert!(
                !back.contains(&package.name.as_str()),
                "{} and {} use each other",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn only_rt_names_glommio() {
    let metadata = metadata();
    let mut findings = Vec::new();
    for package in ours(&metadata)
        .into_iter()
        .filter(|package| package.name != KERNEL_CRATE)
    {
        findings.extend(
            package
                .dependencies
                .iter()
                .filter(|d| d.name == "glommio")
                .map(|_| format!("{}: Cargo.toml", package.name)),
        );
    }
    for path in tracked()
        .iter()
        .filter(|path| has_extension(path, "rs") && !path.ends_with("tests/tidy.rs"))
    {
        if crate_of(&metadata, path).name != KERNEL_CRATE {
            let text = read(path);
            let named = code_lines(&text).filter(|(_, line)| line.contains("glommio::"));
            findings.extend(named.map(|(number, _)| format!("{}:{number}", path.display())));
        }
    }
    assert_none(&findings, "the kernel is seen through rt alone");
}

#[test]
fn only_rt_holds_unsafe() {
    let metadata = metadata();
    let mut findings = Vec::new();
    for path in tracked()
        .iter()
        .filter(|path| has_extension(path, "rs") && !path.ends_with("tests/tidy.rs"))
    {
        let text = read(path);
        if crate_of(&metadata, path).name != KERNEL_CRATE {
            let held = code_lines(&text).filter(|(_, line)| has_word(line, "unsafe"));
            findings.extend(held.map(|(number, _)| format!("{}:{number}", path.display())));
        }
    }
    assert_none(
        &findings,
        "`unsafe` belongs into rt, behind a safe function",
    );
}

#[test]
fn only_rt_starts_a_tokio_runtime_in_the_proxy() {
    let metadata = metadata();
    let in_the_proxy = ["tsp", "tsp-shards", "tsp-kms", "tsp-wire"];
    let mut findings = Vec::new();
    for path in tracked()
        .iter()
        .filter(|path| has_extension(path, "rs") && !path.starts_with("tests"))
    {
        let text = read(path);
        if in_the_proxy.contains(&crate_of(&metadata, path).name.as_str()) {
            let started = code_lines(&text).filter(|(_, line)| {
                line.contains("tokio::runtime")
                    || line.contains("tokio::spawn")
                    || line.contains("tokio::main")
            });
            findings.extend(started.map(|(number, _)| format!("{}:{number}", path.display())));
        }
    }
    assert_none(
        &findings,
        "a core runs what rt runs there, and nothing else",
    );
}

#[test]
fn the_simulator_is_switched_on_by_dev_dependencies_only() {
    let metadata = metadata();
    let mut switched_on = 0;
    for package in ours(&metadata) {
        for dependency in package
            .dependencies
            .iter()
            .filter(|dependency| dependency.name == KERNEL_CRATE)
        {
            if dependency.features.iter().any(|feature| feature == "sim") {
                switched_on += 1;
                assert_eq!(
                    dependency.kind,
                    DependencyKind::Development,
                    "{}: the simulator's randomness is predictable",
                    package.name
                );
            }
        }
        for (feature, enables) in &package.features {
            assert!(
                package.name == KERNEL_CRATE
                    || !enables.iter().any(|enabled| enabled.ends_with("/sim")),
                "{}: feature {feature} would switch the simulator on",
                package.name
            );
        }
    }
    assert!(
        switched_on > 0,
        "no crate tests on the simulator, or its feature has another name by now"
    );
}

#[test]
fn every_crate_takes_lints_and_versions_from_the_workspace() {
    let mut findings = Vec::new();
    let metadata = metadata();
    for package in ours(&metadata) {
        let path = package
            .manifest_path
            .strip_prefix(root())
            .expect("members lie below the root");
        let manifest = toml_of(path.as_std_path());
        let inherits = |value: Option<&toml::Value>| {
            value
                .and_then(|value| value.get("workspace"))
                .and_then(toml::Value::as_bool)
                == Some(true)
        };
        if !inherits(manifest.get("lints")) {
            findings.push(format!("{path}: lints.workspace = true is missing"));
        }
        for key in ["license", "publish", "rust-version", "version"] {
            if !inherits(manifest.get("package").and_then(|package| package.get(key))) {
                findings.push(format!("{path}: {key}.workspace = true is missing"));
            }
        }
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, dependency) in manifest
                .get(table)
                .and_then(toml::Value::as_table)
                .into_iter()
                .flatten()
            {
                if !inherits(Some(dependency)) {
                    findings.push(format!("{path}: {name} has a version of its own"));
                }
            }
        }
        assert_eq!(
            package.publish,
            Some(Vec::new()),
            "{} must not be published by accident",
            package.name
        );
        assert!(
            package.description.is_some(),
            "{} says in its manifest what it is",
            package.name
        );
    }
    assert_none(
        &findings,
        "versions and lints stand once, in the root's Cargo.toml",
    );
}

#[test]
fn no_tracked_file_names_this_machine_or_a_registry() {
    // In pieces, so that this file does not find itself.
    let machine = [
        ["/wo", "rk/"],
        ["/fa", "rm/"],
        ["/ro", "ot/"],
        ["/ho", "me/"],
    ]
    .map(|parts| parts.concat());
    let registries = [
        ["crates", ".io"],
        ["py", "pi.org"],
        ["python", "hosted.org"],
        ["npm", "js.org"],
        ["npm", "js.com"],
        ["deb.", "debian.org"],
    ]
    .map(|parts| parts.concat());
    let mut findings = Vec::new();
    for path in tracked()
        .iter()
        .filter(|path| !path.ends_with("Cargo.lock"))
    {
        for (index, line) in read(path).lines().enumerate() {
            // Only at the start of a path: a folder of that name inside the project is no such thing.
            let names_machine = machine.iter().any(|name| {
                line.match_indices(name.as_str()).any(|(at, _)| {
                    !line.get(..at).is_some_and(|before| {
                        before.ends_with(|c: char| c.is_alphanumeric() || "._-~}/".contains(c))
                    })
                })
            });
            if names_machine || registries.iter().any(|name| line.contains(name.as_str())) {
                findings.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    }
    assert_none(
        &findings,
        "a path of one machine or the host of a registry means nothing to the next reader",
    );
}

#[test]
fn files_have_a_readable_size() {
    let mut findings = Vec::new();
    for path in tracked() {
        let bytes = std::fs::metadata(root().join(&path))
            .expect("a listed file exists")
            .len();
        if bytes > TRACKED_BYTES_MAX && !path.ends_with("Cargo.lock") {
            findings.push(format!("{}: {bytes} bytes", path.display()));
        }
        if !has_extension(&path, "rs") {
            continue;
        }
        let text = read(&path);
        let lines = text.lines().count();
        let tested = text
            .lines()
            .take_while(|line| *line != "#[cfg(test)]")
            .count();
        let is_test =
            path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        if lines > TESTED_LINES_MAX || (tested > SOURCE_LINES_MAX && !is_test) {
            findings.push(format!(
                "{}: {tested} lines, {lines} with tests",
                path.display()
            ));
        }
    }
    assert_none(
        &findings,
        "a file that needs a table of contents wants to be two",
    );
}

#[test]
fn every_crate_and_module_says_what_it_is() {
    let metadata = metadata();
    let mut findings = Vec::new();
    // A module of unit tests is what its name says.
    let sources = tracked()
        .into_iter()
        .filter(|path| has_extension(path, "rs") && !path.ends_with("tests.rs"));
    for path in sources {
        let text = read(&path);
        let first = text
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        if !first.starts_with("//!") {
            findings.push(format!("{}: the first line is no `//!`", path.display()));
        }
    }
    for package in ours(&metadata) {
        let has_tests_or_lib = package
            .targets
            .iter()
            .any(|target| target.kind.contains(&TargetKind::Lib));
        assert!(has_tests_or_lib, "{} has no library to test", package.name);
    }
    assert_none(
        &findings,
        "a module header says what the file owns and what must stay true",
    );
}

#[test]
fn deny_toml_allows_every_licence_in_use_and_no_other() {
    let metadata = metadata();
    let deny = toml_of(Path::new("deny.toml"));
    let licenses = deny
        .get("licenses")
        .expect("deny.toml has a section for licences");
    let words = |value: Option<&toml::Value>| -> BTreeSet<String> {
        value
            .and_then(toml::Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    };
    let allowed = words(licenses.get("allow"));
    let exceptions: BTreeMap<String, BTreeSet<String>> = licenses
        .get("exceptions")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.get("name")?.as_str()?.to_owned(),
                words(entry.get("allow")),
            ))
        })
        .collect();
    let mut used = BTreeSet::new();
    let mut findings = Vec::new();
    for package in metadata
        .packages
        .iter()
        .filter(|package| package.source.is_some())
    {
        let text = package.license.as_deref().unwrap_or_default();
        let expression =
            spdx::Expression::parse_mode(text, spdx::ParseMode::LAX).unwrap_or_else(|error| {
                panic!(
                    "{} {}: licence {text:?}: {error}",
                    package.name, package.version
                )
            });
        let extra = exceptions.get(package.name.as_str());
        let accepted = expression.evaluate(|requirement| {
            let id = requirement
                .license
                .id()
                .map(|id| id.name.to_owned())
                .unwrap_or_default();
            let fits = allowed.contains(&id) || extra.is_some_and(|extra| extra.contains(&id));
            if fits {
                used.insert(id);
            }
            fits
        });
        if !accepted {
            findings.push(format!("{} {}: {text}", package.name, package.version));
        }
    }
    assert_none(&findings, "a licence that deny.toml does not allow");
    let unused: Vec<_> = allowed.difference(&used).cloned().collect();
    assert_none(&unused, "deny.toml allows what nobody needs");
}

#[test]
fn deny_toml_lists_every_package_that_is_there_twice() {
    let metadata = metadata();
    let deny = toml_of(Path::new("deny.toml"));
    let bans = deny.get("bans").expect("deny.toml has a section for bans");
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for package in &metadata.packages {
        versions
            .entry(package.name.as_str())
            .or_default()
            .push(package.version.to_string());
    }
    let twice: BTreeSet<String> = versions
        .iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, _)| (*name).to_owned())
        .collect();
    let skipped: BTreeSet<String> = bans
        .get("skip")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            entry
                .get("name")?
                .as_str()?
                .split('@')
                .next()
                .map(str::to_owned)
        })
        .collect();
    assert_eq!(
        twice, skipped,
        "each package in two versions stands in deny.toml under bans.skip, with the reason"
    );
    let wrapped = bans
        .get("deny")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .any(|entry| {
            entry.get("name").and_then(toml::Value::as_str) == Some("glommio")
                && entry
                    .get("wrappers")
                    .and_then(toml::Value::as_array)
                    .is_some_and(|wrappers| wrappers.len() == 1)
        });
    assert!(wrapped, "deny.toml lets only one crate use glommio");
}

#[test]
fn api_md_has_every_code_with_its_status() {
    let text = read(Path::new("docs/api.md"));
    // "| 206 | 422 | …"
    let listed: Vec<(u16, u16)> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            Some((cells.next()?.parse().ok()?, cells.next()?.parse().ok()?))
        })
        .collect();
    let decided: Vec<_> = TspCode::ALL
        .iter()
        .map(|code| (code.number(), code.http_status()))
        .collect();
    assert_eq!(
        listed, decided,
        "docs/api.md tells the codes that the proxy sends"
    );
}

#[test]
fn links_between_our_pages_lead_somewhere() {
    let mut findings = Vec::new();
    for page in tracked().iter().filter(|path| has_extension(path, "md")) {
        let text = read(page);
        for (at, _) in text.match_indices("](") {
            let target = text
                .get(at + 2..)
                .and_then(|rest| rest.split([')', '#']).next())
                .unwrap_or_default();
            let beside = root()
                .join(page)
                .parent()
                .expect("a page lies in a folder")
                .join(target);
            if !target.is_empty() && !target.contains("://") && !beside.exists() {
                findings.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert_none(&findings, "a link to a file that is not there");
}

#[test]
fn the_tables_of_operations_md_name_tests_that_exist() {
    let page = read(Path::new("docs/operations.md"));
    let (_, tables) = page
        .split_once("\n## The existing product, row by row\n")
        .expect("the page has that part");
    let sources = tracked();
    let sources = sources.iter().filter(|path| has_extension(path, "rs"));
    let sources: String = sources.map(|path| read(path)).collect();
    let mut findings = Vec::new();
    let mut rows = 0;
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| ---");
    for row in tables.lines().filter(is_row) {
        let (_, tested) = row
            .trim_end_matches(['|', ' '])
            .rsplit_once(" | ")
            .unwrap_or_default();
        if tested.ends_with("tested by") {
            continue;
        }
        rows += 1;
        // What stands between backticks; names of modules and files are no names of tests.
        let names = tested.split('`').skip(1).step_by(2);
        let names = names.filter_map(|name| name.rsplit("::").next());
        let is_name = |name: &&str| {
            name.contains('_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        for name in names.filter(is_name) {
            if !sources.contains(&format!("fn {name}(")) {
                findings.push(format!("{name} in {row}"));
            }
        }
        let says_how = tested.contains('`') || tested.contains("unknown") || tested == "as above";
        if !says_how {
            findings.push(format!("nothing tests {row}"));
        }
    }
    assert!(rows > 60, "only {rows} rows");
    assert_none(&findings, "a table that names a test which is not there");
}

#[test]
fn ci_runs_the_command_that_the_readme_tells() {
    let ci = read(Path::new(".ci/run"));
    let commands: Vec<_> = ci
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .collect();
    assert_eq!(
        commands.last(),
        Some(&"exec ./x test"),
        "CI ends in the README's command"
    );
    assert_eq!(commands.len(), 3, "CI does nothing but that: {commands:?}");
    let readme = read(Path::new("README.md"));
    assert!(
        readme.contains("./x test") && readme.contains("./x dev"),
        "the README names both commands"
    );
}

#[test]
fn api_md_has_every_limit_with_its_value() {
    let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
    let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
    let seconds = |time: Duration| format!("{} s", time.as_secs_f64());
    let count = |number: usize| match number / 1000 {
        0 => number.to_string(),
        thousands => format!("{thousands},{:03}", number % 1000),
    };
    // Taken apart field by field, so that a new limit does not compile before it stands in the page.
    let Limits {
        body_bytes_max,
        bodies_bytes_max,
        refused_body_bytes_max,
        head_bytes_max,
        head_timeout,
        body_timeout,
        idle_timeout,
        rest_after,
        handshake_timeout,
        handshakes_max,
        connections_max,
        inflight_max,
        tenant_inflight_max,
        batch_items_max,
        secret_paths_max,
        batch_fanout_max,
        batch_timeout,
        kms_operation_timeout,
        kms_attempt_timeout,
        kms_connect_timeout,
        kms_connections_max,
        kms_tenant_connections_max,
        kms_waiters_max,
        kms_idle_timeout,
        kms_answer_bytes_max,
        lease_revalidate,
        lease_max_age,
        lease_idle,
        lease_wraps_max,
    } = Limits::default();
    let page = read(Path::new("docs/api.md"));
    let findings: Vec<_> = [
        ("body_bytes_max", mib(body_bytes_max)),
        ("bodies_bytes_max", mib(bodies_bytes_max)),
        ("refused_body_bytes_max", mib(refused_body_bytes_max)),
        ("head_bytes_max", kib(head_bytes_max)),
        ("head_timeout", seconds(head_timeout)),
        ("body_timeout", seconds(body_timeout)),
        ("idle_timeout", seconds(idle_timeout)),
        ("rest_after", seconds(rest_after)),
        ("handshake_timeout", seconds(handshake_timeout)),
        ("handshakes_max", count(handshakes_max)),
        ("connections_max", count(connections_max)),
        ("inflight_max", count(inflight_max)),
        ("tenant_inflight_max", count(tenant_inflight_max)),
        ("batch_items_max", count(batch_items_max)),
        ("secret_paths_max", count(secret_paths_max)),
        ("batch_fanout_max", count(batch_fanout_max)),
        ("batch_timeout", seconds(batch_timeout)),
        ("kms_operation_timeout", seconds(kms_operation_timeout)),
        ("kms_attempt_timeout", seconds(kms_attempt_timeout)),
        ("kms_connect_timeout", seconds(kms_connect_timeout)),
        ("kms_connections_max", count(kms_connections_max)),
        (
            "kms_tenant_connections_max",
            count(kms_tenant_connections_max),
        ),
        ("kms_waiters_max", count(kms_waiters_max)),
        ("kms_idle_timeout", seconds(kms_idle_timeout)),
        ("kms_answer_bytes_max", kib(kms_answer_bytes_max)),
        ("lease_revalidate", seconds(lease_revalidate)),
        ("lease_max_age", seconds(lease_max_age)),
        ("lease_idle", seconds(lease_idle)),
        ("lease_wraps_max", format!("2^{}", lease_wraps_max.ilog2())),
    ]
    .iter()
    .filter(|(name, value)| !page.contains(&format!("| `{name}` | {value}")))
    .map(|(name, value)| format!("{name} is {value}"))
    .collect();
    assert_none(&findings, "docs/api.md tells the limits as they are");
}

#[test]
fn the_readme_has_every_variable_with_its_default_and_effect() {
    let page = read(Path::new("README.md"));
    let listed: Vec<_> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            Some([
                cells.next()?.trim_end_matches('`'),
                cells.next()?.trim_matches('`'),
                cells.next()?,
            ])
        })
        .collect();
    let decided =
        tsp::config::VARIABLES.map(|variable| [variable.name, variable.default, variable.effect]);
    assert_eq!(
        listed, decided,
        "the README lists the variables that the program knows"
    );
}
