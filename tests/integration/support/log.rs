//! What a process has written so far, line by line, and waiting for a line.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Instant,
};

use serde_json::Value;

use super::PATIENCE;

/// Lines shown when something fails.
const TAIL_LINES: usize = 40;

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    open_streams: usize,
}

/// The output of one process: both streams in one list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<(Mutex<Lines>, Condvar)>);

impl Log {
    /// Reads `stream` to its end on a thread of its own.
    pub(crate) fn follow(&self, stream: impl Read + Send + 'static) {
        self.0.0.lock().unwrap().open_streams += 1;
        let shared = Arc::clone(&self.0);
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                shared.0.lock().unwrap().lines.push(line);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap().open_streams -= 1;
            shared.1.notify_all();
        });
    }

    /// The first line, from number `from` on, for which `pick` gives something; the number after it too.
    #[track_caller]
    pub(crate) fn wait_from<T>(
        &self,
        from: usize,
        what: &str,
        pick: impl Fn(&str) -> Option<T>,
    ) -> (T, usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut next = from;
        let mut lines = self.0.0.lock().unwrap();
        loop {
            while let Some(line) = lines.lines.get(next) {
                next += 1;
                if let Some(found) = pick(line) {
                    return (found, next);
                }
            }
            let ended = lines.open_streams == 0;
            let left = deadline.saturating_duration_since(Instant::now());
            if ended || left.is_zero() {
                let why = if ended {
                    "the process ended"
                } else {
                    "it took too long"
                };
                let shown = tail(&lines.lines);
                drop(lines);
                panic!("no {what} in the output, {why}:\n{shown}");
            }
            lines = self.0.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    #[track_caller]
    pub(crate) fn wait<T>(&self, what: &str, pick: impl Fn(&str) -> Option<T>) -> T {
        self.wait_from(0, what, pick).0
    }

    /// The first JSON line from number `from` on that `pick` likes; the number after it too.
    #[track_caller]
    pub(crate) fn wait_json(
        &self,
        from: usize,
        what: &str,
        pick: impl Fn(&Value) -> bool,
    ) -> (Value, usize) {
        self.wait_from(from, what, |line| {
            let value = serde_json::from_str::<Value>(line).ok()?;
            pick(&value).then_some(value)
        })
    }

    /// Returns when both streams have ended.
    pub(crate) fn wait_for_end(&self) {
        let mut lines = self.0.0.lock().unwrap();
        while lines.open_streams > 0 {
            lines = self.0.1.wait(lines).unwrap();
        }
    }

    /// The number of lines so far.
    pub(crate) fn len(&self) -> usize {
        self.0.0.lock().unwrap().lines.len()
    }

    pub(crate) fn text(&self) -> String {
        self.0.0.lock().unwrap().lines.join("\n")
    }

    pub(crate) fn tail(&self) -> String {
        tail(&self.0.0.lock().unwrap().lines)
    }
}

fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
