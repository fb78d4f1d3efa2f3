//! Resource limits of the process: raised from soft to hard at the start.

use std::fmt;
use std::io;

use crate::Backend;

/// What happened to one limit. `u64::MAX` is "unlimited".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitChange {
    /// The soft limit found.
    pub before: u64,
    /// The soft limit now.
    pub after: u64,
}

/// What [`raise_limits`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitsRaised {
    /// `RLIMIT_MEMLOCK`, in bytes. glommio refuses to start below 512 KiB; containers often give 64 KiB.
    pub memlock_bytes: LimitChange,
    /// `RLIMIT_NOFILE`, in descriptors. One per connection, and five per core on io_uring.
    pub open_files: LimitChange,
}

/// Open files from which on nothing is said: what four shards need that hold all the connections they take on.
const OPEN_FILES_ADVISED: u64 = 65_536;

impl LimitsRaised {
    /// What to change outside the process, in one sentence, if a limit is lower than it should be for this back end.
    #[must_use]
    pub fn advice(&self, backend: Backend) -> Option<String> {
        let files = self.open_files.after;
        let bytes = self.memlock_bytes.after;
        if files < OPEN_FILES_ADVISED {
            return Some(format!(
                "this process may open {files} files, one for every connection with a client or a KMS; raise the hard limit \
                 to {OPEN_FILES_ADVISED} or more (LimitNOFILE= in systemd, docker run --ulimit nofile=, the container \
                 runtime's own limit under Kubernetes)"
            ));
        }
        if backend == Backend::Uring && bytes < MEMLOCK_BYTES_ADVISED {
            return Some(format!(
                "this process may lock {bytes} bytes of memory, of which io_uring takes some for every core on older \
                 kernels; raise the hard limit to {MEMLOCK_BYTES_ADVISED} or more (LimitMEMLOCK= in systemd, docker run \
                 --ulimit memlock=)"
            ));
        }
        None
    }
}

/// Locked memory from which on nothing is said, in bytes: 512 KiB for each of 16 cores.
const MEMLOCK_BYTES_ADVISED: u64 = 8 << 20;

impl fmt::Display for LimitsRaised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: u64| match value {
            u64::MAX => "unlimited".to_owned(),
            value => value.to_string(),
        };
        write!(
            f,
            "open files {} -> {}, locked memory {} -> {} bytes",
            show(self.open_files.before),
            show(self.open_files.after),
            show(self.memlock_bytes.before),
            show(self.memlock_bytes.after),
        )
    }
}

/// Raises the soft limits of locked memory and of open files to the hard ones. Needs no privilege.
///
/// # Errors
/// If the kernel refuses, which it has no reason to; the limits are then as they were.
pub fn raise_limits() -> io::Result<LimitsRaised> {
    Ok(LimitsRaised {
        memlock_bytes: raise(libc::RLIMIT_MEMLOCK)?,
        open_files: raise(libc::RLIMIT_NOFILE)?,
    })
}

fn raise(resource: libc::__rlimit_resource_t) -> io::Result<LimitChange> {
    let found = get(resource)?;
    if found.rlim_cur < found.rlim_max {
        set(
            resource,
            libc::rlimit {
                rlim_cur: found.rlim_max,
                rlim_max: found.rlim_max,
            },
        )?;
    }
    Ok(LimitChange {
        before: found.rlim_cur,
        after: found.rlim_max,
    })
}

/// The soft limit of locked memory, in bytes.
pub(crate) fn memlock_bytes() -> io::Result<u64> {
    Ok(get(libc::RLIMIT_MEMLOCK)?.rlim_cur)
}

pub(crate) fn get(resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    #[expect(
        unsafe_code,
        reason = "getrlimit has no safe wrapper in our dependencies"
    )]
    // SAFETY: the kernel writes one rlimit into the place that is given.
    let result = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if result == 0 {
        Ok(limit)
    } else {
        Err(io::Error::last_os_error())
    }
}

pub(crate) fn set(resource: libc::__rlimit_resource_t, limit: libc::rlimit) -> io::Result<()> {
    #[expect(
        unsafe_code,
        reason = "setrlimit has no safe wrapper in our dependencies"
    )]
    // SAFETY: the kernel reads one rlimit during the call.
    let result = unsafe { libc::setrlimit(resource, &raw const limit) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_is_told_with_what_to_change() {
        let limits = |files, bytes| LimitsRaised {
            memlock_bytes: LimitChange {
                before: bytes,
                after: bytes,
            },
            open_files: LimitChange {
                before: files,
                after: files,
            },
        };
        let files = limits(1_024, u64::MAX).advice(Backend::Epoll).unwrap();
        assert!(
            files.contains("1024") && files.contains("nofile="),
            "{files}"
        );
        let bytes = limits(1 << 20, 65_536).advice(Backend::Uring).unwrap();
        assert!(
            bytes.contains("65536") && bytes.contains("memlock="),
            "{bytes}"
        );
        assert_eq!(limits(1 << 20, 65_536).advice(Backend::Epoll), None);
        assert_eq!(limits(1 << 20, u64::MAX).advice(Backend::Uring), None);
    }

    #[test]
    fn after_raising_soft_equals_hard_and_a_second_call_changes_nothing() {
        raise_limits().unwrap();
        let again = raise_limits().unwrap();
        assert_eq!(again.open_files.before, again.open_files.after);
        assert_eq!(again.memlock_bytes.before, again.memlock_bytes.after);
        assert_eq!(memlock_bytes().unwrap(), again.memlock_bytes.after);
        assert!(again.to_string().starts_with("open files "));
    }
}
