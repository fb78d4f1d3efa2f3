//! Disks that are full, cannot be written, or give back something else; events that are none, or very large.

use std::{
    fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, thread, time::Duration,
};

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

/// It says that its store cannot be written, stays alive, and tries again.
fn assert_takes_nothing(logdriver: &mut Logdriver) {
    logdriver.wait_for_status("/ready", 500);
    logdriver.wait_for_log(|log| {
        let message = log["message"].as_str()?;
        message
            .contains("the store cannot be written")
            .then_some(())
    });
    assert_eq!(logdriver.get("/live").0, 200);
    assert_eq!(logdriver.get("/health").0, 500);
    assert_eq!(logdriver.metric("logdriver_store_writable"), 0.0);
    let refusals = logdriver.metric("logdriver_store_refusals_total");
    wait_until("it tries again", || {
        logdriver.metric("logdriver_store_refusals_total") > refusals
    });
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
    assert_takes_nothing(&mut logdriver);
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

/// A file system of its own for the store, which can be made to fail. It is in a namespace of its own, so it goes with the
/// process that has it.
struct Disk<'a> {
    home: &'a Home,
    image: PathBuf,
}

impl<'a> Disk<'a> {
    /// `None` where nobody but root may make one, or where there are no loop devices.
    fn new(home: &'a Home) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !succeeds("losetup", &["-f"]) {
            eprintln!("not root, or no loop devices: no disk to turn read-only");
            return None;
        }
        fs::create_dir(home.store()).unwrap();
        let image = home.store().with_file_name("disk.img");
        fs::File::create(&image)
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        assert!(succeeds(
            "mkfs.ext4",
            &["-q", "-F", image.to_str().unwrap()]
        ));
        Some(Self { home, image })
    }

    /// The program, with its store on this disk.
    fn command(&self, producer: &str) -> Command {
        let mut command = Command::new("unshare");
        self.home.environment(&mut command, producer);
        let (image, store) = (self.image.display(), self.home.store());
        let program = env!("CARGO_BIN_EXE_tsp-logdriver");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg(format!(
                "mount -o loop,errors=remount-ro '{image}' '{}' && exec '{program}'",
                store.display()
            ));
        command
    }

    /// Does what the kernel does when it finds the disk damaged.
    fn fail(&self, pid: u32) {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let store = self.home.store();
        let mount = mounts
            .lines()
            .find(|line| line.contains(store.to_str().unwrap()));
        let device = mount
            .unwrap()
            .split("/dev/")
            .nth(1)
            .unwrap()
            .split(' ')
            .next();
        let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", device.unwrap());
        fs::write(trigger, "1").unwrap();
    }

    /// What an operator does with it once nobody has it any more.
    fn repair(&self) {
        let image = self.image.to_str().unwrap();
        wait_until("nobody has the disk", || {
            let users = Command::new("losetup")
                .args(["-j", image])
                .output()
                .unwrap();
            users.status.success() && users.stdout.is_empty()
        });
        let repaired = Command::new("e2fsck")
            .args(["-fy", image])
            .output()
            .unwrap();
        // 1: something was mended.
        assert!(
            matches!(repaired.status.code(), Some(0 | 1)),
            "{repaired:?}"
        );
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn a_disk_that_turns_read_only_stops_the_taking_and_has_all_that_was_acknowledged() {
    const EVENTS: u64 = 20_000;
    let home = Home::new("version = 1\n");
    let Some(disk) = Disk::new(&home) else { return };
    let keeper = Keeper::start(EVENTS, 10, |number| event("acme", number));
    let mut command = disk.command(&keeper.url());
    // Held, so that none is out of danger because it was delivered.
    command.env("LOGDRIVER_UNKNOWN_TENANT", "hold");
    let mut logdriver = Logdriver::start(command);
    wait_until("some are acknowledged", || keeper.acknowledged() >= 100);
    disk.fail(logdriver.pid());
    assert_takes_nothing(&mut logdriver);
    assert!(keeper.acknowledged() < EVENTS);
    logdriver.kill();
    disk.repair();
    let mut logdriver = Logdriver::start(disk.command(&keeper.url()));
    logdriver.wait_for_numbers(EVENTS);
    assert_eq!(assert_whole(&logdriver.events, EVENTS), 0);
    assert_eq!(logdriver.stop().0, 0);
    disk.repair();
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
