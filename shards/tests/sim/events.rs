//! The event queue when it is full: what it costs, and how what was lost is told.

use std::{cell::RefCell, rc::Rc};

use serde_json::Value;
use tsp_rt::Rt as _;

use super::{
    A, B, in_world, ms,
    world::{Setup, metadata},
};

#[test]
fn a_full_event_queue_costs_its_time_once_and_loses_events_not_requests() {
    let setup = || Setup {
        event_queue: 3,
        ..Setup::default()
    };
    in_world(setup, async |world| {
        let mut body = metadata(A);
        body["documentIds"] = (0..20).map(|id| Value::from(id.to_string())).collect();
        let batch = world.post("document/batch-wrap", body).await;
        assert_eq!(batch.body["keys"].as_object().unwrap().len(), 20);
        assert!(batch.took < ms(40), "25 ms for the whole batch: {batch:?}");
        let mut event = metadata(A);
        event["iclFields"]["event"] = "USER_LOGIN".into();
        let refused = world.post("event/security-event", event.clone()).await;
        assert_eq!((refused.status, refused.code()), (503, Some(301)));
        assert_eq!(numbers(&world.take_events(ALL)), [0, 1, 2]);
        let accepted = world.post("event/security-event", event).await;
        assert_eq!((accepted.status, accepted.body), (200, Value::Null));
        assert_eq!(
            numbers(&world.take_events(ALL)),
            [21],
            "the loss of 17 and of the refused one shows as a gap"
        );
    });
}

/// All events that wait.
const ALL: usize = usize::MAX;

fn numbers(events: &[Value]) -> Vec<u64> {
    let number = |event: &Value| event["sequence"]["number"].as_u64().unwrap();
    events.iter().map(number).collect()
}

/// What a gap event says: whose events were lost, how many, and its own number.
fn loss(event: &Value) -> (&str, u64, u64) {
    let fields = &event["iclFields"];
    assert_eq!(fields["event"], "TSP_EVENTS_LOST", "{event}");
    assert_eq!(
        (&fields["requestingId"], &fields["source"]),
        (&"tsp".into(), &"tsp".into())
    );
    assert_eq!(event["timestamp"], event["customFields"]["lastLostAt"]);
    let first = event["customFields"]["firstLostAt"].as_str().unwrap();
    assert!(first <= event["timestamp"].as_str().unwrap(), "{event}");
    (
        event["tenantId"].as_str().unwrap(),
        fields["count"].as_u64().unwrap_or(1),
        event["sequence"]["number"].as_u64().unwrap(),
    )
}

#[test]
fn what_was_lost_is_told_by_tenant_as_soon_as_there_is_room() {
    let setup = || Setup {
        event_queue: 3,
        ..Setup::default()
    };
    in_world(setup, async |world| {
        let mut body = metadata(A);
        body["documentIds"] = (0..10).map(|id| Value::from(id.to_string())).collect();
        assert_eq!(world.post("document/batch-wrap", body).await.status, 200);
        for _ in 0..2 {
            assert_eq!(world.wrap(B).await.status, 200);
        }
        // Nobody takes anything, so that nothing can be told.
        world.rt.sleep(ms(2_000)).await;
        assert_eq!(numbers(&world.take_events(ALL)), [0, 1, 2]);
        // No request is needed for the telling, and it is told once.
        world.rt.sleep(ms(2_000)).await;
        let told = world.take_events(ALL);
        let told: Vec<_> = told.iter().map(loss).collect();
        assert_eq!(told, [(A, 7, 12), (B, 2, 13)]);
        world.rt.sleep(ms(2_000)).await;
        assert!(world.events.borrow().is_empty());
    });
}

#[test]
fn losses_that_could_not_be_told_go_before_what_waits_for_room() {
    let setup = || Setup {
        event_queue: 1,
        ..Setup::default()
    };
    in_world(setup, async |world| {
        for _ in 0..3 {
            assert_eq!(world.wrap(A).await.status, 200);
        }
        world.rt.sleep(ms(600)).await;
        let taker = Rc::clone(&world);
        let taken = Rc::new(RefCell::new(Vec::new()));
        let to = Rc::clone(&taken);
        world.rt.spawn(async move {
            for _ in 0..3 {
                taker.rt.sleep(ms(5)).await;
                to.borrow_mut().extend(taker.take_events(1));
            }
        });
        assert_eq!(world.wrap(B).await.status, 200);
        world.rt.sleep(ms(100)).await;
        let taken = taken.take();
        assert_eq!(taken[0]["sequence"]["number"], 0);
        assert_eq!(loss(&taken[1]), (A, 2, 3));
        assert_eq!(
            (&taken[2]["tenantId"], &taken[2]["sequence"]["number"]),
            (&B.into(), &4.into())
        );
    });
}

#[test]
fn the_event_of_a_caller_who_leaves_while_it_waits_for_room_is_told_as_lost() {
    let setup = || Setup {
        event_queue: 1,
        ..Setup::default()
    };
    in_world(setup, async |world| {
        assert_eq!(world.wrap(A).await.status, 200);
        world
            .post_and_leave("document/wrap", metadata(A), ms(15))
            .await;
        world.rt.sleep(ms(100)).await;
        assert_eq!(numbers(&world.take_events(ALL)), [0]);
        world.rt.sleep(ms(600)).await;
        let told = world.take_events(ALL);
        assert_eq!(told.iter().map(loss).collect::<Vec<_>>(), [(A, 1, 2)]);
    });
}

#[test]
fn a_full_event_queue_costs_a_wrap_its_time_and_no_more() {
    let setup = || Setup {
        event_queue: 1,
        ..Setup::default()
    };
    in_world(setup, async |world| {
        let free = world.wrap(A).await;
        let full = world.wrap(A).await;
        let more = full.took.checked_sub(free.took).unwrap();
        assert!(
            more >= ms(20) && more <= ms(26),
            "25 ms more: {free:?} {full:?}"
        );
    });
}

#[test]
fn a_shard_that_ends_in_order_says_so_last() {
    let setup = || Setup {
        event_queue: 4,
        ..Setup::default()
    };
    in_world(setup, async |world| {
        for _ in 0..5 {
            assert_eq!(world.wrap(A).await.status, 200);
        }
        assert_eq!(world.take_events(4).len(), 4);
        world.controls.borrow()[0].drain();
        world.rt.sleep(ms(100)).await;
        assert!(world.ended.get());
        let last = world.take_events(ALL);
        assert_eq!(last.len(), 2, "{last:?}");
        assert_eq!(loss(&last[0]), (A, 1, 5));
        assert_eq!(last[1]["iclFields"]["event"], "TSP_EVENTS_ENDED");
        assert_eq!(
            (&last[1]["tenantId"], &last[1]["sequence"]["number"]),
            (&"".into(), &6.into())
        );
    });
}

#[test]
fn where_events_are_required_a_lost_event_fails_its_request() {
    let setup = || Setup {
        event_queue: 1,
        events_required: true,
        ..Setup::default()
    };
    in_world(setup, async |world| {
        assert_eq!(world.wrap(A).await.status, 200);
        let answer = world.wrap(A).await;
        assert_eq!((answer.status, answer.code()), (503, Some(301)));
        assert!(answer.body.get("dek").is_none());
    });
}
