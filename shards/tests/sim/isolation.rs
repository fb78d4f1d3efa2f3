//! One tenant's key hangs: what the others notice. The same figures as `loadgen isolation` measures on real sockets.

use std::{rc::Rc, time::Duration};

use tsp_rt::{
    Rt as _,
    sim::{self, Sim, SimRt},
};
use tsp_shards::Limits;

use crate::{
    ms,
    world::{Answer, Behaviour, Setup, World},
};

/// Tenants that are well.
const WELL: usize = 15;

/// Wraps per second for all of these, and for the one whose key hangs.
const RATE: u64 = 200;
const BAD_RATE: u64 = 50;

/// How long the key hangs.
const HANGS_S: u64 = 10;

const KMS_TIME: Duration = Duration::from_millis(5);

/// Wraps for `tenants` in turn, `rate` a second for so many seconds, each at its time.
async fn load(world: &Rc<World>, tenants: &[String], rate: u64, seconds: u64) -> Vec<Answer> {
    let requests = (0..rate * seconds).zip(tenants.iter().cycle());
    let requests = requests.map(|(index, tenant)| {
        let (world, tenant) = (Rc::clone(world), tenant.clone());
        async move {
            world.rt.sleep(ms(index * 1_000 / rate)).await;
            world.wrap(&tenant).await
        }
    });
    world.all(requests).await
}

fn quantile(answers: &[Answer], percent: usize) -> Duration {
    let mut times: Vec<_> = answers.iter().map(|answer| answer.took).collect();
    times.sort_unstable();
    times[times.len() * percent / 100]
}

fn all_served(answers: &[Answer]) {
    for answer in answers {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[test]
fn a_hanging_key_costs_the_other_tenants_nothing_and_its_kms_next_to_nothing() {
    let names: Vec<_> = (0..=WELL)
        .map(|index| {
            (
                format!("tenant-{index}"),
                format!("{index:08}-0000-0000-0000-000000000000"),
            )
        })
        .collect();
    let tenants: Vec<_> = names
        .iter()
        .map(|(tenant, key)| (tenant.as_str(), key.as_str()))
        .collect();
    sim::for_seeds(5, |seed| {
        Sim::new(seed).run(async |rt: SimRt| {
            let world = World::start(&rt, Setup::default(), &tenants);
            world.settled().await;
            for (_, key) in &names {
                world.kms.set(key, Behaviour::Serves(KMS_TIME));
            }
            let all: Vec<_> = names.iter().map(|(tenant, _)| tenant.clone()).collect();
            let (bad, well) = all.split_at(1);
            let (_, bad_key) = &names[0];
            let both = async |seconds| {
                let good = load(&world, well, RATE, seconds);
                crate::world::both(good, load(&world, bad, BAD_RATE, seconds)).await
            };

            let (before, bad_before) = both(HANGS_S).await;
            all_served(&before);
            all_served(&bad_before);

            world.kms.set(bad_key, Behaviour::Hangs);
            let calls = world.kms.calls_with(bad_key);
            let (during, refused) = both(HANGS_S).await;
            all_served(&during);
            for percent in [50, 99] {
                let (before, during) = (quantile(&before, percent), quantile(&during, percent));
                assert!(
                    during <= before.mul_f64(1.1),
                    "p{percent}: {before:?}, then {during:?}"
                );
            }
            assert!(refused.iter().all(|answer| answer.code() == Some(208)));
            // What has a connection when the first call is given up, its second try, and three probes.
            let calls = world.kms.calls_with(bad_key) - calls;
            let connections = Limits::default().kms_tenant_connections_max as u32;
            assert!(
                calls <= connections + 5 + 3,
                "{calls} calls to a key that hangs"
            );

            // From then on a refusal waits for nothing, and the key is hardly asked.
            let calls = world.kms.calls_with(bad_key);
            let refused = load(&world, bad, BAD_RATE, HANGS_S).await;
            assert!(
                quantile(&refused, 90) < ms(1),
                "{:?}",
                quantile(&refused, 90)
            );
            let calls = world.kms.calls_with(bad_key) - calls;
            assert!(calls as usize * 100 <= refused.len(), "{calls} calls");

            world.kms.set(bad_key, Behaviour::Serves(KMS_TIME));
            world.rt.sleep(Duration::from_secs(30)).await;
            all_served(&load(&world, bad, BAD_RATE, 1).await);
        });
    });
}
