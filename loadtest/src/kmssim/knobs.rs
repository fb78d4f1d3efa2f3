//! What a test turns: latency, quotas, faults. Rules name their target by provider, operation and key, all optional.
//!
//! Of several rules for latency or quota that fit, the newest counts; of several faults, the oldest that is not used up.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    crypto::Random,
    exchange::{Operation, Provider, Subject},
};

/// Rules of one kind. A request looks at all of them.
pub(crate) const RULES_MAX: usize = 1000;
/// Longest delay that a rule may give: past this a client has long gone.
const DELAY_MAX: Duration = Duration::from_secs(600);

/// What a rule is for. What is left out fits everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Target {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) provider: Option<Provider>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operation: Option<Operation>,
    /// A key by any of its names, or a credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
}

impl Target {
    fn fits(&self, provider: Option<Provider>, subject: &Subject) -> bool {
        self.provider.is_none_or(|wanted| provider == Some(wanted))
            && self
                .operation
                .is_none_or(|wanted| subject.operation.unwrap_or(Operation::Other) == wanted)
            && self.key.as_ref().is_none_or(|key| subject.is_about(key))
    }
}

/// How long answers take: fixed, evenly between two bounds, or log-normal by its median and its 99th percentile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LatencyRule {
    pub(crate) target: Target,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fixed_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_ms: Option<f64>,
}

impl LatencyRule {
    fn shape(&self) -> Option<Shape> {
        match (
            self.fixed_ms,
            self.min_ms,
            self.max_ms,
            self.p50_ms,
            self.p99_ms,
        ) {
            (Some(ms), None, None, None, None) if ms >= 0.0 => Some(Shape::Fixed(ms)),
            (None, Some(min), Some(max), None, None) if 0.0 <= min && min <= max => {
                Some(Shape::Uniform(min, max))
            }
            (None, None, None, Some(p50), Some(p99)) if 0.0 < p50 && p50 <= p99 => {
                Some(Shape::LogNormal(p50, p99))
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Fixed(f64),
    Uniform(f64, f64),
    LogNormal(f64, f64),
}

impl Shape {
    fn draw(self, random: &mut Random) -> Duration {
        /// Standard deviations from the median to the 99th percentile of a normal distribution.
        const Z_99: f64 = 2.326_347_874;
        let ms = match self {
            Self::Fixed(ms) => ms,
            Self::Uniform(min, max) => min + (max - min) * random.unit(),
            Self::LogNormal(p50, p99) => {
                // Box and Muller's transform; one minus the number, so that the logarithm is finite.
                let radius = (-2.0 * (1.0 - random.unit()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * random.unit()).cos();
                p50 * (normal * (p99 / p50).ln() / Z_99).exp()
            }
        };
        Duration::try_from_secs_f64(ms / 1000.0)
            .unwrap_or(DELAY_MAX)
            .min(DELAY_MAX)
    }
}

/// How many requests are served in each second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuotaRule {
    #[serde(default)]
    pub(crate) target: Target,
    pub(crate) per_second: u32,
    /// What the refusal tells the client to wait, in the provider's own way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_s: Option<f64>,
}

#[derive(Debug)]
struct Quota {
    rule: QuotaRule,
    second_began: Option<Instant>,
    served: u32,
}

/// How a server misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FaultKind {
    /// Answers with `status` (500), `body` (empty), `media_type`, `headers`.
    Status,
    /// Answers with the provider's own error `code`, and `message`.
    Code,
    /// Answers as if over the quota, with `retry_after_s`.
    Throttle,
    /// Answers 200 with the body of the provider's error `code`.
    OkError,
    /// Answers as it should, but for the members in `patch` (RFC 7396: null takes a member away).
    Patch,
    /// Answers with a page, `status` (502).
    Html,
    /// Answers as it should, and closes the connection.
    Close,
    /// Never answers.
    Hang,
    /// Cuts the connection (TCP RST) instead of an answer.
    ResetBeforeHead,
    /// Cuts the connection after the head of the answer.
    ResetAfterHead,
    /// Sends `bytes` (512) random bytes, and closes.
    Garbage,
    /// Sends half of the body that it announced, and closes without TLS's good-bye.
    Truncate,
    /// Sends the answer byte by byte, one every `every_ms` (100).
    Drip,
    /// Announces and sends a body of `bytes` (2^30).
    Huge,
    /// Sends chunks without end, one every `every_ms` (10).
    Endless,
    /// Sends headers without end, up to `bytes` (2^26).
    HeaderFlood,
}

/// A fault and where it strikes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FaultRule {
    #[serde(default)]
    pub(crate) target: Target,
    pub(crate) kind: FaultKind,
    /// How many of the requests that fit, drawn by the seed.
    #[serde(default = "all")]
    pub(crate) percent: f64,
    /// How often at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u64>,
    /// How many requests that fit are spared first.
    #[serde(default)]
    pub(crate) skip: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) patch: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) every_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_s: Option<f64>,
}

fn all() -> f64 {
    100.0
}

/// A fault, and what it has done.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fault {
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) rule: FaultRule,
    /// Requests that fitted.
    pub(crate) seen: u64,
    /// Requests that it struck.
    pub(crate) hits: u64,
}

/// All rules.
#[derive(Debug, Default)]
pub(crate) struct Knobs {
    latency: Vec<(LatencyRule, Shape)>,
    quotas: Vec<Quota>,
    faults: Vec<Fault>,
    faults_made: u64,
}

/// Why a rule is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadRule(pub(crate) &'static str);

impl Knobs {
    pub(crate) fn add_latency(&mut self, rule: LatencyRule) -> Result<(), BadRule> {
        let shape = rule.shape().ok_or(BadRule(
            "a latency is fixed_ms, or min_ms and max_ms, or p50_ms and p99_ms, none of them negative",
        ))?;
        // A rule for the same target replaces the older one.
        self.latency
            .retain(|(known, _)| known.target != rule.target);
        check_room(self.latency.len())?;
        self.latency.push((rule, shape));
        Ok(())
    }

    pub(crate) fn add_quota(&mut self, rule: QuotaRule) -> Result<(), BadRule> {
        self.quotas.retain(|known| known.rule.target != rule.target);
        check_room(self.quotas.len())?;
        self.quotas.push(Quota {
            rule,
            second_began: None,
            served: 0,
        });
        Ok(())
    }

    /// Gives the fault's id.
    pub(crate) fn add_fault(&mut self, rule: FaultRule) -> Result<u64, BadRule> {
        check_room(self.faults.len())?;
        if !(0.0..=100.0).contains(&rule.percent) {
            return Err(BadRule("percent is from 0 to 100"));
        }
        if rule
            .status
            .is_some_and(|status| !(200..=999).contains(&status))
        {
            return Err(BadRule("status is from 200 to 999"));
        }
        self.faults_made += 1;
        self.faults.push(Fault {
            id: self.faults_made,
            rule,
            seen: 0,
            hits: 0,
        });
        Ok(self.faults_made)
    }

    pub(crate) fn clear_latency(&mut self) {
        self.latency.clear();
    }

    pub(crate) fn clear_quotas(&mut self) {
        self.quotas.clear();
    }

    pub(crate) fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Whether there was one.
    pub(crate) fn remove_fault(&mut self, id: u64) -> bool {
        let before = self.faults.len();
        self.faults.retain(|fault| fault.id != id);
        self.faults.len() < before
    }

    pub(crate) fn latency(&self) -> impl Iterator<Item = &LatencyRule> {
        self.latency.iter().map(|(rule, _)| rule)
    }

    pub(crate) fn quotas(&self) -> impl Iterator<Item = &QuotaRule> {
        self.quotas.iter().map(|quota| &quota.rule)
    }

    pub(crate) fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// How long this answer is to take.
    pub(crate) fn delay(
        &self,
        provider: Option<Provider>,
        subject: &Subject,
        random: &mut Random,
    ) -> Duration {
        let mut newest_first = self.latency.iter().rev();
        newest_first
            .find(|(rule, _)| rule.target.fits(provider, subject))
            .map_or(Duration::ZERO, |(_, shape)| shape.draw(random))
    }

    /// Counts a request against the quota; what it is to be told if it is over.
    pub(crate) fn over_quota(
        &mut self,
        provider: Option<Provider>,
        subject: &Subject,
        now: Instant,
    ) -> Option<Option<f64>> {
        let mut newest_first = self.quotas.iter_mut().rev();
        let quota = newest_first.find(|quota| quota.rule.target.fits(provider, subject))?;
        let is_same_second = quota
            .second_began
            .is_some_and(|began| now.saturating_duration_since(began) < Duration::from_secs(1));
        if !is_same_second {
            quota.second_began = Some(now);
            quota.served = 0;
        }
        if quota.served < quota.rule.per_second {
            quota.served += 1;
            return None;
        }
        Some(quota.rule.retry_after_s)
    }

    /// The fault that strikes this request, if any.
    pub(crate) fn strike(
        &mut self,
        provider: Option<Provider>,
        subject: &Subject,
        random: &mut Random,
    ) -> Option<FaultRule> {
        for fault in &mut self.faults {
            let used_up = fault.rule.count.is_some_and(|count| fault.hits >= count);
            if used_up || !fault.rule.target.fits(provider, subject) {
                continue;
            }
            fault.seen += 1;
            if fault.seen > fault.rule.skip && random.unit() * 100.0 < fault.rule.percent {
                fault.hits += 1;
                return Some(fault.rule.clone());
            }
        }
        None
    }
}

fn check_room(rules: usize) -> Result<(), BadRule> {
    if rules < RULES_MAX {
        Ok(())
    } else {
        Err(BadRule("there are 1000 rules already"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmssim::crypto::Seed;

    fn random() -> Random {
        Random::new(&Seed::new(1), "test")
    }

    fn about(operation: Operation, key: &str) -> Subject {
        Subject {
            operation: Some(operation),
            keys: vec![key.to_owned()],
            caller: "caller".to_owned(),
        }
    }

    fn fault(json: &str) -> FaultRule {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_log_normal_latency_has_the_median_and_the_99th_percentile_asked_for() {
        let mut knobs = Knobs::default();
        knobs
            .add_latency(serde_json::from_str(r#"{"p50_ms":10,"p99_ms":80}"#).unwrap())
            .unwrap();
        let mut random = random();
        let subject = Subject::default();
        let mut drawn: Vec<_> = (0..20_000)
            .map(|_| {
                knobs
                    .delay(Some(Provider::Aws), &subject, &mut random)
                    .as_secs_f64()
                    * 1000.0
            })
            .collect();
        drawn.sort_by(f64::total_cmp);
        assert!((9.5..10.5).contains(&drawn[10_000]), "{}", drawn[10_000]);
        assert!((70.0..92.0).contains(&drawn[19_800]), "{}", drawn[19_800]);
    }

    #[test]
    fn the_newest_latency_that_fits_counts() {
        let mut knobs = Knobs::default();
        for rule in [
            r#"{"fixed_ms":1}"#,
            r#"{"target":{"provider":"gcp"},"fixed_ms":2}"#,
            r#"{"target":{"provider":"gcp","operation":"unwrap"},"min_ms":3,"max_ms":3}"#,
        ] {
            knobs
                .add_latency(serde_json::from_str(rule).unwrap())
                .unwrap();
        }
        let mut random = random();
        let mut ms = |provider, operation| {
            let subject = about(operation, "k");
            knobs
                .delay(Some(provider), &subject, &mut random)
                .as_millis()
        };
        assert_eq!(ms(Provider::Aws, Operation::Wrap), 1);
        assert_eq!(ms(Provider::Gcp, Operation::Wrap), 2);
        assert_eq!(ms(Provider::Gcp, Operation::Unwrap), 3);
    }

    #[test]
    fn a_latency_that_is_no_shape_is_refused() {
        for rule in [
            "{}",
            r#"{"fixed_ms":-1}"#,
            r#"{"min_ms":2,"max_ms":1}"#,
            r#"{"p50_ms":1}"#,
        ] {
            let rule = serde_json::from_str(rule).unwrap();
            assert!(Knobs::default().add_latency(rule).is_err());
        }
    }

    #[test]
    fn a_fault_spares_the_first_strikes_so_often_and_is_used_up() {
        let mut knobs = Knobs::default();
        let rule = r#"{"kind":"hang","skip":2,"count":3,"target":{"key":"acme"}}"#;
        knobs.add_fault(fault(rule)).unwrap();
        let mut random = random();
        let mut struck = |key| {
            let subject = about(Operation::Wrap, key);
            knobs
                .strike(Some(Provider::Aws), &subject, &mut random)
                .is_some()
        };
        assert!(!struck("other"));
        let strikes: Vec<_> = (0..7).map(|_| struck("x/acme")).collect();
        assert_eq!(strikes, [false, false, true, true, true, false, false]);
        assert_eq!((knobs.faults()[0].seen, knobs.faults()[0].hits), (5, 3));
    }

    #[test]
    fn a_percentage_strikes_about_as_often_and_the_same_requests_again_with_the_same_seed() {
        let run = || {
            let mut knobs = Knobs::default();
            knobs
                .add_fault(fault(r#"{"kind":"hang","percent":20}"#))
                .unwrap();
            let mut random = random();
            (0..2000)
                .map(|_| {
                    knobs
                        .strike(None, &Subject::default(), &mut random)
                        .is_some()
                })
                .collect::<Vec<_>>()
        };
        let struck = run().iter().filter(|struck| **struck).count();
        assert!((330..470).contains(&struck), "{struck}");
        assert_eq!(run(), run());
    }

    #[test]
    fn a_quota_counts_within_a_second_and_starts_again_with_the_next() {
        let mut knobs = Knobs::default();
        let rule = r#"{"per_second":2,"retry_after_s":1.5}"#;
        knobs
            .add_quota(serde_json::from_str(rule).unwrap())
            .unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "any instant will do to begin with"
        )]
        let start = Instant::now();
        let mut over = |ms| {
            let now = start + Duration::from_millis(ms);
            knobs.over_quota(Some(Provider::Aws), &Subject::default(), now)
        };
        assert_eq!((over(0), over(1)), (None, None));
        assert_eq!(over(999), Some(Some(1.5)));
        assert_eq!(over(1000), None);
    }
}
