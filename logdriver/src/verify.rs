//! `tsp-logdriver verify`: looks an exported log through, offline, for whoever has to believe it.
//!
//! What it finds is named by tenant, logdriver and place: events that were edited, that are missing, that claim the same place;
//! a history that was written anew; checkpoints that nobody signed; events that a proxy says it lost, and proxies that ended
//! without a word. The order of lines says nothing, since most log systems show the newest first, and an event that comes twice is what at-least-once delivery means.

mod input;
mod report;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read as _, Write as _},
    path::PathBuf,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use clap::Args;
use serde_json::{Map, Value};
use tsp_wire::envelope::VerifyingKey;

use crate::{
    chain::{ChainHash, Checkpoint, Head, Link, LogdriverId},
    notice,
};

pub use self::report::{Chain, Finding, Report};

/// Largest file that is looked through, in bytes: all of it is held in memory, as links of some 100 bytes per event.
const INPUT_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// Exit code: the log is whole, and proven.
const SOUND: u8 = 0;
/// Exit code: a key or a file cannot be read.
const USAGE: u8 = 64;
/// Exit code: something is wrong with the log.
const UNSOUND: u8 = 69;

/// What is to be verified.
#[derive(Args, Debug)]
pub struct Verify {
    /// The exported log: JSON lines or one JSON array, as the log system wraps them; `-` is standard input
    file: PathBuf,
    /// The logdriver's public key in base64, from its operator; once per logdriver
    #[arg(long = "public-key", value_name = "BASE64", required = true)]
    public_keys: Vec<String>,
    /// The export has everything: a chain that does not begin with its first event is unsound
    #[arg(long)]
    from_start: bool,
    /// The place up to which the log must go, as its operator says it
    #[arg(long, value_name = "PLACE")]
    last: Option<u64>,
}

/// Verifies, tells on standard output, and returns the exit code.
#[must_use]
pub fn run(verify: &Verify) -> u8 {
    let told = |text: &str, code| {
        // Nobody is left to be told when standard output is gone; the code says it too.
        let _ = io::stdout().write_all(text.as_bytes());
        code
    };
    let failed = |text: &str| {
        let _ = writeln!(io::stderr(), "tsp-logdriver: {text}");
        USAGE
    };
    let keys: Option<Vec<_>> = verify.public_keys.iter().map(|text| key(text)).collect();
    let Some(keys) = keys else {
        return failed("--public-key is not 32 bytes in base64");
    };
    let input: Box<dyn io::Read> = if verify.file.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        match File::open(&verify.file) {
            Ok(file) => Box::new(file),
            Err(why) => return failed(&format!("{}: {why}", verify.file.display())),
        }
    };
    let mut examined = Examined::new(keys);
    let input = BufReader::new(input.take(INPUT_BYTES_MAX));
    if let Err(why) = input::each(input, |line, event| examined.take(line, event)) {
        return failed(&format!("{}: {why}", verify.file.display()));
    }
    let report = examined.report(verify.from_start, verify.last);
    let code = if report.is_sound() { SOUND } else { UNSOUND };
    told(&report.to_string(), code)
}

fn key(text: &str) -> Option<VerifyingKey> {
    let bytes = BASE64.decode(text.trim()).ok()?;
    Some(VerifyingKey::from_bytes(bytes.try_into().ok()?))
}

/// What has been read so far.
pub(crate) struct Examined {
    keys: Vec<VerifyingKey>,
    chains: BTreeMap<(String, LogdriverId), Places>,
    unreadable: Vec<u64>,
    unreadable_count: u64,
}

/// One chain.
#[derive(Default)]
struct Places {
    /// By place. What is edited is not among them.
    links: BTreeMap<u64, Linked>,
    findings: Vec<Finding>,
    duplicates: u64,
    events: u64,
    checkpoints: Vec<(u64, Checkpoint)>,
    /// Places whose event was edited: they are there, so they are not missing.
    edited: BTreeSet<u64>,
    out_of_order: bool,
    last_line_place: u64,
}

struct Linked {
    previous: ChainHash,
    hash: ChainHash,
}

/// Lines without an event that are told of one by one.
const UNREADABLE_SHOWN_MAX: usize = 10;

impl Examined {
    pub(crate) fn new(keys: Vec<VerifyingKey>) -> Self {
        Self {
            keys,
            chains: BTreeMap::new(),
            unreadable: Vec::new(),
            unreadable_count: 0,
        }
    }

    /// Takes one record of the export: an event, or `None` where there is none.
    pub(crate) fn take(&mut self, line: u64, event: Option<Map<String, Value>>) {
        let linked = event.and_then(|mut event| {
            let tenant = event.get("tenantId")?.as_str()?.to_owned();
            let link = Link::take(&mut event)?;
            Some((tenant, link, event))
        });
        let Some((tenant, link, event)) = linked else {
            self.unreadable_count += 1;
            if self.unreadable.len() < UNREADABLE_SHOWN_MAX {
                self.unreadable.push(line);
            }
            return;
        };
        let checkpoint = Checkpoint::read(&tenant, &event, &self.keys);
        let chain = self.chains.entry((tenant, link.logdriver)).or_default();
        chain.take(line, &link, &event, checkpoint);
    }

    pub(crate) fn report(self, from_start: bool, last: Option<u64>) -> Report {
        let chains = self.chains.into_iter();
        Report {
            chains: chains
                .map(|((tenant, logdriver), places)| {
                    places.conclude(tenant, logdriver, from_start, last)
                })
                .collect(),
            unreadable: self.unreadable,
            unreadable_count: self.unreadable_count,
        }
    }
}

impl Places {
    fn take(
        &mut self,
        line: u64,
        link: &Link,
        event: &Map<String, Value>,
        checkpoint: Option<Checkpoint>,
    ) {
        let place = link.sequence;
        self.out_of_order |= place < self.last_line_place;
        self.last_line_place = place;
        if !link.fits(event) {
            self.events += 1;
            self.edited.insert(place);
            self.findings.push(Finding::Edited { place, line });
            return;
        }
        match self.links.get(&place) {
            Some(there) if there.hash == link.hash => {
                self.duplicates += 1;
                return;
            }
            Some(_) => {
                self.findings.push(Finding::Forked { place, line });
                return;
            }
            None => {}
        }
        self.events += 1;
        let (previous, hash) = (link.previous, link.hash);
        self.links.insert(place, Linked { previous, hash });
        if let Some(checkpoint) = checkpoint {
            self.checkpoints.push((place, checkpoint));
        }
        if event_name(event) == Some(LOST) {
            let count = lost_count(event);
            self.findings.push(Finding::Lost { place, count });
        }
        if let Some((proxy, last_event_at)) = notice::of_death(event) {
            self.findings.push(Finding::Died {
                place,
                proxy,
                last_event_at,
            });
        }
    }

    /// Looks at the chain as a whole.
    fn conclude(
        mut self,
        tenant: String,
        logdriver: LogdriverId,
        from_start: bool,
        last: Option<u64>,
    ) -> Chain {
        let start = Head::start(logdriver, &tenant);
        let mut before = (start.sequence, Some(start.hash));
        let mut first = true;
        let all: BTreeSet<u64> = self.links.keys().chain(&self.edited).copied().collect();
        for place in &all {
            let place = *place;
            if place > before.0 + 1 {
                let (from, to) = (before.0 + 1, place - 1);
                if !first || from_start {
                    self.findings.push(Finding::Missing { from, to });
                }
                before.1 = None;
            }
            first = false;
            let link = self.links.get(&place);
            if let (Some(link), Some(hash)) = (link, before.1)
                && link.previous != hash
            {
                self.findings.push(Finding::Rewritten { place });
            }
            before = (place, link.map(|link| link.hash));
        }
        let (first_place, last_place) = (
            all.first().copied().unwrap_or(0),
            all.last().copied().unwrap_or(0),
        );
        let mut proven = 0;
        self.checkpoints.sort_unstable_by_key(|(place, _)| *place);
        for (place, checkpoint) in &self.checkpoints {
            let (place, head) = (*place, checkpoint.head);
            let there = self.links.get(&head.sequence);
            if !checkpoint.signed {
                self.findings.push(Finding::Unsigned { place });
            } else if there.is_some_and(|link| link.hash != head.hash) || head.sequence >= place {
                self.findings.push(Finding::Contradicted { place });
            } else {
                proven = proven.max(place);
            }
        }
        if proven == 0 {
            self.findings.push(Finding::NoCheckpoint);
        }
        if let Some(last) = last.filter(|last| *last > last_place) {
            let from = last_place + 1;
            self.findings.push(Finding::Missing { from, to: last });
        }
        self.findings.sort_by_key(Finding::place);
        Chain {
            tenant,
            logdriver,
            first: first_place,
            last: last_place,
            events: self.events,
            duplicates: self.duplicates,
            proven,
            out_of_order: self.out_of_order,
            findings: self.findings,
        }
    }
}

/// Name of the event by which a proxy says that it lost some.
const LOST: &str = tsp_wire::event::TSP_EVENTS_LOST;

fn event_name(event: &Map<String, Value>) -> Option<&str> {
    event.get("iclFields")?.get("event")?.as_str()
}

/// How many were lost; 1 if it does not say.
fn lost_count(event: &Map<String, Value>) -> u64 {
    let count = event
        .get("iclFields")
        .and_then(|fields| fields.get("count"));
    count.and_then(Value::as_u64).unwrap_or(1)
}
