//! The Prometheus text format, read: every series with its labels and its value.

/// Series of one scrape that are kept. A proxy with every series has a tenth.
const SERIES_MAX: usize = 100_000;

/// One scrape.
#[derive(Debug, Default)]
pub(super) struct Scrape(Vec<Series>);

/// One series.
#[derive(Debug)]
pub(super) struct Series {
    name: String,
    labels: Vec<(String, String)>,
    pub(super) value: f64,
}

impl Series {
    /// A label's value; empty for one that it has not.
    pub(super) fn label(&self, name: &str) -> &str {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map_or("", |(_, value)| value)
    }
}

/// The requests of a duration histogram that fell below each bound, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets(Vec<(f64, f64)>);

impl Scrape {
    /// Reads a scrape's text; lines that are none are left out. `None` if nothing of a proxy is in it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series: Vec<_> = lines.filter_map(series).take(SERIES_MAX).collect();
        let ours = series.iter().any(|series| series.name.starts_with("tsp_"));
        ours.then_some(Self(series))
    }

    /// All series of a name that have these labels.
    pub(super) fn all<'s, 'q>(
        &'s self,
        name: &'q str,
        labels: &'q [(&'q str, &'q str)],
    ) -> impl Iterator<Item = &'s Series> + use<'s, 'q> {
        self.0.iter().filter(move |series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(label, value)| series.label(label) == *value)
        })
    }

    /// Their sum.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.all(name, labels).map(|series| series.value).sum()
    }

    /// The different values of a label, in order.
    pub(super) fn values<'s>(&'s self, name: &str, label: &str) -> Vec<&'s str> {
        let mut values: Vec<_> = self
            .all(name, &[])
            .map(|series| series.label(label))
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// A histogram, added up over all series that have these labels.
    pub(super) fn buckets(&self, histogram: &str, labels: &[(&str, &str)]) -> Buckets {
        let name = format!("{histogram}_bucket");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for series in self.all(&name, labels) {
            let Some(bound) = number(series.label("le")) else {
                continue;
            };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += series.value,
                None => buckets.push((bound, series.value)),
            }
        }
        buckets.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
        Buckets(buckets)
    }
}

impl Buckets {
    /// What came since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let earlier = |bound: f64| {
            let found = before.0.iter().find(|(known, _)| *known == bound);
            found.map_or(0.0, |(_, count)| *count)
        };
        let new = self.0.iter();
        Self(
            new.map(|(bound, count)| (*bound, (count - earlier(*bound)).max(0.0)))
                .collect(),
        )
    }

    pub(super) fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The time, in seconds, below which this part of the requests was: on a straight line within its bucket, and the last
    /// bound for what is above all. `None` without a request.
    pub(super) fn quantile(&self, part: f64) -> Option<f64> {
        let rank = part * self.count();
        if self.count() <= 0.0 {
            return None;
        }
        let (mut below, mut lower) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= rank {
                if bound.is_infinite() {
                    return Some(lower);
                }
                let within = (count - below).max(f64::MIN_POSITIVE);
                return Some(lower + (bound - lower) * (rank - below) / within);
            }
            (below, lower) = (*count, *bound);
        }
        Some(lower)
    }
}

fn series(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = quoted_text(quoted)?;
            labels.push((label.to_owned(), value));
            rest = after;
        }
    }
    // A time may follow.
    let value = rest.split_ascii_whitespace().next().and_then(number)?;
    Some(Series {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// A label's value up to its closing quote, and what comes after that.
fn quoted_text(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        text => text.parse().ok().filter(|value: &f64| !value.is_nan()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_has_labels_and_a_value_and_perhaps_a_time() {
        let scrape = Scrape::parse(
            "# TYPE tsp_x counter\ntsp_x{a=\"1\",b=\"say \\\"hi\\\", {you}\\n\"} 7\ntsp_x{a=\"2\"} 3 1700000000\ntsp_y 2.5\n\
             nonsense\ntsp_x{a=\"open} 1\ntsp_z NaN\n",
        )
        .unwrap();
        assert_eq!(scrape.0.len(), 3);
        assert_eq!(scrape.sum("tsp_x", &[]), 10.0);
        assert_eq!(scrape.sum("tsp_x", &[("a", "1")]), 7.0);
        assert_eq!(scrape.0[0].label("b"), "say \"hi\", {you}\n");
        assert_eq!(scrape.values("tsp_x", "a"), ["1", "2"]);
        assert!(Scrape::parse("up 1\n").is_none() && Scrape::parse("").is_none());
    }

    #[test]
    fn a_quantile_lies_on_a_line_within_its_bucket() {
        let scrape = |counts: [u64; 3]| {
            let [a, b, all] = counts;
            let text = format!(
                "tsp_s_bucket{{k=\"x\",le=\"0.1\"}} {a}\ntsp_s_bucket{{k=\"x\",le=\"0.2\"}} {b}\n\
                 tsp_s_bucket{{k=\"x\",le=\"+Inf\"}} {all}\n"
            );
            Scrape::parse(&text)
                .unwrap()
                .buckets("tsp_s", &[("k", "x")])
        };
        let buckets = scrape([10, 20, 20]);
        assert_eq!(buckets.quantile(0.25), Some(0.05));
        assert!((buckets.quantile(0.75).unwrap() - 0.15).abs() < 1e-9);
        assert_eq!(
            scrape([0, 0, 5]).quantile(0.5),
            Some(0.2),
            "above all bounds"
        );
        assert_eq!(Buckets::default().quantile(0.5), None);
        let since = scrape([10, 20, 20]).since(&scrape([10, 10, 10]));
        assert_eq!(since.count(), 10.0);
        assert!(since.quantile(0.5).unwrap() > 0.1);
    }
}
