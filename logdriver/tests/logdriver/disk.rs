//! Disks that are full, cannot be written, or give back something else; events that are none, or very large.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, thread, time::Duration};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::{
    proxy::{Keeper, Pusher},
    support::{Home, Logdriver, assert_whole, event, sized_event, wait_until},
};

/// A full disk as a process sees it: no file can grow beyond a limit. The shell ignores the signal that goes with it, and so
/// does what it becomes.
fn limited(home: &Home, producer: &str, blocks: u32) -> Command {
    let mut command = Command::new("sh");
    home.environment(&mut command, producer);
    let program = env!("CARGO_BIN_EXE_tsp-logdriver");
    command.arg("-c").arg(format!(
        "trap '' XFSZ; ulimit -S -f {blocks}; exec \"{program}\""
    ));
    command
}

#[test]
fn a_full_disk_stops_the_taking_loses_nothing_and_it_goes_on_by_itself() {
    const EVENTS: u64 = 6_000;
    let home = Home::new("version = 1\n");
    let keeper = Keeper::start(EVENTS, 100, |number| sized_event("acme", number, 1_000));
    // 2 MiB are less than what comes. They are held, so that nothing makes room.
    let mut command = limited(&home, &keeper.url(), 4096);
    command.env("LOGDRIVER_UNKNOWN_TENANT", "hold");
    let mut logdriver = Logdriver::start(command);
    logdriver.wait_for_status("/ready", 500);
    logdriver.wait_for_log(|log| {
        let message = log["message"].as_str()?;
        message
            .contains("the store cannot be written")
            .then_some(())
    });
    // It stays alive, and what it refuses is not acknowledged.
    assert_eq!(logdriver.get("/live").0, 200);
    assert_eq!(logdriver.get("/health").0, 500);
    let refusals = logdriver.metric("logdriver_store_refusals_total");
    wait_until("it tries again", || {
        logdriver.metric("logdriver_store_refusals_total") > refusals
    });
    // Checkpoints are stored, too; a batch would be a hundred more.
    let stored = logdriver.metric("logdriver_events_stored_total");
    let acknowledged = keeper.acknowledged();
    assert!((1..EVENTS).contains(&acknowledged), "{acknowledged}");
    assert!(acknowledged as f64 <= stored, "{acknowledged}, {stored}");
    let pid = Pid::from_raw(i32::try_from(logdriver.pid()).unwrap());
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, unlimited).unwrap();
    logdriver.wait_for_status("/ready", 200);
    wait_until("all are acknowledged", || keeper.acknowledged() == EVENTS);
    assert_eq!(logdriver.stop().0, 0);
    let mut logdriver = Logdriver::start(home.command(&keeper.url()));
    logdriver.wait_for_numbers(EVENTS);
    assert_eq!(assert_whole(&logdriver.events, EVENTS), 0);
}

#[test]
fn too_little_room_on_the_disk_stops_the_taking_and_not_the_delivery() {
    let home = Home::new("version = 1\n");
    let pusher = Pusher::start();
    let logdriver = Logdriver::start(home.command(&pusher.url()));
    logdriver.wait_for_status("/ready", 200);
    assert_eq!(logdriver.stop().0, 0);
    // More than any disk has.
    let mut command = home.command(&pusher.url());
    command.env("LOGDRIVER_STORE_FREE_MIN", "1000000000000000");
    let mut logdriver = Logdriver::start(command);
    logdriver.wait_for_log(|log| {
        let message = log["message"].as_str()?;
        message.contains("LOGDRIVER_STORE_FREE_MIN").then_some(())
    });
    logdriver.wait_for_status("/ready", 500);
}

#[test]
fn a_folder_that_cannot_be_written_is_waited_for() {
    let home = Home::new("version = 1\n");
    // A file is in the way: that stops root as well, whom permissions do not.
    fs::write(home.store(), "in the way").unwrap();
    let pusher = Pusher::start();
    let mut command = home.command(&pusher.url());
    let health = free_address();
    command.env("LOGDRIVER_HEALTH_BIND_ADDRESS", &health);
    let store = home.store();
    let mender = thread::spawn(move || {
        // As soon as it says that it is not ready.
        while get(&health, "/ready").is_none_or(|status| status != 500) {
            thread::sleep(Duration::from_millis(20));
        }
        fs::remove_file(store).unwrap();
    });
    let mut logdriver = Logdriver::start(command);
    mender.join().unwrap();
    pusher.push(&[event("acme", 0)]);
    logdriver.wait_for_numbers(1);
    let mode = fs::metadata(home.store()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn get(address: &str, path: &str) -> Option<u16> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// Of the store's database.
const PAGE_BYTES: usize = 8192;

#[test]
fn bytes_that_change_on_disk_cost_their_block_alone_and_are_named() {
    let home = Home::new("version = 1\n");
    let pusher = Pusher::start();
    let mut hold = home.command(&pusher.url());
    hold.env("LOGDRIVER_UNKNOWN_TENANT", "hold");
    let logdriver = Logdriver::start(hold);
    for number in 0..30 {
        // Each larger than a page, so that what is changed below is of one of them.
        pusher.push(&[sized_event("acme", number, 20_000)]);
    }
    wait_until("all are stored", || {
        logdriver.metric("logdriver_buffered_events") >= 30.0
    });
    assert_eq!(logdriver.stop().0, 0);
    let path = home.store().join("events.sqlite");
    let mut bytes = fs::read(&path).unwrap();
    // In the middle of a page in the middle of the file: contents, and not where SQLite notes the next page.
    let middle = bytes.len() / 2 / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES / 2;
    bytes[middle] ^= 0x40;
    fs::write(&path, bytes).unwrap();
    let mut logdriver = Logdriver::start(home.command(&pusher.url()));
    logdriver.wait_for_log(|log| {
        let message = log["message"].as_str()?;
        message.contains("damaged on disk").then_some(())
    });
    wait_until("the rest is delivered", || {
        logdriver.drain();
        logdriver.metric("logdriver_buffered_events") == 0.0
    });
    let corrupt = logdriver.metric("logdriver_events_corrupt_total");
    let (_, events) = logdriver.stop();
    assert!(corrupt >= 1.0);
    assert_eq!(events.len() as f64 + corrupt, 30.0);
    assert_eq!(home.dead().len(), 1);
}

#[test]
fn an_event_of_a_megabyte_passes_and_what_is_no_event_is_kept() {
    let home = Home::new("version = 1\n");
    let pusher = Pusher::start();
    let mut logdriver = Logdriver::start(home.command(&pusher.url()));
    pusher.push_raw(b"\x01not an event".to_vec());
    pusher.push_raw(b"\x07{}".to_vec());
    pusher.push(&[sized_event("acme", 0, 1_048_576), event("acme", 1)]);
    logdriver.wait_for_numbers(2);
    assert_eq!(assert_whole(&logdriver.events, 2), 0);
    assert_eq!(logdriver.metric("logdriver_events_malformed_total"), 2.0);
    let dead = home.dead();
    assert_eq!(dead.len(), 2);
    assert_eq!(dead[0]["event"], "not an event");
    assert!(logdriver.metric("logdriver_events_received_total") >= 4.0);
}
