//! Where a shard allocates: this program under valgrind's DHAT, whose stacks say who asked for each block.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use serde_json::Value;
use tsp_bench::valgrind::Valgrind;

/// Requests of the first of two profiles; the second has twice as many, and the difference is theirs alone.
const REQUESTS: u32 = 100;

/// Frames of a stack that valgrind keeps; from the allocator up to a task's poll there are some 50.
const CALLERS_MAX: usize = 120;

/// Frames that are shown of a site, from the one that asked the allocator.
const FRAMES_SHOWN: usize = 7;

/// Characters of a function's name that are shown: most of a type's parameters say nothing.
const NAME_CHARS_MAX: usize = 90;

/// Blocks and bytes by site, a site being the frames that are shown of it.
type Sites = BTreeMap<Vec<String>, (f64, f64)>;

/// Prints where an operation allocates, most first. `items` is what one of its requests is about.
pub(crate) fn print(name: &str, items: u32) -> io::Result<()> {
    let once = profile(name, REQUESTS)?;
    let mut twice = profile(name, 2 * REQUESTS)?;
    let performed = f64::from(REQUESTS) * f64::from(items);
    for (site, (count, bytes)) in &mut twice {
        let (start_count, start_bytes) = once.get(site).copied().unwrap_or_default();
        *count = (*count - start_count) / performed;
        *bytes = (*bytes - start_bytes) / performed;
    }
    twice.retain(|_, (count, _)| *count > 0.0);
    let mut sites: Vec<_> = twice.into_iter().collect();
    sites.sort_by(|(_, (one, _)), (_, (other, _))| other.total_cmp(one));
    let mut out = io::stdout().lock();
    let total: f64 = sites.iter().map(|(_, (count, _))| count).sum();
    writeln!(out, "{name}: {total:.2} allocations per item")?;
    for (frames, (count, bytes)) in sites {
        writeln!(out, "\n{count:.2} allocations, {bytes:.0} bytes")?;
        for frame in frames {
            writeln!(out, "    {frame}")?;
        }
    }
    Ok(())
}

/// What the shard allocates from the start until it has performed the operation so often.
fn profile(name: &str, times: u32) -> io::Result<Sites> {
    let run = Valgrind::new("dhat")?;
    let file = run.path("dhat.json");
    run.run(
        &[
            &format!("--num-callers={CALLERS_MAX}"),
            &format!("--dhat-out-file={}", file.display()),
        ],
        &["--perform", name, &times.to_string()],
    )?;
    let profile: Value = serde_json::from_slice(&std::fs::read(file)?).unwrap();
    let mut sites = Sites::new();
    for point in profile["pps"].as_array().unwrap() {
        let numbers = point["fs"].as_array().unwrap();
        let frames: Vec<_> = numbers
            .iter()
            .map(|number| &profile["ftbl"][number.as_u64().unwrap() as usize])
            .map(|frame| function(frame.as_str().unwrap()))
            .collect();
        let inside = |what: &str| frames.iter().any(|frame| frame.starts_with(what));
        if inside("gates::metered::shard ") && !inside("gates::metered::kernel ") {
            let (count, bytes) = sites.entry(shown(&frames)).or_default();
            *count += point["tbk"].as_f64().unwrap();
            *bytes += point["tb"].as_f64().unwrap();
        }
    }
    Ok(sites)
}

/// A frame without its address: `0x1234: name (file:line)`.
fn function(frame: &str) -> &str {
    frame
        .split_once(": ")
        .map_or(frame, |(_, function)| function)
}

/// What tells sites apart: from who asked the allocator up to what is the same for all requests.
fn shown(frames: &[&str]) -> Vec<String> {
    let is_allocator = |frame: &&&str| {
        frame.contains("library/alloc/")
            || frame.starts_with("malloc ")
            || frame.starts_with("__rustc::")
            || frame.contains("alloc::raw_vec::")
    };
    frames
        .iter()
        .skip_while(is_allocator)
        .filter(|frame| !frame.starts_with("UnknownInlinedFun"))
        .take_while(|frame| !frame.starts_with("gates::metered::"))
        .take(FRAMES_SHOWN)
        .map(|frame| short(frame))
        .collect()
}

/// A frame, with the file still there if the name is cut.
fn short(frame: &str) -> String {
    let (name, file) = frame.rsplit_once(" (").unwrap_or((frame, ""));
    let file = file
        .trim_end_matches(')')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    match name.char_indices().nth(NAME_CHARS_MAX) {
        Some((cut, _)) => format!("{}… ({file})", name.get(..cut).unwrap_or(name)),
        None => format!("{name} ({file})"),
    }
}
