//! Every fault of the table, made at simulated KMSs and broken endpoints: what applications are told, and what the doctor
//! finds. [`docs/faults.md`](../../docs/faults.md) is made from what is seen here.
//!
//! Each fault has a tenant and a KMS config of its own, so that nothing learnt from one is used on another. All of them are
//! in one configuration file, of one proxy and one run of the doctor.

mod aws;
mod azure;
mod broken;
mod everywhere;
mod gcp;
mod page;
mod scene;
mod table;
mod thales;
mod worlds;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tsp_wire::edek::EncryptedDeks;

use self::{
    scene::{Row, Scene},
    table::Tried,
};
use crate::support::{
    base64,
    http::Answer,
    metadata, on_both,
    proxy::{Io, Proxy, Setup},
    request, text, to_base64,
};

/// What the doctor's exit code says when a KMS config does not work.
const EXIT_UNHEALTHY: i32 = 69;

/// Requests at one time, of those that are answered at once.
const QUICK_AT_ONE_TIME: usize = 8;

/// What was seen of one row.
#[derive(Debug)]
struct Seen {
    status: u16,
    /// 200 for a success.
    code: u16,
    message: String,
    /// Seconds after which the caller may come back.
    retry_after_s: Option<u64>,
    diagnosis: Diagnosis,
}

/// What the doctor says of one KMS config: its last failure; empty if there is none.
#[derive(Clone, Debug, Default)]
struct Diagnosis {
    check: String,
    cause: String,
    whose: String,
    remedy: String,
    what: String,
}

/// An answer of the proxy.
#[derive(Debug)]
struct Answered {
    status: u16,
    retry_after_s: Option<u64>,
    body: Value,
}

impl From<&Answer> for Answered {
    fn from(answer: &Answer) -> Self {
        let retry_after = answer.header("retry-after");
        Self {
            status: answer.status,
            retry_after_s: retry_after.map(|text| text.parse().expect("it is a number")),
            body: answer.json(),
        }
    }
}

/// How a row compares.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    code: bool,
    blame: bool,
    doctor: bool,
}

impl Verdict {
    fn of(row: &Row, seen: &Seen) -> Self {
        let (fault, found) = (&row.fault, &seen.diagnosis);
        let provider = match row.provider.as_str() {
            "gcp" => "google",
            // Entra is Microsoft's, too.
            "azure" => "azure|microsoft",
            other => other,
        };
        let is_named = seen.code == 200 || has(&seen.message, provider);
        Self {
            code: (seen.status, seen.code, seen.retry_after_s)
                == (fault.status(), fault.code, fault.retry_after_s()),
            blame: is_named && fault.says.iter().all(|words| has(&seen.message, words)),
            doctor: (found.cause.as_str(), found.whose.as_str())
                == (fault.found.cause, fault.found.whose)
                && fault
                    .found
                    .remedy
                    .iter()
                    .all(|words| has(&found.remedy, words)),
        }
    }

    fn is_right(self) -> bool {
        self.code && self.blame && self.doctor
    }
}

/// Whether a text has a word, or one of several that are parted by `|`; capitals or not.
fn has(text: &str, words: &str) -> bool {
    let text = text.to_lowercase();
    words
        .split('|')
        .any(|word| text.contains(&word.to_lowercase()))
}

on_both! {
    fn every_fault_is_answered_and_diagnosed_as_the_table_says(io) {
        let scene = Scene::new();
        let seen = observe(&scene, io);
        let rows: Vec<_> = scene.rows.iter().zip(&seen).collect();
        let wrong: Vec<_> = rows
            .iter()
            .filter(|(row, seen)| !Verdict::of(row, seen).is_right())
            .map(|(row, seen)| tell(row, seen))
            .collect();
        assert!(wrong.is_empty(), "{} of {} rows:\n{}\n{}", wrong.len(), rows.len(), wrong.join("\n"), page::score(&rows));
        page::check(&rows);
    }
}

fn tell(row: &Row, seen: &Seen) -> String {
    let Verdict {
        code,
        blame,
        doctor,
    } = Verdict::of(row, seen);
    let mark = |good| if good { "ok" } else { "NO" };
    let (fault, found) = (&row.fault, &seen.diagnosis);
    format!(
        "{} {:?} ({}): {:?}\n    code {}: {} {} for {} {}\n    blame {}: {} for {:?}\n    doctor {}: {} {} ({}; {}; {}) for {} {} {:?}",
        row.provider.as_str(),
        fault.what,
        row.tenant,
        fault.made,
        mark(code),
        seen.status,
        seen.code,
        fault.status(),
        fault.code,
        mark(blame),
        seen.message,
        fault.says,
        mark(doctor),
        found.cause,
        found.whose,
        found.check,
        found.remedy,
        found.what,
        fault.found.cause,
        fault.found.whose,
        fault.found.remedy,
    )
}

/// Makes all faults and looks at each from both sides.
fn observe(scene: &Scene, io: Io) -> Vec<Seen> {
    let proxy = scene.setup(io, &scene.before).start();
    let edeks = wrap_before(&proxy, scene);
    proxy.replace_config(&scene.after);
    proxy.signal(Signal::HUP);
    proxy
        .log
        .wait_json(0, "line that the second state is in force", |line| {
            line["message"] == "tenant configurations published"
                && line["config_version"].as_u64() >= Some(2)
        });
    scene.strike();
    // First those that are answered at once, few at a time, so that a slow machine is none of the faults. A fault that strikes
    // once must strike the proxy, not the doctor.
    let (slow, quick): (Vec<_>, Vec<_>) = scene.rows.iter().partition(|row| row.fault.is_slow());
    let mut answers = ask(&proxy, &quick, &edeks, QUICK_AT_ONE_TIME);
    let diagnoses = thread::scope(|scope| {
        let doctors: Vec<_> = scene
            .parts
            .iter()
            .map(|part| scope.spawn(|| diagnose(scene.setup(io, part))))
            .collect();
        answers.extend(ask(&proxy, &slow, &edeks, slow.len()));
        let reports = doctors
            .into_iter()
            .map(|doctor| doctor.join().expect("a report can be read"));
        reports.flatten().collect::<HashMap<_, _>>()
    });
    scene.assert_struck();
    let seen = scene.rows.iter().map(|row| {
        let Answered {
            status,
            retry_after_s,
            body,
        } = &answers[&row.kms];
        Seen {
            status: *status,
            retry_after_s: *retry_after_s,
            code: body["code"]
                .as_u64()
                .map_or(200, |code| code.try_into().expect("a code is small")),
            message: body["message"].as_str().unwrap_or_default().to_owned(),
            diagnosis: diagnoses.get(&row.kms).cloned().unwrap_or_default(),
        }
    });
    seen.collect()
}

/// What the rows to be unwrapped hold, by their KMS config.
fn wrap_before(proxy: &Proxy, scene: &Scene) -> HashMap<usize, String> {
    let rows = scene
        .rows
        .iter()
        .filter(|row| row.fault.tried == Tried::Unwrap);
    let wrap = |row: &Row| {
        let wrapped = proxy.call("document/wrap", &metadata(&row.tenant)).ok();
        let edek = text(&wrapped, "edek");
        let edek = if row.is_damaged() {
            damaged(edek)
        } else {
            edek.to_owned()
        };
        (row.kms, edek)
    };
    rows.map(wrap).collect()
}

/// Changes a bit of what the KMS made: in its first quarter, where no KMS's form has anything but ciphertext or the name of its
/// key.
fn damaged(edek: &str) -> String {
    let mut parsed = EncryptedDeks::from_bytes(&base64(edek)).expect("it is an EDEK");
    let data = &mut parsed.encrypted_deks[0].encrypted_dek_data;
    let quarter = data.len() / 4;
    data[quarter] ^= 1;
    to_base64(&prost::Message::encode_to_vec(&parsed))
}

/// Asks for these rows, so many at one time.
fn ask(
    proxy: &Proxy,
    rows: &[&Row],
    edeks: &HashMap<usize, String>,
    at_one_time: usize,
) -> HashMap<usize, Answered> {
    let next = AtomicUsize::new(0);
    let ask_for = |row: &Row| {
        let answer = match row.fault.tried {
            Tried::Wrap | Tried::Once => proxy.call("document/wrap", &metadata(&row.tenant)),
            Tried::Unwrap => {
                let edek = json!({ "encryptedDocumentKey": edeks[&row.kms] });
                proxy.call("document/unwrap", &request(&row.tenant, edek))
            }
        };
        (row.kms, Answered::from(&answer))
    };
    let work = || {
        let rows = std::iter::from_fn(|| rows.get(next.fetch_add(1, Ordering::Relaxed)));
        rows.map(|row| ask_for(row)).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_one_time).map(|_| scope.spawn(work)).collect();
        let answers = workers
            .into_iter()
            .map(|worker| worker.join().expect("there is an answer"));
        answers.flatten().collect()
    })
}

/// One run of the doctor.
fn diagnose(setup: Setup) -> Vec<(usize, Diagnosis)> {
    let ended = setup.argument("doctor").argument("--json").run_to_end();
    assert_eq!(ended.code, Some(EXIT_UNHEALTHY), "{}", ended.output);
    // What it wrote to standard error stands somewhere between.
    let lines = ended.output.lines();
    let json: String = lines.filter(|line| !line.starts_with("tsp: ")).collect();
    let report: Value = serde_json::from_str(&json).unwrap_or_else(|why| panic!("{why}: {json}"));
    let configs = report["kms"]
        .as_array()
        .expect("it has a list of KMS configs");
    let diagnosis = |config: &Value| {
        let id = config["id"].as_u64().expect("it has an id");
        let checks = config["checks"].as_array().expect("it has checks");
        let failed = checks
            .iter()
            .rev()
            .find(|check| check["result"] == "failed");
        assert_eq!(config["healthy"], json!(failed.is_none()), "{config}");
        let text = |name: &str| {
            let found = failed.and_then(|check| check[name].as_str());
            found.unwrap_or_default().to_owned()
        };
        let diagnosis = Diagnosis {
            check: text("check"),
            cause: text("diagnosis"),
            whose: text("whose"),
            remedy: text("remedy"),
            what: text("what"),
        };
        (
            usize::try_from(id).expect("there are not so many"),
            diagnosis,
        )
    };
    configs.iter().map(diagnosis).collect()
}
