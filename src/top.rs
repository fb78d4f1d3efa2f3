//! `tsp top`: what a proxy does, seen from its `/metrics`, again and again.
//!
//! It asks as any scraper does, so it works on a proxy of any age and from any machine. Rates and latencies are those between two
//! scrapes.

mod exposition;
mod screen;

use std::{
    io::{self, IsTerminal as _, Write},
    time::Duration,
};

use tsp_rt::Rt;

use self::{exposition::Scrape, screen::Frame};
use crate::{
    RunError,
    ask::{Question, Target},
    config::Problem,
};

/// Where a proxy on this machine tells its metrics.
pub const URL: &str = "http://127.0.0.1:9000/metrics";

/// Least and most seconds between two scrapes.
const EVERY_S: (f64, f64) = (0.1, 3_600.0);

/// Longest time for one scrape.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Largest scrape, in bytes: several times what a proxy with every series has.
const SCRAPE_BYTES_MAX: usize = 16 << 20;

/// To the upper left corner, without wrapping long lines.
const BEGIN: &str = "\x1b[H\x1b[?7l";

/// Wraps again, and clears what is left of the frame before.
const END: &str = "\x1b[J\x1b[?7h";

/// Options of `tsp top`.
#[derive(Debug)]
pub struct TopOptions {
    /// Where the metrics are.
    pub url: String,
    /// Seconds between two scrapes.
    pub every_s: f64,
    /// Ends after the first frame.
    pub once: bool,
}

/// Shows frames until nobody looks any more.
///
/// # Errors
/// [`RunError::Configuration`] for options that are none; [`RunError::Internal`] if the first scrapes fail. Later ones may.
pub fn top(options: &TopOptions) -> Result<(), RunError> {
    let wrong = |place: &str, why: &str| {
        RunError::Configuration(vec![Problem::new(place.to_owned(), why.to_owned())])
    };
    let (least, most) = EVERY_S;
    if !(least..=most).contains(&options.every_s) {
        return Err(wrong(
            "--every",
            "is not a number of seconds from 0.1 to 3600",
        ));
    }
    let every = Duration::from_secs_f64(options.every_s);
    let target = Target::new(&options.url, "/metrics").map_err(|why| wrong("--url", why))?;
    let shown = tsp_rt::run_here(|rt| async move { watch(&rt, &target, every, options).await });
    shown
        .map_err(|why| why.to_string())
        .and_then(|shown| shown)
        .map_err(RunError::Internal)
}

async fn watch<R: Rt>(
    rt: &R,
    target: &Target,
    every: Duration,
    options: &TopOptions,
) -> Result<(), String> {
    let mut out = io::stdout();
    let live = out.is_terminal() && !options.once;
    let mut before = scrape(rt, target).await?;
    let mut taken = rt.now();
    if live {
        // The screen's own history stays.
        let _ = out.write_all(b"\x1b[2J");
    }
    loop {
        rt.sleep(every).await;
        let now = match scrape(rt, target).await {
            Ok(now) => now,
            Err(why) if options.once => return Err(why),
            Err(why) => {
                if write(&mut out, live, &[format!("{}: {why}", options.url)]).is_err() {
                    return Ok(());
                }
                continue;
            }
        };
        let at = rt.now();
        let frame = Frame {
            url: &options.url,
            before: &before,
            now: &now,
            seconds: (at - taken).as_secs_f64(),
            unix_s: rt
                .wall_now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64(),
            colours: live,
        };
        // Whoever read it has gone.
        if write(&mut out, live, &frame.lines()).is_err() || options.once {
            return Ok(());
        }
        (before, taken) = (now, at);
    }
}

fn write(out: &mut impl Write, live: bool, lines: &[String]) -> io::Result<()> {
    let mut text = String::new();
    if live {
        text.push_str(BEGIN);
    }
    for line in lines {
        text.push_str(line);
        text.push_str(if live { "\x1b[K\n" } else { "\n" });
    }
    if live {
        text.push_str(END);
    }
    out.write_all(text.as_bytes())?;
    out.flush()
}

async fn scrape<R: Rt>(rt: &R, target: &Target) -> Result<Scrape, String> {
    let question = Question {
        body: None,
        timeout: TIMEOUT,
        answer_bytes_max: SCRAPE_BYTES_MAX,
    };
    let text = target.ask(rt, &question).await?;
    let scrape = Scrape::parse(&String::from_utf8_lossy(&text));
    scrape.ok_or_else(|| "the answer is no metrics of a proxy".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_on_a_terminal_clears_what_was_there() {
        let mut out = Vec::new();
        write(&mut out, true, &["a".to_owned()]).unwrap();
        assert_eq!(out, b"\x1b[H\x1b[?7la\x1b[K\n\x1b[J\x1b[?7h");
        let mut out = Vec::new();
        write(&mut out, false, &["a".to_owned()]).unwrap();
        assert_eq!(out, b"a\n");
    }
}
