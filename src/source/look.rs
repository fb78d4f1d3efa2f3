//! Looking at the source: a snapshot for every new state, the client API's certificate and its keys. And the thread that
//! does it, so that a slow or hanging file system delays neither probes nor a drain.

use std::{
    io, thread,
    time::{Duration, SystemTime},
};

use crossbeam_channel::Sender;
use tsp_rt::{mailbox, tls::ServerTls};
use tsp_shards::{FormerSnapshots, Rejected, Snapshot};
use tsp_wire::snapshot::TenantSecretDoc;

use super::{
    Ask, Loaded, Polled, Source,
    account::{AccountSource, EnvFile, Given, WithFile},
    keys::{Keys, KeysSource},
    tls::TlsSource,
};
use crate::{
    config::{Environment, Problem},
    control::Command,
    cores::CorePlan,
    secrets::keeper::Store,
};

/// What a look came to.
pub(crate) struct Looked {
    /// A new state, ready to be published.
    pub(crate) new: Option<New>,
    /// Whether everything could be looked at.
    pub(crate) outcome: Outcome,
    /// How long ago what was found was known to be true.
    pub(crate) age: Duration,
    /// What became of the client API's certificate.
    pub(crate) tls: Polled<ServerTls>,
    /// What became of the keys that applications present.
    pub(crate) keys: Polled<Keys>,
    /// What became of the file with the service account. What is new of it is in force, or tried.
    pub(crate) account: Polled<()>,
}

/// A new state.
pub(crate) struct New {
    pub(crate) snapshot: Snapshot,
    /// What was left out of it; `None` if that is what it was before, because only the tenant secrets have changed.
    pub(crate) left_out: Option<Vec<Problem>>,
}

/// How a look ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What there is is known.
    Good,
    /// As [`Polled::Failed`], of the configurations or of the tenant secrets. What could be looked at is in force.
    Failed(Vec<Problem>),
    /// As [`Polled::StillFailed`].
    StillFailed,
    /// As [`Polled::NotAsked`].
    NotAsked,
}

/// A source, and the last snapshot that was made of it.
pub(crate) struct Lookout {
    source: Source,
    tls: Option<TlsSource>,
    keys: KeysSource,
    account: Option<AccountSource>,
    last: Option<Snapshot>,
    former: FormerSnapshots,
    configs_left_out: Vec<Problem>,
    secrets_left_out: Vec<Problem>,
}

/// What could not be looked at.
#[derive(Default)]
struct Failures {
    new: Vec<Problem>,
    old: bool,
    not_asked: bool,
}

impl Failures {
    /// The new state, if there is one.
    fn sort<T>(&mut self, polled: Polled<T>) -> Option<T> {
        match polled {
            Polled::Same => None,
            Polled::New(state) => Some(*state),
            Polled::Failed(problems) => {
                self.new.extend(problems);
                None
            }
            Polled::StillFailed => {
                self.old = true;
                None
            }
            Polled::NotAsked => {
                self.not_asked = true;
                None
            }
        }
    }
}

impl Lookout {
    pub(crate) fn new(
        source: Source,
        tls: Option<TlsSource>,
        keys: KeysSource,
        account: Option<AccountSource>,
    ) -> Self {
        Self {
            source,
            tls,
            keys,
            account,
            last: None,
            former: FormerSnapshots::default(),
            configs_left_out: Vec::new(),
            secrets_left_out: Vec::new(),
        }
    }

    /// Where new tenant secrets are to be stored; known after the first good look, asked for once.
    pub(crate) fn store(&mut self) -> Option<Store> {
        self.source.store()
    }

    /// Where the broker is, if configurations come from one.
    pub(crate) fn broker(&self) -> Option<&str> {
        match &self.source {
            Source::Broker(broker) => Some(broker.url()),
            Source::File(_) | Source::Dev(_) => None,
        }
    }

    /// Which cores this process has.
    pub(crate) fn use_cores(&mut self, plan: &CorePlan) {
        if let Source::Broker(broker) = &mut self.source {
            broker.use_cores(plan);
        }
    }

    /// Looks, and makes a snapshot of what is new. `now` tells fresh files from settled ones.
    pub(crate) fn look(&mut self, ask: Ask, now: SystemTime) -> Looked {
        self.former.release();
        let account = self.look_at_account(ask, now);
        let mut failures = Failures::default();
        let configs = failures.sort(self.source.poll(ask, now));
        let secrets = failures.sort(self.source.poll_secrets(ask, now));
        let age = configs.as_ref().map(|loaded| loaded.age);
        let new = self.snapshot(configs, secrets);
        let Failures {
            new: problems,
            old,
            not_asked,
        } = failures;
        let outcome = if !problems.is_empty() {
            Outcome::Failed(problems)
        } else if old {
            Outcome::StillFailed
        } else if not_asked {
            Outcome::NotAsked
        } else {
            Outcome::Good
        };
        let tls = self.look_at_tls(ask, now);
        let keys = self.look_at_keys(ask, now);
        let age = age.unwrap_or_default();
        Looked {
            new,
            outcome,
            age,
            tls,
            keys,
            account,
        }
    }

    /// Looks at the client API's certificate alone.
    pub(crate) fn look_at_tls(&mut self, ask: Ask, now: SystemTime) -> Polled<ServerTls> {
        match &mut self.tls {
            Some(tls) => tls.poll(ask, now),
            None => Polled::Same,
        }
    }

    fn look_at_account(&mut self, ask: Ask, now: SystemTime) -> Polled<()> {
        let Some(account) = &mut self.account else {
            return Polled::Same;
        };
        match account.poll(ask, now) {
            Polled::New(file) => match self.take_account(&file) {
                Ok(()) => Polled::New(Box::new(())),
                Err(problems) => Polled::Failed(problems),
            },
            Polled::Same => Polled::Same,
            Polled::Failed(problems) => Polled::Failed(problems),
            Polled::StillFailed => Polled::StillFailed,
            Polled::NotAsked => Polled::NotAsked,
        }
    }

    fn take_account(&mut self, file: &EnvFile) -> Result<(), Vec<Problem>> {
        let strings = WithFile {
            file,
            below: &Environment,
        };
        let is_broker = matches!(self.source, Source::Broker(_));
        let given = Given::new(&strings, is_broker)?;
        if given.api_key.is_none() && !self.keys.has_file() {
            return Err(vec![Problem::new("API_KEY", "is missing")]);
        }
        if let (Source::Broker(broker), Some(account)) = (&mut self.source, given.account) {
            broker.renew(account).map_err(|problem| vec![problem])?;
        }
        self.keys.give(given.api_key, given.api_key_2);
        Ok(())
    }

    /// Looks at the keys that applications present alone.
    pub(crate) fn look_at_keys(&mut self, ask: Ask, now: SystemTime) -> Polled<Keys> {
        self.keys.poll(ask, now)
    }

    fn snapshot(
        &mut self,
        configs: Option<Loaded>,
        secrets: Option<Vec<TenantSecretDoc>>,
    ) -> Option<New> {
        let version = self.last.as_ref().map(Snapshot::version);
        let version = version.unwrap_or_default().next();
        let mut new = None;
        let mut tell = configs.is_some();
        if let Some(configs) = configs {
            let (snapshot, left_out) = configs.into_snapshot(version, self.last.as_ref());
            self.configs_left_out = left_out;
            new = Some(match &self.last {
                Some(last) => last.with_configs_of(&snapshot),
                None => snapshot,
            });
        }
        // There are none without configurations: what a secret belongs to is not known.
        if let Some(secrets) = secrets
            && let Some(base) = new.as_ref().or(self.last.as_ref())
        {
            let (snapshot, rejected) = base.with_secrets(version, &secrets);
            let problem = |Rejected { what, why }| Problem::new(what, why);
            let rejected: Vec<_> = rejected.into_iter().map(problem).collect();
            tell |= rejected != self.secrets_left_out;
            self.secrets_left_out = rejected;
            new = Some(snapshot);
        }
        let snapshot = new?;
        if let Some(former) = self.last.replace(snapshot.clone()) {
            self.former.keep(former, &snapshot);
        }
        let left_out = [&self.configs_left_out, &self.secrets_left_out];
        let left_out = tell.then(|| left_out.into_iter().flatten().cloned().collect());
        Some(New { snapshot, left_out })
    }
}

/// Starts the thread, on the calling thread's core. It answers every ask with one [`Command::Looked`], and ends with the
/// sender.
pub(crate) fn start(
    mut lookout: Lookout,
    commander: mailbox::Sender<Command>,
) -> io::Result<Sender<Ask>> {
    // The loop asks once and waits for the answer.
    let (asks, asked) = crossbeam_channel::bounded(1);
    thread::Builder::new()
        .name("tsp-source".to_owned())
        .spawn(move || {
            for ask in asked {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "to be compared with times of files"
                )]
                let now = SystemTime::now();
                let looked = lookout.look(ask, now);
                if commander.send(Command::Looked(ask, looked)).is_err() {
                    break;
                }
            }
        })?;
    Ok(asks)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        config::Environment,
        secrets::{
            file::{Edited, SecretsFile},
            tests::{at, offer},
        },
        source::file::FileSource,
    };

    const TENANTS: &str = "version = 1\n[[kms]]\nid = 1\ntype = \"LOCAL\"\n\
        credentials = { key = \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\" }\n\
        [[tenant]]\nid = \"acme\"\nassignments = [{ kms = 1, primary = true }]\n";

    /// A time at which every file has settled.
    fn later() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40)
    }

    #[test]
    fn each_new_state_is_a_snapshot_and_only_configurations_tell_what_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tenants.toml");
        fs::write(&path, TENANTS).unwrap();
        let mut lookout = Lookout::new(
            Source::File(FileSource::new(path.clone(), Environment)),
            None,
            KeysSource::new(None, None, None, 1),
            None,
        );
        assert!(lookout.store().is_none(), "not known yet where");
        let mut look = || lookout.look(Ask::IfChanged, later());
        let counts = |new: &New| {
            let snapshot = &new.snapshot;
            let version = snapshot.version().0;
            (version, snapshot.tenant_count(), snapshot.secret_count())
        };
        let first = look();
        let first_new = first.new.unwrap();
        assert_eq!(
            (counts(&first_new), first.outcome),
            ((1, 1, 0), Outcome::Good)
        );
        assert_eq!(first_new.left_out, Some(vec![]));
        assert!(look().new.is_none());

        let file = SecretsFile::new(folder.path().join("tenants.secrets.jsonl"));
        let (offered, _) = offer("acme", "p", b"blob");
        let stored = file.update(
            |_| {},
            |secrets| {
                secrets.take(&offered, at(0)).unwrap();
                Ok(((), Edited::Yes))
            },
        );
        stored.unwrap();
        let secrets = look().new.unwrap();
        assert_eq!((counts(&secrets), secrets.left_out), ((2, 1, 1), None));

        // One that cannot be read keeps no change of the other back.
        fs::write(
            &path,
            TENANTS.replace("acme", "globex") + "[[tenant]]\nid = \"other\"\n",
        )
        .unwrap();
        fs::write(file.path(), "damaged").unwrap();
        let looked = look();
        assert_eq!(counts(&looked.new.unwrap()), (3, 2, 1));
        assert!(matches!(looked.outcome, Outcome::Failed(_)));
        let again = look();
        assert!(again.new.is_none());
        assert_eq!(again.outcome, Outcome::StillFailed);
    }
}
