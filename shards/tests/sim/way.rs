//! The way to a KMS: to which addresses it may lead, TLS sessions, and how long a closed way is remembered.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use tsp_rt::{
    Rt as _,
    sim::{self, Connecting, Sim, SimRt},
};
use tsp_shards::Destinations;

use crate::{
    A, BOTH, in_world, ms,
    world::{KMS_ADDRESS, KMS_HOST, Setup, World},
};

/// Longer than a looked-up name or an idle connection is kept.
const FORGETTING: Duration = Duration::from_secs(60);

fn tenants_endpoints() -> Setup {
    Setup {
        destinations: Destinations::of_tenants_endpoints(),
        ..Setup::default()
    }
}

/// Leads the KMS's name to `addresses` once what is known of it is forgotten.
async fn move_name(world: &Rc<World>, addresses: &[IpAddr]) {
    world.rt.net().set_name(KMS_HOST, addresses);
    world.rt.sleep(FORGETTING).await;
}

#[test]
fn a_name_that_leads_to_a_private_address_is_not_followed_for_a_tenant() {
    in_world(tenants_endpoints, async |world| {
        for _ in 0..10 {
            let answer = world.wrap(A).await;
            assert_eq!(
                (answer.status, answer.code()),
                (422, Some(207)),
                "{answer:?}"
            );
            let message = answer.body["message"].as_str().unwrap();
            assert!(message.contains("private address"), "{message}");
            assert!(
                !message.contains(&KMS_ADDRESS.0.to_string()),
                "a tenant does not learn what a name means inside: {message}"
            );
        }
        assert_eq!(world.kms.connections.get(), 0);
    });
}

#[test]
fn the_way_to_a_token_is_judged_too() {
    let setup = || Setup {
        assume_role: true,
        ..tenants_endpoints()
    };
    in_world(setup, async |world| {
        let answer = world.wrap(A).await;
        assert_eq!(answer.code(), Some(207), "{answer:?}");
        let seen = (world.kms.connections.get(), world.kms.token_calls.get());
        assert_eq!(seen, (0, 0));
    });
}

#[test]
fn a_name_that_moves_to_a_forbidden_address_is_not_followed_there() {
    let (kms, metadata) = (
        IpAddr::from(KMS_ADDRESS.0),
        IpAddr::from([169, 254, 169, 254]),
    );
    in_world(Setup::default, async |world| {
        assert_eq!(world.wrap(A).await.status, 200);
        let connections = world.kms.connections.get();
        for forbidden in [metadata, "::ffff:169.254.169.254".parse().unwrap()] {
            move_name(&world, &[forbidden]).await;
            for _ in 0..10 {
                assert_eq!(world.wrap(A).await.code(), Some(207));
            }
        }
        assert_eq!(world.kms.connections.get(), connections);
        // Of several addresses those that are allowed serve, whichever comes first.
        for addresses in [[metadata, kms], [kms, metadata]] {
            move_name(&world, &addresses).await;
            for _ in 0..4 {
                world.kms.closes_idle_after.set(Some(Duration::ZERO));
                assert_eq!(world.wrap(A).await.status, 200);
                world.rt.sleep(Duration::from_secs(1)).await;
            }
        }
    });
}

/// Runs `test` against a KMS that speaks TLS. Handshakes take the machine's time, so with few seeds.
fn with_tls(test: impl AsyncFn(Rc<World>)) {
    let setup = || Setup {
        tls: true,
        ..Setup::default()
    };
    sim::for_seeds(5, |seed| {
        Sim::new(seed).run(async |rt: SimRt| {
            let world = World::start(&rt, setup(), BOTH);
            world.settled().await;
            test(world).await;
        });
    });
}

#[test]
fn a_connection_after_the_first_resumes_its_session_also_when_all_were_idle_for_long() {
    with_tls(async |world| {
        let pauses = [0, 60, 600, 3_000];
        for (opened, pause) in (1..).zip(pauses) {
            world.rt.sleep(Duration::from_secs(pause)).await;
            assert_eq!(world.wrap(A).await.status, 200);
            let seen = (world.kms.connections.get(), world.kms.resumed.get());
            assert_eq!(seen, (opened, opened - 1), "after {pause} s");
            // So that the next has to open one of its own.
            world.kms.closes_idle_after.set(Some(Duration::ZERO));
            world.rt.sleep(Duration::from_secs(1)).await;
        }
        // What nobody asks for any more is forgotten at last.
        world.rt.sleep(Duration::from_secs(2 * 3_600)).await;
        assert_eq!(world.wrap(A).await.status, 200);
        assert_eq!(world.kms.resumed.get(), 3);
    });
}

#[test]
fn a_way_that_is_closed_is_tried_once_per_interval_however_many_ask() {
    in_world(Setup::default, async |world| {
        let kms = SocketAddr::from(KMS_ADDRESS);
        let refuse = |refuse| {
            world.rt.net().change_link(kms, |link| {
                link.connecting = match refuse {
                    true => Connecting::Refuse,
                    false => Connecting::Accept,
                };
            });
        };
        refuse(true);
        let mut tried = 0;
        for _ in 0..600 {
            let answer = world.wrap(A).await;
            assert_eq!(answer.code(), Some(208), "{answer:?}");
            let message = answer.body["message"].as_str().unwrap();
            tried += u32::from(message.contains("refused"));
            world.rt.sleep(ms(100)).await;
        }
        // Three operations open the breaker, with their second tries; then one goes after 1, 2, 4, 8, 16 and 30 s.
        assert!(
            (3..=9).contains(&tried),
            "{tried} operations reached the network"
        );
        refuse(false);
        world.rt.sleep(Duration::from_secs(31)).await;
        assert_eq!(world.wrap(A).await.status, 200, "it recovers");
    });
}
