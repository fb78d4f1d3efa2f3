//! Runs one body on both back ends.
#![allow(dead_code, reason = "each test binary uses a part")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "test support"
)]

use std::sync::OnceLock;
use std::time::Duration;

use tsp_rt::{Backend, CoreEnd, CoreMain, IoChoice, choose, spawn_core_watched};

/// After this long a test is taken to hang. Generous: the machine may be busy with other builds.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// Whether tests on `backend` can run here. Says that they are skipped, or fails if `TSP_TEST_REQUIRE_URING=1` forbids it.
pub(crate) fn can_use(backend: Backend) -> bool {
    static URING: OnceLock<Result<(), String>> = OnceLock::new();
    if backend == Backend::Epoll {
        return true;
    }
    let usable = URING.get_or_init(|| match choose(IoChoice::Uring) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    if let Err(error) = usable {
        assert!(
            std::env::var_os("TSP_TEST_REQUIRE_URING").is_none_or(|value| value != "1"),
            "TSP_TEST_REQUIRE_URING=1, but {error}"
        );
        eprintln!("skipped: {error}");
    }
    usable.is_ok()
}

/// Runs `main` on a core of its own to its end; a panic in it fails the test, and so does not ending.
pub(crate) fn run(backend: Backend, main: impl CoreMain) {
    if let Some(CoreEnd::Died(text)) = run_to_end(backend, main) {
        panic!("on {backend}: {text}");
    }
}

/// As [`run`], but gives the end, if the back end can be used here.
pub(crate) fn run_to_end(backend: Backend, main: impl CoreMain) -> Option<CoreEnd> {
    if !can_use(backend) {
        return None;
    }
    let (ended, has_ended) = crossbeam_channel::bounded(1);
    let core = spawn_core_watched(backend, "test-core", None, main, move |end| {
        ended.send(end.clone()).unwrap();
    })
    .unwrap();
    let Ok(end) = has_ended.recv_timeout(HANG) else {
        panic!("on {backend}: the core hangs")
    };
    assert_eq!(core.join(), end);
    Some(end)
}

/// Declares tests whose body runs on each back end, as `name::on_uring` and `name::on_epoll`.
#[macro_export]
macro_rules! on_both_backends {
    ($( $(#[$meta:meta])* async fn $name:ident($rt:ident) $body:block )*) => { $(
        mod $name {
            use super::*;

            struct Main;

            impl tsp_rt::CoreMain for Main {
                async fn run<R: tsp_rt::Rt>(self, $rt: R) {
                    let _unused_in_some = &$rt;
                    $body
                }
            }

            $(#[$meta])*
            #[test]
            fn on_uring() {
                support::run(tsp_rt::Backend::Uring, Main);
            }

            $(#[$meta])*
            #[test]
            fn on_epoll() {
                support::run(tsp_rt::Backend::Epoll, Main);
            }
        }
    )* };
}
