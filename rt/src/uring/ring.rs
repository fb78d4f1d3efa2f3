//! `IORING_SETUP_COOP_TASKRUN` on glommio's rings, from our side of the linker.
//!
//! glommio 0.9.0 makes its rings without this flag, and has no option for it. Without it the kernel interrupts the core for
//! every completed poll; as soon as there is an upstream call that costs 1.6 times the CPU. `.cargo/config.toml` passes
//! `--wrap=io_uring_queue_init_params` to the linker, which sends glommio's calls of liburing's function to
//! [`__wrap_io_uring_queue_init_params`] below.
//!
//! A linker flag is easily lost: an environment variable `RUSTFLAGS` replaces those of the file. So the reference to the
//! real function is weak. Without `--wrap` the program still links and runs, and [`ring_flag`] tells.

use std::ffi::{c_int, c_uint, c_void};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// The kernel may run completion work when the task next enters the kernel, instead of interrupting it. Linux 5.19.
const IORING_SETUP_COOP_TASKRUN: u32 = 1 << 8;

/// The ring is polled for completions, of block devices; the flag above is of no use there.
const IORING_SETUP_IOPOLL: u32 = 1 << 0;

static RINGS_WITH_FLAG: AtomicU32 = AtomicU32::new(0);
static RINGS_REFUSED: AtomicU32 = AtomicU32::new(0);

/// Whether the rings of this process have `IORING_SETUP_COOP_TASKRUN`. For one line in the start-up log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingFlag {
    /// The program was linked without `--wrap=io_uring_queue_init_params`: rings are made without the flag.
    NotLinked,
    /// No ring was made yet.
    NoRing,
    /// All rings so far have it.
    Set,
    /// The kernel did not know it (before 5.19); rings are made without.
    Refused,
}

impl fmt::Display for RingFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLinked => {
                "rings lack COOP_TASKRUN: the program was linked without \
                 -Wl,--wrap=io_uring_queue_init_params (see .cargo/config.toml; RUSTFLAGS replaces it)"
            }
            Self::NoRing => "no ring was made yet",
            Self::Set => "rings have COOP_TASKRUN",
            Self::Refused => "rings lack COOP_TASKRUN: the kernel does not know it (Linux 5.19 does)",
        })
    }
}

/// What became of the flag so far in this process.
#[must_use]
pub fn ring_flag() -> RingFlag {
    if real().is_none() {
        RingFlag::NotLinked
    } else if RINGS_REFUSED.load(Ordering::Relaxed) > 0 {
        RingFlag::Refused
    } else if RINGS_WITH_FLAG.load(Ordering::Relaxed) > 0 {
        RingFlag::Set
    } else {
        RingFlag::NoRing
    }
}

/// The head of the kernel's `struct io_uring_params` (io_uring_setup(2)); the rest is not ours to look at.
#[repr(C)]
struct IoUringParams {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
}

type QueueInitParams =
    unsafe extern "C" fn(entries: c_uint, ring: *mut c_void, params: *mut IoUringParams) -> c_int;

// The address of the real function, or zero if the linker was not told to wrap it. A weak reference cannot be said in
// stable Rust; in assembly it is one word of data.
#[expect(unsafe_code, reason = "one word of data that Rust cannot say")]
mod weak {
    std::arch::global_asm!(
        ".weak __real_io_uring_queue_init_params",
        ".pushsection .data.rel.ro.tsp_rt_real_queue_init,\"aw\"",
        ".balign 8",
        ".globl tsp_rt_real_queue_init",
        ".hidden tsp_rt_real_queue_init",
        "tsp_rt_real_queue_init:",
        ".quad __real_io_uring_queue_init_params",
        ".popsection",
    );
}

#[expect(unsafe_code, reason = "declares the word of data above")]
unsafe extern "C" {
    static tsp_rt_real_queue_init: Option<QueueInitParams>;
}

fn real() -> Option<QueueInitParams> {
    #[expect(unsafe_code, reason = "reads the word of data above")]
    // SAFETY: one word, written by the linker and the loader before any code of ours runs: zero, which is `None`, or the
    // address of liburing's function, which has this signature.
    unsafe {
        std::ptr::read_volatile(&raw const tsp_rt_real_queue_init)
    }
}

/// Stands in for liburing's `io_uring_queue_init_params`. Returns zero or a negative errno.
///
/// # Safety
/// As the function it wraps: `ring` and `params` point to the structs that liburing expects, exclusively.
#[expect(unsafe_code, reason = "called from glommio by its linker name")]
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_io_uring_queue_init_params(
    entries: c_uint,
    ring: *mut c_void,
    params: *mut IoUringParams,
) -> c_int {
    let Some(real) = real() else {
        return -libc::ENOSYS;
    };
    // SAFETY: the caller owns `params`, a whole `struct io_uring_params`, of which ours is the head; the pointer that is
    // passed on is the caller's own. A failed call leaves nothing behind in either struct.
    let init = |flags| unsafe {
        (*params).flags = flags;
        real(entries, ring, params)
    };
    // SAFETY: as above.
    let asked = unsafe { (*params).flags };
    let (result, outcome) = with_flag(asked, init);
    if result >= 0 {
        match outcome {
            Outcome::Untouched => {}
            Outcome::Set => drop(RINGS_WITH_FLAG.fetch_add(1, Ordering::Relaxed)),
            Outcome::Refused => drop(RINGS_REFUSED.fetch_add(1, Ordering::Relaxed)),
        }
    }
    result
}

/// How the flag fared in the last call of `init`.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Not tried: the ring is polled.
    Untouched,
    Set,
    Refused,
}

/// Calls `init` with the flag; without, if the ring is polled or the kernel says EINVAL.
fn with_flag(asked: u32, mut init: impl FnMut(u32) -> c_int) -> (c_int, Outcome) {
    if asked & IORING_SETUP_IOPOLL != 0 {
        return (init(asked), Outcome::Untouched);
    }
    match init(asked | IORING_SETUP_COOP_TASKRUN) {
        result if result == -libc::EINVAL => (init(asked), Outcome::Refused),
        result => (result, Outcome::Set),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls with the flags seen and the results given, first to last.
    fn calls(asked: u32, results: &[c_int]) -> (Vec<u32>, c_int, Outcome) {
        let mut seen = Vec::new();
        let (result, outcome) = with_flag(asked, |flags| {
            seen.push(flags);
            results[seen.len() - 1]
        });
        (seen, result, outcome)
    }

    #[test]
    fn the_flag_is_added_to_those_asked_for() {
        assert_eq!(calls(0, &[0]), (vec![0x100], 0, Outcome::Set));
        assert_eq!(calls(0b1000, &[0]), (vec![0x108], 0, Outcome::Set));
    }

    #[test]
    fn a_kernel_that_does_not_know_the_flag_is_asked_again_without() {
        assert_eq!(
            calls(8, &[-libc::EINVAL, 0]),
            (vec![0x108, 8], 0, Outcome::Refused)
        );
    }

    #[test]
    fn another_error_is_passed_on() {
        assert_eq!(
            calls(0, &[-libc::ENOMEM]),
            (vec![0x100], -libc::ENOMEM, Outcome::Set)
        );
    }

    #[test]
    fn a_polled_ring_is_left_alone() {
        assert_eq!(calls(1, &[0]), (vec![1], 0, Outcome::Untouched));
    }
}
