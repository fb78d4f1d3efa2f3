//! Snapshots from a configuration broker, sealed for this service account. `docs/broker.md` has the protocol.
//!
//! The source keeps its own time: a refresh every ten minutes or so, sooner after a failure or when something is known to
//! be new. What it takes is authentic and not older than anything before ([`Seen`]); what in it does not open or is not
//! well-formed is left out alone. With a copy on disk ([`cache`]) a process starts while the broker is away.

pub(crate) mod cache;
pub(crate) mod client;
mod crew;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use flate2::read::MultiGzDecoder;
use tsp_rt::{
    mailbox::{self, LatestSender},
    tls::ClientTls,
};
use tsp_wire::{
    account::{
        Configs, LeftOut, Memory, SNAPSHOT_BYTES_MAX, SNAPSHOT_PATH, Seen, SnapshotAnswer,
        SnapshotError,
        env::{CONFIG_BROKER_URL, ServiceAccount},
    },
    snapshot::TenantSecretDoc,
};

use self::{
    cache::{Cache, Cached},
    client::{Answered, Call, Client, Failure},
    crew::Crew,
};
use super::{Ask, Loaded, Polled, file};
use crate::{
    config::{BrokerConfig, CA_BYTES_MAX, Problem},
    cores::CorePlan,
    secrets::broker::BrokerStore,
};

/// Shortest and longest wait after a failure. Doubled from one to the next, and cut by up to a half at random, so that a
/// fleet of proxies does not come back to a broker at one moment.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// A refresh comes up to so much sooner or later than it is due, in percent.
const JITTER_PERCENT: u32 = 10;

/// How long after a tenant secret was stored the state is fetched: long enough for others that are being made at the same
/// time, and well within the time for which shards remember what a snapshot does not have yet.
const NEWS_DELAY: Duration = Duration::from_secs(1);

/// Least time between two fetches because of new secrets: each is a whole snapshot.
const NEWS_EVERY: Duration = Duration::from_secs(10);

/// Longest time for a snapshot to arrive whole. The largest there can be takes 20 s at 100 Mbit/s.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Fetches snapshots.
#[derive(Debug)]
pub struct BrokerSource {
    client: Arc<Client>,
    cache: Option<Cache>,
    schedule: Schedule,
    started: bool,
    /// Of the state that is in force, or in reserve.
    etag: Option<String>,
    seen: Seen,
    /// What was opened of the last snapshot.
    memory: Memory,
    /// Opens the first one. The later ones have little that is new, and this thread does not disturb the shards.
    crew: Option<Crew>,
    /// What the disk had at the start, until it is used or the broker gave something newer.
    reserve: Option<Reserve>,
    /// Handed out by the next [`Self::poll_secrets`].
    secrets: Option<Vec<TenantSecretDoc>>,
    outcome: Last,
    allow_local: bool,
    /// For a client with another account.
    roots: Option<ClientTls>,
    cache_path: Option<PathBuf>,
    age_max: Duration,
    /// With an account that is to replace the one in force, once the broker has taken it.
    candidate: Option<Arc<Client>>,
    /// Tells the store of tenant secrets.
    renewed: Option<LatestSender<Arc<Client>>>,
}

/// How the last [`BrokerSource::poll`] ended, for the tenant secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    NotAsked,
    Good,
}

/// A state from the disk.
#[derive(Debug)]
struct Reserve {
    state: State,
    confirmed: SystemTime,
}

/// What a snapshot has in it.
#[derive(Debug)]
struct State {
    loaded: Loaded,
    secrets: Vec<TenantSecretDoc>,
}

/// A snapshot in the form in which it came.
struct Body {
    bytes: Vec<u8>,
    gzip: bool,
}

impl BrokerSource {
    /// Asks the broker of `config`; `allow_local` permits LOCAL keys in what it says.
    ///
    /// # Errors
    /// If its URL is none.
    pub(crate) fn new(config: BrokerConfig, allow_local: bool) -> Result<Self, Problem> {
        let BrokerConfig {
            account,
            roots,
            cache,
            refresh_every,
            age_max,
        } = config;
        let cache_path = cache;
        let cache = cache_path
            .clone()
            .map(|path| Cache::new(path, &account, age_max));
        let client = Client::new(account, roots.clone())
            .map_err(|why| Problem::new(CONFIG_BROKER_URL, why))?;
        Ok(Self {
            client: Arc::new(client),
            cache,
            schedule: Schedule::new(refresh_every),
            started: false,
            etag: None,
            seen: Seen::default(),
            memory: Memory::default(),
            crew: Some(Crew::here()),
            reserve: None,
            secrets: None,
            outcome: Last::NotAsked,
            allow_local,
            roots,
            cache_path,
            age_max,
            candidate: None,
            renewed: None,
        })
    }

    /// Uses `account` from when the broker has taken it; the one in force serves until then.
    ///
    /// # Errors
    /// If it is of another vendor, whose tenants these are not.
    pub(crate) fn renew(&mut self, account: ServiceAccount) -> Result<(), Problem> {
        if account.vendor() != self.client.account().vendor() {
            let why = "is of another vendor; that takes a restart";
            return Err(Problem::new("service account", why));
        }
        let client = Client::new(account, self.roots.clone());
        let client = client.map_err(|why| Problem::new(CONFIG_BROKER_URL, why))?;
        self.candidate = Some(Arc::new(client));
        self.schedule.due = None;
        Ok(())
    }

    /// Asks with the account that is to be used. If that does not work, the one in force goes on, and this is tried again
    /// with the next look.
    fn try_candidate(&mut self, candidate: Arc<Client>) -> Option<State> {
        let cache = self.cache_path.clone();
        let cache = cache.map(|path| Cache::new(path, candidate.account(), self.age_max));
        let client = std::mem::replace(&mut self.client, Arc::clone(&candidate));
        let before = (
            client,
            std::mem::replace(&mut self.cache, cache),
            self.etag.take(),
        );
        match self.fetch() {
            Ok(Some(state)) => {
                let config = self.client.account().config;
                tracing::info!(config, "the broker has taken the new service account");
                if let Some(renewed) = &mut self.renewed {
                    renewed.publish(candidate);
                }
                Some(state)
            }
            Ok(None) => None,
            Err(problem) => {
                tracing::error!(
                    place = problem.place,
                    "the last good service account stays in force: {problem}"
                );
                (self.client, self.cache, self.etag) = before;
                self.candidate = Some(candidate);
                None
            }
        }
    }

    /// Looks once, for a command. Where the broker gives nothing, the copy on disk does, of whatever age: then the second tells
    /// why. The copy stays as it is.
    ///
    /// # Errors
    /// If there is neither.
    pub(crate) fn look_once(mut self) -> Result<(Loaded, Option<Problem>), Vec<Problem>> {
        self.cache = self.cache.map(Cache::looked_at);
        let unusable = self.load_reserve().err();
        let reserve = |source: &mut Self| source.reserve.take();
        match self.fetch() {
            Ok(Some(state)) => Ok((state.loaded, None)),
            Ok(None) => match reserve(&mut self) {
                Some(reserve) => Ok((reserve.state.loaded, None)),
                None => Err(Vec::new()),
            },
            Err(problem) => match reserve(&mut self) {
                Some(Reserve { state, confirmed }) => {
                    let age = self.client.now().duration_since(confirmed);
                    let hours = age.unwrap_or_default().as_secs() / 3_600;
                    let why = format!(
                        "{}; the configurations are those of the copy on disk, which is {hours} hours old",
                        problem.why
                    );
                    Ok((state.loaded, Some(Problem::new(problem.place, why))))
                }
                None => Err([problem].into_iter().chain(unusable).collect()),
            },
        }
    }

    /// Which cores help with the first snapshot; else the kernel places the threads that do.
    pub(crate) fn use_cores(&mut self, plan: &CorePlan) {
        if let Some(crew) = &mut self.crew {
            crew.use_cores(plan);
        }
    }

    /// Where the broker is.
    pub(crate) fn url(&self) -> &str {
        self.client.url()
    }

    /// Where new tenant secrets are to be stored.
    pub(crate) fn store(&mut self) -> BrokerStore {
        let (renewed, renewals) = mailbox::latest();
        self.renewed = Some(renewed);
        BrokerStore::new(Arc::clone(&self.client), renewals)
    }

    /// Fetches the state, if `ask` says so or it is time.
    pub(crate) fn poll(&mut self, ask: Ask) -> Polled<Loaded> {
        if !self.started {
            self.started = true;
            if let Err(problem) = self.load_reserve() {
                tracing::warn!(place = problem.place, "{problem}");
            }
        }
        let now = monotonic();
        if ask == Ask::News {
            self.schedule.hurry(now);
        }
        self.outcome = Last::NotAsked;
        if ask != Ask::Always && !self.schedule.is_due(now) {
            return Polled::NotAsked;
        }
        if let Some(candidate) = self.candidate.take()
            && let Some(state) = self.try_candidate(candidate)
        {
            self.schedule.succeeded(monotonic(), random());
            self.outcome = Last::Good;
            self.reserve = None;
            return self.hand_out(state);
        }
        let fetched = self.fetch();
        // The wait begins when the answer is there, however long that took.
        let now = monotonic();
        match fetched {
            Ok(state) => {
                self.schedule.succeeded(now, random());
                self.outcome = Last::Good;
                let state = state.or_else(|| self.reserve.take().map(|reserve| reserve.state));
                self.reserve = None;
                match state {
                    Some(state) => self.hand_out(state),
                    None => Polled::Same,
                }
            }
            Err(problem) => {
                self.schedule.failed(now, random());
                match self.reserve.take() {
                    Some(reserve) => self.start_from(reserve, &problem),
                    None => Polled::Failed(vec![problem]),
                }
            }
        }
    }

    /// The tenant secrets of what [`Self::poll`] found.
    pub(crate) fn poll_secrets(&mut self) -> Polled<Vec<TenantSecretDoc>> {
        match (self.secrets.take(), self.outcome) {
            (Some(secrets), _) => Polled::New(Box::new(secrets)),
            (None, Last::Good) => Polled::Same,
            (None, Last::NotAsked) => Polled::NotAsked,
        }
    }

    fn hand_out(&mut self, state: State) -> Polled<Loaded> {
        let State { loaded, secrets } = state;
        self.secrets = Some(secrets);
        self.crew = None;
        Polled::New(Box::new(loaded))
    }

    /// Serves what the disk had, because the broker gave nothing better.
    fn start_from(&mut self, reserve: Reserve, problem: &Problem) -> Polled<Loaded> {
        let Reserve {
            mut state,
            confirmed,
        } = reserve;
        let age = self
            .client
            .now()
            .duration_since(confirmed)
            .unwrap_or_default();
        tracing::warn!(
            place = problem.place,
            age_s = age.as_secs(),
            "starting with the copy on disk: {problem}"
        );
        state.loaded.age = age;
        self.outcome = Last::Good;
        self.hand_out(state)
    }

    /// Asks the broker. `None` if the state is still that of the last answer.
    fn fetch(&mut self) -> Result<Option<State>, Problem> {
        let client = Arc::clone(&self.client);
        let problem = |why: String| Problem::new(client.url(), why);
        let answer = self.client.call(&Call {
            method: "GET",
            path: SNAPSHOT_PATH,
            body: b"",
            etag: self.etag.as_deref(),
            timeout: FETCH_TIMEOUT,
            answer_bytes_max: SNAPSHOT_BYTES_MAX,
        });
        let Answered {
            status,
            etag,
            gzip,
            body,
        } = answer.map_err(|why| problem(why.to_string()))?;
        if status == 304 {
            let Some(etag) = &self.etag else {
                return Err(problem(Failure::Malformed("304 unasked").to_string()));
            };
            let now = self.client.now();
            if let Some(cache) = &mut self.cache {
                cache.confirmed(etag, now);
            }
            return Ok(None);
        }
        let body = Body { bytes: body, gzip };
        let refused = |why: SnapshotError| problem(format!("its snapshot is not used: {why}"));
        let state = self.open(&body).map_err(refused)?;
        let now = self.client.now();
        if let Some(cache) = &mut self.cache {
            let etag = etag.as_deref().unwrap_or_default();
            cache.store(etag, now, body.gzip, &body.bytes, &self.memory);
        }
        self.etag = etag;
        Ok(Some(state))
    }

    /// Makes sure of a snapshot, and opens what is in it.
    fn open(&mut self, body: &Body) -> Result<State, SnapshotError> {
        let plain;
        let json = if body.gzip {
            plain = unzip(&body.bytes)?;
            plain.as_slice()
        } else {
            body.bytes.as_slice()
        };
        let snapshot = SnapshotAnswer::from_json(json)?;
        let segment = snapshot.open(self.client.account())?;
        self.seen.advance(&snapshot)?;
        if let Some(crew) = &self.crew {
            for learned in crew.run(segment.work(&snapshot, &self.memory)) {
                self.memory.learn(learned);
            }
        }
        let mut loaded = loaded(segment.configs(&snapshot, &mut self.memory));
        loaded.allow_local = self.allow_local;
        let secrets = snapshot.secrets.into_iter().map(Into::into).collect();
        Ok(State { loaded, secrets })
    }

    /// Reads the copy on disk. Even one that is too old to serve tells what a broker must not go behind.
    ///
    /// # Errors
    /// Why it is of no use.
    fn load_reserve(&mut self) -> Result<(), Problem> {
        let now = self.client.now();
        let Some(cache) = &mut self.cache else {
            return Ok(());
        };
        let place = cache.place();
        let unusable =
            |why: &str| Problem::new(&place, format!("the copy on disk is not used: {why}"));
        let Some(cached) = cache.load(now).map_err(|why| unusable(&why))? else {
            return Ok(());
        };
        let Cached {
            etag,
            confirmed,
            young,
            gzip,
            body,
            memory,
        } = cached;
        self.memory = memory;
        let state = self.open(&Body { bytes: body, gzip });
        let state = state.map_err(|why| unusable(&why.to_string()))?;
        if !young {
            return Err(unusable("it is too old to serve with"));
        }
        self.etag = Some(etag).filter(|etag| !etag.is_empty());
        self.reserve = Some(Reserve { state, confirmed });
        Ok(())
    }
}

/// The authorities in a PEM file, to be trusted instead of the public ones.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn roots(path: &Path) -> Result<ClientTls, String> {
    let (_, pem) = file::read(path, CA_BYTES_MAX)?;
    ClientTls::with_roots_pem(&pem).map_err(|why| why.to_string())
}

/// All that can be used of a snapshot.
fn loaded(configs: Configs) -> Loaded {
    let Configs {
        kms,
        tenants,
        left_out,
    } = configs;
    let mut loaded = Loaded {
        kms,
        tenants,
        ..Loaded::default()
    };
    for LeftOut { kms, tenant, why } in left_out {
        let place = match tenant {
            None => {
                // Of two with one number the good one stays: what is in `kms` goes before this.
                loaded.unusable.extend(i64::try_from(kms));
                format!("KMS config {kms}")
            }
            Some(tenant) => format!("tenant {tenant:?}, assignment of KMS config {kms}"),
        };
        loaded.left_out.push(Problem::new(place, why.to_string()));
    }
    loaded
}

/// Decompresses, within the bound.
fn unzip(bytes: &[u8]) -> Result<Vec<u8>, SnapshotError> {
    let malformed = |why: &str| SnapshotError::Malformed(why.to_owned());
    let mut plain = Vec::new();
    let bound = u64::try_from(SNAPSHOT_BYTES_MAX).unwrap_or(u64::MAX);
    MultiGzDecoder::new(bytes)
        .take(bound.saturating_add(1))
        .read_to_end(&mut plain)
        .map_err(|_| malformed("it cannot be decompressed"))?;
    if plain.len() > SNAPSHOT_BYTES_MAX {
        return Err(malformed("it is too large"));
    }
    Ok(plain)
}

/// When the next fetch is due.
#[derive(Debug)]
struct Schedule {
    every: Duration,
    /// `None` at first: now.
    due: Option<Instant>,
    /// When the state was last fetched.
    fetched: Option<Instant>,
    failures: u32,
}

impl Schedule {
    fn new(every: Duration) -> Self {
        Self {
            every,
            due: None,
            fetched: None,
            failures: 0,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    /// `random` is anything from 0 to `u32::MAX`.
    fn succeeded(&mut self, now: Instant, random: u32) {
        self.failures = 0;
        self.fetched = Some(now);
        let spread = self.every / 100 * JITTER_PERCENT;
        self.due = Some(now + self.every - spread + part(spread * 2, random));
    }

    fn failed(&mut self, now: Instant, random: u32) {
        let wait = RETRY_MIN * 2_u32.saturating_pow(self.failures.min(16));
        let wait = wait.min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + wait / 2 + part(wait / 2, random));
    }

    /// Something is known to be new. After a failure it waits as everything else does.
    fn hurry(&mut self, now: Instant) {
        let Some(due) = self.due.filter(|_| self.failures == 0) else {
            return;
        };
        let soonest = self.fetched.map_or(now, |fetched| fetched + NEWS_EVERY);
        self.due = Some(due.min((now + NEWS_DELAY).max(soonest)));
    }
}

/// A random part of `whole`.
fn part(whole: Duration, random: u32) -> Duration {
    whole.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without random bytes the time is not spread, and all else works.
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}

fn monotonic() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of the control plane, on which no core runs"
    )]
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(600);

    #[test]
    fn a_refresh_is_due_in_ten_minutes_give_or_take_one() {
        let start = monotonic();
        for (random, seconds) in [(0, 540), (u32::MAX / 2, 599), (u32::MAX, 660)] {
            let mut schedule = Schedule::new(EVERY);
            assert!(schedule.is_due(start));
            schedule.succeeded(start, random);
            let due = schedule.due.unwrap() - start;
            assert_eq!(due.as_secs(), seconds);
            assert!(!schedule.is_due(start + due - Duration::from_nanos(1)));
            assert!(schedule.is_due(start + due));
        }
    }

    #[test]
    fn failures_are_tried_again_for_ever_and_ever_more_slowly() {
        let now = monotonic();
        let mut schedule = Schedule::new(EVERY);
        let mut waits = Vec::new();
        for _ in 0..40 {
            schedule.failed(now, u32::MAX);
            waits.push((schedule.due.unwrap() - now).as_secs());
        }
        assert_eq!(waits[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(waits[39], 60);
        schedule.failed(now, 0);
        assert_eq!(schedule.due.unwrap() - now, RETRY_MAX / 2);
        schedule.succeeded(now, 0);
        schedule.failed(now, u32::MAX);
        assert_eq!(schedule.due.unwrap() - now, RETRY_MIN);
    }

    #[test]
    fn new_secrets_are_fetched_soon_but_not_each_for_itself() {
        let start = monotonic();
        let mut schedule = Schedule::new(EVERY);
        schedule.succeeded(start, 0);
        let minute = start + Duration::from_secs(60);
        schedule.hurry(minute);
        assert_eq!(schedule.due, Some(minute + NEWS_DELAY));
        schedule.hurry(minute + NEWS_DELAY / 2);
        assert_eq!(schedule.due, Some(minute + NEWS_DELAY));
        schedule.succeeded(minute, 0);
        schedule.hurry(minute);
        assert_eq!(schedule.due, Some(minute + NEWS_EVERY));
        // A broker that is away is not asked more often because of it.
        schedule.failed(minute, u32::MAX);
        schedule.failed(minute, u32::MAX);
        schedule.hurry(minute);
        assert_eq!(schedule.due, Some(minute + RETRY_MIN * 2));
    }

    #[test]
    fn what_is_not_gzip_or_too_much_is_told() {
        assert!(unzip(b"not gzip").is_err());
        assert!(unzip(b"").is_err());
    }
}
