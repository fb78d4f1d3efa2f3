//! CPU time of a process, by thread, as the kernel accounts it.
//!
//! `/proc/PID/task/TID/schedstat` counts nanoseconds; where the kernel has no scheduler statistics, `/proc/PID/stat` counts
//! ticks of 10 ms and knows no threads. Both hold user and system time. On loopback the kernel does the receiving side's
//! TCP work inside the sender's `send`, so part of a peer's work counts as the sender's, the same for every server. The time of
//! a thread that is running is only known up to its last tick; a server that waits for requests is known to the nanosecond.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Length of a tick of `/proc/PID/stat`: user space always sees 100 per second.
const TICK: Duration = Duration::from_millis(10);

/// CPU time that a process has used, by the name of its threads. Threads of one name are summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTime(BTreeMap<String, Duration>);

impl CpuTime {
    /// Reads it for the process with the number `pid`.
    ///
    /// # Errors
    /// If there is no such process, or it is another user's.
    pub fn of(pid: u32) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let mut times = BTreeMap::<_, Duration>::new();
        for task in fs::read_dir(process.join("task"))? {
            let task = task?.path();
            match thread_time(&task) {
                Ok(Some((name, time))) => *times.entry(name).or_default() += time,
                Ok(None) => return from_ticks(&process),
                // The thread has ended since the directory was read.
                Err(why) if has_ended(&why) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(Self(times))
    }

    /// The sum over all threads.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.0.values().sum()
    }

    /// What was used since `earlier`. A thread that has ended since is left out.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let spent = |(name, time): (&String, &Duration)| {
            let before = earlier.0.get(name).copied().unwrap_or_default();
            (name.clone(), time.saturating_sub(before))
        };
        Self(self.0.iter().map(spent).collect())
    }

    /// The threads' names and times, in the order of the names.
    pub fn threads(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.0.iter().map(|(name, time)| (name.as_str(), *time))
    }
}

/// Whether that is how the kernel says that a thread is gone: no such file, or no such process if the file was open by then.
fn has_ended(why: &io::Error) -> bool {
    why.kind() == io::ErrorKind::NotFound || why.raw_os_error() == Some(libc::ESRCH)
}

/// Name and time of one thread; `None` if this kernel does not tell.
fn thread_time(task: &Path) -> io::Result<Option<(String, Duration)>> {
    let name = fs::read_to_string(task.join("comm"))?;
    let schedstat = match fs::read_to_string(task.join("schedstat")) {
        Ok(text) => text,
        Err(why) if why.kind() == io::ErrorKind::NotFound && task.exists() => return Ok(None),
        Err(why) => return Err(why),
    };
    let on_cpu_ns = schedstat.split(' ').next().and_then(|ns| ns.parse().ok());
    Ok(on_cpu_ns.map(|ns| (name.trim_end().to_owned(), Duration::from_nanos(ns))))
}

fn from_ticks(process: &Path) -> io::Result<CpuTime> {
    let stat = fs::read_to_string(process.join("stat"))?;
    let ticks = stat_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let time = TICK * u32::try_from(ticks).unwrap_or(u32::MAX);
    Ok(CpuTime(BTreeMap::from([("all threads".to_owned(), time)])))
}

/// User and system time from a line of `/proc/PID/stat`. The second field, the name, may itself hold blanks and brackets.
fn stat_ticks(line: &str) -> Option<u64> {
    let (_, after_name) = line.rsplit_once(") ")?;
    // After the name: state (field 3), …, utime (14), stime (15).
    let mut fields = after_name.split(' ').skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_time() {
        let before = CpuTime::of(std::process::id()).unwrap();
        let used = |_| {
            let mut sum = 0_u64;
            for number in 0..1_000_000_u64 {
                sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number));
            }
            // Not the difference of totals: other tests' threads end meanwhile.
            let now = CpuTime::of(std::process::id()).unwrap();
            now.since(&before).total() > Duration::ZERO
        };
        // The kernel adds a running thread's time up at its next tick, so the first look may be too early.
        assert!((0..10_000).any(used));
    }

    #[test]
    fn threads_that_end_meanwhile_are_left_out() {
        let ending = std::thread::spawn(|| {
            for _ in 0..2_000 {
                std::thread::spawn(|| ()).join().unwrap();
            }
        });
        while !ending.is_finished() {
            CpuTime::of(std::process::id()).unwrap();
        }
        ending.join().unwrap();
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // Above the largest number that the kernel gives.
        assert!(CpuTime::of(u32::MAX).is_err());
    }

    #[test]
    fn ticks_are_read_behind_any_name() {
        let line = "77 (a ) 1 (b) R 1 77 77 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 3 0 1 2 3";
        assert_eq!(stat_ticks(line), Some(300));
        assert_eq!(stat_ticks("77 (a"), None);
    }
}
