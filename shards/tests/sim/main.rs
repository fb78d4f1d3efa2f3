//! Whole shards on the simulated runtime: virtual time, seeded order, a network and a KMS that misbehave.
//!
//! A failure prints its seed; `TSP_SIM_SEED=n cargo test -p tsp-shards --test sim NAME` runs that one alone.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test may fail by panicking"
)]

mod balance;
mod events;
mod isolation;
mod leases;
mod rest;
mod secrets;
mod way;
mod world;

use std::{net::SocketAddr, rc::Rc, time::Duration};

use serde_json::{Value, json};
use tsp_rt::{
    Rt as _,
    sim::{self, Connecting, Sim, SimRt},
};
use tsp_shards::Limits;

use world::{Behaviour, KMS_ADDRESS, Setup, Tokens, World, metadata};

/// Seeds per test: enough to meet the rare orders, few enough for seconds.
const SEEDS: u64 = 100;

const A: &str = "tenant-a";
const B: &str = "tenant-b";
const KEY_A: &str = "aaaaaaaa-0000-0000-0000-000000000000";
const KEY_B: &str = "bbbbbbbb-0000-0000-0000-000000000000";
const BOTH: world::TenantKeys<'_> = &[(A, KEY_A), (B, KEY_B)];

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Runs `test` in a settled world, once per seed.
fn in_world(setup: impl Fn() -> Setup, test: impl AsyncFn(Rc<World>)) {
    sim::for_seeds(SEEDS, |seed| {
        Sim::new(seed).run(async |rt: SimRt| {
            let world = World::start(&rt, setup(), BOTH);
            world.settled().await;
            test(world).await;
        });
    });
}

fn edek(answer: &world::Answer) -> &str {
    answer.body["edek"]
        .as_str()
        .unwrap_or_else(|| panic!("no EDEK in {answer:?}"))
}

#[test]
fn what_is_wrapped_unwraps_to_the_same_key() {
    in_world(Setup::default, async |world| {
        let wrapped = world.wrap(A).await;
        assert_eq!(wrapped.status, 200);
        let unwrapped = world.unwrap(A, edek(&wrapped)).await;
        assert_eq!(unwrapped.body["dek"], wrapped.body["dek"]);
        assert_eq!(world.unwrap(B, edek(&wrapped)).await.code(), Some(202));
        assert_eq!(world.events.borrow().len(), 2);
    });
}

#[test]
fn a_failure_in_passing_costs_one_retry_and_no_request() {
    for behaviour in [
        Behaviour::Fails(500, "KMSInternalException", 1),
        Behaviour::Fails(400, "ThrottlingException", 1),
        Behaviour::Fails(503, "", 1),
        Behaviour::Cuts(1),
    ] {
        in_world(Setup::default, async |world| {
            world.kms.set(KEY_A, behaviour);
            assert_eq!(world.wrap(A).await.status, 200, "{behaviour:?}");
            assert_eq!(world.kms.calls.get(), 2, "{behaviour:?}");
        });
    }
}

#[test]
fn a_lasting_failure_is_tried_twice_and_no_more() {
    for (behaviour, code) in [
        (Behaviour::Fails(500, "KMSInternalException", 9), 208),
        (Behaviour::Fails(400, "ThrottlingException", 9), 209),
        (Behaviour::Cuts(9), 208),
    ] {
        in_world(Setup::default, async |world| {
            world.kms.set(KEY_A, behaviour);
            assert_eq!(world.wrap(A).await.code(), Some(code), "{behaviour:?}");
            assert_eq!(world.kms.calls.get(), 2, "{behaviour:?}");
        });
    }
}

#[test]
fn an_error_that_repetition_cannot_cure_is_not_repeated() {
    for (name, code) in [
        ("AccessDeniedException", 207),
        ("UnrecognizedClientException", 206),
        ("NotFoundException", 207),
        ("OptInRequired", 210),
    ] {
        in_world(Setup::default, async |world| {
            world.kms.set(KEY_A, Behaviour::Fails(400, name, 9));
            assert_eq!(world.wrap(A).await.code(), Some(code), "{name}");
            assert_eq!(world.kms.calls.get(), 1, "{name}");
        });
    }
}

#[test]
fn a_kms_that_never_answers_costs_no_more_than_the_deadline() {
    in_world(Setup::default, async |world| {
        world.kms.set(KEY_A, Behaviour::Hangs);
        let answer = world.wrap(A).await;
        assert_eq!(answer.code(), Some(208));
        assert!(
            answer.took <= Limits::default().kms_operation_timeout + ms(50),
            "{answer:?}"
        );
        assert_eq!(
            world.kms.calls.get(),
            2,
            "one try and one retry within the deadline"
        );
    });
}

#[test]
fn a_black_hole_a_refusal_and_a_lost_name_are_all_unreachable() {
    for connecting in [Connecting::BlackHole, Connecting::Refuse] {
        in_world(Setup::default, async |world| {
            let kms = SocketAddr::from(KMS_ADDRESS);
            world
                .rt
                .net()
                .change_link(kms, |link| link.connecting = connecting);
            let answer = world.wrap(A).await;
            assert_eq!(answer.code(), Some(208), "{answer:?}");
            assert!(answer.took <= Limits::default().kms_operation_timeout + ms(50));
            world
                .rt
                .net()
                .change_link(kms, |link| link.connecting = Connecting::Accept);
            assert_eq!(world.wrap(A).await.status, 200, "it recovers at once");
        });
    }
    in_world(Setup::default, async |world| {
        world.rt.net().set_name(world::KMS_HOST, &[]);
        assert_eq!(world.wrap(A).await.code(), Some(208));
    });
}

#[test]
fn an_operation_keeps_the_snapshot_that_it_began_with() {
    in_world(Setup::default, async |world| {
        world.kms.set(KEY_A, Behaviour::Serves(ms(500)));
        let slow = Rc::clone(&world);
        let answers = world.all([async move { slow.wrap(A).await }]);
        let swap = async {
            world.rt.sleep(ms(100)).await;
            world.publish(&[(B, KEY_B)]);
            world.settled().await;
            assert_eq!(
                world.wrap(A).await.code(),
                Some(201),
                "new operations see the new one"
            );
        };
        let (answers, ()) = world::both(answers, swap).await;
        assert_eq!(answers[0].status, 200, "{:?}", answers[0]);
    });
}

#[test]
fn a_kms_that_hangs_for_one_tenant_leaves_the_other_alone() {
    in_world(Setup::default, async |world| {
        world.kms.set(KEY_A, Behaviour::Hangs);
        let requests = (0..400).map(|index| {
            let world = Rc::clone(&world);
            async move {
                // Four seconds of steady load, half of it for the tenant whose key hangs.
                world.rt.sleep(ms(index * 10)).await;
                if index % 2 == 0 {
                    (A, world.wrap(A).await)
                } else {
                    (B, world.wrap(B).await)
                }
            }
        });
        for (tenant, answer) in world.all(requests).await {
            if tenant == A {
                assert_eq!(answer.code(), Some(208), "{answer:?}");
            } else {
                assert_eq!(answer.status, 200, "{answer:?}");
                assert!(answer.took < ms(20), "{answer:?}");
            }
        }
        let mut quick = 0;
        for _ in 0..3 {
            quick += u32::from(world.wrap(A).await.took < ms(5));
        }
        assert!(
            quick >= 2,
            "the breaker is open, but for a probe now and then"
        );
    });
}

#[test]
fn what_waits_for_a_key_that_hangs_is_refused_with_the_first_and_hangs_no_connection() {
    in_world(Setup::default, async |world| {
        world.kms.set(KEY_A, Behaviour::Hangs);
        let requests = (0..500).map(|_| {
            let world = Rc::clone(&world);
            async move { world.wrap(A).await }
        });
        let longest = Limits::default().kms_attempt_timeout + ms(200);
        let mut slow = 0;
        for answer in world.all(requests).await {
            assert_eq!(answer.code(), Some(208), "{answer:?}");
            slow += u32::from(answer.took > longest);
        }
        // Until the breaker has counted five failures, a place that one gives back is taken by the next; one or two more
        // when answers and failures meet.
        assert!(slow <= 8, "{slow} hung a second time");
        let most = Limits::default().kms_tenant_connections_max as u32 + 10;
        let calls = world.kms.calls.get();
        assert!(calls <= most, "{calls} calls for a key that hangs");
    });
}

#[test]
fn one_tenants_batches_do_not_starve_another_tenants_requests() {
    in_world(Setup::default, async |world| {
        world.kms.set(KEY_A, Behaviour::Serves(ms(20)));
        world.kms.set(KEY_B, Behaviour::Serves(ms(20)));
        let batches = (0..4).map(|_| {
            let world = Rc::clone(&world);
            async move {
                let mut body = metadata(A);
                body["documentIds"] = (0..300).map(|id| Value::from(id.to_string())).collect();
                world.post("document/batch-wrap", body).await
            }
        });
        let singles = async {
            for _ in 0..10 {
                let answer = world.wrap(B).await;
                assert_eq!(answer.status, 200);
                assert!(answer.took < ms(40), "{answer:?}");
            }
        };
        let (batches, ()) = world::both(world.all(batches), singles).await;
        for batch in batches {
            assert_eq!(batch.body["keys"].as_object().unwrap().len(), 300);
        }
        let per_tenant = Limits::default().kms_tenant_connections_max;
        assert!(world.kms.connections.get() as usize <= per_tenant + 2);
    });
}

#[test]
fn every_item_of_a_batch_is_answered_once_whatever_the_kms_does() {
    in_world(Setup::default, async |world| {
        world.kms.set(KEY_A, Behaviour::Cuts(7));
        let ids: Vec<_> = (0..200).map(|id| format!("id {id}")).collect();
        let mut body = metadata(A);
        body["documentIds"] = ids.clone().into();
        let batch = world.post("document/batch-wrap", body).await;
        assert_eq!(batch.status, 200);
        let (keys, failures) = (&batch.body["keys"], &batch.body["failures"]);
        for id in &ids {
            assert!(
                keys[id].is_object() != failures[id].is_object(),
                "{id} is in one of the two"
            );
        }
        let count = |of: &Value| of.as_object().unwrap().len();
        assert_eq!(count(keys) + count(failures), ids.len());
        assert!(count(keys) >= ids.len() - 7);
    });
}

#[test]
fn a_far_end_that_closes_idle_connections_costs_no_request() {
    in_world(Setup::default, async |world| {
        world.kms.closes_idle_after.set(Some(ms(100)));
        for index in 0..60 {
            let answer = world.wrap(if index % 3 == 0 { B } else { A }).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            // Around the moment at which the far end closes, and well after it.
            world.rt.sleep(ms(60 + index * 3)).await;
        }
        assert_eq!(
            world.kms.calls.get(),
            60,
            "a replaced connection is no second call"
        );
    });
}

#[test]
fn a_caller_that_goes_away_costs_no_connection() {
    in_world(Setup::default, async |world| {
        world.kms.set(KEY_A, Behaviour::Serves(ms(200)));
        for _ in 0..20 {
            world
                .post_and_leave("document/wrap", metadata(A), ms(50))
                .await;
            world.rt.sleep(ms(300)).await;
        }
        assert_eq!(world.kms.calls.get(), 20);
        assert_eq!(world.kms.connections.get(), 1);
    });
}

#[test]
fn a_drain_finishes_what_is_under_way_and_takes_nothing_new() {
    in_world(Setup::default, async |world| {
        world.kms.set(KEY_A, Behaviour::Serves(ms(300)));
        let slow = Rc::clone(&world);
        let answers = world.all([async move { slow.wrap(A).await }]);
        let drain = async {
            world.rt.sleep(ms(100)).await;
            world.controls.borrow()[0].drain();
            world.rt.sleep(ms(50)).await;
            assert!(!world.connects().await, "the listener is closed");
        };
        let (answers, ()) = world::both(answers, drain).await;
        assert_eq!(answers[0].status, 200);
        world.rt.sleep(ms(100)).await;
        assert!(world.ended.get(), "the shard has ended");
    });
}

#[test]
fn a_drain_that_is_cut_off_ends_all_the_same() {
    in_world(Setup::default, async |world| {
        world.kms.set(KEY_A, Behaviour::Hangs);
        let waits = Rc::clone(&world);
        world.rt.spawn(async move {
            waits
                .post_and_leave("document/wrap", metadata(A), ms(9_000))
                .await
        });
        world.rt.sleep(ms(50)).await;
        world.controls.borrow()[0].drain();
        world.rt.sleep(ms(50)).await;
        assert!(!world.ended.get(), "it waits for the request");
        world.controls.borrow()[0].close();
        world.rt.sleep(ms(50)).await;
        assert!(world.ended.get());
    });
}

#[test]
fn stale_configurations_refuse_key_operations_but_not_events() {
    in_world(Setup::default, async |world| {
        world.controls.borrow()[0].set_fresh(false);
        world.rt.sleep(ms(1)).await;
        assert_eq!(world.wrap(A).await.code(), Some(100));
        let mut event = metadata(A);
        event["iclFields"]["event"] = "USER_LOGIN".into();
        assert_eq!(world.post("event/security-event", event).await.status, 200);
        world.controls.borrow()[0].set_fresh(true);
        world.rt.sleep(ms(1)).await;
        assert_eq!(world.wrap(A).await.status, 200);
    });
}

fn assuming_a_role() -> Setup {
    Setup {
        assume_role: true,
        shards: 4,
        ..Setup::default()
    }
}

#[test]
fn one_token_call_serves_every_shard_however_many_wait_for_it() {
    sim::for_seeds(10, |seed| {
        Sim::new(seed).run(async |rt: SimRt| {
            let world = World::start(&rt, assuming_a_role(), BOTH);
            world.settled().await;
            world.kms.tokens.set(Tokens::Gives(ms(200)));
            let requests = (0..3_000).map(|index| {
                let world = Rc::clone(&world);
                async move { world.post_to(index % 4, "document/wrap", metadata(A)).await }
            });
            for answer in world.all(requests).await {
                assert_eq!(answer.status, 200, "{answer:?}");
            }
            assert_eq!(world.kms.token_calls.get(), 1);
        });
    });
}

#[test]
fn a_token_is_renewed_while_the_old_one_serves() {
    in_world(assuming_a_role, async |world| {
        assert_eq!(world.wrap(A).await.status, 200);
        world.rt.sleep(Duration::from_secs(3_000)).await;
        world.kms.tokens.set(Tokens::Gives(ms(800)));
        for _ in 0..20 {
            let answer = world.wrap(A).await;
            assert_eq!(answer.status, 200);
            assert!(
                answer.took < ms(50),
                "nobody waits for a renewal: {answer:?}"
            );
        }
        world.rt.sleep(Duration::from_secs(800)).await;
        for shard in 0..4 {
            let answer = world.post_to(shard, "document/wrap", metadata(A)).await;
            assert_eq!(answer.status, 200);
            assert!(
                answer.took < ms(50),
                "the others have the new one too: {answer:?}"
            );
        }
        assert_eq!(world.kms.token_calls.get(), 2);
    });
}

#[test]
fn a_refused_token_is_replaced_once() {
    in_world(assuming_a_role, async |world| {
        assert_eq!(world.wrap(A).await.status, 200);
        world
            .kms
            .set(KEY_A, Behaviour::Fails(400, "ExpiredTokenException", 1));
        assert_eq!(world.wrap(A).await.status, 200);
        assert_eq!(world.kms.token_calls.get(), 2);
        world
            .kms
            .set(KEY_A, Behaviour::Fails(400, "ExpiredTokenException", 9));
        assert_eq!(world.wrap(A).await.code(), Some(206));
        assert_eq!(world.kms.token_calls.get(), 3);
    });
}

#[test]
fn a_refused_credential_costs_one_token_call_per_five_seconds() {
    in_world(assuming_a_role, async |world| {
        world.kms.tokens.set(Tokens::Refuses);
        for round in 1..=2 {
            for index in 0..40 {
                let answer = world.post_to(index % 4, "document/wrap", metadata(A)).await;
                assert_eq!(answer.code(), Some(206), "{answer:?}");
            }
            assert_eq!(world.kms.token_calls.get(), round);
            world.rt.sleep(Duration::from_secs(6)).await;
        }
        world.kms.tokens.set(Tokens::Gives(ms(1)));
        assert_eq!(world.wrap(A).await.status, 200, "it recovers");
    });
}

/// Everything at once, with the invariants checked at every step: one answer per request (in `post`), deadlines kept,
/// versions never back, no secret in any answer (in `post`), errors with codes.
#[test]
fn in_a_storm_every_request_gets_its_one_answer_in_time() {
    in_world(Setup::default, async |world| {
        let weather = Rc::clone(&world);
        world.rt.spawn(async move {
            for _ in 0..40 {
                let behaviour = match weather.rt.below(6) {
                    0 => Behaviour::Hangs,
                    1 => Behaviour::Fails(500, "KMSInternalException", 3),
                    2 => Behaviour::Fails(400, "ThrottlingException", 2),
                    3 => Behaviour::Cuts(2),
                    4 => Behaviour::Serves(ms(300)),
                    _ => Behaviour::Serves(ms(3)),
                };
                weather.kms.set(
                    if weather.rt.below(2) == 0 {
                        KEY_A
                    } else {
                        KEY_B
                    },
                    behaviour,
                );
                if weather.rt.below(4) == 0 {
                    weather.rt.net().reset_connections(KMS_ADDRESS.into());
                }
                weather.publish(if weather.rt.below(3) == 0 {
                    &BOTH[..1]
                } else {
                    BOTH
                });
                weather.rt.sleep(ms(100)).await;
            }
            weather.kms.set(KEY_A, Behaviour::Serves(ms(1)));
            weather.kms.set(KEY_B, Behaviour::Serves(ms(1)));
            weather.publish(BOTH);
        });
        let requests = (0..120).map(|_| {
            let world = Rc::clone(&world);
            async move {
                world.rt.sleep(ms(world.rt.below(4_000) as u64)).await;
                let tenant = if world.rt.below(2) == 0 { A } else { B };
                let before = world.snapshot_version();
                let answer = match world.rt.below(3) {
                    0 => {
                        let mut body = metadata(tenant);
                        body["documentIds"] = json!(["x", "y", "z"]);
                        world.post("document/batch-wrap", body).await
                    }
                    _ => world.wrap(tenant).await,
                };
                assert!(before <= world.snapshot_version(), "versions never go back");
                answer
            }
        });
        for answer in world.all(requests).await {
            assert!(answer.took <= ms(5_100), "{answer:?}");
            let known = [200, 201, 208, 209].contains(&answer.code().unwrap_or(200));
            assert!(known, "{answer:?}");
        }
        // The storm is over; breakers close again within their longest interval.
        world.rt.sleep(Duration::from_secs(31)).await;
        drop((world.wrap(A).await, world.wrap(B).await));
        assert_eq!(world.wrap(A).await.status, 200);
        assert_eq!(world.wrap(B).await.status, 200);
    });
}
