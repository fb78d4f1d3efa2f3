//! Log systems that fail and tenants that come and go, while events wait: nothing is lost, and nobody else waits.

use std::{collections::HashSet, time::Duration};

use crate::{
    peer::{Manner, Peer},
    proxy::{Keeper, Pusher},
    support::{Home, Logdriver, assert_whole, event, number, wait_until},
};

/// A logdriver that may speak to loopback.
fn start(home: &Home, producer: &str) -> Logdriver {
    let mut command = home.command(producer);
    command.env("LOGDRIVER_ALLOW_ADDRESSES", "loopback");
    Logdriver::start(command)
}

#[test]
fn a_storm_of_429_is_waited_out_as_long_as_it_asks_and_nothing_is_lost() {
    const EVENTS: u64 = 2_000;
    let peer = Peer::start(Manner::Throttles(1));
    let home = Home::new(&peer.tenant("acme", "t"));
    let keeper = Keeper::start(EVENTS, 100, |number| event("acme", number));
    let logdriver = start(&home, &keeper.url());
    wait_until("it was throttled three times", || peer.calls().len() >= 3);
    wait_until("all are stored", || keeper.acknowledged() == EVENTS);
    assert!(peer.taken().is_empty());
    let calls = peer.calls();
    for pair in calls.windows(2) {
        // A call is noted when it was read, and its answer comes after that.
        assert!(pair[1] - pair[0] >= Duration::from_secs(1), "{calls:?}");
    }
    peer.behave(Manner::Wants("t"));
    wait_until("all arrive", || {
        logdriver.metric("logdriver_buffered_events") == 0.0
    });
    assert_eq!(logdriver.stop().0, 0);
    assert_eq!(assert_whole(&peer.taken(), EVENTS), 0);
    assert!(home.dead().is_empty());
}

#[test]
fn a_refused_credential_holds_events_until_the_configuration_has_another() {
    const EVENTS: u64 = 500;
    let peer = Peer::start(Manner::Wants("new"));
    let home = Home::new(&peer.tenant("acme", "old"));
    let keeper = Keeper::start(EVENTS, 50, |number| event("acme", number));
    let mut logdriver = start(&home, &keeper.url());
    wait_until("it was refused", || !peer.calls().is_empty());
    wait_until("all are stored", || keeper.acknowledged() == EVENTS);
    logdriver.wait_for_log(|log| {
        let message = log["message"].as_str()?;
        message.contains("which wait on disk").then_some(())
    });
    assert!(peer.taken().is_empty());
    // By itself it would try again after minutes.
    home.write(&peer.tenant("acme", "new"));
    wait_until("all arrive", || {
        logdriver.metric("logdriver_buffered_events") == 0.0
    });
    assert_eq!(logdriver.stop().0, 0);
    assert_eq!(assert_whole(&peer.taken(), EVENTS), 0);
    assert!(home.dead().is_empty());
}

#[test]
fn events_of_a_tenant_that_is_removed_are_held_and_arrive_when_it_is_back() {
    const EVENTS: u64 = 300;
    let peer = Peer::start(Manner::Wants("new"));
    let home = Home::new(&peer.tenant("acme", "old"));
    let keeper = Keeper::start(EVENTS, 50, |number| event("acme", number));
    let mut command = home.command(&keeper.url());
    command
        .env("LOGDRIVER_ALLOW_ADDRESSES", "loopback")
        .env("LOGDRIVER_UNKNOWN_TENANT", "hold");
    let mut logdriver = Logdriver::start(command);
    wait_until("it was refused", || !peer.calls().is_empty());
    wait_until("all are stored", || keeper.acknowledged() == EVENTS);
    let looked = logdriver.metric("logdriver_configs");
    assert_eq!(looked, 1.0);
    home.write("version = 1\n");
    wait_until("the tenant is gone", || {
        logdriver.metric("logdriver_configs") == 0.0
    });
    assert!(logdriver.metric("logdriver_buffered_events") >= EVENTS as f64);
    home.write(&peer.tenant("acme", "new"));
    wait_until("all arrive", || {
        logdriver.metric("logdriver_buffered_events") == 0.0
    });
    logdriver.drain();
    assert!(logdriver.events.is_empty(), "some went to standard output");
    assert_eq!(logdriver.stop().0, 0);
    assert_eq!(assert_whole(&peer.taken(), EVENTS), 0);
}

#[test]
fn events_of_a_tenant_that_is_removed_go_to_standard_output_unless_they_are_held() {
    const EVENTS: u64 = 300;
    let peer = Peer::start(Manner::Wants("new"));
    let home = Home::new(&peer.tenant("acme", "old"));
    let keeper = Keeper::start(EVENTS, 50, |number| event("acme", number));
    let mut logdriver = start(&home, &keeper.url());
    wait_until("it was refused", || !peer.calls().is_empty());
    wait_until("all are stored", || keeper.acknowledged() == EVENTS);
    home.write("version = 1\n");
    logdriver.wait_for_numbers(EVENTS);
    assert_eq!(assert_whole(&logdriver.events, EVENTS), 0);
    assert!(peer.taken().is_empty());
}

/// A thousand tenants, of which the first has a log system that answers nothing.
#[test]
fn a_thousand_tenants_do_not_wait_for_one_whose_log_system_hangs() {
    const TENANTS: u64 = 1_000;
    const ROUNDS: u64 = 5;
    let (dead, good) = (Peer::start(Manner::Hangs), Peer::start(Manner::Wants("t")));
    let tenants: Vec<_> = (0..TENANTS)
        .map(|tenant| {
            let peer = if tenant == 0 { &dead } else { &good };
            peer.tenant(&format!("tenant-{tenant}"), "t")
        })
        .collect();
    let home = Home::new(&tenants.concat());
    let pusher = Pusher::start();
    let logdriver = start(&home, &pusher.url());
    // The dead one's first, so that they are on their way before all others'.
    pusher.push(&[event("tenant-0", 0)]);
    wait_until("the dead one is called", || !dead.calls().is_empty());
    for round in 0..ROUNDS {
        let numbers = round * TENANTS..(round + 1) * TENANTS;
        let events: Vec<_> = numbers
            .map(|number| event(&format!("tenant-{}", number % TENANTS), number))
            .collect();
        pusher.push(&events);
    }
    wait_until("all of the others' arrive", || {
        let taken = good.taken();
        let numbers: HashSet<_> = taken.iter().filter_map(number).collect();
        numbers.len() as u64 == (TENANTS - 1) * ROUNDS
    });
    // The dead one's wait, all of them; without an answer none counts as delivered.
    assert!(dead.taken().is_empty());
    assert!(logdriver.metric("logdriver_buffered_events") >= ROUNDS as f64);
    assert_eq!(logdriver.get("/ready").0, 200);
}
