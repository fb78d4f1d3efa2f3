//! What needs a process of its own: limits, a seccomp filter, running out of descriptors.
//!
//! Each test here starts this very binary again, restricted, with one of the ignored tests as what it is to do.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    unsafe_code,
    reason = "a test may fail by panicking; a child's limits are set between fork and exec"
)]

mod support;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tsp_rt::{
    ACCEPT_BACKOFF, Backend, CoreMain, IoChoice, Listener, Rt, accept_backoffs, bind_reuseport,
    choose, raise_limits, spawn_core, timeout,
};

const LOCALHOST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const LONG: Duration = Duration::from_secs(60);

/// Runs the ignored test `name` in a process restricted by `restrict`, and gives what it printed.
fn child(name: &str, restrict: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    // SAFETY: `restrict` makes system calls and nothing else, as is allowed between fork and exec.
    unsafe {
        command.pre_exec(restrict);
    }
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

fn limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the kernel reads one rlimit during the call.
    match unsafe { libc::setrlimit(resource, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the three system calls of io_uring fail with `errno`, as a container's seccomp profile does.
fn refuse_io_uring(errno: u32) -> io::Result<()> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const JUMP_IF_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // io_uring_setup, io_uring_enter and io_uring_register are 425 to 427 on every architecture.
    let mut program = [
        step(LOAD_WORD, 0, 0, 0), // the number of the system call is the first word
        step(JUMP_IF_AT_LEAST, 0, 2, 425),
        step(JUMP_IF_ABOVE, 1, 0, 427),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: 5,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: both calls take plain numbers, and the second a program that lives until it returns.
    let result = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const filter,
                0,
                0,
            )
        } else {
            -1
        }
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

struct EndsAtOnce;

impl CoreMain for EndsAtOnce {
    async fn run<R: Rt>(self, _rt: R) {}
}

#[test]
#[ignore = "runs as a child"]
fn child_probes() {
    println!("raised: {}", raise_limits().unwrap());
    match choose(IoChoice::Auto) {
        Ok(probe) => println!("auto: {} ({})", probe.backend, probe.reason),
        Err(error) => println!("auto failed: {error}"),
    }
    match choose(IoChoice::Uring) {
        Ok(probe) => println!("forced: {} ({})", probe.backend, probe.reason),
        Err(error) => println!("forced failed: {error}"),
    }
    match spawn_core(Backend::Uring, "child", None, EndsAtOnce) {
        Ok(core) => println!("spawned: {:?}", core.join()),
        Err(error) => println!("spawn failed: {error}"),
    }
}

#[test]
fn under_a_seccomp_profile_auto_takes_epoll_and_forced_io_uring_says_what_to_do() {
    for (errno, name) in [(libc::EPERM, "os error 1"), (libc::ENOSYS, "os error 38")] {
        let printed = child("child_probes", move || {
            refuse_io_uring(errno.unsigned_abs())
        });
        assert!(
            printed.contains("auto: epoll (epoll, because io_uring is refused"),
            "{printed}"
        );
        assert!(
            printed.contains("forced failed: io_uring is refused"),
            "{printed}"
        );
        assert!(
            printed.contains(name) && printed.contains("seccomp"),
            "{printed}"
        );
        // A core that is started all the same says so too; glommio, whose text misleads, was not asked.
        assert!(
            printed.contains("spawn failed: io_uring is refused"),
            "{printed}"
        );
        assert!(!printed.contains("Romulus"), "{printed}");
    }
}

#[test]
fn with_little_locked_memory_the_limit_is_named() {
    if !support::can_use(Backend::Uring) {
        return;
    }
    let printed = child("child_probes", || {
        limit(libc::RLIMIT_MEMLOCK, 65_536, 65_536)
    });
    assert!(printed.contains("auto: epoll"), "{printed}");
    assert!(
        printed.contains("forced failed: io_uring needs 524288 bytes"),
        "{printed}"
    );
}

#[test]
fn a_soft_limit_is_raised_to_the_hard_one_and_io_uring_works() {
    if !support::can_use(Backend::Uring) {
        return;
    }
    let printed = child("child_probes", || {
        limit(libc::RLIMIT_NOFILE, 64, 200)?;
        limit(libc::RLIMIT_MEMLOCK, 65_536, 1 << 20)
    });
    assert!(printed.contains("open files 64 -> 200"), "{printed}");
    assert!(
        printed.contains("locked memory 65536 -> 1048576"),
        "{printed}"
    );
    assert!(printed.contains("forced: uring"), "{printed}");
    assert!(printed.contains("spawned: Ended"), "{printed}");
}

fn open_files() -> u64 {
    u64::try_from(std::fs::read_dir("/proc/self/fd").unwrap().count()).unwrap()
}

/// Runs out of descriptors while connections wait, then gets some back.
struct RunsOut;

impl CoreMain for RunsOut {
    async fn run<R: Rt>(self, rt: R) {
        const CLIENTS: usize = 20;
        let mut listener = rt
            .adopt(bind_reuseport(LOCALHOST, 1).unwrap().remove(0))
            .unwrap();
        let address = listener.local_addr().unwrap();
        // Sees that nothing waits, so the listener is in its wait when the connections come.
        assert!(
            timeout(&rt, Duration::from_millis(1), listener.accept())
                .await
                .is_err()
        );
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(rt.connect(address, LONG).await.unwrap());
        }
        // Room for three more.
        let room = open_files() + 3;
        limit(libc::RLIMIT_NOFILE, room, room).unwrap();

        let echo = rt.clone();
        rt.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                echo.spawn(async move {
                    let mut byte = [0; 1];
                    while let Ok(1) = stream.read(&mut byte).await {
                        if stream.write_all(&byte).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let begin = rt.now();
        while accept_backoffs() < 3 {
            rt.sleep(Duration::from_millis(10)).await;
        }
        // It rests in between: it did not spin.
        assert!(rt.now() - begin >= ACCEPT_BACKOFF * 2);
        // All are served in the end, as others leave.
        for mut client in clients {
            timeout(&rt, LONG, async {
                client.write_all(b"x").await.unwrap();
                client.read_exact(&mut [0; 1]).await.unwrap();
            })
            .await
            .unwrap();
        }
        let rests = u128::from(accept_backoffs());
        let most = (rt.now() - begin).as_millis() / ACCEPT_BACKOFF.as_millis() + 1;
        assert!(rests <= most, "{rests} rests in the time of {most}");
        println!("all served");
    }
}

#[test]
#[ignore = "runs as a child"]
fn child_runs_out_on_uring() {
    support::run(Backend::Uring, RunsOut);
}

#[test]
#[ignore = "runs as a child"]
fn child_runs_out_on_epoll() {
    support::run(Backend::Epoll, RunsOut);
}

#[test]
fn accept_rests_when_out_of_descriptors_and_goes_on() {
    let printed = child("child_runs_out_on_epoll", || Ok(()));
    assert!(printed.contains("all served"), "{printed}");
    if support::can_use(Backend::Uring) {
        let printed = child("child_runs_out_on_uring", || Ok(()));
        assert!(printed.contains("all served"), "{printed}");
    }
}
