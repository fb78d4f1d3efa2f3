//! Scenario files: a proxy, its KMSs and the load on it, as TOML. `loadtest/scenarios` has those that ship.

use std::{fs, io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    arrivals::Arrivals,
    front::Transport,
    kmssim::{Provider, Rule, SampleShape},
    mix::{BATCH_ITEMS, Demand, Mix},
    server,
};

/// Longest run, warm-up or step, in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;

/// Most tenants: the simulated KMSs make a key for each at the start.
const TENANTS_MAX: usize = 100_000;

/// Most connections of a load: one process cannot have more to one address and port.
const CONNECTIONS_MAX: usize = 28_000;

/// Highest rate per second. No machine comes near it; beyond it times between requests lose their meaning.
const RATE_MAX: f64 = 10_000_000.0;

/// Most loads side by side; each has a thread.
const LOADS_MAX: usize = 16;

/// A scenario, checked.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The file's name without its ending.
    pub name: String,
    /// The file, as it was written.
    pub text: String,
    /// What it says.
    pub doc: ScenarioDoc,
}

/// What a scenario file says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioDoc {
    /// What it shows, in a sentence or two.
    pub about: String,
    /// How long it is measured.
    #[serde(default = "measured_s")]
    pub seconds: f64,
    /// How long the same load runs before that, not counted.
    #[serde(default)]
    pub warm_up_s: f64,
    /// Starts the proxy anew after the preparation, so that it meets the load with nothing in memory. There is no warm-up.
    #[serde(default)]
    pub cold: bool,
    /// Decides about everything that is drawn.
    #[serde(default = "one")]
    pub seed: u64,
    /// The proxy.
    #[serde(default)]
    pub proxy: ProxyDoc,
    /// The KMSs and the tenants.
    pub kms: KmsDoc,
    /// What is asked. Several loads run side by side.
    pub load: Vec<LoadDoc>,
    /// Raises the rate of the load step by step instead of running `seconds` at one.
    pub steps: Option<StepsDoc>,
}

/// How the proxy is started.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyDoc {
    /// Number of shards; 1 if not said, which leaves a core to the rest on a small machine.
    pub shards: Option<usize>,
    /// More environment variables.
    pub variables: toml::Table,
}

/// The KMSs that `kmssim` plays, and the tenants whose keys are there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KmsDoc {
    /// Number of tenants, `tenant-1` and so on.
    pub tenants: usize,
    /// Their providers, by turns.
    pub providers: Vec<Provider>,
    /// Whether the proxy may lease keys.
    #[serde(default)]
    pub leased: bool,
    /// Speaks HTTP without TLS.
    #[serde(default)]
    pub plain: bool,
    /// Latency rules, as the control API of `kmssim` takes them.
    #[serde(default)]
    pub latency: Vec<Value>,
    /// Quotas, likewise.
    #[serde(default)]
    pub quota: Vec<Value>,
    /// Faults, likewise.
    #[serde(default)]
    pub fault: Vec<Value>,
}

/// One load.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadDoc {
    /// Its name in the report; needed if there are several.
    #[serde(default = "all")]
    pub name: String,
    /// What is asked: kinds of request with their weights.
    pub mix: Mix,
    /// Items of each batch.
    #[serde(default = "batch_items")]
    pub batch_items: usize,
    /// Prefers the first tenants by Zipf's law with this exponent; otherwise they take turns.
    pub zipf: Option<f64>,
    /// The tenants that it asks for, first and last; all if not said.
    pub tenants: Option<(usize, usize)>,
    /// How it reaches the proxy: `tcp`, `tls` or `unix`.
    #[serde(default)]
    pub transport: Transport,
    /// Connections.
    #[serde(default = "connections")]
    pub connections: usize,
    /// CPUs for its generator, one thread each, such as `"1"` or `"2-3"`. One thread, which `--pin` may pin, if not said.
    pub cores: Option<String>,
    /// Open loop: requests per second. A closed loop without it.
    pub rate: Option<f64>,
    /// How an open loop's requests are spread.
    #[serde(default = "poisson")]
    pub arrivals: Arrivals,
    /// Open loop: leaves the CPU to the KMSs between two requests, and is up to a millisecond late for that. If not said,
    /// only where the KMSs are asked in every operation.
    pub shares_cpu: Option<bool>,
    /// Begins so long after the start.
    #[serde(default)]
    pub from_s: f64,
    /// Ends so long after the start; with the run if not said.
    pub to_s: Option<f64>,
}

/// Steps that raise the rate until the proxy does not keep up, then close in on the knee.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StepsDoc {
    /// Rate of the first step, per second.
    pub from: f64,
    /// What the rate grows by from step to step.
    #[serde(default = "factor")]
    pub factor: f64,
    /// Length of a step.
    pub seconds: f64,
    /// A step is passed if nothing failed, at least 98 % of the rate were answered, and the 99th percentile is below this.
    pub p99_ms_max: f64,
    /// Steps between the last that was passed and the first that was not.
    #[serde(default = "halvings")]
    pub halvings: u32,
}

fn measured_s() -> f64 {
    20.0
}

fn one() -> u64 {
    1
}

fn all() -> String {
    "all".to_owned()
}

fn batch_items() -> usize {
    BATCH_ITEMS
}

fn connections() -> usize {
    64
}

fn poisson() -> Arrivals {
    Arrivals::Poisson
}

fn factor() -> f64 {
    1.5
}

fn halvings() -> u32 {
    3
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or makes no sense; the text names the file.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|why| io::Error::new(why.kind(), format!("{}: {why}", path.display())))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).map_err(|why| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {why}", path.display()),
            )
        })
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What makes no sense.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let doc: ScenarioDoc = toml::from_str(text).map_err(|why| why.to_string())?;
        doc.check()?;
        Ok(Self {
            name: name.to_owned(),
            text: text.to_owned(),
            doc,
        })
    }
}

impl ScenarioDoc {
    fn check(&self) -> Result<(), String> {
        above_zero("seconds", self.seconds, SECONDS_MAX)?;
        if self.warm_up_s != 0.0 {
            above_zero("warm_up_s", self.warm_up_s, SECONDS_MAX)?;
            if self.cold {
                return Err("a cold start has no warm_up_s".to_owned());
            }
        }
        if self.proxy.shards == Some(0) {
            return Err("proxy.shards begins at 1".to_owned());
        }
        self.proxy.environment()?;
        if self.kms.tenants == 0 || self.kms.tenants > TENANTS_MAX {
            return Err(format!("kms.tenants is 1 to {TENANTS_MAX}"));
        }
        if self.kms.providers.is_empty() {
            return Err("kms.providers names no provider".to_owned());
        }
        if self.load.is_empty() || self.load.len() > LOADS_MAX {
            return Err(format!("there are 1 to {LOADS_MAX} [[load]]s"));
        }
        for (index, load) in self.load.iter().enumerate() {
            load.check(self)
                .map_err(|why| format!("load {:?}: {why}", load.name))?;
            if self.load.iter().take(index).any(|l| l.name == load.name) {
                return Err(format!("two loads are called {:?}", load.name));
            }
        }
        let has = |wanted| self.load.iter().any(|load| load.transport == wanted);
        if has(Transport::Tcp) && has(Transport::Tls) {
            return Err("the proxy's port speaks either TLS or plain TCP".to_owned());
        }
        self.steps.iter().try_for_each(|steps| {
            above_zero("steps.from", steps.from, RATE_MAX)?;
            above_zero("steps.seconds", steps.seconds, SECONDS_MAX)?;
            above_zero("steps.p99_ms_max", steps.p99_ms_max, SECONDS_MAX)?;
            if !(1.05..=10.0).contains(&steps.factor) || steps.halvings > 10 {
                return Err("steps.factor is 1.05 to 10, steps.halvings 0 to 10".to_owned());
            }
            match self.load.as_slice() {
                [load] if load.rate.is_none() => Ok(()),
                _ => Err("steps need one load without a rate of its own".to_owned()),
            }
        })
    }

    /// The world of the simulated KMSs.
    #[must_use]
    pub fn shape(&self) -> SampleShape {
        SampleShape {
            tenants: self.kms.tenants,
            providers: self.kms.providers.clone(),
            seed: self.seed,
            ..SampleShape::default()
        }
    }

    /// The rules that the simulated KMSs start with.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let of = |rules: &[Value], kind: fn(String) -> Rule| -> Vec<_> {
            rules.iter().map(|rule| kind(rule.to_string())).collect()
        };
        let mut rules = of(&self.kms.latency, Rule::Latency);
        rules.extend(of(&self.kms.quota, Rule::Quota));
        rules.extend(of(&self.kms.fault, Rule::Fault));
        rules
    }
}

impl ProxyDoc {
    /// The further environment variables, as text.
    ///
    /// # Errors
    /// If one is no string, number or boolean.
    pub fn environment(&self) -> Result<Vec<(String, String)>, String> {
        let text = |(name, value): (&String, &toml::Value)| {
            let text = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Float(number) => number.to_string(),
                toml::Value::Boolean(yes) => yes.to_string(),
                toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                    return Err(format!("proxy.variables.{name} is not a plain value"));
                }
            };
            Ok((name.clone(), text))
        };
        self.variables.iter().map(text).collect()
    }
}

impl LoadDoc {
    fn check(&self, scenario: &ScenarioDoc) -> Result<(), String> {
        self.demand(scenario.seed).check()?;
        if self.connections == 0 || self.connections > CONNECTIONS_MAX {
            return Err(format!("connections is 1 to {CONNECTIONS_MAX}"));
        }
        if let Some(rate) = self.rate {
            above_zero("rate", rate, RATE_MAX)?;
        }
        self.lanes(None)?;
        let (first, last) = self.tenants(scenario);
        if first == 0 || first > last || last > scenario.kms.tenants {
            return Err("tenants is [first, last], both among those of kms.tenants".to_owned());
        }
        let ends = self.to_s.unwrap_or(scenario.seconds);
        if !(0.0 <= self.from_s && self.from_s < ends && ends <= scenario.seconds) {
            return Err("from_s is before to_s, and both are within seconds".to_owned());
        }
        if scenario.steps.is_some() && (self.from_s != 0.0 || self.to_s.is_some()) {
            return Err("steps set the times, not from_s and to_s".to_owned());
        }
        Ok(())
    }

    /// What it asks.
    #[must_use]
    pub fn demand(&self, seed: u64) -> Demand {
        Demand {
            mix: self.mix.clone(),
            batch_items: self.batch_items,
            zipf: self.zipf,
            seed,
        }
    }

    /// The first and the last tenant that it asks for, from 1.
    #[must_use]
    pub fn tenants(&self, scenario: &ScenarioDoc) -> (usize, usize) {
        self.tenants.unwrap_or((1, scenario.kms.tenants))
    }

    /// The CPUs of its threads: those that it names, or one thread on `otherwise`.
    ///
    /// # Errors
    /// If it names none as the kernel does.
    pub fn lanes(&self, otherwise: Option<usize>) -> Result<Vec<Option<usize>>, String> {
        let Some(list) = &self.cores else {
            return Ok(vec![otherwise]);
        };
        let cpus = server::parse_cpus(list).map_err(|why| format!("cores: {why}"))?;
        Ok(cpus.into_iter().map(Some).collect())
    }

    /// When it begins, and how long it lasts.
    #[must_use]
    pub fn times(&self, scenario: &ScenarioDoc) -> (Duration, Duration) {
        let ends = self.to_s.unwrap_or(scenario.seconds);
        let time = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        (time(self.from_s), time(ends - self.from_s))
    }
}

fn above_zero(name: &str, number: f64, most: f64) -> Result<(), String> {
    if number > 0.0 && number <= most && Duration::try_from_secs_f64(1.0 / number).is_ok() {
        Ok(())
    } else {
        Err(format!("{name} is above 0, and at most {most}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        about = "A small one."
        [kms]
        tenants = 4
        providers = ["aws"]
        [[load]]
        mix = { wrap = 1 }
    "#;

    /// Every scenario that ships.
    fn shipped() -> Vec<Scenario> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut scenarios: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| Scenario::read(&entry.unwrap().path()).unwrap())
            .collect();
        scenarios.sort_by(|a, b| a.name.cmp(&b.name));
        scenarios
    }

    #[test]
    fn every_scenario_that_ships_is_sound() {
        let names: Vec<_> = shipped()
            .into_iter()
            .map(|scenario| scenario.name)
            .collect();
        assert_eq!(
            names,
            [
                "aws",
                "azure",
                "batch",
                "cold-start",
                "gcp",
                "headline",
                "knee",
                "leased",
                "sidecar",
                "slow-kms",
                "tenant-storm",
                "thales",
                "tls",
            ]
        );
    }

    #[test]
    fn the_kms_takes_every_rule_that_ships() {
        for scenario in shipped() {
            let sample = crate::kmssim::Sample::new(&SampleShape {
                tenants: 1,
                ..scenario.doc.shape()
            });
            let options = crate::kmssim::Options {
                rules: scenario.doc.rules(),
                ..crate::kmssim::Options::on_loopback(sample)
            };
            if let Err(why) = crate::kmssim::Kmssim::start(options) {
                panic!("{}: {why}", scenario.name);
            }
        }
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let doc = Scenario::parse("small", SMALL).unwrap().doc;
        let load = &doc.load[0];
        assert_eq!((doc.seconds, load.connections), (20.0, 64));
        assert_eq!(load.tenants(&doc), (1, 4));
        assert_eq!(load.times(&doc), (Duration::ZERO, Duration::from_secs(20)));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (what, reason) in [
            ("rate = 0", "rate is above 0"),
            ("rate = 1e-300", "rate is above 0"),
            ("connections = 0", "connections is 1"),
            ("tenants = [0, 1]", "tenants is [first, last]"),
            ("tenants = [3, 2]", "tenants is [first, last]"),
            ("tenants = [1, 5]", "tenants is [first, last]"),
            ("from_s = 20", "from_s is before to_s"),
            ("to_s = 21", "from_s is before to_s"),
            ("zipf = -1", "Zipf"),
            ("batch_items = 0", "a batch has"),
            ("cores = \"x\"", "cores: "),
            ("transport = \"udp\"", "unknown variant"),
            (
                "[[load]]\nname = \"b\"\nmix = { wrap = 1 }\ntransport = \"tls\"",
                "either TLS or plain",
            ),
            ("[[load]]\nmix = { wrap = 1 }", "two loads are called"),
            ("mix = { wrap = 0 }", "duplicate key"),
            ("[load.more]", "unknown field"),
            (
                "rate = 1\n[steps]\nfrom = 1\nseconds = 1\np99_ms_max = 1",
                "steps need one load",
            ),
            (
                "[steps]\nfrom = 1\nseconds = 1\np99_ms_max = 1\nfactor = 1",
                "steps.factor",
            ),
            ("[proxy.variables]\nX = []", "not a plain value"),
        ] {
            let text = format!("{SMALL}\n{what}");
            let why = Scenario::parse("small", &text).unwrap_err();
            assert!(why.contains(reason), "{what}: {why}");
        }
        let none = SMALL.replace("wrap = 1", "wrap = 0");
        assert!(Scenario::parse("small", &none).is_err());
        let cold = format!("cold = true\nwarm_up_s = 1\n{SMALL}");
        assert!(Scenario::parse("small", &cold).is_err());
    }
}
