//! `kill -9` at random moments under load.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    proxy::{Keeper, Pusher},
    support::{Home, Logdriver, PATIENCE, assert_whole, event},
};

const TENANTS: u64 = 7;

fn tenant(number: u64) -> String {
    format!("t{}", number % TENANTS)
}

/// `LOGDRIVER_TEST_ROUNDS=1000 cargo test -p tsp-logdriver --test logdriver killed -- --nocapture`
#[test]
fn killed_at_random_it_loses_nothing_that_it_acknowledged_and_the_chains_are_whole() {
    let rounds: u64 = std::env::var("LOGDRIVER_TEST_ROUNDS")
        .ok()
        .map_or(5, |rounds| rounds.parse().unwrap());
    let home = Home::new("version = 1\n");
    // More than the rounds acknowledge, so that there is load up to the last.
    let events = rounds * 1_500;
    let keeper = Keeper::start(events, 200, |number| event(&tenant(number), number));
    let mut delivered = Vec::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..rounds {
        let logdriver = Logdriver::start(home.command(&keeper.url()));
        // Somewhere between the start and some commits later; the moment is what is random, not what is waited for.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let before = keeper.acknowledged();
        let some = before + random % 2_000;
        let until = Instant::now() + PATIENCE;
        while keeper.acknowledged() < some.min(events) {
            assert!(
                Instant::now() < until,
                "round {round}: nothing is acknowledged"
            );
            thread::yield_now();
        }
        thread::sleep(Duration::from_micros(random % 5_000));
        delivered.extend(logdriver.kill());
    }
    let acknowledged = keeper.acknowledged();
    let mut logdriver = Logdriver::start(home.command(&keeper.url()));
    // As long as there is progress, however many there are.
    let (mut last, mut until) = ((0, 0), Instant::now() + PATIENCE);
    loop {
        logdriver.drain();
        let now = (keeper.acknowledged(), logdriver.events.len());
        if now.0 == events && logdriver.metric("logdriver_buffered_events") == 0.0 {
            break;
        }
        if now != last {
            (last, until) = (now, Instant::now() + PATIENCE);
        }
        assert!(Instant::now() < until, "the rest does not come: {now:?}");
        thread::sleep(Duration::from_millis(5));
    }
    let (code, rest) = logdriver.stop();
    assert_eq!(code, 0);
    delivered.extend(rest);
    let repeated = assert_whole(&delivered, events);
    println!(
        "{rounds} kills, {events} events, {acknowledged} acknowledged before the last start, {repeated} delivered again"
    );
}

#[test]
fn a_drain_leaves_nothing_behind_and_what_waits_is_there_at_the_next_start() {
    // Nobody's events: they are held.
    let home = Home::new("version = 1\n");
    let pusher = Pusher::start();
    let mut hold = home.command(&pusher.url());
    hold.env("LOGDRIVER_UNKNOWN_TENANT", "hold");
    let logdriver = Logdriver::start(hold);
    for number in 0..100 {
        pusher.push(&[event(&tenant(number), number)]);
    }
    let until = Instant::now() + PATIENCE;
    while logdriver.metric("logdriver_buffered_events") < 100.0 {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(10));
    }
    let (code, events) = logdriver.stop();
    assert_eq!((code, events.len()), (0, 0));
    let mut logdriver = Logdriver::start(home.command(&pusher.url()));
    logdriver.wait_for_numbers(100);
    let (code, events) = logdriver.stop();
    assert_eq!(code, 0);
    assert_eq!(assert_whole(&events, 100), 0);
}
