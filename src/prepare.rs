//! All that can be known, and can be wrong, before anything is bound: the variables, the machine, the configuration.

use std::{io, path::PathBuf, sync::Arc, time::SystemTime};

use tsp_rt::{LimitsRaised, Probe, tls::ServerTls};
use tsp_shards::Snapshot;
use tsp_wire::{ApiKey, account::env::ServiceAccount};

use crate::{
    DevOptions,
    config::{BrokerConfig, Environment, Mode, Overlay, Problem, ProcessConfig, Strings as _},
    cores::{CorePlan, Machine},
    secrets::keeper::Store,
    source::{
        Ask, Polled, Source,
        account::{AccountSource, WithFile},
        broker::BrokerSource,
        dev,
        dev::DevSource,
        file::FileSource,
        keys::{Keys, KeysSource},
        look::{Lookout, New, Outcome},
        tls::TlsSource,
    },
};

/// When the first state is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// Before anything is bound.
    Now,
    /// Once the process runs, however long it takes to come.
    Later,
}

/// All that is known before anything is bound.
pub(crate) struct Prepared {
    pub(crate) config: ProcessConfig,
    /// `API_KEY`, if there is one.
    pub(crate) api_key: Option<Arc<ApiKey>>,
    /// What applications may present.
    pub(crate) keys: Keys,
    pub(crate) plan: CorePlan,
    /// What became of the process's limits.
    pub(crate) limits: io::Result<LimitsRaised>,
    pub(crate) probe: Probe,
    pub(crate) lookout: Lookout,
    /// What the client API's port speaks TLS with; `None` leaves it in the clear.
    pub(crate) tls: Option<ServerTls>,
    /// Where new tenant secrets are stored.
    pub(crate) store: Store,
    /// The first state and what was left out of it; `None` if it is still to be fetched.
    pub(crate) first: Option<(Snapshot, Vec<Problem>)>,
}

impl Prepared {
    /// For `tsp`, and for `tsp check`.
    ///
    /// # Errors
    /// Every problem of the variables, the machine and the file. A broker's are problems only for who wants the `first`
    /// state now.
    pub(crate) fn serve(first: First) -> Result<Self, Vec<Problem>> {
        let mut account = AccountSource::named(&Environment);
        let polled = account
            .as_mut()
            .map(|account| account.poll(Ask::Always, now()));
        let mut config = match polled {
            Some(Polled::New(file)) => {
                let below = &Environment;
                let strings = WithFile { file: &file, below };
                ProcessConfig::from_strings(&strings, Mode::Serve)
            }
            Some(Polled::Failed(problems)) => return Err(problems),
            Some(Polled::Same | Polled::StillFailed | Polled::NotAsked) | None => {
                ProcessConfig::from_strings(&Environment, Mode::Serve)
            }
        };
        let broker = config.as_mut().ok().and_then(|config| {
            let broker = config.broker.take()?;
            Some(BrokerSource::new(broker, config.allow_local_kms))
        });
        if let Some(broker) = broker {
            let source = Source::Broker(Box::new(broker.map_err(|problem| vec![problem])?));
            return Self::new(config, None, source, account, first);
        }
        // Whatever else is wrong, the file's problems are told at the same time.
        let path = match &config {
            Ok(config) => config.config_file.clone(),
            Err(_) => Environment
                .get("TSP_CONFIG_FILE")
                .ok()
                .flatten()
                .map(PathBuf::from),
        };
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
            return Err(config.err().unwrap_or_default());
        };
        let source = Source::File(FileSource::new(path, Environment));
        Self::new(config, None, source, account, First::Now)
    }

    /// For `tsp dev`, perhaps with the account of a broker that was started for it.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub(crate) fn dev(
        options: &DevOptions,
        account: Option<ServiceAccount>,
    ) -> Result<Self, Vec<Problem>> {
        let option = |variable, name, value: &Option<String>| {
            value.clone().map(|value| (variable, name, value))
        };
        let options_given = [
            option("API_KEY", "--api-key", &options.api_key),
            option("TSP_HTTP_BIND_ADDRESS", "--http", &options.http),
            option("TSP_HEALTH_BIND_ADDRESS", "--health", &options.health),
            option("TSP_EVENT_BIND_ADDRESS", "--event", &options.event),
        ];
        let strings = Overlay {
            options: options_given.into_iter().flatten().collect(),
            below: &Environment,
        };
        let config = ProcessConfig::from_strings(&strings, Mode::Dev);
        let random = |why: io::Error| vec![Problem::new("random numbers", why.to_string())];
        let source = match (account, &options.state) {
            (Some(account), _) => {
                let broker = BrokerConfig::for_dev(account);
                let source = BrokerSource::new(broker, true).map_err(|problem| vec![problem])?;
                Source::Broker(Box::new(source))
            }
            (None, Some(path)) => {
                dev::ensure_state(path).map_err(|problem| vec![problem])?;
                Source::File(FileSource::new(path.clone(), Environment))
            }
            (None, None) => Source::Dev(DevSource::new().map_err(random)?),
        };
        let new_key = dev::new_api_key().map_err(random)?;
        Self::new(config, ApiKey::new(new_key), source, None, First::Now)
    }

    /// Puts everything together, and gathers the problems of all parts.
    fn new(
        config: Result<ProcessConfig, Vec<Problem>>,
        default_api_key: Option<ApiKey>,
        source: Source,
        account: Option<AccountSource>,
        first: First,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut config = config.map_err(|found| problems.extend(found)).ok();
        let warnings = config
            .as_ref()
            .map(|config| config.warnings.clone())
            .unwrap_or_default();
        // Before the probe, which asks how much memory may be locked.
        let limits = tsp_rt::raise_limits();
        let machine = config.as_ref().and_then(|config| {
            let plan = CorePlan::new(&Machine::here(), &config.cores);
            let plan = plan.map_err(|found| problems.extend(found)).ok();
            let probe = tsp_rt::choose(config.io)
                .map_err(|why| problems.push(Problem::new("TSP_IO", why.to_string())))
                .ok();
            plan.zip(probe)
        });
        let now = now();
        let files = config.as_ref().and_then(|config| config.tls.clone());
        let tls = files.map(TlsSource::new).transpose();
        let tls = tls.map_err(|problem| problems.push(problem)).ok().flatten();
        let given = config.as_mut().map(|config| {
            let second = config.api_key_2.take();
            (config.api_key.take(), second, config.api_keys_file.clone())
        });
        let (api_key, second, file) = given.unwrap_or_default();
        let api_key = api_key.or(default_api_key).map(Arc::new);
        let shards = machine
            .as_ref()
            .map_or(1, |(plan, _)| plan.shard_cpus.len());
        let keys = KeysSource::new(api_key.clone(), second, file, shards);
        let mut lookout = Lookout::new(source, tls, keys, account);
        let (found, tls, keys) = match first {
            First::Now => {
                let looked = lookout.look(Ask::Always, now);
                (Some((looked.outcome, looked.new)), looked.tls, looked.keys)
            }
            First::Later => {
                let tls = lookout.look_at_tls(Ask::Always, now);
                (None, tls, lookout.look_at_keys(Ask::Always, now))
            }
        };
        let keys = match keys {
            Polled::New(keys) => Some(*keys),
            Polled::Failed(found) => {
                problems.extend(found);
                None
            }
            // A source that was never asked before has something to say.
            Polled::Same | Polled::StillFailed | Polled::NotAsked => None,
        };
        let tls = match tls {
            Polled::New(tls) => Some(*tls),
            Polled::Failed(found) => {
                problems.extend(found);
                None
            }
            Polled::Same | Polled::StillFailed | Polled::NotAsked => None,
        };
        let first = match found {
            None => lookout.store().map(|store| (None, store)),
            Some((Outcome::Good, new)) => new.map(Some).zip(lookout.store()),
            Some((Outcome::Failed(found), _)) => {
                problems.extend(found);
                None
            }
            // A source that was never asked before has something to say.
            Some((Outcome::StillFailed | Outcome::NotAsked, _)) => None,
        };
        let (Some(config), Some((plan, probe)), Some((first, store)), Some(keys), true) =
            (config, machine, first, keys, problems.is_empty())
        else {
            // What is only odd may be the reason for what is wrong.
            problems.extend(warnings);
            return Err(problems);
        };
        let first =
            first.map(|New { snapshot, left_out }| (snapshot, left_out.unwrap_or_default()));
        Ok(Self {
            config,
            api_key,
            keys,
            plan,
            limits,
            probe,
            lookout,
            tls,
            store,
            first,
        })
    }

    fn secrets_summary(&self, first: &Snapshot) -> String {
        let count = first.secret_count();
        match &self.store {
            Store::File(file) => format!("{count} in {}", file.path().display()),
            Store::Memory(_) => count.to_string(),
            Store::Broker(broker) => format!("{count} at {}", broker.url()),
        }
    }

    /// What the first state has not.
    pub(crate) fn left_out(&self) -> &[Problem] {
        let first = self.first.as_ref();
        first.map(|(_, left_out)| &**left_out).unwrap_or_default()
    }

    /// What `tsp check` tells about a configuration that can be served.
    pub(crate) fn summary(&self) -> String {
        let Self {
            config,
            plan,
            probe,
            first,
            ..
        } = self;
        let mut lines = vec![
            match &self.tls {
                None => format!("client API     {}", config.http),
                Some(tls) => format!(
                    "client API     {}, TLS with certificate {}",
                    config.http,
                    tls.fingerprint()
                ),
            },
            format!("health         {}", config.health),
            match &config.events {
                Some(events) => format!("events         {}", events.listen),
                None => "events         off".to_owned(),
            },
            format!("I/O            {} ({})", probe.backend, probe.reason),
            format!(
                "shards         {} on cores {}",
                plan.shard_cpus.len(),
                plan.shard_cpus_text()
            ),
            format!("control plane  on core {}", plan.control_cpu_text()),
        ];
        if let Some((first, _)) = first {
            lines.extend([
                format!("tenants        {}", first.tenant_count()),
                format!("KMS configs    {}", first.kms_config_count()),
                format!("tenant secrets {}", self.secrets_summary(first)),
            ]);
        }
        if let Some(file) = &config.api_keys_file {
            let (listed, file) = (self.keys.listed, file.display());
            lines.push(format!("API keys       {listed} in {file}"));
        }
        if let Some(unix) = &config.unix {
            lines.insert(1, format!("Unix socket    {}", unix.path.display()));
        }
        lines.extend(
            config
                .warnings
                .iter()
                .map(|warning| format!("warning: {warning}")),
        );
        if self.left_out().is_empty() {
            lines.push("The configuration is good.".to_owned());
        }
        lines.join("\n")
    }
}

fn now() -> SystemTime {
    #[expect(
        clippy::disallowed_methods,
        reason = "no core runs yet that could be asked"
    )]
    SystemTime::now()
}
