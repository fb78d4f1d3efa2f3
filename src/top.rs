//! `tsp top`: what a proxy does, seen from its `/metrics`, again and again.
//!
//! It asks as any scraper does, so it works on a proxy of any age and from any machine. Rates and latencies are those between two
//! scrapes.

mod exposition;
mod screen;

use std::{
    io::{self, IsTerminal as _, Write},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tsp_rt::Rt;

use self::{exposition::Scrape, screen::Frame};
use crate::{RunError, config::Problem};

/// Where a proxy on this machine tells its metrics.
pub const URL: &str = "http://127.0.0.1:9000/metrics";

/// Least and most seconds between two scrapes.
const EVERY_S: (f64, f64) = (0.1, 3_600.0);

/// Longest time for one scrape.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Largest scrape, in bytes: several times what a proxy with every series has.
const SCRAPE_BYTES_MAX: usize = 16 << 20;

/// Largest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

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
    let target = Target::new(&options.url).map_err(|why| wrong("--url", why))?;
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

/// Where to ask.
#[derive(Debug)]
struct Target {
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Target {
    fn new(url: &str) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "is no URL")?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err("is https: metrics are in the clear on the health listener, port 9000");
            }
            Some(_) | None => return Err("does not begin with http://"),
        }
        let authority = uri.authority().ok_or("has no host")?;
        let host = authority.host().trim_start_matches('[');
        Ok(Self {
            host: host.trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.to_string(),
            path: match uri.path() {
                "" | "/" => "/metrics".to_owned(),
                path => path.to_owned(),
            },
        })
    }
}

async fn scrape<R: Rt>(rt: &R, target: &Target) -> Result<Scrape, String> {
    let asked = tsp_rt::timeout(rt, TIMEOUT, ask(rt, target)).await;
    let text = asked.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))?;
    Scrape::parse(&text).ok_or_else(|| "the answer is no metrics of a proxy".to_owned())
}

async fn ask<R: Rt>(rt: &R, target: &Target) -> Result<String, String> {
    let addresses = rt.resolve(&target.host, target.port).await;
    let addresses: Vec<SocketAddr> = addresses.map_err(|why| why.to_string())?;
    let mut failed = "the name has no address".to_owned();
    for address in addresses {
        let stream = match rt.connect(address, TIMEOUT).await {
            Ok(stream) => stream,
            Err(why) => {
                failed = format!("{address}: {why}");
                continue;
            }
        };
        let broken = |why: hyper::Error| why.to_string();
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        rt.spawn(async move {
            // What breaks a connection is told to the request on it.
            drop(connection.await);
        });
        let request = Request::get(&target.path)
            .header(header::HOST, &target.authority)
            .body(Empty::<Bytes>::new())
            .map_err(|why| why.to_string())?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), SCRAPE_BYTES_MAX).collect();
        let body = body.await.map_err(|why| why.to_string())?.to_bytes();
        if !status.is_success() {
            return Err(format!("the answer is {status}"));
        }
        return Ok(String::from_utf8_lossy(&body).into_owned());
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_leave_out_the_path() {
        let target = Target::new("http://[::1]:9000").unwrap();
        let all = (
            &*target.host,
            target.port,
            &*target.authority,
            &*target.path,
        );
        assert_eq!(all, ("::1", 9000, "[::1]:9000", "/metrics"));
        assert!(Target::new("https://localhost").is_err());
        assert!(Target::new("localhost:9000").is_err());
        assert!(Target::new(URL).is_ok());
    }

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
