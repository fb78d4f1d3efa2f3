//! What the paths of a request cost without the kernel: one file in `benches/` per path, and here what they share.
//!
//! `cargo bench -p tsp-bench` measures with criterion, `cargo bench -p tsp-bench --bench parse -- wrap` only some.
//! `cargo test` runs every case once, counts its instructions and compares them with `budget.toml`. A case's result is
//! asserted before anything is measured, so that nothing is measured that does not work.
#![forbid(unsafe_code)]

pub mod budget;
pub mod report;
pub mod valgrind;

use std::{
    env, fmt,
    hint::black_box,
    io,
    time::{Duration, SystemTime},
};

use budget::Cost;
use criterion::Criterion;
use report::Report;
use tsp_kms::{Kms, LocalKms, RemoteKms};
use tsp_shards::Snapshot;
use tsp_wire::{
    Dek, KmsConfigId, Secret, SnapshotVersion,
    snapshot::{AssignmentDoc, GcpTokenKind, KmsConfigDoc, KmsKeyDoc, SnapshotDoc, TenantDoc},
};

/// One thing to measure.
pub struct Case<'a> {
    name: &'static str,
    run: Run<'a>,
    counts: bool,
}

enum Run<'a> {
    /// Its whole time counts.
    Whole(Box<dyn FnMut() + 'a>),
    /// It does it so often, and tells what counts.
    Timed(Box<dyn FnMut(u64) -> Duration + 'a>),
}

impl fmt::Debug for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

impl<'a> Case<'a> {
    /// Measures `run`; dropping its result counts.
    pub fn new<T>(name: &'static str, mut run: impl FnMut() -> T + 'a) -> Self {
        let run = Run::Whole(Box::new(move || {
            black_box(run());
        }));
        let counts = true;
        Self { name, run, counts }
    }

    /// Measures what `run` says that so many times took, where not all that it does is to count. Has no budget.
    pub fn timed(name: &'static str, run: impl FnMut(u64) -> Duration + 'a) -> Self {
        let run = Run::Timed(Box::new(run));
        let counts = false;
        Self { name, run, counts }
    }

    /// Without a budget: it is not ours, or never costs the same.
    #[must_use]
    pub fn without_budget(mut self) -> Self {
        self.counts = false;
        self
    }
}

/// Runs before instructions are counted: caches are filled, buffers grown.
const WARM_UP: u32 = 16;

/// Runs whose instructions are counted.
const COUNTED: u32 = 100;

/// Tells a bench under valgrind to run its cases in phases.
const IN_PHASES: &str = "--in-phases";

/// The main function of every bench: measures time under `cargo bench`; otherwise runs each case once, then all under
/// valgrind, and compares the instructions with the budget.
///
/// It does not leave the second to criterion, which ends with an error at options that it does not know, such as the
/// `--test-threads` of `cargo test`.
///
/// # Errors
/// If standard output is gone, or valgrind is not there.
pub fn main(group: &'static str, cases: Vec<Case<'_>>) -> io::Result<()> {
    if env::args().any(|argument| argument == "--bench") {
        let mut criterion = Criterion::default().configure_from_args();
        let mut group = criterion.benchmark_group(group);
        for Case { name, run, .. } in cases {
            match run {
                Run::Whole(mut run) => group.bench_function(name, |bencher| bencher.iter(&mut run)),
                Run::Timed(mut run) => {
                    group.bench_function(name, |bencher| bencher.iter_custom(&mut run))
                }
            };
        }
        group.finish();
        criterion.final_summary();
        return Ok(());
    }
    if env::args().any(|argument| argument == IN_PHASES) {
        for case in cases.into_iter().filter(|case| case.counts) {
            case.in_phases();
        }
        return Ok(());
    }
    let mut counted = Vec::new();
    let mut report = Report::new(group);
    for Case { name, run, counts } in cases {
        match run {
            Run::Whole(mut run) => run(),
            Run::Timed(mut run) => {
                run(1);
            }
        }
        report.passed(name)?;
        if counts {
            counted.push(name);
        }
    }
    if !counted.is_empty() {
        let instructions =
            valgrind::instructions(&[IN_PHASES], &["tsp_bench::valgrind::measured"])?;
        let each = instructions
            .iter()
            .map(|all| *all as f64 / f64::from(COUNTED));
        let figures: Vec<_> = counted.into_iter().zip(each).collect();
        report.compare(Cost::Instructions, &figures)?;
    }
    report.end()
}

impl Case<'_> {
    /// Each run by itself: what the loop takes does not count.
    fn in_phases(self) {
        let Run::Whole(mut run) = self.run else {
            return;
        };
        (0..WARM_UP).for_each(|_| run());
        valgrind::phase();
        (0..COUNTED).for_each(|_| valgrind::measured(&mut run));
        valgrind::phase();
    }
}

/// The tenant of all requests.
pub const TENANT: &str = "tenant-a";

/// Ids in a batch: as many as the published SDKs' own tests send.
pub const BATCH_ITEMS: usize = 100;

/// The body of a wrap as an SDK with all fields set sends it.
pub const WRAP_BODY: &str = r#"{"tenantId":"tenant-a","iclFields":{"requestingId":"billing-service","dataLabel":"medical-record","sourceIp":"192.0.2.17","objectId":"record-0000004711","requestId":"7d3f1c52-90a4-4f0e-8a55-0d7d1a2b3c4d"},"customFields":{"region":"eu-central","service":"billing"}}"#;

/// [`WRAP_BODY`] with one more member.
#[must_use]
pub fn body_with(member: &str) -> Vec<u8> {
    body_of(TENANT, member).into()
}

/// [`WRAP_BODY`] of another tenant, with one more member unless that is empty.
#[must_use]
pub fn body_of(tenant: &str, member: &str) -> String {
    let body = WRAP_BODY.replace(TENANT, tenant);
    match body.strip_suffix('}') {
        Some(open) if !member.is_empty() => format!("{open},{member}}}"),
        _ => body,
    }
}

/// The body of a batch wrap of [`BATCH_ITEMS`] ids.
#[must_use]
pub fn batch_wrap_body() -> Vec<u8> {
    let ids: Vec<_> = (0..BATCH_ITEMS)
        .map(|item| format!("\"document-{item:04}\""))
        .collect();
    body_with(&format!("\"documentIds\":[{}]", ids.join(",")))
}

/// A key that is no secret.
#[must_use]
pub fn dek() -> Dek {
    Dek::fill_with(|bytes| bytes.fill(0x5a))
}

/// The number of the KMS config in all EDEKs.
///
/// # Panics
/// Never: 41 is one.
#[must_use]
#[expect(clippy::expect_used, reason = "41 is the number of a KMS config")]
pub fn config_id() -> KmsConfigId {
    KmsConfigId::new(41).expect("41 is the number of a KMS config")
}

fn config(key: KmsKeyDoc) -> KmsConfigDoc {
    KmsConfigDoc {
        id: 41,
        leasing_allowed: false,
        key,
        endpoint: None,
        allow_insecure: false,
        ca_pem: None,
    }
}

/// Tenants of one local KMS config, [`config_id`]: `tenant-a-0` and so on.
///
/// # Panics
/// If the configuration is refused.
#[must_use]
pub fn snapshot_of(tenants: usize) -> Snapshot {
    let local = KmsKeyDoc::Local {
        key: local_kms_key(),
    };
    let tenant = |number| TenantDoc {
        id: format!("{TENANT}-{number}"),
        assignments: vec![AssignmentDoc {
            kms: 41,
            active: true,
            primary: true,
        }],
    };
    let doc = SnapshotDoc {
        version: SnapshotVersion(1),
        kms: vec![config(local)],
        unusable: Vec::new(),
        tenants: (0..tenants).map(tenant).collect(),
        secrets: Vec::new(),
    };
    let (snapshot, rejected) = Snapshot::from_doc(doc, true);
    assert!(rejected.is_empty(), "{rejected:?}");
    snapshot
}

/// A local KMS.
#[must_use]
pub fn local_kms() -> LocalKms {
    LocalKms::new(&local_kms_key())
}

/// The key of [`local_kms`].
#[must_use]
pub fn local_kms_key() -> Secret<[u8; 32]> {
    Secret::new([7; 32])
}

/// Credentials that no account has: access key id and secret, of the usual lengths.
pub const AWS_CREDENTIALS: (&str, &str) = (
    "AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
);

/// A session token of the usual length, 356 characters.
#[must_use]
pub fn aws_session_token() -> String {
    "FwoGZXIvYXdzEXAMPLE/"
        .repeat(18)
        .chars()
        .take(356)
        .collect()
}

#[expect(
    clippy::panic,
    reason = "a fixture that does not stand is a mistake in this file"
)]
fn remote(key: KmsKeyDoc) -> Box<dyn RemoteKms> {
    match Kms::from_doc(&config(key)) {
        Ok(Kms::Remote(kms)) => kms,
        other => panic!("{other:?}"),
    }
}

/// An AWS KMS, with temporary credentials or with lasting ones.
///
/// # Panics
/// If the configuration is refused.
#[must_use]
pub fn aws_kms(session_token: Option<String>) -> Box<dyn RemoteKms> {
    let (access_key_id, secret_access_key) = AWS_CREDENTIALS;
    let key = KmsKeyDoc::Aws {
        key_id: "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
            .to_owned(),
        region: "eu-west-1".to_owned(),
        access_key_id: access_key_id.to_owned(),
        secret_access_key: Secret::new(secret_access_key.to_owned()),
        session_token: session_token.map(Secret::new),
        assume_role: None,
        sts_endpoint: None,
    };
    remote(key)
}

/// A Google Cloud KMS, whose service account signs its own tokens.
///
/// # Panics
/// If the configuration is refused.
#[must_use]
pub fn gcp_kms() -> Box<dyn RemoteKms> {
    let key = include_str!("../../kms/tests/data/gcp-TEST-ONLY-service-account-key.pem");
    remote(KmsKeyDoc::Gcp {
        client_email: "tsp@acme.iam.gserviceaccount.com".to_owned(),
        private_key: Secret::new(key.to_owned()),
        private_key_id: None,
        project_id: "acme".to_owned(),
        location_id: "europe-west1".to_owned(),
        key_ring_id: "tsp".to_owned(),
        crypto_key_id: "documents".to_owned(),
        token: GcpTokenKind::SelfSigned,
        token_endpoint: None,
    })
}

/// An Azure Key Vault, whose application proves itself with a certificate.
///
/// # Panics
/// If the configuration is refused.
#[must_use]
pub fn azure_kms() -> Box<dyn RemoteKms> {
    let certificate = concat!(
        include_str!("../../kms/tests/data/azure-TEST-ONLY-client-cert.pem"),
        include_str!("../../kms/tests/data/azure-TEST-ONLY-client-key.pem"),
    );
    remote(KmsKeyDoc::Azure {
        client_id: "11111111-2222-3333-4444-555555555555".to_owned(),
        client_secret: None,
        client_certificate: Some(Secret::new(certificate.to_owned())),
        tenant_guid: "66666666-7777-8888-9999-000000000000".to_owned(),
        vault_base_url: "https://acme.vault.azure.net".to_owned(),
        key_name: "documents".to_owned(),
        algorithm: None,
        authority: None,
    })
}

/// The time of all signatures: 2026-01-15, 10:15:30 UTC.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_768_472_130)
}
