//! The findings, as a table for a person and as JSON for a machine.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use super::{
    diagnosis::Check,
    examination::{Chart, State},
};
use crate::config::Problem;

/// Tenants that are named beside a config in the table; JSON has all.
const TENANTS_SHOWN_MAX: usize = 3;

/// One line per KMS config, and below it a paragraph per failure.
pub(crate) fn table(charts: &[Chart]) -> String {
    let mut rows = vec![
        ["kms", "type", "tenants"]
            .into_iter()
            .chain(Check::ALL.map(Check::as_str))
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    ];
    rows.extend(charts.iter().map(row));
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let columns = Check::ALL.len() + 3;
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail, here and below.
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for chart in charts {
        for (check, diagnosis) in chart.failures() {
            let (id, kind, cause) = (chart.id, chart.kind, diagnosis.cause);
            let _ = writeln!(text, "\nkms {id} ({kind}): {} failed", check.as_str());
            let _ = writeln!(text, "  what   {}", diagnosis.what);
            let _ = writeln!(text, "  whose  {}", cause.whose.as_str());
            let _ = writeln!(text, "  do     {}", cause.remedy);
        }
    }
    text
}

fn row(chart: &Chart) -> Vec<String> {
    let mut tenants = chart
        .tenants
        .iter()
        .take(TENANTS_SHOWN_MAX)
        .map(|id| id.escape_debug().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    let more = chart.tenants.len().saturating_sub(TENANTS_SHOWN_MAX);
    if more > 0 {
        let _ = write!(tenants, " +{more}");
    }
    let mut row = vec![chart.id.to_string(), chart.kind.to_string(), tenants];
    row.extend(chart.checks.iter().map(|(_, state)| match state {
        State::Good(None) => "ok".to_owned(),
        State::Good(Some(took)) => format!("{:.1} ms", ms(*took)),
        State::Failed(_) => "FAILED".to_owned(),
        State::Unknown => "?".to_owned(),
        State::NotNeeded => "-".to_owned(),
    }));
    row
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// The same in one JSON object.
pub(crate) fn json(charts: &[Chart], problems: &[Problem]) -> Value {
    let healthy = problems.is_empty() && charts.iter().all(Chart::is_healthy);
    let problems: Vec<_> = problems
        .iter()
        .map(|problem| json!({ "place": problem.place, "why": problem.why }))
        .collect();
    let kms: Vec<_> = charts
        .iter()
        .map(|chart| {
            let checks = chart.checks.iter().map(|(check, state)| one(*check, state));
            json!({
                "id": chart.id,
                "type": chart.kind.as_str(),
                "tenants": chart.tenants,
                "healthy": chart.is_healthy(),
                "checks": checks.collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "healthy": healthy, "problems": problems, "kms": kms })
}

fn one(check: Check, state: &State) -> Value {
    let check = check.as_str();
    match state {
        State::Good(None) => json!({ "check": check, "result": "ok" }),
        // To the microsecond.
        State::Good(Some(took)) => {
            json!({ "check": check, "result": "ok", "ms": (ms(*took) * 1e3).round() / 1e3 })
        }
        State::Failed(diagnosis) => json!({
            "check": check,
            "result": "failed",
            "diagnosis": diagnosis.cause.name,
            "what": diagnosis.what,
            "whose": diagnosis.cause.whose.as_str(),
            "remedy": diagnosis.cause.remedy,
        }),
        State::Unknown => json!({ "check": check, "result": "unknown" }),
        State::NotNeeded => json!({ "check": check, "result": "not needed" }),
    }
}
