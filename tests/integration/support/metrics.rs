//! Reads the text format of `/metrics`.

use std::net::SocketAddr;

use super::http;

/// One scrape.
#[derive(Debug)]
pub(crate) struct Metrics {
    text: String,
}

impl Metrics {
    #[track_caller]
    pub(crate) fn read(address: SocketAddr) -> Self {
        let answer = http::get(address, "/metrics");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let kind = answer.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("text/plain"), "{kind}");
        Self {
            text: answer.text(),
        }
    }

    /// The type of a family, as its `# TYPE` line tells.
    pub(crate) fn kind(&self, family: &str) -> Option<&str> {
        let prefix = format!("# TYPE {family} ");
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(&prefix))
    }

    /// Names and values of the labels of each series called `name`, with its value.
    fn series(&self, name: &str) -> impl Iterator<Item = (Vec<(&str, &str)>, f64)> {
        self.text.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let labels = labels
                .split(',')
                .filter_map(|pair| pair.split_once('='))
                .map(|(label, value)| (label, value.trim_matches('"')));
            Some((labels.collect(), value.parse().ok()?))
        })
    }

    /// Sum over all series called `name` that have all of `labels`; `None` if there is no such series.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let values: Vec<_> = self
            .series(name)
            .filter(|(found, _)| labels.iter().all(|label| found.contains(label)))
            .map(|(_, value)| value)
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Like [`Self::sum`], with 0 for a series that is not there yet.
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.sum(name, labels).unwrap_or_default()
    }

    /// The label names of a family's first series, sorted, without `le`.
    pub(crate) fn label_names(&self, name: &str) -> Vec<String> {
        let mut names: Vec<_> = self
            .series(name)
            .next()
            .map(|(labels, _)| {
                labels
                    .into_iter()
                    .map(|(label, _)| label.to_owned())
                    .filter(|label| label != "le")
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}
