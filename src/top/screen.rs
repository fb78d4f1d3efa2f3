//! One frame of `tsp top`: what happened between two scrapes, in lines.

use std::fmt::Write as _;

use super::exposition::{Buckets, Scrape};

const REQUESTS: &str = "tsp_request_duration_seconds";
const KMS_REQUESTS: &str = "tsp_kms_request_duration_seconds";

/// API keys, and limits that were met, that are shown at most: a frame must fit a screen.
const LISTED_MAX: usize = 8;

/// Two scrapes, and how far they are apart.
pub(super) struct Frame<'a> {
    pub(super) url: &'a str,
    pub(super) before: &'a Scrape,
    pub(super) now: &'a Scrape,
    pub(super) seconds: f64,
    /// The time of the second one.
    pub(super) unix_s: f64,
    pub(super) colours: bool,
}

impl Frame<'_> {
    /// The frame, line by line.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.process(&mut lines);
        lines.push(String::new());
        self.operations(&mut lines);
        lines.push(String::new());
        self.kms(&mut lines);
        lines.push(String::new());
        self.keys(&mut lines);
        self.events(&mut lines);
        self.shards(&mut lines);
        self.api_keys(&mut lines);
        self.refused(&mut lines);
        lines
    }

    fn process(&self, lines: &mut Vec<String>) {
        let info = self.now.all("tsp_info", &[]).next();
        let info = |label| info.map_or("?", |info| info.label(label));
        let ready = match self.now.sum("tsp_ready", &[]) > 0.0 {
            true => self.paint(GREEN, "ready"),
            false => self.paint(RED, "NOT READY"),
        };
        lines.push(format!(
            "tsp {} on {}  {ready}  {}",
            info("version"),
            info("io"),
            self.url
        ));
        let refreshed = self
            .now
            .sum("tsp_kms_last_config_refresh_timestamp_seconds", &[]);
        let age = match refreshed > 0.0 {
            true => format!("{} ago", span((self.unix_s - refreshed).max(0.0))),
            false => "never".to_owned(),
        };
        lines.push(format!(
            "configuration {}: {} tenants, {} KMS configs, {} secrets; looked at {age}{}{}",
            self.now.sum("tsp_config_version", &[]),
            self.now.sum("tsp_config_tenants", &[]),
            self.now.sum("tsp_config_kms", &[]),
            self.now.sum("tsp_config_secrets", &[]),
            self.bad("left out", self.now.sum("tsp_config_left_out", &[])),
            self.bad(
                "failed looks",
                self.rate("tsp_config_refresh_failures_total", &[]) * self.seconds
            ),
        ));
        let expiry = self
            .now
            .all("tsp_tls_certificate_expiry_timestamp_seconds", &[])
            .next();
        if let Some(expiry) = expiry {
            let left = span((expiry.value - self.unix_s).max(0.0));
            lines.push(format!("certificate ends in {left}"));
        }
    }

    fn operations(&self, lines: &mut Vec<String>) {
        let title = format!(
            "{:<28}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "REQUESTS", "/s", "p50", "p99", "errors/s", "in flight"
        );
        lines.push(self.paint(BOLD, &title));
        let count = format!("{REQUESTS}_count");
        for endpoint in self.now.values(&count, "endpoint") {
            let labels = [("endpoint", endpoint)];
            let errors = self.errors(&count, "endpoint", endpoint, "tsp_status_code");
            let flying = self.now.sum("tsp_requests_in_flight", &labels);
            let row = self.row(endpoint, REQUESTS, &labels, errors);
            lines.push(format!("{row}{flying:>10}"));
        }
    }

    fn kms(&self, lines: &mut Vec<String>) {
        let title = format!(
            "{:<28}{:>10}{:>10}{:>10}{:>10}",
            "KMS CALLS", "/s", "p50", "p99", "errors/s"
        );
        lines.push(self.paint(BOLD, &title));
        let count = format!("{KMS_REQUESTS}_count");
        for kind in self.now.values(&count, "kms_type") {
            let mut operations: Vec<_> = self
                .now
                .all(&count, &[("kms_type", kind)])
                .map(|series| series.label("kms_operation"))
                .collect();
            operations.sort_unstable();
            operations.dedup();
            for operation in operations {
                let labels = [("kms_type", kind), ("kms_operation", operation)];
                let ok = [labels[0], labels[1], ("http_code", "200")];
                let errors = self.rate(&count, &labels) - self.rate(&count, &ok);
                let name = format!("{kind} {operation}");
                lines.push(self.row(&name, KMS_REQUESTS, &labels, errors));
            }
        }
        let total = |name| self.rate(name, &[]);
        lines.push(format!(
            "retries {}/s  connections {}/s  closed by the far end {}/s  calls saved by keys in memory {}/s",
            figure(total("tsp_kms_retries_total")),
            figure(total("tsp_kms_connections_opened_total")),
            figure(total("tsp_kms_connections_stale_total")),
            figure(total("tsp_kms_calls_saved_total")),
        ));
    }

    fn keys(&self, lines: &mut Vec<String>) {
        let mut line = "keys in memory  ".to_owned();
        for (kind, what) in [("lease", "leased"), ("opened", "opened")] {
            let held = self.now.sum("tsp_held_keys", &[("kind", kind)]);
            let _ = write!(line, "{what} {held}  ");
        }
        line.push_str("found there:");
        for kind in ["lease", "unwrap", "secret"] {
            let uses = |result| {
                let labels = [("kind", kind), ("result", result)];
                self.rate("tsp_held_key_uses_total", &labels)
            };
            let (hits, misses) = (uses("hit"), uses("miss"));
            let part = match hits + misses > 0.0 {
                true => format!("{:.1} %", 100.0 * hits / (hits + misses)),
                false => "-".to_owned(),
            };
            let _ = write!(line, "  {kind} {part}");
        }
        lines.push(line);
    }

    fn events(&self, lines: &mut Vec<String>) {
        lines.push(format!(
            "security events  {}/s  pushed {}/s  waiting {}{}",
            figure(self.rate("tsp_real_time_security_events_total", &[])),
            figure(self.rate("tsp_events_pushed_total", &[])),
            self.now.sum("tsp_events_held", &[]),
            self.bad(
                "lost",
                self.rate("tsp_real_time_security_event_failures_total", &[]) * self.seconds
            ),
        ));
    }

    fn shards(&self, lines: &mut Vec<String>) {
        let mut line = format!(
            "connections  {}  by shard:",
            self.now.sum("tsp_connections", &[])
        );
        for series in self.now.all("tsp_connections", &[]) {
            let _ = write!(line, "  {}: {}", series.label("shard"), series.value);
        }
        lines.push(line);
    }

    fn api_keys(&self, lines: &mut Vec<String>) {
        let last = "tsp_api_key_last_used_timestamp_seconds";
        for series in self.now.all(last, &[]).take(LISTED_MAX) {
            let label = series.label("label");
            let used = match series.value > 0.0 {
                true => format!("{} ago", span((self.unix_s - series.value).max(0.0))),
                false => "not since the start".to_owned(),
            };
            let rate = figure(self.rate("tsp_api_key_uses_total", &[("label", label)]));
            lines.push(format!("API key {label}  {rate}/s  last used {used}"));
        }
    }

    fn refused(&self, lines: &mut Vec<String>) {
        for (name, what) in [
            ("tsp_requests_refused_total", "requests refused"),
            ("tsp_connections_closed_total", "connections closed"),
        ] {
            for limit in self.now.values(name, "limit").into_iter().take(LISTED_MAX) {
                let rate = self.rate(name, &[("limit", limit)]);
                if rate > 0.0 {
                    let line = format!("{what} by {limit}  {}/s", figure(rate));
                    lines.push(self.paint(RED, &line));
                }
            }
        }
    }

    /// Name, rate and latency of a histogram's series.
    fn row(&self, name: &str, histogram: &str, labels: &[(&str, &str)], errors: f64) -> String {
        let since: Buckets = self
            .now
            .buckets(histogram, labels)
            .since(&self.before.buckets(histogram, labels));
        let time = |part| since.quantile(part).map_or_else(|| "-".to_owned(), span);
        let errors = format!("{:>10}", figure(errors.max(0.0)));
        let errors = match errors.trim() {
            "0" => errors,
            _ => self.paint(RED, &errors),
        };
        format!(
            "{name:<28}{:>10}{:>10}{:>10}{errors}",
            figure(since.count() / self.seconds),
            time(0.5),
            time(0.99),
        )
    }

    /// How many a second had a value in the label that tells of an error.
    fn errors(&self, count: &str, label: &str, value: &str, code: &str) -> f64 {
        let (labels, fine) = ([(label, value)], [(label, value), (code, "")]);
        self.rate(count, &labels) - self.rate(count, &fine)
    }

    /// By how much a counter grew, each second.
    fn rate(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (now, before) = (self.now.sum(name, labels), self.before.sum(name, labels));
        // A process that was started again counts from zero.
        let grown = if now < before { now } else { now - before };
        grown / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Something that should be zero; nothing if it is.
    fn bad(&self, what: &str, number: f64) -> String {
        match number > 0.0 {
            true => format!(
                "  {}",
                self.paint(RED, &format!("{what} {}", figure(number)))
            ),
            false => String::new(),
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        match self.colours {
            true => format!("\x1b[{colour}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";

/// A number in as few digits as it takes.
fn figure(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        few if few < 10.0 => format!("{few:.2}"),
        some if some < 100.0 => format!("{some:.1}"),
        many => format!("{many:.0}"),
    }
}

/// A time in its largest fitting unit.
fn span(seconds: f64) -> String {
    match seconds {
        short if short < 0.001 => format!("{:.0} µs", short * 1e6),
        short if short < 1.0 => format!("{:.1} ms", short * 1e3),
        some if some < 120.0 => format!("{some:.1} s"),
        minutes if minutes < 7_200.0 => format!("{:.0} min", minutes / 60.0),
        hours if hours < 172_800.0 => format!("{:.0} h", hours / 3_600.0),
        days => format!("{:.0} days", days / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a proxy with two shards: first, and two seconds later.
    const BEFORE: &str = include_str!("recorded/before.txt");
    const NOW: &str = include_str!("recorded/now.txt");
    const FRAME: &str = include_str!("recorded/frame.txt");

    fn frame(before: &str, now: &str, colours: bool) -> String {
        let scrape = |text| Scrape::parse(text).unwrap();
        let frame = Frame {
            url: "http://127.0.0.1:9000/metrics",
            before: &scrape(before),
            now: &scrape(now),
            seconds: 2.0,
            unix_s: RECORDED_S,
            colours,
        };
        frame.lines().join("\n") + "\n"
    }

    /// When the second was taken.
    const RECORDED_S: f64 = 1_795_894_594.0;

    #[test]
    fn a_recorded_proxy_is_shown_as_it_was() {
        let shown = frame(BEFORE, NOW, false);
        assert_eq!(shown, FRAME, "\n{shown}");
    }

    #[test]
    fn a_proxy_that_was_started_again_counts_from_zero() {
        let shown = frame(NOW, BEFORE, false);
        assert!(!shown.contains('-') || !shown.contains(" -1"), "{shown}");
    }

    #[test]
    fn colours_change_no_word() {
        let mut shown = frame(BEFORE, NOW, true);
        for colour in [BOLD, RED, GREEN, "0"] {
            shown = shown.replace(&format!("\x1b[{colour}m"), "");
        }
        assert_eq!(shown, FRAME);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.5, 12.34, 1234.5].map(figure),
            ["0", "0.50", "12.3", "1234"]
        );
        let spans = [0.0005, 0.0125, 3.0, 600.0, 90_000.0, 864_000.0].map(span);
        assert_eq!(
            spans,
            ["500 µs", "12.5 ms", "3.0 s", "10 min", "25 h", "10 days"]
        );
    }
}
