//! Which back end to use, and why; or why io_uring cannot be had, and what to do about it.
//!
//! The probe asks the kernel before glommio does: what glommio says on a refusal ("your kernel witnessed Romulus killing
//! Remus") sends the operator the wrong way. Docker's and containerd's default seccomp profiles refuse io_uring.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::{Backend, RingFlag, limits, ring_flag, uring};

/// What `auto` takes where both back ends work.
///
/// Set by measurement (`tuning.md`): io_uring as long as its cost per operation is within 1.05 times that of epoll, else
/// epoll. At a moderate load it is far above.
pub const AUTO_PREFERS: Backend = Backend::Epoll;

/// Locked memory that glommio wants to be allowed, in bytes.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// A feature bit of io_uring_setup(2) that came with Linux 5.11. glommio needs 5.8, which has no bit of its own.
const IORING_FEAT_EXT_ARG: u32 = 1 << 8;

/// The operator's choice, `TSP_IO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoChoice {
    /// `auto`: probe, and take [`AUTO_PREFERS`] of what works.
    #[default]
    Auto,
    /// `uring`: io_uring or nothing.
    Uring,
    /// `epoll`.
    Epoll,
}

/// `TSP_IO` is none of `auto`, `uring`, `epoll`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoChoiceError(String);

/// How much of a wrong value is repeated in the error, in characters.
const WRONG_VALUE_CHARS_MAX: usize = 40;

impl fmt::Display for IoChoiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is none of auto, uring, epoll", self.0)
    }
}

impl std::error::Error for IoChoiceError {}

impl FromStr for IoChoice {
    type Err = IoChoiceError;

    fn from_str(text: &str) -> Result<Self, IoChoiceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            other => Err(IoChoiceError(
                other.chars().take(WRONG_VALUE_CHARS_MAX).collect(),
            )),
        }
    }
}

/// The back end taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What to give to [`crate::spawn_core`].
    pub backend: Backend,
    /// Why, in one line for the start-up log.
    pub reason: String,
}

/// Why io_uring cannot be used here. `Display` names the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeError {
    /// `io_uring_setup` failed with this errno.
    Setup(i32),
    /// io_uring is there, but older than Linux 5.11.
    TooOld,
    /// The soft limit of locked memory, in bytes, is too low for glommio.
    Memlock(u64),
    /// All that looked well, and yet glommio's executor could not be made; its own words.
    Executor(String),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            Self::Setup(errno) => return write_setup(f, *errno),
            Self::TooOld => {
                return f.write_str(
                    "io_uring of this kernel is too old; Linux 5.11 or later is needed",
                );
            }
            Self::Memlock(bytes) => {
                return write!(
                    f,
                    "io_uring needs {MEMLOCK_BYTES_MIN} bytes of locked memory and may have {bytes}; raise the hard limit \
                     (docker run --ulimit memlock=1048576, LimitMEMLOCK= in systemd)"
                );
            }
            Self::Executor(error) => error,
        };
        write!(
            f,
            "io_uring is there, but an executor on it cannot be made: {error}"
        )
    }
}

fn write_setup(f: &mut fmt::Formatter<'_>, errno: i32) -> fmt::Result {
    let error = io::Error::from_raw_os_error(errno);
    write!(f, "io_uring is refused, io_uring_setup said: {error}; ")?;
    match errno {
        libc::ENOSYS => f.write_str(
            "a seccomp profile hides it (Docker's and containerd's default profiles do: allow io_uring_setup, \
             io_uring_enter and io_uring_register in the profile), or the kernel was built without it",
        ),
        libc::EPERM | libc::EACCES => f.write_str(
            "a seccomp profile forbids it (allow io_uring_setup, io_uring_enter and io_uring_register in the profile), \
             or the sysctl kernel.io_uring_disabled is 1 or 2 (set it to 0)",
        ),
        libc::ENOMEM => f.write_str("raise the limit of locked memory (ulimit -l), or the memory of the container"),
        libc::EMFILE | libc::ENFILE => f.write_str("raise the limit of open files (ulimit -n)"),
        _ => f.write_str("no remedy is known"),
    }
}

impl std::error::Error for ProbeError {}

/// Decides which back end the cores are to use, once, at the start, after [`crate::raise_limits`].
///
/// Makes one small ring, then one whole executor on a thread of its own, and takes them down again.
///
/// # Errors
/// [`ProbeError`] if io_uring was demanded and cannot be had. `auto` never fails.
pub fn choose(choice: IoChoice) -> Result<Probe, ProbeError> {
    let asks = match choice {
        IoChoice::Epoll => false,
        IoChoice::Uring | IoChoice::Auto => true,
    };
    decide(choice, if asks { probe() } else { Ok(()) }, ring_flag())
}

/// The decision alone. `found` is what the probe found, if it was asked at all.
fn decide(
    choice: IoChoice,
    found: Result<(), ProbeError>,
    flag: RingFlag,
) -> Result<Probe, ProbeError> {
    match (choice, found) {
        (IoChoice::Epoll, _) => Ok(Probe {
            backend: Backend::Epoll,
            reason: "epoll, as configured".to_owned(),
        }),
        (IoChoice::Uring, Ok(())) => Ok(Probe {
            backend: Backend::Uring,
            reason: format!("io_uring, as configured; {flag}"),
        }),
        (IoChoice::Uring, Err(error)) => Err(error),
        (IoChoice::Auto, Ok(())) => Ok(match AUTO_PREFERS {
            Backend::Uring => Probe {
                backend: Backend::Uring,
                reason: format!("io_uring, which works here; {flag}"),
            },
            Backend::Epoll => Probe {
                backend: Backend::Epoll,
                reason: "epoll, which was measured to cost less; io_uring works here too"
                    .to_owned(),
            },
        }),
        (IoChoice::Auto, Err(error)) => Ok(Probe {
            backend: Backend::Epoll,
            reason: format!("epoll, because {error}"),
        }),
    }
}

/// Whether a core can run on io_uring.
fn probe() -> Result<(), ProbeError> {
    ask_kernel()?;
    // If even reading the limit fails, glommio will say so itself.
    let memlock_bytes = limits::memlock_bytes().unwrap_or(u64::MAX);
    if memlock_bytes < MEMLOCK_BYTES_MIN {
        return Err(ProbeError::Memlock(memlock_bytes));
    }
    uring::trial().map_err(ProbeError::Executor)
}

/// Makes a ring of one entry and closes it. glommio is asked only after this has worked.
pub(crate) fn ask_kernel() -> Result<(), ProbeError> {
    /// The kernel's `struct io_uring_params`: 120 bytes as 30 words, of which word 5 is `features`.
    const PARAMS_WORDS: usize = 30;
    const FEATURES_WORD: usize = 5;
    let mut params = [0_u32; PARAMS_WORDS];
    #[expect(unsafe_code, reason = "libc has no wrapper of this system call")]
    // SAFETY: the kernel reads and writes one `struct io_uring_params`, which `params` has the size and alignment of.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, params.as_mut_ptr()) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(ProbeError::Setup(error.raw_os_error().unwrap_or(0)));
    }
    if let Ok(fd) = i32::try_from(fd) {
        #[expect(unsafe_code, reason = "takes the descriptor over to close it")]
        // SAFETY: the kernel has just made it for us.
        drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    }
    let features = params.get(FEATURES_WORD).copied().unwrap_or(0);
    if features & IORING_FEAT_EXT_ARG == 0 {
        Err(ProbeError::TooOld)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_values_of_tsp_io_are_read_and_others_are_named_in_the_error() {
        assert_eq!("auto".parse(), Ok(IoChoice::Auto));
        assert_eq!("uring".parse(), Ok(IoChoice::Uring));
        assert_eq!("epoll".parse(), Ok(IoChoice::Epoll));
        let error = "URING".parse::<IoChoice>().unwrap_err();
        assert_eq!(error.to_string(), "\"URING\" is none of auto, uring, epoll");
        assert!(
            "x".repeat(9000)
                .parse::<IoChoice>()
                .unwrap_err()
                .to_string()
                .len()
                < 100
        );
    }

    #[test]
    fn auto_falls_back_to_epoll_and_says_why() {
        for errno in [libc::ENOSYS, libc::EPERM] {
            let probe = decide(
                IoChoice::Auto,
                Err(ProbeError::Setup(errno)),
                RingFlag::NoRing,
            )
            .unwrap();
            assert_eq!(probe.backend, Backend::Epoll);
            assert!(probe.reason.contains("seccomp"), "{}", probe.reason);
            assert!(
                probe.reason.contains(&format!("os error {errno}")),
                "{}",
                probe.reason
            );
        }
    }

    #[test]
    fn forced_io_uring_fails_with_errno_and_remedy() {
        let error = decide(
            IoChoice::Uring,
            Err(ProbeError::Setup(libc::EPERM)),
            RingFlag::NoRing,
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("os error 1)"), "{error}");
        assert!(error.contains("kernel.io_uring_disabled"), "{error}");
        let error = ProbeError::Memlock(65_536).to_string();
        assert!(
            error.contains("65536") && error.contains("--ulimit memlock"),
            "{error}"
        );
    }

    #[test]
    fn epoll_is_taken_without_asking_when_configured() {
        let probe = choose(IoChoice::Epoll).unwrap();
        assert_eq!(probe.backend, Backend::Epoll);
    }

    #[test]
    fn a_lost_linker_flag_is_told_in_the_reason() {
        let probe = decide(IoChoice::Uring, Ok(()), RingFlag::NotLinked).unwrap();
        assert!(probe.reason.contains("--wrap"), "{}", probe.reason);
    }
}
