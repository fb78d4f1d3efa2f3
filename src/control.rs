//! The control core's loop: looks at the source of configurations, publishes what is new, keeps health and metrics
//! true, and carries out signals.
//!
//! Level-triggered: every turn compares what is with what should be, and nothing depends on a message that could be
//! missed. Requests do not pass through here.

use std::{
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use signal_hook::consts::SIGHUP;
use tsp_rt::{Rt, mailbox, tls::ServerTls};
use tsp_shards::{Drained, ShardEnd, ShardSet, Snapshot};
use tsp_wire::SnapshotVersion;

use crate::{
    admin::Health,
    config::{DRAIN_MAX, FILE_CHECK_EVERY, FILE_RETRY_EVERY, PROBLEMS_MAX, Problem},
    events::EventThread,
    metrics::{ControlMetrics, KeyMetrics},
    source::{
        Ask, Polled,
        keys::Keys,
        look::{Looked, New, Outcome},
    },
};

/// Commands that wait for the loop. They are rare; a process that cannot take sixteen is stuck.
pub(crate) const COMMANDS_MAX: usize = 16;

/// How often to look whether all shards have taken a new snapshot, until they have. It takes them a millisecond.
const SETTLE_LOOK_EVERY: Duration = Duration::from_millis(2);

/// After this long a shard that has not taken a new snapshot is worth a warning: something keeps it busy.
const SETTLE_WARN_AFTER: Duration = Duration::from_secs(10);

/// After this long a look at the source is worth a warning: its file system hangs, or the broker is slow.
const LOOK_WARN_AFTER: Duration = Duration::from_secs(30);

/// How long the drain's thread may take beyond the shards' deadline, to close connections and push the last events.
const DRAIN_SLACK: Duration = Duration::from_secs(6);

/// What the loop is told from outside.
pub(crate) enum Command {
    /// A look at the source has come to its end.
    Looked(Ask, Looked),
    /// A tenant secret was stored, so that there is something new to look at.
    SecretsStored,
    /// A signal's number.
    Signal(i32),
    /// A shard's executor is no more.
    ShardEnded(ShardEnd),
    /// The event thread is no more.
    EventsEnded,
    /// The drain is over.
    Drained(Drained),
}

/// What to do once, when all shards serve.
pub(crate) type WhenReady = Box<dyn FnOnce(&Published)>;

/// Everything that the control core owns.
pub(crate) struct Control<R> {
    pub(crate) rt: R,
    /// Asks for a look at the source; answered by [`Command::Looked`].
    pub(crate) asks: crossbeam_channel::Sender<Ask>,
    pub(crate) shards: Option<ShardSet>,
    pub(crate) events: Option<EventThread>,
    pub(crate) metrics: ControlMetrics,
    pub(crate) health: Rc<Health>,
    pub(crate) commands: mailbox::Receiver<Command>,
    /// For the drain's thread to report back.
    pub(crate) commander: mailbox::Sender<Command>,
    pub(crate) key_metrics: KeyMetrics,
    pub(crate) when_ready: Option<WhenReady>,
    /// How long a configuration serves after it was known to be true.
    pub(crate) age_max: Duration,
}

/// What is in force, or about to be.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) version: SnapshotVersion,
    pub(crate) tenants: usize,
    pub(crate) kms_configs: usize,
    pub(crate) secrets: usize,
    pub(crate) left_out: usize,
}

/// Where the loop stands.
struct State {
    /// `None` until the source has given something.
    published: Option<Published>,
    /// When it was published; `None` once all shards have it.
    settling_since: Option<Instant>,
    settle_warned: bool,
    freshness: Freshness,
    look_at: Instant,
    retry_at: Instant,
    /// Since when a look is under way.
    looking_since: Option<Instant>,
    look_warned: bool,
    /// Somebody asked for a look; it comes when the one under way is over.
    asked: bool,
    /// Likewise because something is known to be new.
    news: bool,
    /// Whether what was published differs from what was before in nothing but tenant secrets.
    only_secrets: bool,
    /// The certificate that shards were given; `None` once all have it.
    settling_tls: Option<String>,
    /// How many listed API keys shards were given; `None` once all have them.
    settling_keys: Option<usize>,
}

impl<R: Rt> Control<R> {
    /// Publishes the first state, if it is known already, then runs until a drain is over.
    ///
    /// # Errors
    /// Why the process cannot go on.
    pub(crate) async fn run(
        mut self,
        first: Option<(Snapshot, Vec<Problem>)>,
    ) -> Result<(), String> {
        let now = self.rt.now();
        let mut state = State {
            published: None,
            settling_since: None,
            settle_warned: false,
            freshness: Freshness::new(self.age_max),
            look_at: now,
            retry_at: now,
            looking_since: None,
            look_warned: false,
            asked: false,
            news: false,
            only_secrets: false,
            settling_tls: None,
            settling_keys: None,
        };
        if let Some((first, left_out)) = first {
            state.published = Some(self.publish(first, &left_out, left_out.len()));
            state.settling_since = Some(now);
            state.freshness.good(now, Duration::ZERO);
            self.refreshed(Duration::ZERO);
        }
        loop {
            let settling = (state.settling_since.is_some() && !state.settle_warned)
                || state.settling_tls.is_some()
                || state.settling_keys.is_some();
            let mut wait = state.look_at.saturating_duration_since(self.rt.now());
            if settling {
                wait = wait.min(SETTLE_LOOK_EVERY);
            }
            match tsp_rt::timeout(&self.rt, wait, self.commands.recv()).await {
                Err(_) => {}
                Ok(Some(Command::Signal(SIGHUP))) => {
                    tracing::info!("SIGHUP: reading the configuration again");
                    state.asked = true;
                    state.look_at = self.rt.now();
                }
                Ok(Some(Command::SecretsStored)) => {
                    state.news = true;
                    state.look_at = self.rt.now();
                }
                Ok(Some(Command::Looked(ask, looked))) => self.looked(&mut state, ask, looked),
                Ok(Some(Command::Signal(signal))) => return self.drain(signal).await,
                Ok(Some(Command::ShardEnded(ShardEnd { shard, end }))) => {
                    return Err(format!("shard {shard} has ended: {end:?}"));
                }
                Ok(Some(Command::EventsEnded)) => {
                    return Err("the event thread has died".to_owned());
                }
                Ok(Some(Command::Drained(_)) | None) => {
                    return Err(
                        "the control loop heard of a drain that it did not order".to_owned()
                    );
                }
            }
            self.settle(&mut state);
            self.settle_renewed(&mut state);
            let now = self.rt.now();
            if now >= state.look_at {
                state.look_at = now + FILE_CHECK_EVERY;
                self.look(&mut state, now)?;
                self.judge_age(&mut state, now);
            }
        }
    }

    /// Publishes `snapshot`, from which `left_out` things are missing. The problems are told.
    fn publish(&mut self, snapshot: Snapshot, problems: &[Problem], left_out: usize) -> Published {
        for problem in problems.iter().take(PROBLEMS_MAX) {
            tracing::warn!(
                place = problem.place,
                "left out of the configuration: {problem}"
            );
        }
        let published = Published {
            version: snapshot.version(),
            tenants: snapshot.tenant_count(),
            kms_configs: snapshot.kms_config_count(),
            secrets: snapshot.secret_count(),
            left_out,
        };
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.config_tenants.set(gauge(published.tenants));
        self.metrics.config_kms.set(gauge(published.kms_configs));
        self.metrics.config_secrets.set(gauge(published.secrets));
        self.metrics.config_left_out.set(gauge(published.left_out));
        if let Some(shards) = &mut self.shards {
            shards.publish(&Arc::new(snapshot));
        }
        published
    }

    /// Has the source looked at, unless a look is still under way.
    fn look(&self, state: &mut State, now: Instant) -> Result<(), String> {
        if let Some(since) = state.looking_since {
            if !state.look_warned && now - since >= LOOK_WARN_AFTER {
                state.look_warned = true;
                tracing::warn!("a look at the configuration takes longer than {LOOK_WARN_AFTER:?}");
            }
            return Ok(());
        }
        let retry = state.freshness.had_failed && now >= state.retry_at;
        let ask = if state.asked {
            Ask::Always
        } else if retry {
            Ask::Again
        } else if state.news {
            Ask::News
        } else {
            Ask::IfChanged
        };
        state.asked = false;
        state.news = false;
        state.look_warned = false;
        state.looking_since = Some(now);
        // One is asked at a time, so there is room.
        self.asks
            .try_send(ask)
            .map_err(|_| "the source of configurations has died".to_owned())
    }

    /// Takes note of a look, and publishes what is new.
    fn looked(&mut self, state: &mut State, ask: Ask, looked: Looked) {
        let now = self.rt.now();
        state.looking_since = None;
        if state.asked || state.news {
            state.look_at = now;
        }
        let Looked {
            new,
            outcome,
            age,
            tls,
            keys,
            account,
        } = looked;
        self.looked_at_account(account);
        self.looked_at_tls(state, tls);
        self.looked_at_keys(state, keys);
        let same = new.is_none();
        if let Some(New { snapshot, left_out }) = new {
            state.only_secrets = left_out.is_none();
            let problems = left_out.as_deref().unwrap_or_default();
            let left_out = match &left_out {
                Some(problems) => problems.len(),
                None => state.published.as_ref().map_or(0, |last| last.left_out),
            };
            state.published = Some(self.publish(snapshot, problems, left_out));
            state.settling_since = Some(now);
            state.settle_warned = false;
        }
        match outcome {
            Outcome::Good => {
                let told = ask == Ask::Always || ask == Ask::Again || state.freshness.had_failed;
                if same && told {
                    tracing::info!("the configuration is good and has not changed");
                }
                self.refreshed(age);
                state.freshness.good(now, age);
            }
            Outcome::Failed(problems) => {
                self.metrics.refresh_failures.inc();
                for problem in &problems {
                    tracing::error!(
                        place = problem.place,
                        "the configuration cannot be used: {problem}"
                    );
                }
                let stays = match &state.published {
                    Some(_) => "the last good configuration stays in force",
                    None => "there is no configuration yet, so nobody is served",
                };
                tracing::error!(problems = problems.len(), "{stays}");
                state.freshness.had_failed = true;
                state.retry_at = now + FILE_RETRY_EVERY;
            }
            Outcome::StillFailed | Outcome::NotAsked => {}
        }
    }

    /// Takes note of the client API's certificate.
    fn looked_at_tls(&mut self, state: &mut State, tls: Polled<ServerTls>) {
        match tls {
            Polled::Same | Polled::StillFailed | Polled::NotAsked => {}
            Polled::New(tls) => {
                self.metrics.tls_reloads.inc();
                self.metrics.certificate(&tls);
                state.settling_tls = Some(tls.fingerprint());
                if let Some(shards) = &mut self.shards {
                    shards.renew_tls(&tls);
                }
            }
            Polled::Failed(problems) => {
                self.metrics.tls_reload_failures.inc();
                for problem in problems {
                    tracing::error!(
                        place = problem.place,
                        "the last good certificate stays in force: {problem}"
                    );
                }
            }
        }
    }

    /// Takes note of the file with the service account.
    fn looked_at_account(&self, account: Polled<()>) {
        match account {
            Polled::Same | Polled::StillFailed | Polled::NotAsked => {}
            Polled::New(_) => {
                self.metrics.account_reloads.inc();
                tracing::info!("the file with the service account has changed");
            }
            Polled::Failed(problems) => {
                self.metrics.account_reload_failures.inc();
                for problem in problems {
                    tracing::error!(
                        place = problem.place,
                        "the last good service account stays in force: {problem}"
                    );
                }
            }
        }
    }

    /// Takes note of the keys that applications present.
    fn looked_at_keys(&mut self, state: &mut State, keys: Polled<Keys>) {
        match keys {
            Polled::Same | Polled::StillFailed | Polled::NotAsked => {}
            Polled::New(keys) => {
                self.metrics.api_keys_reloads.inc();
                self.key_metrics.follow(&keys);
                if let Some(shards) = &mut self.shards {
                    shards.renew_api_keys(&keys.api_keys);
                }
                state.settling_keys = Some(keys.listed);
            }
            Polled::Failed(problems) => {
                self.metrics.api_keys_reload_failures.inc();
                for problem in problems {
                    tracing::error!(
                        place = problem.place,
                        "the last good API keys stay in force: {problem}"
                    );
                }
            }
        }
    }

    /// Refuses key operations when the configuration has become too old, and serves them again when it is good.
    fn judge_age(&self, state: &mut State, now: Instant) {
        if let Some(fresh) = state.freshness.changed(now) {
            if fresh {
                tracing::info!(
                    "the configuration is young enough again; key operations are served"
                );
            } else {
                tracing::error!(
                    "the configuration could not be refreshed for {:?}; key operations are refused",
                    self.age_max
                );
            }
            if let Some(shards) = &self.shards {
                shards.set_fresh(fresh);
            }
            self.health.set_fresh(fresh);
        }
        self.metrics.ready.set(i64::from(self.health.is_ready()));
    }

    /// Notes that what is in force was true `age` ago.
    fn refreshed(&self, age: Duration) {
        let now = self
            .rt
            .wall_now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_sub(age);
        self.metrics
            .last_refresh
            .set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// Finds out whether all shards have what was published.
    fn settle(&mut self, state: &mut State) {
        let (Some(since), Some(published)) = (state.settling_since, &state.published) else {
            return;
        };
        let versions = self
            .shards
            .as_ref()
            .map(ShardSet::snapshot_versions)
            .unwrap_or_default();
        self.health
            .set_shards_waiting(versions.iter().filter(|version| version.is_none()).count());
        let lowest = versions.iter().copied().min().flatten().unwrap_or_default();
        self.metrics
            .config_version
            .set(i64::try_from(lowest.0).unwrap_or(i64::MAX));
        self.metrics.ready.set(i64::from(self.health.is_ready()));
        let Published {
            version,
            tenants,
            kms_configs,
            secrets,
            left_out,
        } = *published;
        if versions.iter().all(|taken| *taken == Some(version)) {
            state.settling_since = None;
            if state.only_secrets {
                tracing::debug!(
                    config_version = version.0,
                    secrets,
                    "tenant secrets published"
                );
            } else {
                tracing::info!(
                    config_version = version.0,
                    tenants,
                    kms_configs,
                    secrets,
                    left_out,
                    "tenant configurations published"
                );
            }
            if let Some(when_ready) = self.when_ready.take() {
                when_ready(published);
            }
        } else if !state.settle_warned && self.rt.now() - since >= SETTLE_WARN_AFTER {
            state.settle_warned = true;
            tracing::warn!(
                config_version = version.0,
                "a shard has not taken the new configuration after {SETTLE_WARN_AFTER:?}"
            );
        }
    }

    /// Tells of a new certificate and of new API keys once every shard goes by them: who reads it may rely on it.
    fn settle_renewed(&self, state: &mut State) {
        let Some(shards) = &self.shards else { return };
        if shards.has_renewed_tls()
            && let Some(certificate) = state.settling_tls.take()
        {
            tracing::info!(certificate, "the client API has a new certificate");
        }
        if shards.has_renewed_api_keys()
            && let Some(listed) = state.settling_keys.take()
        {
            tracing::info!(listed, "the API keys have changed");
        }
    }

    /// Lets the shards finish, then the events, while probes are still answered.
    async fn drain(mut self, signal: i32) -> Result<(), String> {
        self.health.drain();
        self.metrics.ready.set(0);
        tracing::info!(
            signal,
            "draining: requests under way are finished, no new ones are taken"
        );
        let (shards, events) = (self.shards.take(), self.events.take());
        let commander = self.commander.clone();
        let started = thread::Builder::new()
            .name("tsp-drain".to_owned())
            .spawn(move || {
                let drained = shards.map_or(Drained::Whole, |shards| shards.drain(DRAIN_MAX));
                if let Some(events) = events {
                    events.stop();
                }
                // Nobody listens if it took so long that the process ends anyway.
                drop(commander.send(Command::Drained(drained)));
            });
        if let Err(why) = started {
            return Err(format!("no thread could be started for the drain: {why}"));
        }
        let give_up = self.rt.now() + DRAIN_MAX + DRAIN_SLACK;
        loop {
            let wait = give_up.saturating_duration_since(self.rt.now());
            match tsp_rt::timeout(&self.rt, wait, self.commands.recv()).await {
                Ok(Some(Command::Drained(Drained::Whole))) => {
                    tracing::info!("drained");
                    return Ok(());
                }
                Ok(Some(Command::Drained(Drained::CutOff))) => {
                    tracing::warn!(
                        "drained; what was not finished after {DRAIN_MAX:?} was cut off"
                    );
                    return Ok(());
                }
                // They end now as they should; a second signal is seen to elsewhere.
                Ok(Some(
                    Command::ShardEnded(_)
                    | Command::EventsEnded
                    | Command::Signal(_)
                    | Command::Looked(..)
                    | Command::SecretsStored,
                )) => {}
                Ok(None) | Err(_) => {
                    tracing::warn!("the drain did not come to its end");
                    return Ok(());
                }
            }
        }
    }
}

/// Whether the configuration is young enough to serve with.
struct Freshness {
    age_max: Duration,
    /// `None` while there is no configuration: then it is not its age that matters.
    stale_at: Option<Instant>,
    had_failed: bool,
    fresh: bool,
}

impl Freshness {
    fn new(age_max: Duration) -> Self {
        Self {
            age_max,
            stale_at: None,
            had_failed: false,
            fresh: true,
        }
    }

    /// What is in force was true `age` ago.
    fn good(&mut self, now: Instant, age: Duration) {
        self.stale_at = Some(now + self.age_max.saturating_sub(age));
        self.had_failed = false;
    }

    /// The answer, if it is another than before.
    fn changed(&mut self, now: Instant) -> Option<bool> {
        let fresh = self.stale_at.is_none_or(|stale_at| now < stale_at);
        (std::mem::replace(&mut self.fresh, fresh) != fresh).then_some(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_stale_after_a_day_and_fresh_again_when_read() {
        #[expect(
            clippy::disallowed_methods,
            reason = "an instant cannot be made otherwise"
        )]
        let start = Instant::now();
        let (day, second) = (Duration::from_secs(24 * 60 * 60), Duration::from_secs(1));
        let mut freshness = Freshness::new(day);
        assert_eq!(freshness.changed(start + day * 9), None, "nothing to judge");
        freshness.good(start, Duration::ZERO);
        assert_eq!(freshness.changed(start + day - second), None);
        assert_eq!(freshness.changed(start + day), Some(false));
        assert_eq!(freshness.changed(start + day * 2), None);
        freshness.good(start + day * 2, Duration::ZERO);
        assert_eq!(freshness.changed(start + day * 2), Some(true));
        // One from the disk brings its age along.
        freshness.good(start + day * 2, day - second);
        assert_eq!(freshness.changed(start + day * 2), None);
        assert_eq!(freshness.changed(start + day * 2 + second), Some(false));
    }
}
