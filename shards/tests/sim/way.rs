//! The way to a KMS: to which addresses it may lead.

use std::{net::IpAddr, rc::Rc, time::Duration};

use tsp_rt::Rt as _;
use tsp_shards::Destinations;

use crate::{
    A, in_world,
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
