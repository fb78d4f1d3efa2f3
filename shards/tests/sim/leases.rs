//! Leased keys: how many KMS calls they take, when they are renewed, and when they must go.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use tsp_rt::{
    Rt as _,
    sim::{self, Connecting, Sim, SimRt},
};
use tsp_shards::Limits;

use crate::{
    A, B, BOTH, KEY_A, KEY_B, SEEDS, edek, ms,
    world::{Answer, Behaviour, KMS_ADDRESS, Setup, World, metadata},
};

/// A KMS's usual time for an answer. The shard's own answers take far less.
const KMS_TIME: Duration = ms(30);
const OWN_TIME: Duration = ms(15);

const MINUTE: Duration = Duration::from_secs(60);

/// Short times, so that a run of an hour sees many of them.
fn limits() -> Limits {
    Limits {
        lease_revalidate: MINUTE,
        lease_max_age: MINUTE * 20,
        lease_idle: MINUTE * 60,
        ..Limits::default()
    }
}

fn setup(shards: usize) -> Setup {
    Setup {
        limits: limits(),
        shards,
        leasing: true,
        ..Setup::default()
    }
}

fn with_leases(seeds: u64, setup: impl Fn() -> Setup, test: impl AsyncFn(Rc<World>)) {
    sim::for_seeds(seeds, |seed| {
        Sim::new(seed).run(async |rt: SimRt| {
            let world = World::start(&rt, setup(), BOTH);
            world.settled().await;
            world.kms.set(KEY_A, Behaviour::Serves(KMS_TIME));
            test(world).await;
        });
    });
}

impl World {
    async fn wrap_at(&self, shard: usize) -> Answer {
        self.post_to(shard, "document/wrap", metadata(A)).await
    }

    async fn unwrap_at(&self, shard: usize, edek: &str) -> Answer {
        let mut body = metadata(A);
        body["encryptedDocumentKey"] = edek.into();
        self.post_to(shard, "document/unwrap", body).await
    }

    /// Wraps, and waits until what is done about that in the background is done.
    async fn warm_up(&self) -> String {
        let first = self.wrap_at(0).await;
        let edek = edek(&first).to_owned();
        self.rt.sleep(ms(200)).await;
        edek
    }

    fn cut_off(&self, connecting: Connecting) {
        let kms = SocketAddr::from(KMS_ADDRESS);
        self.rt
            .net()
            .change_link(kms, |link| link.connecting = connecting);
        if !matches!(connecting, Connecting::Accept) {
            self.rt.net().reset_connections(kms);
        }
    }
}

const REVOKED: Behaviour = Behaviour::Fails(400, "DisabledException", u32::MAX);

#[test]
fn under_a_lease_nothing_is_asked_of_the_kms_and_every_shard_has_it() {
    with_leases(
        SEEDS,
        || setup(4),
        async |world| {
            let early = world.warm_up().await;
            assert_eq!(
                world.kms.calls.get(),
                2,
                "one to wrap the key, one to see that it opens"
            );
            for shard in 0..4 {
                let wrapped = world.wrap_at(shard).await;
                assert!(wrapped.took < OWN_TIME, "{wrapped:?}");
                for edek in [&early, edek(&wrapped)] {
                    let unwrapped = world.unwrap_at(3 - shard, edek).await;
                    assert_eq!(unwrapped.status, 200, "{unwrapped:?}");
                    assert!(unwrapped.took < OWN_TIME, "{unwrapped:?}");
                }
                let unwrapped = world.unwrap_at(shard, edek(&wrapped)).await;
                assert_eq!(unwrapped.body["dek"], wrapped.body["dek"]);
            }
            assert_eq!(world.kms.calls.get(), 2);
        },
    );
}

#[test]
fn a_cold_leased_key_is_opened_once_for_all_shards_and_operations() {
    for shards in [1, 2, 4] {
        sim::for_seeds(10, |seed| {
            Sim::new(seed).steps_max(50_000_000).run(async |rt: SimRt| {
                let limits = Limits {
                    tenant_inflight_max: 4_000,
                    ..limits()
                };
                let world = World::start(
                    &rt,
                    Setup {
                        limits,
                        ..setup(shards)
                    },
                    BOTH,
                );
                world.settled().await;
                let edek = world.warm_up().await;
                world.forget(A).await;
                world.kms.calls.set(0);
                world.kms.set(KEY_A, Behaviour::Serves(ms(300)));
                let requests = (0..3_000).map(|index| {
                    let (world, edek) = (Rc::clone(&world), edek.clone());
                    async move { world.unwrap_at(index % shards, &edek).await }
                });
                for answer in world.all(requests).await {
                    assert_eq!(answer.status, 200, "{answer:?}");
                }
                assert_eq!(world.kms.calls.get(), 1, "{shards} shards");
            });
        });
    }
}

#[test]
fn cold_wraps_make_one_lease_for_all_shards() {
    with_leases(
        SEEDS,
        || setup(4),
        async |world| {
            let requests = (0..100).map(|index| {
                let world = Rc::clone(&world);
                async move { world.wrap_at(index % 4).await }
            });
            for answer in world.all(requests).await {
                assert_eq!(answer.status, 200, "{answer:?}");
            }
            world.rt.sleep(ms(200)).await;
            assert_eq!(world.kms.calls.get(), 2);
        },
    );
}

#[test]
fn nobody_waits_for_a_renewal() {
    with_leases(
        SEEDS / 10,
        || setup(2),
        async |world| {
            let edek = world.warm_up().await;
            // Over an hour: sixty times the proof runs out, and three times the lease.
            for index in 0..720 {
                let (wrapped, unwrapped) =
                    crate::world::both(world.wrap_at(index % 2), world.unwrap_at(index % 2, &edek))
                        .await;
                for answer in [wrapped, unwrapped] {
                    assert_eq!(answer.status, 200, "{answer:?}");
                    assert!(answer.took < OWN_TIME, "{answer:?}");
                }
                world.rt.sleep(Duration::from_secs(5)).await;
            }
            let calls = world.kms.calls.get();
            assert!((120..400).contains(&calls), "{calls}");
        },
    );
}

#[test]
fn a_lease_ends_by_its_number_of_wraps_and_nobody_waits_for_the_next() {
    let limits = || Limits {
        lease_wraps_max: 400,
        ..limits()
    };
    with_leases(
        SEEDS / 10,
        || Setup {
            limits: limits(),
            ..setup(2)
        },
        async |world| {
            world.warm_up().await;
            let mut numbers = std::collections::HashMap::<Vec<u8>, u32>::new();
            for index in 0..2_000 {
                let answer = world.wrap_at(index % 2).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                assert!(answer.took < OWN_TIME, "{answer:?}");
                // Between the data and the IV stand the numbers of config and lease, after it the wrapped key.
                let edek = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, edek(&answer))
                    .unwrap();
                *numbers.entry(edek[edek.len() - 60..].to_vec()).or_default() += 1;
                world.rt.sleep(ms(200)).await;
            }
            assert!(numbers.len() >= 5, "{}", numbers.len());
            assert!(numbers.values().all(|wraps| *wraps <= 400), "{numbers:?}");
        },
    );
}

#[test]
fn a_kms_that_is_away_stops_nothing_before_the_longest_age() {
    for connecting in [Connecting::Refuse, Connecting::BlackHole] {
        with_leases(
            SEEDS / 4,
            || setup(2),
            async |world| {
                let began = world.rt.now();
                let edek = world.warm_up().await;
                world
                    .rt
                    .sleep(MINUTE.mul_f64(world.rt.below(100) as f64 / 100.0))
                    .await;
                world.cut_off(connecting);
                let longest = limits().lease_max_age;
                // An operation that finds its key unproven waits for the KMS first, and both may.
                let waits = limits().kms_operation_timeout * 2 + Duration::from_secs(1);
                while world.rt.now() + waits < began + longest {
                    let shard = world.rt.below(2);
                    for answer in [
                        world.wrap_at(shard).await,
                        world.unwrap_at(shard, &edek).await,
                    ] {
                        assert_eq!(answer.status, 200, "{answer:?}");
                    }
                    let pause = Duration::from_millis(500 + world.rt.below(60_000) as u64);
                    world.rt.sleep(pause).await;
                }
                // Both are over after the longest age from the last time that the KMS could be asked.
                world.rt.sleep(MINUTE * 3).await;
                assert_eq!(world.wrap_at(0).await.code(), Some(208));
                assert_eq!(world.unwrap_at(1, &edek).await.code(), Some(208));
                world.cut_off(Connecting::Accept);
                world.rt.sleep(Duration::from_secs(31)).await;
                assert_eq!(world.wrap_at(0).await.status, 200);
                assert_eq!(world.unwrap_at(1, &edek).await.status, 200);
            },
        );
    }
}

/// How late a revocation may be noticed once a KMS that was away can be asked again: the breakers' longest pause, an
/// attempt that was under way, and the pause after it.
const NOTICED_AFTER: Duration = Duration::from_secs(45);

/// A tenant's life at random: use, pauses, outages, and at some moment a revocation. The seeds to run are taken from
/// `TSP_SIM_SEEDS`.
#[test]
fn after_a_revocation_nothing_succeeds_beyond_the_bound() {
    with_leases(
        SEEDS,
        || setup(2),
        async |world| {
            let rt = &world.rt;
            let chance = |of: usize| rt.below(of) == 0;
            let edek = world.warm_up().await;
            let revoked_at = rt.now() + MINUTE.mul_f64(rt.below(500) as f64 / 100.0);
            let mut revoked = false;
            let mut away = false;
            // When the KMS could last not be asked.
            let mut back_at = rt.now();
            let ends = revoked_at + MINUTE * 5;
            while rt.now() < ends {
                if !revoked && rt.now() >= revoked_at {
                    world.kms.set(KEY_A, REVOKED);
                    revoked = true;
                }
                if chance(12) {
                    away = !away;
                    let how = if chance(2) {
                        Connecting::Refuse
                    } else {
                        Connecting::BlackHole
                    };
                    world.cut_off(if away { how } else { Connecting::Accept });
                }
                if away {
                    back_at = rt.now();
                }
                let began = rt.now();
                let shard = rt.below(2);
                let answer = if chance(2) {
                    world.wrap_at(shard).await
                } else {
                    world.unwrap_at(shard, &edek).await
                };
                if answer.status == 200 {
                    let bound =
                        (revoked_at + limits().lease_revalidate).max(back_at + NOTICED_AFTER);
                    assert!(
                        away || began <= bound,
                        "{:?} after the bound: {answer:?}",
                        began - bound
                    );
                } else {
                    assert!(revoked, "nothing fails before: {answer:?}");
                }
                let longest = if chance(8) { 150_000 } else { 9_000 };
                rt.sleep(Duration::from_millis(1 + rt.below(longest) as u64))
                    .await;
            }
            if !away && rt.now() > back_at + NOTICED_AFTER {
                assert_eq!(world.wrap_at(0).await.code(), Some(207));
                assert_eq!(world.unwrap_at(1, &edek).await.code(), Some(207));
            }
        },
    );
}

#[test]
fn a_config_that_is_disabled_edited_or_taken_away_takes_its_keys_with_it_at_once() {
    with_leases(
        SEEDS,
        || setup(2),
        async |world| {
            let edek = world.warm_up().await;
            // The other key: the same config was edited.
            world.publish(&[(A, KEY_B)]);
            world.settled().await;
            let calls = world.kms.calls.get();
            assert_eq!(world.wrap_at(1).await.status, 200);
            assert!(
                world.kms.calls.get() > calls,
                "the edited config has no lease yet"
            );
            let calls = world.kms.calls.get();
            world.unwrap_at(1, &edek).await;
            assert!(world.kms.calls.get() > calls, "nor has it any opened key");
            // Config 1 is now another tenant's.
            world.publish(&[(B, KEY_B)]);
            world.settled().await;
            assert_eq!(world.wrap_at(0).await.code(), Some(201));
            assert_eq!(world.unwrap_at(0, &edek).await.code(), Some(201));
            // It comes back as it was. Nothing of before is left.
            world.publish(BOTH);
            world.settled().await;
            world.kms.set(KEY_A, REVOKED);
            assert_eq!(world.wrap_at(0).await.code(), Some(207));
            assert_eq!(world.unwrap_at(1, &edek).await.code(), Some(207));
        },
    );
}

#[test]
fn a_snapshot_that_changes_nothing_keeps_the_keys() {
    with_leases(
        SEEDS,
        || setup(2),
        async |world| {
            let edek = world.warm_up().await;
            let calls = world.kms.calls.get();
            world.publish(BOTH);
            world.settled().await;
            assert_eq!(world.wrap_at(0).await.status, 200);
            assert_eq!(world.unwrap_at(1, &edek).await.status, 200);
            assert_eq!(world.kms.calls.get(), calls);
        },
    );
}

#[test]
fn with_leasing_off_again_leased_edeks_unwrap_and_wraps_go_to_the_kms() {
    with_leases(
        SEEDS,
        || setup(2),
        async |world| {
            let leased = world.warm_up().await;
            world.leasing.set(false);
            world.publish(BOTH);
            world.settled().await;
            let calls = world.kms.calls.get();
            let wrapped = world.wrap_at(0).await;
            assert_eq!(world.kms.calls.get(), calls + 1);
            assert!(edek(&wrapped).len() < leased.len());
            assert_eq!(world.unwrap_at(1, &leased).await.status, 200);
        },
    );
}

#[test]
fn what_is_forgotten_is_asked_for_again() {
    with_leases(
        SEEDS,
        || setup(4),
        async |world| {
            let edek = world.warm_up().await;
            // Operations and answers are under way while the keys are forgotten.
            let busy = (0..20).map(|index| {
                let (world, edek) = (Rc::clone(&world), edek.clone());
                async move {
                    world.rt.sleep(ms(world.rt.below(60) as u64)).await;
                    world.unwrap_at(index % 4, &edek).await
                }
            });
            let busy = world.all(busy);
            let forget = async {
                world.rt.sleep(ms(world.rt.below(60) as u64)).await;
                world.forget(A).await;
                world.kms.set(KEY_A, REVOKED);
                for shard in 0..4 {
                    let began = world.kms.calls.get();
                    assert_eq!(world.unwrap_at(shard, &edek).await.code(), Some(207));
                    assert_eq!(world.wrap_at(shard).await.code(), Some(207));
                    assert!(world.kms.calls.get() >= began + 2);
                }
            };
            crate::world::both(busy, forget).await;
        },
    );
}

#[test]
fn a_failure_is_not_remembered_beyond_its_flight() {
    with_leases(
        SEEDS,
        || setup(2),
        async |world| {
            world
                .kms
                .set(KEY_A, Behaviour::Fails(400, "DisabledException", 1));
            assert_eq!(world.wrap_at(0).await.code(), Some(207));
            assert_eq!(world.wrap_at(0).await.status, 200);
        },
    );
}
