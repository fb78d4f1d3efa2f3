//! One simulated world with everything that was set on it. Takes a request and the time, gives what to do: no socket, no
//! clock, no waiting in here.

use std::time::{Duration, Instant, SystemTime};

use http::header;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    aws::{self, Aws},
    azure::{self, Azure},
    crypto::{Random, Seed},
    exchange::{Operation, Provider, Refusal, Reply, Request, Subject, Verdict},
    gcp::{self, Gcp},
    journal::Journal,
    knobs::{FaultKind, FaultRule, Knobs},
    raw::{self, Script},
    route,
    thales::{self, Thales},
    token::Mint,
    world::{WorldDoc, WorldError},
};

/// How long the tokens live that are given out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Lifetimes {
    /// Sessions of AWS roles; by default what the client asks for.
    pub(crate) aws_session_s: Option<u64>,
    pub(crate) gcp_token_s: u64,
    pub(crate) azure_token_s: u64,
    /// Entra's advice when to fetch the next token, if it is to give any.
    pub(crate) azure_refresh_in_s: Option<u64>,
    pub(crate) thales_token_s: u64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            aws_session_s: None,
            gcp_token_s: 3600,
            azure_token_s: 3600,
            azure_refresh_in_s: None,
            thales_token_s: 300,
        }
    }
}

/// The simulated wall clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Clock {
    /// The real one, so many seconds ahead (or behind).
    Skewed(i64),
    /// It stands still.
    Frozen(SystemTime),
}

/// Past this no date can be written in a header: the year 10000, in Unix seconds.
const UNIX_S_END: u64 = 253_402_300_800;

impl Clock {
    /// The simulated time; the real one if there is no such time between 1970 and 9999.
    fn read(self, real: SystemTime) -> SystemTime {
        let simulated = match self {
            Self::Frozen(time) => Some(time),
            Self::Skewed(seconds) => {
                let by = Duration::from_secs(seconds.unsigned_abs());
                if seconds < 0 {
                    real.checked_sub(by)
                } else {
                    real.checked_add(by)
                }
            }
        };
        simulated
            .filter(|time| {
                time.duration_since(SystemTime::UNIX_EPOCH)
                    .is_ok_and(|since_1970| since_1970.as_secs() < UNIX_S_END)
            })
            .unwrap_or(real)
    }
}

/// What a provider works with while it answers one request.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    /// By the simulated clock.
    pub(crate) now: SystemTime,
    /// The same, in Unix seconds.
    pub(crate) now_s: u64,
    pub(crate) random: &'a mut Random,
    pub(crate) mint: &'a Mint,
    pub(crate) lifetimes: &'a Lifetimes,
    /// What the request turns out to be about.
    pub(crate) subject: &'a mut Subject,
}

/// The KMSs themselves.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) aws: Aws,
    pub(crate) gcp: Gcp,
    pub(crate) azure: Azure,
    pub(crate) thales: Thales,
    mint: Mint,
}

impl World {
    fn new(doc: &WorldDoc) -> Result<Self, WorldError> {
        let seed = Seed::new(doc.seed);
        Ok(Self {
            aws: Aws::new(&doc.aws, &seed)?,
            gcp: Gcp::new(&doc.gcp, &seed)?,
            azure: Azure::new(&doc.azure, &seed)?,
            thales: Thales::new(&doc.thales, &seed)?,
            mint: Mint::new(&seed),
        })
    }
}

/// How the simulator treats connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConnectionRules {
    /// Closes a connection that was idle so long.
    pub(crate) idle_close_ms: Option<u64>,
    /// What becomes of a new connection.
    pub(crate) accept: Accept,
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accept {
    /// It is served.
    #[default]
    Serve,
    /// It is cut at once (TCP RST).
    Reset,
    /// Nothing is read or written: a TLS handshake that never ends.
    Stall,
    /// It gets bytes that are no TLS.
    Garbage,
}

/// What to do about a request.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) delay: Duration,
    pub(crate) answer: Answer,
}

#[derive(Debug)]
pub(crate) enum Answer {
    /// A well-formed answer.
    Http(Reply),
    /// Bytes that no HTTP library would send.
    Raw(Script),
}

/// A world, its knobs, its journal.
#[derive(Debug)]
pub(crate) struct Sim {
    start: WorldDoc,
    pub(crate) world: World,
    pub(crate) knobs: Knobs,
    pub(crate) journal: Journal,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) clock: Clock,
    pub(crate) connection_rules: ConnectionRules,
    seed: Seed,
    random: Random,
    random_faults: Random,
    random_latency: Random,
    /// What the clock is set to when all is reset.
    start_clock: Clock,
}

impl Sim {
    /// `seed` decides about faults, latencies and nonces; the world has one of its own for its keys.
    pub(crate) fn new(doc: WorldDoc, seed: u64, clock: Clock) -> Result<Self, WorldError> {
        let seed = Seed::new(seed);
        Ok(Self {
            world: World::new(&doc)?,
            start: doc,
            knobs: Knobs::default(),
            journal: Journal::default(),
            lifetimes: Lifetimes::default(),
            clock,
            connection_rules: ConnectionRules::default(),
            random: Random::new(&seed, "values"),
            random_faults: Random::new(&seed, "faults"),
            random_latency: Random::new(&seed, "latency"),
            seed,
            start_clock: clock,
        })
    }

    /// The world as it was loaded.
    pub(crate) fn start(&self) -> &WorldDoc {
        &self.start
    }

    /// Loads another world; knobs and journal stay.
    pub(crate) fn replace_world(&mut self, doc: WorldDoc) -> Result<(), WorldError> {
        self.world = World::new(&doc)?;
        self.start = doc;
        Ok(())
    }

    /// Everything as it was at the start, but for connections that are open.
    ///
    /// Nonces go on rather than start again, since the keys do not change: one nonce must not meet two plaintexts.
    pub(crate) fn reset(&mut self) -> Result<(), WorldError> {
        self.world = World::new(&self.start)?;
        self.knobs = Knobs::default();
        self.journal.clear();
        self.lifetimes = Lifetimes::default();
        self.clock = self.start_clock;
        self.connection_rules = ConnectionRules::default();
        self.random_faults = Random::new(&self.seed, "faults");
        self.random_latency = Random::new(&self.seed, "latency");
        Ok(())
    }

    /// A 32-digit hex id, such as for a new version of a key.
    pub(crate) fn id<const N: usize>(&mut self) -> String {
        hex::encode(self.random.bytes::<N>())
    }

    /// Decides about one request.
    pub(crate) fn serve(&mut self, request: &Request, real: SystemTime, now: Instant) -> Plan {
        let mut subject = Subject::default();
        let provider = route::provider(request);
        let time = self.clock.read(real);
        let (mut reply, unix_ms) = self.answer(provider, request, time, &mut subject);
        if reply.verdict == Verdict::Answered
            && let Some(wait) = self.knobs.over_quota(provider, &subject, now)
        {
            reply = throttled(provider, &subject, wait);
        }
        let struck = self
            .knobs
            .strike(provider, &subject, &mut self.random_faults);
        self.journal
            .record(provider, &subject, &reply, struck.is_some(), unix_ms);
        let delay = self
            .knobs
            .delay(provider, &subject, &mut self.random_latency);
        let date = httpdate::fmt_http_date(time);
        let reply = reply.with(header::DATE, &date);
        let answer = match struck {
            Some(rule) => self.misbehave(provider, &subject, &rule, reply, &date),
            None => Answer::Http(reply),
        };
        Plan { delay, answer }
    }

    fn answer(
        &mut self,
        provider: Option<Provider>,
        request: &Request,
        time: SystemTime,
        subject: &mut Subject,
    ) -> (Reply, u64) {
        let since_1970 = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let mut cx = Context {
            now: time,
            now_s: since_1970.as_secs(),
            random: &mut self.random,
            mint: &self.world.mint,
            lifetimes: &self.lifetimes,
            subject,
        };
        let reply = match provider {
            Some(Provider::Aws) => self.world.aws.answer(request, &mut cx),
            Some(Provider::Gcp) => self.world.gcp.answer(request, &mut cx),
            Some(Provider::Azure) => self.world.azure.answer(request, &mut cx),
            Some(Provider::Thales) => self.world.thales.answer(request, &mut cx),
            None => Reply::new(
                Verdict::Refused(Refusal::Protocol),
                404,
                "text/plain; charset=utf-8",
                "No KMS that is played here has this path.\n",
            )
            .because("404", format!("stray request for {}", request.path())),
        };
        let unix_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        (reply, unix_ms)
    }

    /// What a fault makes of the answer that would have been given.
    fn misbehave(
        &mut self,
        provider: Option<Provider>,
        subject: &Subject,
        rule: &FaultRule,
        mut reply: Reply,
        date: &str,
    ) -> Answer {
        let bytes = |default: u64| rule.bytes.unwrap_or(default);
        let every = |default: u64| Duration::from_millis(rule.every_ms.unwrap_or(default));
        let dated = |reply: Reply| Answer::Http(reply.with(header::DATE, date));
        match rule.kind {
            FaultKind::Status => dated(plain_fault(rule)),
            FaultKind::Code => dated(by_code(provider, subject, rule)),
            FaultKind::Throttle => dated(throttled(provider, subject, rule.retry_after_s)),
            FaultKind::OkError => {
                let mut error = by_code(provider, subject, rule);
                error.status = 200;
                dated(error)
            }
            FaultKind::Patch => {
                reply.body = patched(&reply.body, rule);
                dated(reply)
            }
            FaultKind::Html => {
                let status = rule.status.unwrap_or(502);
                let page = format!(
                    "<html>\r\n<head><title>{status} Bad Gateway</title></head>\r\n<body>\r\n<center>\
                     <h1>{status} Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
                );
                dated(Reply::new(Verdict::Answered, status, "text/html", page))
            }
            FaultKind::Close => {
                reply = reply.with(header::CONNECTION, "close");
                Answer::Http(reply)
            }
            FaultKind::Hang => Answer::Raw(raw::hang()),
            FaultKind::ResetBeforeHead => Answer::Raw(raw::reset()),
            FaultKind::ResetAfterHead => Answer::Raw(raw::reset_after_head(&reply)),
            FaultKind::Garbage => {
                let length = usize::try_from(bytes(512)).unwrap_or(raw::GARBAGE_BYTES_MAX);
                let noise = self.random_faults.vec(length.min(raw::GARBAGE_BYTES_MAX));
                Answer::Raw(raw::garbage(noise))
            }
            FaultKind::Truncate => Answer::Raw(raw::truncated(&reply)),
            FaultKind::Drip => Answer::Raw(raw::drip(&reply, every(100))),
            FaultKind::Huge => Answer::Raw(raw::huge(&reply, bytes(1 << 30))),
            FaultKind::Endless => Answer::Raw(raw::endless(&reply, every(10))),
            FaultKind::HeaderFlood => Answer::Raw(raw::header_flood(&reply, bytes(1 << 26))),
        }
    }
}

fn operation_of(subject: &Subject) -> Operation {
    subject.operation.unwrap_or(Operation::Other)
}

fn throttled(provider: Option<Provider>, subject: &Subject, retry_after_s: Option<f64>) -> Reply {
    let operation = operation_of(subject);
    match provider {
        Some(Provider::Aws) => aws::throttled(operation, retry_after_s),
        Some(Provider::Gcp) => gcp::throttled(operation, retry_after_s),
        Some(Provider::Azure) => azure::throttled(operation, retry_after_s),
        Some(Provider::Thales) | None => thales::throttled(retry_after_s),
    }
}

fn by_code(provider: Option<Provider>, subject: &Subject, rule: &FaultRule) -> Reply {
    let operation = operation_of(subject);
    let code = |default: &'static str| rule.code.clone().unwrap_or_else(|| default.to_owned());
    let message = rule.message.as_deref().unwrap_or("a fault was asked for");
    let mut reply = match provider {
        Some(Provider::Aws) => aws::by_code(operation, &code("KMSInternalException"), message),
        Some(Provider::Gcp) => gcp::by_code(operation, &code("INTERNAL"), message),
        Some(Provider::Azure) => azure::by_code(operation, &code("InternalServerError"), message),
        Some(Provider::Thales) | None => {
            thales::by_code(&code("NCERRInternalServerError"), message)
        }
    };
    if let Some(status) = rule.status {
        reply.status = status;
    }
    add_headers(reply, rule)
}

fn plain_fault(rule: &FaultRule) -> Reply {
    let body = rule.body.clone().unwrap_or_default();
    let status = rule.status.unwrap_or(500);
    let mut reply = Reply::new(Verdict::Answered, status, "application/json", body);
    if let Some(media_type) = &rule.media_type {
        reply = reply.with(header::CONTENT_TYPE, media_type);
    }
    if let Some(seconds) = rule.retry_after_s {
        reply = reply.with(header::RETRY_AFTER, &format!("{:.0}", seconds.ceil()));
    }
    add_headers(reply, rule)
}

/// A JSON body with some members changed. One that is no JSON object stays as it is.
fn patched(body: &[u8], rule: &FaultRule) -> Vec<u8> {
    let Ok(Value::Object(mut members)) = serde_json::from_slice(body) else {
        return body.to_vec();
    };
    for (name, value) in &rule.patch {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    Value::Object(members).to_string().into_bytes()
}

fn add_headers(mut reply: Reply, rule: &FaultRule) -> Reply {
    for (name, value) in &rule.headers {
        if let Ok(name) = http::HeaderName::try_from(name) {
            reply = reply.with(name, value);
        }
    }
    reply
}

#[cfg(test)]
mod tests;
