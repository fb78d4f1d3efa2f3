//! Where snapshots come from: a configuration [`broker`], a [`file`](mod@file), or [`dev`]'s imagination.
//!
//! A source is asked for the whole state again and again (level-triggered): it never hands out a change, only what
//! is true now, and says when that is what it gave last time.

pub(crate) mod account;
pub mod broker;
pub mod dev;
pub mod file;
pub(crate) mod keys;
pub(crate) mod look;
pub mod tls;

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use tsp_shards::Snapshot;
use tsp_wire::{
    SnapshotVersion,
    snapshot::{KmsConfigDoc, SnapshotDoc, TenantDoc, TenantSecretDoc},
};

use self::{
    account::{AccountSource, EnvFile, WithFile},
    broker::BrokerSource,
    dev::DevSource,
    file::FileSource,
};
use crate::{
    config::{self, Environment, Problem},
    secrets::keeper::Store,
};

/// All KMS configs and tenants, as a source has them now. The control core gives it a version.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The KMS configs that can be used.
    pub kms: Vec<KmsConfigDoc>,
    /// The numbers of those that cannot, for what stands in [`left_out`](Self::left_out).
    pub unusable: Vec<i64>,
    /// The tenants, with all their assignments: also those to configs that cannot be used.
    pub tenants: Vec<TenantDoc>,
    /// What cannot be used and was left out, while the rest is served.
    pub left_out: Vec<Problem>,
    /// Whether it may hold LOCAL keys: it is the operator's own, or the operator says so.
    pub allow_local: bool,
    /// How long ago it was known to be true.
    pub age: Duration,
}

impl Loaded {
    /// Makes a snapshot of the state, without tenant secrets, and adds what the data plane refuses to what the source left
    /// out. What has not changed since `former` is taken from there.
    #[must_use]
    pub fn into_snapshot(
        self,
        version: SnapshotVersion,
        former: Option<&Snapshot>,
    ) -> (Snapshot, Vec<Problem>) {
        let Self {
            kms,
            unusable,
            tenants,
            mut left_out,
            allow_local,
            age: _,
        } = self;
        let doc = SnapshotDoc {
            version,
            kms,
            unusable,
            tenants,
            secrets: Vec::new(),
        };
        let (snapshot, rejected) = Snapshot::following(former, doc, allow_local);
        left_out.extend(
            rejected
                .into_iter()
                .map(|part| Problem::new(part.what, part.why)),
        );
        (snapshot, left_out)
    }
}

/// How hard to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Only if there may be something new.
    IfChanged,
    /// Likewise, and something is known to be new.
    News,
    /// In any case, because the last look failed some time ago. A source that keeps its own time has tried already.
    Again,
    /// In any case: an operator asked.
    Always,
}

impl Ask {
    /// Whether what looks unchanged is to be read all the same.
    fn is_thorough(self) -> bool {
        match self {
            Self::IfChanged | Self::News => false,
            Self::Again | Self::Always => true,
        }
    }
}

/// What a look found.
#[derive(Debug)]
pub enum Polled<T> {
    /// The state that was handed out last.
    Same,
    /// A new state.
    New(Box<T>),
    /// Nothing usable, and why. The last state stays in force.
    Failed(Vec<Problem>),
    /// Still what [`Polled::Failed`] told last time.
    StillFailed,
    /// Nobody looked: it is not time yet.
    NotAsked,
}

/// Whether [`look_once`] asks a broker.
pub(crate) fn is_broker(named: Option<&Path>) -> bool {
    file::named_file(named).is_none()
}

/// The state for a command that looks at it once, beside a process that serves or without one: that of the file that is
/// `named`, or of the one that `TSP_CONFIG_FILE` names, or of a broker, whose account may be in a file of its own. The second is
/// why a broker's is not of now.
///
/// # Errors
/// If there is none.
pub(crate) fn look_once(named: Option<&Path>) -> Result<(Loaded, Option<Problem>), Vec<Problem>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "no core runs yet that could be asked"
    )]
    let now = SystemTime::now();
    if let Some(path) = file::named_file(named) {
        return match FileSource::new(path, Environment).poll(Ask::Always, now) {
            Polled::New(loaded) => Ok((*loaded, None)),
            Polled::Failed(problems) => Err(problems),
            // A source that was never asked before has something to say.
            Polled::Same | Polled::StillFailed | Polled::NotAsked => Err(Vec::new()),
        };
    }
    let account = AccountSource::named(&Environment);
    let account = match account.map(|mut account| account.poll(Ask::Always, now)) {
        Some(Polled::New(account)) => *account,
        Some(Polled::Failed(problems)) => return Err(problems),
        Some(Polled::Same | Polled::StillFailed | Polled::NotAsked) | None => EnvFile::default(),
    };
    let strings = WithFile {
        file: &account,
        below: &Environment,
    };
    match config::broker(&strings)? {
        Some(broker) => BrokerSource::new(broker, true)
            .map_err(|problem| vec![problem])?
            .look_once(),
        None => {
            let why = "not set; --config FILE does as well, or the variables of a service account at a broker";
            Err(vec![Problem::new("TSP_CONFIG_FILE", why)])
        }
    }
}

/// One of the sources.
#[derive(Debug)]
pub enum Source {
    /// A TOML file.
    File(FileSource),
    /// Made-up tenants.
    Dev(DevSource),
    /// A configuration broker.
    Broker(Box<BrokerSource>),
}

impl Source {
    /// Looks for the current state. `now` tells fresh files from settled ones.
    pub fn poll(&mut self, ask: Ask, now: SystemTime) -> Polled<Loaded> {
        match self {
            Self::File(file) => file.poll(ask, now),
            Self::Dev(dev) => dev.poll(),
            Self::Broker(broker) => broker.poll(ask),
        }
    }

    /// Likewise for the tenant secrets.
    pub fn poll_secrets(&mut self, ask: Ask, now: SystemTime) -> Polled<Vec<TenantSecretDoc>> {
        match self {
            Self::File(file) => file.poll_secrets(ask, now),
            Self::Dev(dev) => dev.poll_secrets(),
            Self::Broker(broker) => broker.poll_secrets(),
        }
    }

    /// Where new tenant secrets are to be stored, so that [`Source::poll_secrets`] finds them. Known after the first good
    /// [`Source::poll`]; asked for once.
    pub(crate) fn store(&mut self) -> Option<Store> {
        match self {
            Self::File(file) => file.secrets_file().cloned().map(Store::File),
            Self::Dev(dev) => dev.store().map(Store::Memory),
            Self::Broker(broker) => Some(Store::Broker(broker.store())),
        }
    }
}
