//! Resource limits of the process: raised from soft to hard at the start.

use std::fmt;
use std::io;

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
    fn after_raising_soft_equals_hard_and_a_second_call_changes_nothing() {
        raise_limits().unwrap();
        let again = raise_limits().unwrap();
        assert_eq!(again.open_files.before, again.open_files.after);
        assert_eq!(again.memlock_bytes.before, again.memlock_bytes.after);
        assert_eq!(memlock_bytes().unwrap(), again.memlock_bytes.after);
        assert!(again.to_string().starts_with("open files "));
    }
}
