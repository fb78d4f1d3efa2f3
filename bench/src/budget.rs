//! What an operation may cost: the figures in `budget.toml`, and what is said when a measured one has left them.
//!
//! Both ways: what costs more must be meant, and what costs less becomes the new budget. Figures are of the dev profile, so
//! that the tests compare them without building anything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs, io,
    path::PathBuf,
    process::Command,
};

use serde::{Deserialize, Serialize};

/// Set to `update`, [`check`] writes the budget instead.
const VARIABLE: &str = "TSP_BUDGET";

/// What stands above the figures.
const HEADER: &str = "\
# What an operation may cost, in the dev profile. `./x test` compares, `./x budget` measures and writes this file; a commit
# that changes a figure says why. tuning.md tells what is counted, and how.
#
# `allowance`: how far a measured figure may be from its budget, above it and below, as a share of it and as such;
# the larger counts. Its reasons are in tuning.md too. `compiler`: instructions are only compared if it is this one.

";

#[derive(Debug, Default, Deserialize, Serialize)]
struct Budget {
    compiler: String,
    allowance: BTreeMap<String, Allowance>,
    figures: BTreeMap<String, Figures>,
}

/// By `group/name`.
type Figures = BTreeMap<String, f64>;

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
struct Allowance {
    percent_above: f64,
    percent_below: f64,
    above: f64,
    below: f64,
}

/// A kind of cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Calls of the allocator that give memory.
    Allocations,
    /// Bytes that those ask for.
    Bytes,
    /// Instructions, as valgrind counts them.
    Instructions,
    /// System calls of a whole process that do not wait.
    SystemCalls,
    /// Those that wait: the busier it is, the fewer.
    Waits,
}

impl Cost {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Allocations => "allocations",
            Self::Bytes => "bytes",
            Self::Instructions => "instructions",
            Self::SystemCalls => "system_calls",
            Self::Waits => "waits",
        }
    }

    /// What a figure of its kind is worth writing down.
    fn rounded(self, figure: f64) -> f64 {
        match self {
            Self::Allocations | Self::SystemCalls | Self::Waits => (figure * 100.0).round() / 100.0,
            Self::Bytes | Self::Instructions => figure.round(),
        }
    }
}

/// Compares what `group/name` cost with the budget, for all that the group measures. With `TSP_BUDGET=update` it writes the
/// budget instead, where a figure has left it. In another profile than dev it does nothing.
///
/// Gives a sentence per figure that has left the budget.
///
/// # Errors
/// If the budget's file cannot be read or written.
pub fn check(cost: Cost, group: &str, measured: &[(&str, f64)]) -> io::Result<Vec<String>> {
    if !cfg!(debug_assertions) {
        return Ok(Vec::new());
    }
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/budget.toml"));
    let mut budget: Budget =
        toml::from_str(&fs::read_to_string(&path)?).map_err(io::Error::other)?;
    let compiler = compiler()?;
    let allowance = budget.allowance.get(cost.name()).copied();
    let allowance = allowance.unwrap_or_default();
    let figures = budget.figures.entry(cost.name().to_owned()).or_default();
    let prefix = format!("{group}/");
    let measured = measured
        .iter()
        .map(|(name, figure)| (format!("{prefix}{name}"), *figure));
    if env::var(VARIABLE).is_ok_and(|value| value == "update") {
        allowance.update(cost, figures, &prefix, measured);
        budget.compiler = compiler;
        let text = toml::to_string(&budget).map_err(io::Error::other)?;
        fs::write(&path, format!("{HEADER}{text}"))?;
        return Ok(Vec::new());
    }
    if cost == Cost::Instructions && compiler != budget.compiler {
        return Ok(Vec::new());
    }
    Ok(allowance.compare(cost, figures, &prefix, measured))
}

impl Allowance {
    /// Makes `figures` what was measured, all those that begin with `prefix`.
    fn update(
        self,
        cost: Cost,
        figures: &mut Figures,
        prefix: &str,
        measured: impl Iterator<Item = (String, f64)>,
    ) {
        let all = std::mem::take(figures).into_iter();
        let (mut former, others): (Figures, Figures) =
            all.partition(|(name, _)| name.starts_with(prefix));
        *figures = others;
        for (name, figure) in measured {
            // What still fits stays, so that little steps add up to one that does not.
            let fits = |budgeted: &f64| self.finding(cost, &name, *budgeted, figure).is_none();
            let budgeted = former.remove(&name).filter(fits);
            figures.insert(name, budgeted.unwrap_or(cost.rounded(figure)));
        }
    }

    /// What is to be said about `figures`, all those that begin with `prefix`.
    fn compare(
        self,
        cost: Cost,
        figures: &Figures,
        prefix: &str,
        measured: impl Iterator<Item = (String, f64)>,
    ) -> Vec<String> {
        let kind = cost.name();
        let mut gone: BTreeSet<_> = figures
            .keys()
            .filter(|name| name.starts_with(prefix))
            .collect();
        let mut findings = Vec::new();
        for (name, figure) in measured {
            gone.remove(&name);
            findings.extend(match figures.get(&name) {
                Some(budgeted) => self.finding(cost, &name, *budgeted, figure),
                None => {
                    let figure = cost.rounded(figure);
                    Some(format!("{kind} of {name}: {figure} and no budget yet"))
                }
            });
        }
        let gone = gone.into_iter();
        findings.extend(gone.map(|name| format!("{kind} of {name}: nobody measures it")));
        for finding in &mut findings {
            finding.push_str("; if that is meant, run `./x budget` and say why in the commit");
        }
        findings
    }

    /// What is to be said about a figure that should be as budgeted.
    fn finding(self, cost: Cost, name: &str, budgeted: f64, figure: f64) -> Option<String> {
        let more = figure - budgeted;
        let (percent, absolute) = match more > 0.0 {
            true => (self.percent_above, self.above),
            false => (self.percent_below, self.below),
        };
        let allowed = (budgeted * percent / 100.0).max(absolute);
        if more.abs() <= allowed {
            return None;
        }
        let how = match more > 0.0 {
            true => "more",
            false => "fewer, which is worth a new budget",
        };
        Some(format!(
            "{} of {name}: {} where the budget has {budgeted}, {} {how} (allowed: {})",
            cost.name(),
            cost.rounded(figure),
            cost.rounded(more.abs()),
            cost.rounded(allowed),
        ))
    }
}

/// The compiler's version and its target.
fn compiler() -> io::Result<String> {
    let output = Command::new("rustc").arg("--version").output()?;
    let version = String::from_utf8_lossy(&output.stdout);
    Ok(format!("{}, {}", version.trim(), env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance {
        percent_above: 10.0,
        percent_below: 20.0,
        above: 2.0,
        below: 2.0,
    };

    fn said(figures: &Figures, name: &str, figure: f64) -> Vec<String> {
        let measured = [(name.to_owned(), figure)].into_iter();
        ALLOWANCE.compare(Cost::Bytes, figures, "a/", measured)
    }

    fn budget(name: &str, figure: f64) -> Figures {
        Figures::from([(name.to_owned(), figure), ("b/other".to_owned(), 1.0)])
    }

    #[test]
    fn a_figure_may_move_within_its_allowance_and_no_further() {
        for fits in [80.0, 100.0, 110.0] {
            assert!(said(&budget("a/wrap", 100.0), "a/wrap", fits).is_empty());
        }
        let more = said(&budget("a/wrap", 100.0), "a/wrap", 111.0).concat();
        assert!(more.starts_with("bytes of a/wrap: 111 where the budget has 100, 11 more"));
        assert!(more.contains("./x budget"));
        let fewer = said(&budget("a/wrap", 100.0), "a/wrap", 79.0).concat();
        assert!(fewer.contains("21 fewer"), "{fewer}");
        // What costs little may move by the absolute allowance.
        assert!(said(&budget("a/wrap", 1.0), "a/wrap", 3.0).is_empty());
    }

    #[test]
    fn what_is_new_or_gone_is_told() {
        let both = said(&budget("a/wrap", 1.0), "a/unwrap", 1.0).join("\n");
        assert!(both.contains("a/unwrap: 1 and no budget yet"), "{both}");
        assert!(both.contains("a/wrap: nobody measures it"), "{both}");
    }

    #[test]
    fn an_update_keeps_what_fits_and_what_others_measure() {
        let mut figures = budget("a/wrap", 100.0);
        figures.insert("a/gone".to_owned(), 1.0);
        figures.insert("a/unwrap".to_owned(), 100.0);
        let measured = [("a/wrap", 105.0), ("a/unwrap", 120.4)];
        let measured = measured.map(|(name, figure)| (name.to_owned(), figure));
        ALLOWANCE.update(Cost::Bytes, &mut figures, "a/", measured.into_iter());
        let expected = [("a/unwrap", 120.0), ("a/wrap", 100.0), ("b/other", 1.0)];
        assert_eq!(
            figures,
            expected
                .map(|(name, figure)| (name.to_owned(), figure))
                .into()
        );
    }
}
