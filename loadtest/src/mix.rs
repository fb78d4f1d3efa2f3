//! What is asked of the proxy: a mix of kinds of request by weight, for tenants by popularity, drawn once into a plan.
//!
//! The plan is a cycle of draws, so that the generator takes the next one without a random number, and the same seed asks
//! the same things of every proxy.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    str::FromStr,
};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use rand_distr::{Distribution as _, Zipf, weighted::WeightedAliasIndex};
use serde::{Deserialize, Serialize};

use crate::calls::{Call, Kind, Wrapped};

/// Draws in a plan, after which it begins again: the mix is then met to half a percent, and a plan takes 256 KiB.
const DRAWS: usize = 1 << 16;

/// Most EDEKs of one tenant that its unwraps go round.
const TENANT_EDEKS_MAX: usize = 32;

/// Most EDEKs over all tenants, unless there are more tenants: as many as are wrapped in seconds.
const EDEKS_MAX: usize = 8_192;

/// Items of a batch if nothing is said.
pub const BATCH_ITEMS: usize = 100;

/// Most items of a batch: what the proxy takes in one.
pub const BATCH_ITEMS_MAX: usize = 50_000;

/// Largest weight, which keeps their sum far from overflowing.
const WEIGHT_MAX: u32 = 1_000_000;

/// Kinds of request with their weights. One weight at least is above zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<Kind, u32>")]
pub struct Mix(BTreeMap<Kind, u32>);

impl TryFrom<BTreeMap<Kind, u32>> for Mix {
    type Error = String;

    fn try_from(weights: BTreeMap<Kind, u32>) -> Result<Self, String> {
        if weights.values().any(|weight| *weight > WEIGHT_MAX) {
            return Err(format!("a weight is at most {WEIGHT_MAX}"));
        }
        let used: BTreeMap<_, _> = weights.into_iter().filter(|(_, w)| *w > 0).collect();
        if used.is_empty() {
            return Err("a mix has one weight above 0 at least".to_owned());
        }
        Ok(Self(used))
    }
}

impl FromStr for Mix {
    type Err = String;

    /// `wrap`, `unwrap=90,wrap=10`, or a name: `mixed` reads keys far more often than it makes them.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = match text {
            "mixed" => "unwrap=90,wrap=7,security-event=2,batch-wrap=1",
            "batch-wrap-100" => "batch-wrap",
            other => other,
        };
        let kind = |name: &str| {
            let found = Kind::ALL.into_iter().find(|kind| kind.as_str() == name);
            found.ok_or_else(|| {
                let names = Kind::ALL.map(Kind::as_str).join(", ");
                format!("{name:?} is none of mixed, {names}")
            })
        };
        let mut weights = BTreeMap::new();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let weight = weight
                .parse()
                .map_err(|_| format!("{weight:?} is not a weight"))?;
            if weights.insert(kind(name)?, weight).is_some() {
                return Err(format!("{name} has two weights"));
            }
        }
        Self::try_from(weights)
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (1, Some((kind, _))) = (self.0.len(), self.0.first_key_value()) {
            return kind.fmt(f);
        }
        for (index, (kind, weight)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{kind}={weight}")?;
        }
        Ok(())
    }
}

/// What is asked, for whom, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// What.
    pub mix: Mix,
    /// Items of each batch.
    pub batch_items: usize,
    /// How much the first tenants are preferred: the tenant at place `n` is asked for in proportion to `1 / n^zipf`. `None`
    /// lets them take turns.
    pub zipf: Option<f64>,
    /// Decides about the draws.
    pub seed: u64,
}

impl Demand {
    /// `mix` with tenants that take turns.
    #[must_use]
    pub fn of(mix: Mix) -> Self {
        Self {
            mix,
            batch_items: BATCH_ITEMS,
            zipf: None,
            seed: 1,
        }
    }

    /// What is wrong with it, if anything.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.batch_items == 0 || self.batch_items > BATCH_ITEMS_MAX {
            return Err(format!("a batch has 1 to {BATCH_ITEMS_MAX} items"));
        }
        if self.zipf.is_some_and(|zipf| !(0.0..=10.0).contains(&zipf)) {
            return Err("the exponent of Zipf's law is 0 to 10".to_owned());
        }
        Ok(())
    }

    /// EDEKs that must be there for each of so many tenants beforehand: none, if nothing unwraps.
    #[must_use]
    pub fn edeks_per_tenant(&self, tenants: usize) -> usize {
        if self.mix.0.keys().any(|kind| kind.needs_edeks()) {
            (EDEKS_MAX / tenants.max(1)).clamp(1, TENANT_EDEKS_MAX)
        } else {
            0
        }
    }

    /// Draws the plan. `edeks` holds what was wrapped for each of `tenants` beforehand, as many as
    /// [`Demand::edeks_per_tenant`] says.
    ///
    /// # Errors
    /// What is wrong with the demand, or if there is no tenant, or an EDEK is missing.
    pub fn plan(&self, tenants: &[String], edeks: &[Vec<Wrapped>]) -> Result<Plan, String> {
        self.check()?;
        let weights = self.mix.0.values().copied().collect();
        let kinds: Vec<_> = self.mix.0.keys().copied().collect();
        let by_weight = WeightedAliasIndex::new(weights).map_err(|why| why.to_string())?;
        let zipf = self.zipf.map(|s| Zipf::new(tenants.len() as f64, s));
        let by_popularity = zipf.transpose().map_err(|why| why.to_string())?;
        let mut random = ChaCha20Rng::seed_from_u64(self.seed);
        let mut plan = Plan {
            calls: Vec::new(),
            order: Vec::with_capacity(DRAWS),
        };
        // What was drawn before has its call already.
        let mut known = HashMap::new();
        let mut edeks_used = vec![0_usize; tenants.len()];
        for draw in 0..DRAWS {
            let tenant = match &by_popularity {
                Some(zipf) => place(zipf.sample(&mut random)),
                None => draw % tenants.len().max(1),
            };
            let kind = kinds.get(by_weight.sample(&mut random)).copied();
            let (Some(kind), Some(name)) = (kind, tenants.get(tenant)) else {
                return Err("there is no tenant".to_owned());
            };
            let own = edeks.get(tenant).map(Vec::as_slice).unwrap_or_default();
            let mut edek = 0;
            if matches!(kind, Kind::Unwrap | Kind::Rekey)
                && let Some(used) = edeks_used.get_mut(tenant)
            {
                edek = *used % own.len().max(1);
                *used += 1;
            }
            let index = match known.get(&(kind, tenant, edek)) {
                Some(index) => *index,
                None => {
                    let next = tenants.get(tenant + 1).or(tenants.first());
                    let call = self
                        .call(kind, name, own, edek, next.unwrap_or(name))
                        .ok_or_else(|| format!("{name} has no EDEK to {kind}"))?;
                    let index = plan.calls.len();
                    plan.calls.push(call);
                    known.insert((kind, tenant, edek), index);
                    index
                }
            };
            plan.order.push(index);
        }
        Ok(plan)
    }

    fn call(
        &self,
        kind: Kind,
        tenant: &str,
        edeks: &[Wrapped],
        edek: usize,
        next: &str,
    ) -> Option<Call> {
        Some(match kind {
            Kind::Wrap => Call::wrap(tenant),
            Kind::Unwrap => Call::unwrap(tenant, edeks.get(edek)?),
            Kind::BatchWrap => Call::batch_wrap(tenant, self.batch_items),
            Kind::BatchUnwrap => {
                edeks.first()?;
                Call::batch_unwrap(tenant, edeks, self.batch_items)
            }
            Kind::Rekey => Call::rekey(tenant, edeks.get(edek)?, next),
            Kind::Derive => Call::derive(tenant),
            Kind::SecurityEvent => Call::security_event(tenant),
        })
    }
}

/// Zipf's law counts places from 1, as a float.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a whole number from 1 to the number of tenants"
)]
fn place(rank: f64) -> usize {
    (rank as usize).saturating_sub(1)
}

/// Calls in the order in which they are sent, again and again.
#[derive(Clone, Debug)]
pub struct Plan {
    calls: Vec<Call>,
    order: Vec<usize>,
}

impl Plan {
    /// How many calls there are before it begins again; never 0.
    #[must_use]
    pub fn draws(&self) -> usize {
        self.order.len()
    }

    /// The call at a place, counted round and round.
    #[must_use]
    pub fn call(&self, place: usize) -> Option<&Call> {
        let index = self.order.get(place % self.order.len().max(1))?;
        self.calls.get(*index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(count: usize) -> Vec<String> {
        (0..count)
            .map(|number| format!("tenant-{number}"))
            .collect()
    }

    fn edeks(tenants: usize, each: usize) -> Vec<Vec<Wrapped>> {
        let one = |number| Wrapped {
            dek: format!("dek-{number}"),
            edek: format!("edek-{number}"),
        };
        vec![(0..each).map(one).collect(); tenants]
    }

    fn drawn(plan: &Plan) -> impl Iterator<Item = &Call> {
        (0..plan.draws()).filter_map(|place| plan.call(place))
    }

    fn tenant_of(call: &Call) -> String {
        let body: serde_json::Value = serde_json::from_slice(&call.body).unwrap();
        body["tenantId"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_mix_is_read_and_shown() {
        for (text, shown) in [
            ("wrap", "wrap"),
            ("batch-wrap-100", "batch-wrap"),
            ("wrap=1,derive=2", "wrap=1,derive=2"),
            ("wrap=0,unwrap=3", "unwrap"),
            ("mixed", "wrap=7,unwrap=90,batch-wrap=1,security-event=2"),
        ] {
            assert_eq!(text.parse::<Mix>().unwrap().to_string(), shown, "{text}");
        }
        for bad in [
            "",
            "wrop",
            "wrap=",
            "wrap=-1",
            "wrap=1,wrap=2",
            "wrap=0",
            "wrap=9999999",
        ] {
            assert!(bad.parse::<Mix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_kind_is_drawn_by_its_weight() {
        let mix =
            "wrap=30,unwrap=40,batch-wrap=1,batch-unwrap=2,rekey=7,derive=10,security-event=10";
        let demand = Demand::of(mix.parse().unwrap());
        let each = demand.edeks_per_tenant(10);
        let plan = demand.plan(&tenants(10), &edeks(10, each)).unwrap();
        for (kind, weight) in &demand.mix.0 {
            let count = drawn(&plan).filter(|call| call.kind == *kind).count();
            let share = count as f64 / plan.draws() as f64;
            assert!(
                (share - f64::from(*weight) / 100.0).abs() < 0.005,
                "{kind}: {share}"
            );
        }
    }

    #[test]
    fn tenants_take_turns_unless_they_are_popular_by_zipfs_law() {
        let mut demand = Demand::of("wrap".parse().unwrap());
        let plan = demand.plan(&tenants(3), &[]).unwrap();
        let first: Vec<_> = drawn(&plan).take(4).map(tenant_of).collect();
        assert_eq!(first, ["tenant-0", "tenant-1", "tenant-2", "tenant-0"]);

        demand.zipf = Some(1.0);
        let plan = demand.plan(&tenants(100), &[]).unwrap();
        let mut counts = BTreeMap::<_, usize>::new();
        for call in drawn(&plan) {
            *counts.entry(tenant_of(call)).or_default() += 1;
        }
        let harmonic: f64 = (1..=100).map(|place| 1.0 / f64::from(place)).sum();
        for (tenant, place) in [("tenant-0", 1.0), ("tenant-1", 2.0), ("tenant-9", 10.0)] {
            let share = counts[tenant] as f64 / plan.draws() as f64;
            let law = 1.0 / place / harmonic;
            assert!(
                (share / law - 1.0).abs() < 0.1,
                "{tenant}: {share}, not {law}"
            );
        }
    }

    #[test]
    fn unwraps_go_round_the_edeks_and_the_same_seed_draws_the_same() {
        let demand = Demand::of("unwrap".parse().unwrap());
        assert_eq!(demand.edeks_per_tenant(2), TENANT_EDEKS_MAX);
        assert_eq!(demand.edeks_per_tenant(100_000), 1);
        let plan = demand.plan(&tenants(2), &edeks(2, 4)).unwrap();
        assert_eq!(plan.calls.len(), 8);
        let again = demand.plan(&tenants(2), &edeks(2, 4)).unwrap();
        assert_eq!(plan.order, again.order);
    }

    #[test]
    fn a_plan_without_what_it_needs_is_refused() {
        let demand = Demand::of("rekey".parse().unwrap());
        assert!(demand.plan(&tenants(2), &edeks(2, 0)).is_err());
        assert!(demand.plan(&[], &[]).is_err());
        for wrong in [
            Demand {
                batch_items: 0,
                ..demand.clone()
            },
            Demand {
                zipf: Some(f64::NAN),
                ..demand.clone()
            },
        ] {
            assert!(wrong.plan(&tenants(1), &edeks(1, 1)).is_err());
        }
    }
}
