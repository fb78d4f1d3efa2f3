//! Connections that go from shard to shard: each is answered, whatever happens meanwhile.

use std::{cell::Cell, rc::Rc};

use http_body_util::BodyExt as _;
use tsp_rt::Rt as _;

use crate::{
    A, KEY_A, in_world, metadata, ms,
    world::{Behaviour, Setup, request},
};

fn balanced() -> Setup {
    Setup {
        shards: 3,
        balanced: true,
        ..Setup::default()
    }
}

#[test]
fn a_drain_loses_no_connection_on_its_way_to_another_shard() {
    in_world(balanced, async |world| {
        world.kms.set(KEY_A, Behaviour::Serves(ms(5)));
        let refused = Rc::new(Cell::new(0_usize));
        // Most come to one shard, so that it hands over most of them.
        let clients = (0..60).map(|client| {
            let (world, refused) = (Rc::clone(&world), Rc::clone(&refused));
            async move {
                let pause = world.rt.below(20);
                world.rt.sleep(ms(pause as u64)).await;
                let Some(mut sender) = world.try_open(if client % 10 == 0 { 1 } else { 0 }).await
                else {
                    refused.set(refused.get() + 1);
                    return;
                };
                let answer = sender
                    .send_request(request("document/wrap", &metadata(A)))
                    .await
                    .expect("who was let in is answered");
                assert_eq!(answer.status(), 200);
                answer.into_body().collect().await.expect("and whole");
            }
        });
        let drain = async {
            world.rt.sleep(ms(2 + world.rt.below(16) as u64)).await;
            for control in world.controls.borrow().iter() {
                control.drain();
            }
        };
        crate::world::both(world.all(clients), drain).await;
        assert!(refused.get() < 60, "some came before the drain");
    });
}

#[test]
fn connections_that_end_make_room_for_others_whoever_accepted_them() {
    let setup = || {
        let mut setup = balanced();
        setup.limits.connections_max = 4;
        setup
    };
    in_world(setup, async |world| {
        for _ in 0..3 {
            let mut open = Vec::new();
            // All to one shard, which has room for four.
            for _ in 0..12 {
                let mut sender = world.open(0).await;
                let sent = sender.send_request(request("document/wrap", &metadata(A)));
                let answer = sent.await.expect("there is room on some shard");
                assert_eq!(answer.status(), 200);
                answer.into_body().collect().await.unwrap();
                open.push(sender);
            }
            let mut more = world.open(0).await;
            more.send_request(request("document/wrap", &metadata(A)))
                .await
                .expect_err("every shard is full");
            drop(open);
            world.rt.sleep(ms(100)).await;
        }
    });
}
