//! Log systems that fail and tenants that come and go, while events wait: nothing is lost, and nobody else waits.

use std::{
    collections::HashSet,
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

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

/// A wall clock that a test sets while the process runs: libfaketime in the process reads from a file how far off it is.
struct Clock(PathBuf);

impl Clock {
    fn of(home: &Home, command: &mut Command) -> Self {
        let places = fs::read_dir("/usr/lib").unwrap().flatten();
        let mut places = places.map(|place| place.path().join("faketime/libfaketime.so.1"));
        let library = places.find(|path| path.exists());
        let library = library.unwrap_or_else(|| panic!("no libfaketime: run ./x setup"));
        let clock = Self(home.store().with_file_name("clock"));
        clock.set("+0");
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", &clock.0)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        clock
    }

    /// So far off from here on, such as "+8d".
    fn set(&self, offset: &str) {
        let fresh = self.0.with_extension("fresh");
        fs::write(&fresh, offset).unwrap();
        fs::rename(fresh, &self.0).unwrap();
    }
}

#[test]
fn a_clock_that_jumps_by_a_year_buries_nothing_and_breaks_no_chain() {
    const EVENTS: u64 = 300;
    const YEAR_S: f64 = 365.0 * 86_400.0;
    let (refusing, good) = (
        Peer::start(Manner::Wants("new")),
        Peer::start(Manner::Wants("t")),
    );
    let tenants = |token| [refusing.tenant("acme", token), good.tenant("globex", "t")].concat();
    let home = Home::new(&tenants("old"));
    let pusher = Pusher::start();
    let mut command = home.command(&pusher.url());
    command.env("LOGDRIVER_ALLOW_ADDRESSES", "loopback");
    let clock = Clock::of(&home, &mut command);
    let logdriver = Logdriver::start(command);
    let push = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            pusher.push(&[event("acme", number), event("globex", number)]);
        }
    };
    let arrived = |numbers: u64| {
        wait_until("the other tenant's arrive", || {
            let numbers_of = good
                .taken()
                .iter()
                .filter_map(number)
                .collect::<HashSet<_>>();
            numbers_of.len() as u64 == numbers
        });
    };
    let age = || logdriver.metric("logdriver_oldest_event_age_seconds");
    push(0..100);
    arrived(100);
    wait_until("one was refused", || !refusing.calls().is_empty());
    // Far more than events may wait. Only a log system that has failed for a while by another clock is told by age.
    clock.set("+365d");
    wait_until("it is a year later", || age() >= YEAR_S);
    push(100..200);
    arrived(200);
    clock.set("-365d");
    wait_until("it is two years earlier", || age() == 0.0);
    push(200..EVENTS);
    arrived(EVENTS);
    clock.set("+0");
    assert!(home.dead().is_empty());
    home.write(&tenants("new"));
    wait_until("all arrive", || {
        logdriver.metric("logdriver_buffered_events") == 0.0
    });
    assert_eq!(logdriver.stop().0, 0);
    for peer in [&refusing, &good] {
        assert_eq!(assert_whole(&peer.taken(), EVENTS), 0);
    }
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
fn what_was_lost_while_it_was_down_is_missing_when_it_is_back() {
    let home = Home::new("version = 1\n");
    // A shard's numbers are 0 to 9, and then 15 to 19.
    for (first, events, missing) in [(0, 10, 0.0), (15, 5, 5.0)] {
        let keeper = Keeper::start(events, 50, move |number| event("acme", first + number));
        let logdriver = start(&home, &keeper.url());
        wait_until("all are stored", || keeper.acknowledged() == events);
        wait_until("what is missing is counted", || {
            logdriver.metric("logdriver_sequence_missing_total") == missing
        });
        logdriver.kill();
    }
}

#[test]
fn held_events_are_kept_no_longer_than_others() {
    const EVENTS: u64 = 300;
    let home = Home::new("version = 1\n");
    let keeper = Keeper::start(EVENTS, 50, |number| event("acme", number));
    let mut command = home.command(&keeper.url());
    command
        .env("LOGDRIVER_UNKNOWN_TENANT", "hold")
        .env("LOGDRIVER_RETENTION_BYTES", "1");
    let mut logdriver = Logdriver::start(command);
    wait_until("all are stored", || keeper.acknowledged() == EVENTS);
    wait_until("none waits", || {
        logdriver.metric("logdriver_buffered_events") == 0.0
    });
    logdriver.drain();
    assert!(logdriver.events.is_empty(), "some went to standard output");
    assert_eq!(logdriver.stop().0, 0);
    let dead = home.dead();
    assert!(dead.len() as u64 >= EVENTS, "{} dead letters", dead.len());
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

const TENANTS: u64 = 1_000;

/// A thousand tenants of `good`, but for the first, which has another log system.
fn thousand(first: &Peer, good: &Peer) -> Home {
    let tenants: Vec<_> = (0..TENANTS)
        .map(|tenant| {
            let peer = if tenant == 0 { first } else { good };
            peer.tenant(&format!("tenant-{tenant}"), "t")
        })
        .collect();
    Home::new(&tenants.concat())
}

/// One event of each of the thousand; the number is the tenant's plus a thousand per round.
fn round_of_events(round: u64) -> Vec<Vec<u8>> {
    let numbers = round * TENANTS..(round + 1) * TENANTS;
    let of_tenant = |number| event(&format!("tenant-{}", number % TENANTS), number);
    numbers.map(of_tenant).collect()
}

#[test]
fn a_thousand_tenants_do_not_wait_for_one_whose_log_system_hangs() {
    const ROUNDS: u64 = 5;
    let (dead, good) = (Peer::start(Manner::Hangs), Peer::start(Manner::Wants("t")));
    let home = thousand(&dead, &good);
    let pusher = Pusher::start();
    let logdriver = start(&home, &pusher.url());
    // The dead one's first, so that they are on their way before all others'.
    pusher.push(&[event("tenant-0", 0)]);
    wait_until("the dead one is called", || !dead.calls().is_empty());
    for round in 0..ROUNDS {
        pusher.push(&round_of_events(round));
    }
    wait_until("all of the others' arrive", || {
        good.arrivals().len() as u64 == (TENANTS - 1) * ROUNDS
    });
    // The dead one's wait, all of them; without an answer none counts as delivered.
    assert!(dead.taken().is_empty());
    assert!(logdriver.metric("logdriver_buffered_events") >= ROUNDS as f64);
    assert_eq!(logdriver.get("/ready").0, 200);
}

/// From the push to the arrival, of the other 999 tenants' events, in ms: median and 99th percentile.
fn delays(first: Manner) -> (u128, u128) {
    const ROUNDS: u64 = 20;
    let (first, good) = (Peer::start(first), Peer::start(Manner::Wants("t")));
    let home = thousand(&first, &good);
    let pusher = Pusher::start();
    let _logdriver = start(&home, &pusher.url());
    pusher.push(&[event("tenant-0", 0)]);
    wait_until("the first one is called", || !first.calls().is_empty());
    let pushed: Vec<_> = (0..ROUNDS)
        .map(|round| {
            let events = round_of_events(round);
            let now = Instant::now();
            pusher.push(&events);
            thread::sleep(Duration::from_millis(500));
            now
        })
        .collect();
    wait_until("all of the others' arrive", || {
        good.arrivals().len() as u64 == (TENANTS - 1) * ROUNDS
    });
    let arrivals = good.arrivals().into_iter();
    let delays =
        arrivals.map(|(number, at)| (at - pushed[(number / TENANTS) as usize]).as_millis());
    let mut delays: Vec<_> = delays.collect();
    delays.sort_unstable();
    (delays[delays.len() / 2], delays[delays.len() * 99 / 100])
}

#[test]
#[ignore = "figures, by hand"]
fn figures_of_a_thousand_tenants_beside_one_whose_log_system_hangs() {
    for _ in 0..5 {
        for (name, first) in [("well", Manner::Wants("t")), ("hangs", Manner::Hangs)] {
            let (p50, p99) = delays(first);
            println!("the first tenant's {name}: the others' p50 {p50} ms, p99 {p99} ms");
        }
    }
}
