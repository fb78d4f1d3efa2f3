//! What an operation may cost: the figures in `budget.toml`, and what is said when a measured one has left them.
//!
//! Both ways: what costs more must be meant, and what costs less becomes the new budget. Figures are of the dev profile, so
//! that the tests compare them without building anything else.

use std::{collections::BTreeMap, env, fs, io, path::PathBuf, process::Command};

use serde::{Deserialize, Serialize};

/// Set to `update`, [`check`] writes the budget instead.
const VARIABLE: &str = "TSP_BUDGET";

/// What stands above the figures.
const HEADER: &str = "\
# What an operation may cost, in the dev profile. `./x test` compares, `./x budget` measures and writes this file; a commit
# that changes a figure says why. tuning.md tells what is counted, and the same figures of the release profile.
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
    if env::var(VARIABLE).is_ok_and(|value| value == "update") {
        let all = std::mem::take(figures).into_iter();
        let (mut former, others): (Figures, Figures) =
            all.partition(|(name, _)| name.starts_with(&prefix));
        *figures = others;
        for (name, figure) in measured {
            let name = format!("{prefix}{name}");
            // What still fits stays, so that little steps add up to one that does not.
            let budgeted = former.remove(&name).filter(|budgeted| {
                let finding = allowance.finding(cost, &name, *budgeted, *figure);
                finding.is_none()
            });
            figures.insert(name, budgeted.unwrap_or(cost.rounded(*figure)));
        }
        budget.compiler = compiler;
        let text = toml::to_string(&budget).map_err(io::Error::other)?;
        fs::write(&path, format!("{HEADER}{text}"))?;
        return Ok(Vec::new());
    }
    if cost == Cost::Instructions && compiler != budget.compiler {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    for (name, figure) in measured {
        let name = format!("{prefix}{name}");
        findings.extend(match figures.remove(&name) {
            Some(budgeted) => allowance.finding(cost, &name, budgeted, *figure),
            None => Some(format!(
                "{} of {name}: {} and no budget yet",
                cost.name(),
                cost.rounded(*figure)
            )),
        });
    }
    let gone = figures.keys().filter(|name| name.starts_with(&prefix));
    findings.extend(gone.map(|name| format!("{} of {name}: nobody measures it", cost.name())));
    for finding in &mut findings {
        finding.push_str("; if that is meant, run `./x budget` and say why in the commit");
    }
    Ok(findings)
}

impl Allowance {
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
