//! `docs/faults.md`: the table and the score for people, made of what was seen, and compared with the file.

use std::{fmt::Write as _, path::Path};

use super::{Diagnosis, Row, Seen, Verdict};
use crate::support::kmssim::Provider;

/// With `1` in it the page is written instead of compared.
const WRITE: &str = "TSP_TEST_WRITE_PAGES";

const ABOUT: &str = "\
# What can go wrong at a KMS, and who hears what

For whoever runs the proxy, owns a key, or is asked at night whose fault it is: each fault that a KMS, its credentials, its
account or the way to it can have, what an application is told then, whose it is, and what `tsp doctor` finds.

This page is written by a test. `tests/integration/faults.rs` makes every fault below at simulated KMSs and at broken endpoints,
sends a request through a real `tsp`, runs `tsp doctor` over the same configuration file, and fails if one of them says
something else than the table expects, or than stands here. What is expected was written down from the vendors' documents
before the answers were seen. To write the page anew:

```sh
TSP_TEST_WRITE_PAGES=1 cargo test --test integration faults::every_fault -- --test-threads 1
```

The KMSs are simulated: what AWS, Google, Microsoft and Thales answer today may differ in words. Where they publish no code
for a case (a closed account at AWS, a locked user at Thales) the simulators' answer is a guess.
";

const HOW_TO_READ: &str = "\
## How to read the tables

- **Application**: HTTP status and code of the answer ([api.md](api.md#errors)), and the KMS's own word for it, which the message
  names. *Served* means that the proxy mended it and the application noticed nothing.
- **Whose**: who can mend it, as the doctor says: the *configuration* (whoever wrote the configuration file), the *key owner* (at
  the KMS), the *network*, the *KMS* (whoever runs it), or *this machine*.
- **Doctor**: the check that fails and the cause, a stable word in its `--json`. What to do about each cause stands in the next
  table. *Well* means that there is nothing to find: the fault is over, or lies in the data.
- \"Between wrap and unwrap\": the key was used before, and the fault came then.

A message says who was asked, what for, the KMS's word and request id, its sentence, and what to do:

> AWS KMS could not wrap the key (DisabledException, request 0a1b2c3d-0000-4000-8000-0123456789ab): … is disabled. Check key and
> region in the KMS config, and the key's state and permissions at the KMS.
";

/// The scores of all providers, one line each.
pub(super) fn score(rows: &[(&Row, &Seen)]) -> String {
    let mut text = String::new();
    text.push_str(
        "| KMS | faults | code and status | blame and advice in the message | doctor |\n",
    );
    text.push_str("| --- | --- | --- | --- | --- |\n");
    for provider in Provider::ALL {
        let own = rows.iter().filter(|(row, _)| row.provider == provider);
        let verdicts: Vec<_> = own.map(|(row, seen)| Verdict::of(row, seen)).collect();
        let all = verdicts.len();
        let count = |right: fn(&Verdict) -> bool| verdicts.iter().filter(|v| right(v)).count();
        let (code, blame, doctor) = (count(|v| v.code), count(|v| v.blame), count(|v| v.doctor));
        let name = title(provider);
        writeln!(
            text,
            "| {name} | {all} | {code} of {all} | {blame} of {all} | {doctor} of {all} |"
        )
        .expect("a String takes everything");
    }
    text
}

fn title(provider: Provider) -> &'static str {
    match provider {
        Provider::Aws => "AWS KMS",
        Provider::Gcp => "Google Cloud KMS",
        Provider::Azure => "Azure Key Vault",
        Provider::Thales => "Thales CipherTrust Manager",
    }
}

/// Fails unless the file says what was seen; or writes it.
pub(super) fn check(rows: &[(&Row, &Seen)]) {
    let page = page(rows);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md");
    if std::env::var(WRITE).is_ok_and(|value| value == "1") {
        std::fs::write(&path, page).expect("the page can be written");
        return;
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page
        .lines()
        .zip(known.lines())
        .find(|(seen, known)| seen != known);
    assert!(
        page == known,
        "docs/faults.md says something else than was seen: {differs:?}; with {WRITE}=1 this test writes it anew"
    );
}

fn page(rows: &[(&Row, &Seen)]) -> String {
    let mut text = ABOUT.to_owned();
    text.push_str("\n## Score\n\n");
    text.push_str(&score(rows));
    text.push('\n');
    text.push_str(HOW_TO_READ);
    causes(&mut text, rows);
    everywhere(&mut text, rows);
    for provider in Provider::ALL {
        let own: Vec<_> = rows
            .iter()
            .filter(|(row, _)| row.provider == provider && !is_everywhere(row))
            .copied()
            .collect();
        heading(&mut text, title(provider));
        for (row, seen) in own {
            line(&mut text, row.fault.what, &outcome(seen, true));
        }
    }
    text
}

fn heading(text: &mut String, title: &str) {
    write!(
        text,
        "\n## {title}\n\n| fault | application | whose | doctor |\n| --- | --- | --- | --- |\n"
    )
    .expect("a String takes everything");
}

fn line(text: &mut String, what: &str, outcome: &str) {
    writeln!(text, "| {what} | {outcome} |").expect("a String takes everything");
}

fn is_everywhere(row: &Row) -> bool {
    let mut shared = super::everywhere::FAULTS.iter();
    shared.any(|fault| fault.what == row.fault.what)
}

/// The last three cells of a line.
fn outcome(seen: &Seen, with_word: bool) -> String {
    let application = match seen.code {
        200 => "served".to_owned(),
        code => {
            let word = word(&seen.message).filter(|_| with_word);
            let word = word.map(|word| format!(", `{word}`")).unwrap_or_default();
            let wait = seen.retry_after_s.map(|s| format!(", `Retry-After: {s}`"));
            format!("{}, {code}{word}{}", seen.status, wait.unwrap_or_default())
        }
    };
    let Diagnosis {
        check,
        cause,
        whose,
        ..
    } = &seen.diagnosis;
    if cause.is_empty() {
        format!("{application} | | well")
    } else {
        format!("{application} | {whose} | `{check}`: `{cause}`")
    }
}

/// The KMS's own code in a message: what stands first in the first brackets, before the colon.
fn word(message: &str) -> Option<&str> {
    let (head, _) = message.split_once(": ")?;
    let (_, bracket) = head.split_once('(')?;
    let word = bracket.trim_end_matches(')').split(',').next()?;
    (!word.starts_with("request ")).then_some(word)
}

/// What the doctor's words mean.
fn causes(text: &mut String, rows: &[(&Row, &Seen)]) {
    text.push_str("\n## What the doctor finds, and what to do\n\n| cause | whose | what to do |\n| --- | --- | --- |\n");
    let mut told: Vec<&str> = Vec::new();
    for (_, seen) in rows {
        let Diagnosis {
            cause,
            whose,
            remedy,
            ..
        } = &seen.diagnosis;
        if !cause.is_empty() && !told.contains(&cause.as_str()) {
            told.push(cause);
            writeln!(text, "| `{cause}` | {whose} | {remedy} |")
                .expect("a String takes everything");
        }
    }
}

/// The faults that every KMS can have, once where all come to the same.
fn everywhere(text: &mut String, rows: &[(&Row, &Seen)]) {
    heading(text, "Every KMS");
    for fault in super::everywhere::FAULTS {
        let alike = rows.iter().filter(|(row, _)| row.fault.what == fault.what);
        let outcomes: Vec<_> = alike
            .map(|(row, seen)| (title(row.provider), outcome(seen, false)))
            .collect();
        let (_, first) = outcomes.first().expect("every provider has it");
        if outcomes.iter().all(|(_, outcome)| outcome == first) {
            line(text, fault.what, first);
        } else {
            for (name, outcome) in &outcomes {
                line(text, &format!("{} ({name})", fault.what), outcome);
            }
        }
    }
}
