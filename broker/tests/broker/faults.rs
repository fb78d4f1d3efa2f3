//! What must not get lost or come twice, whatever dies or races.

use std::{
    collections::HashSet,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use tsp_wire::account::SecretOutcome;

use crate::support::{Kind, World, on_both};

/// How often a fault is made to happen. `BROKER_TEST_ROUNDS` asks for more.
fn rounds(default: u32) -> u32 {
    let given = std::env::var("BROKER_TEST_ROUNDS").ok();
    given.map_or(default, |rounds| rounds.parse().unwrap())
}

#[test]
fn what_was_acknowledged_survives_a_kill_in_the_middle_of_writes() {
    on_both(|mut world| {
        world.admin(&["tenant", "create", "acme"]);
        let kms = world.local_kms("acme");
        let account = world.account(&[]);
        let mut acknowledged: Vec<u64> = Vec::new();
        for round in 0..rounds(10) {
            let (told, heard) = mpsc::channel();
            let stop = AtomicBool::new(false);
            let (broker, stopping) = (&world.broker, &stop);
            let (account_ref, kms_ref) = (&account, kms.as_str());
            thread::scope(|scope| {
                for writer in 0..3 {
                    let told = told.clone();
                    scope.spawn(move || {
                        for number in 0.. {
                            let path = format!("{round}-{writer}-{number}");
                            let outcome =
                                broker.offer(account_ref, "acme", &path, kms_ref, b"blob");
                            match outcome {
                                Some(SecretOutcome::Created(secret)) => {
                                    told.send(secret.id).unwrap()
                                }
                                Some(other) => panic!("{other:?}"),
                                None => return,
                            }
                            if stopping.load(Ordering::Relaxed) {
                                return;
                            }
                        }
                    });
                }
                // In the middle of it: some are done, others under way.
                acknowledged.extend(heard.iter().take(5));
                broker.kill_now();
                stop.store(true, Ordering::Relaxed);
            });
            drop(told);
            acknowledged.extend(heard.iter());
            world.kill_and_restart();
        }
        let stored: HashSet<u64> = world
            .broker
            .snapshot(&account)
            .secrets
            .iter()
            .map(|secret| secret.id)
            .collect();
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|id| !stored.contains(id))
            .collect();
        assert!(
            lost.is_empty(),
            "{} of {} lost",
            lost.len(),
            acknowledged.len()
        );
        world.admin(&["audit", "verify"]);
    });
}

#[test]
fn of_two_replicas_that_race_for_a_secret_one_wins() {
    let world = World::new(Kind::Postgres);
    world.admin(&["tenant", "create", "acme"]);
    let kms = world.local_kms("acme");
    let account = Arc::new(world.account(&[]));
    let replica = world.replica();
    let rounds = rounds(100);
    let race = |broker: &crate::support::Broker, start: &Barrier, blob: &'static [u8]| {
        let mut outcomes = Vec::new();
        for round in 0..rounds {
            start.wait();
            outcomes.push(
                broker
                    .offer(&account, "acme", &format!("p{round}"), &kms, blob)
                    .unwrap(),
            );
        }
        outcomes
    };
    let start = Barrier::new(2);
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| race(&replica, &start, b"second"));
        (
            race(&world.broker, &start, b"first"),
            second.join().unwrap(),
        )
    });
    for pair in first.into_iter().zip(second) {
        match pair {
            (SecretOutcome::Created(winner), SecretOutcome::Existing(other))
            | (SecretOutcome::Existing(other), SecretOutcome::Created(winner)) => {
                assert_eq!(winner, other);
            }
            other => panic!("{other:?}"),
        }
    }
    let snapshot = world.broker.snapshot(&account);
    assert_eq!(snapshot.secrets.len(), usize::try_from(rounds).unwrap());
    world.admin(&["audit", "verify"]);
}
