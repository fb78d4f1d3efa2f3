//! A run as one HTML page that needs nothing but itself.

use std::error::Error;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::{
    plot::{Line, Plot, css_color},
    report::Latency,
    results::{Interval, LoadResult, Results, significant},
};

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; color: #222830; background: #f6f7f9; margin: 0; }
main { max-width: 58rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.about { margin: .4rem 0 1.2rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.2rem, 1fr)); gap: .7rem; margin: 0; }
dl div { background: #fff; border: 1px solid #e3e6ea; border-radius: .4rem; padding: .5rem .8rem; }
dt { color: #5a6370; font-size: .85rem; } dd { margin: 0; font-size: 1.2rem; font-weight: 600; white-space: nowrap; }
dd small { font-size: .85rem; font-weight: 400; color: #5a6370; }
figure { background: #fff; border: 1px solid #e3e6ea; border-radius: .4rem; margin: 0 0 1rem; padding: .7rem; }
figcaption { font-weight: 600; } figcaption span { font-weight: 400; font-size: .9rem; margin-left: .9rem; white-space: nowrap; }
figcaption i { display: inline-block; width: 1rem; height: .2rem; vertical-align: middle; margin-right: .3rem; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; background: #fff; font-size: .92rem; margin-bottom: 1rem; }
th, td { border: 1px solid #e3e6ea; padding: .25rem .6rem; text-align: right; } th:first-child, td:first-child { text-align: left; }
th { background: #eef0f3; font-weight: 600; } tr.knee td { background: #e8f3ec; }
table.facts td { text-align: left; }
.bad { color: #a8231f; }
pre { background: #fff; border: 1px solid #e3e6ea; padding: .7rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
";

/// The page of a run.
///
/// # Errors
/// If a plot cannot be drawn.
pub fn page(results: &Results) -> Result<String, Box<dyn Error>> {
    let total = &results.total;
    let all = total.answered + total.failed;
    let many = results.loads.len() > 1;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (results.scenario) " · load test" }
                style { (PreEscaped(STYLE)) }
            }
            body { main {
                h1 { (results.scenario) }
                p.about { (results.about) }
                dl {
                    (tile("operations/s", &thousands(per_second(results)), ""))
                    (tile("failed", &thousands(total.failed as f64), &format!("of {}", thousands(all as f64))))
                    @if let Some(first) = results.loads.first() {
                        @let whose = if many { first.name.as_str() } else { "latency" };
                        (tile(&format!("{whose} p50"), &ms(first.report.latency_us.p50), "ms"))
                        (tile(&format!("{whose} p99"), &ms(first.report.latency_us.p99), "ms"))
                        (tile(&format!("{whose} p99.9"), &ms(first.report.latency_us.p99_9), "ms"))
                    }
                    (tile("CPU per operation", &format!("{:.1}", total.proxy_cpu.us_per_request), "µs"))
                    @if total.keys_per_operation > 1.0 {
                        (tile("CPU per key", &format!("{:.2}", total.proxy_cpu.us_per_request / total.keys_per_operation), "µs"))
                    }
                    (tile("KMS calls per operation", &significant(total.kms_calls_per_operation), ""))
                    @if let Some(rate) = results.knee {
                        (tile("knee", &thousands(rate), "/s"))
                    }
                }
                @if !results.steps.is_empty() { (steps(results)?) }
                h2 { "Over time" }
                (figure("throughput", "Throughput", throughput(results))?)
                @for (index, load) in results.loads.iter().enumerate() {
                    (figure(
                        &format!("latency-{index}"),
                        &if many { format!("Latency of {}", load.name) } else { "Latency".to_owned() },
                        latency(results, load),
                    )?)
                }
                (figure("cpu", "CPU of the proxy per operation", over_time(results, "µs", |i| i.cpu_us_per_operation))?)
                (figure("kms-calls", "KMS calls per operation", over_time(results, "calls", |i| i.kms_calls_per_operation))?)
                h2 { "Latency in ms, from the intended start in an open loop" }
                (latencies(results))
                h2 { "What it took" }
                (costs(results))
                h2 { "How it ran" }
                (facts(results))
                details { summary { "The scenario file" } pre { (results.file) } }
            } }
        }
    };
    Ok(page.into_string())
}

fn per_second(results: &Results) -> f64 {
    crate::report::ratio(results.total.answered as f64, results.total.seconds)
}

fn tile(name: &str, value: &str, unit: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) " " small { (unit) } } } }
}

/// A plot with its legend.
fn figure(id: &str, title: &str, plot: Plot) -> Result<Markup, Box<dyn Error>> {
    let svg = plot.svg()?;
    Ok(html! {
        figure id=(id) {
            figcaption {
                (title)
                @if plot.lines.len() > 1 {
                    @for (index, line) in plot.lines.iter().enumerate() {
                        span { i style={ "background:" (css_color(index)) } {} (line.name) }
                    }
                }
            }
            (PreEscaped(svg))
        }
    })
}

fn over_seconds(results: &Results, y: &'static str, lines: Vec<Line>) -> Plot {
    Plot {
        x: "seconds",
        x_max: results.total.seconds,
        y,
        logarithmic: false,
        marked: false,
        line_at: None,
        lines,
    }
}

fn throughput(results: &Results) -> Plot {
    let mut lines = Vec::new();
    for load in &results.loads {
        let line = |what: &str, figure: fn(&crate::results::Point) -> f64| Line {
            name: match results.loads.len() {
                1 => what.to_owned(),
                _ => format!("{}, {what}", load.name),
            },
            points: load.timeline.iter().map(|p| (p.at_s, figure(p))).collect(),
        };
        lines.push(line("answered", |point| point.answered_per_second));
        if load.report.failed > 0 {
            lines.push(line("failed", |point| point.failed_per_second));
        }
    }
    over_seconds(results, "operations/s", lines)
}

fn latency(results: &Results, load: &LoadResult) -> Plot {
    let line = |name: &str, figure: fn(&Latency) -> u64| Line {
        name: name.to_owned(),
        points: load
            .timeline
            .iter()
            .filter_map(|point| {
                let us = figure(point.latency_us.as_ref()?);
                Some((point.at_s, us as f64 / 1e3))
            })
            .collect(),
    };
    Plot {
        logarithmic: true,
        ..over_seconds(
            results,
            "ms",
            vec![
                line("p50", |latency| latency.p50),
                line("p90", |latency| latency.p90),
                line("p99", |latency| latency.p99),
                line("p99.9", |latency| latency.p99_9),
            ],
        )
    }
}

fn over_time(results: &Results, y: &'static str, figure: fn(&Interval) -> Option<f64>) -> Plot {
    // The last interval ends with the run, however short it is by then.
    let usual_s = results.intervals.first().map_or(0.0, |first| first.seconds);
    let whole = |interval: &&Interval| interval.seconds >= usual_s / 2.0;
    let points = results.intervals.iter().filter(whole);
    let points = points.filter_map(|interval| Some((interval.at_s, figure(interval)?)));
    let line = Line {
        name: y.to_owned(),
        points: points.collect(),
    };
    over_seconds(results, y, vec![line])
}

/// What the steps showed, over the rate.
fn steps(results: &Results) -> Result<Markup, Box<dyn Error>> {
    let mut by_rate = results.steps.clone();
    by_rate.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let line = |name: &str, figure: &dyn Fn(&crate::results::Step) -> f64| Line {
        name: name.to_owned(),
        points: by_rate
            .iter()
            .map(|step| (step.rate, figure(step)))
            .collect(),
    };
    let over_rate = |y, logarithmic, lines| Plot {
        x: "operations/s asked for",
        x_max: by_rate.last().map_or(0.0, |step| step.rate * 1.05),
        y,
        logarithmic,
        marked: true,
        line_at: results.knee,
        lines,
    };
    let latency = over_rate(
        "ms",
        true,
        vec![
            line("p50", &|step| step.latency_us.p50 as f64 / 1e3),
            line("p99", &|step| step.latency_us.p99 as f64 / 1e3),
        ],
    );
    let cpu = over_rate(
        "µs",
        false,
        vec![line("CPU", &|step| step.cpu_us_per_operation)],
    );
    Ok(html! {
        h2 { "By rate" }
        (figure("latency-by-rate", "Latency", latency)?)
        (figure("cpu-by-rate", "CPU of the proxy per operation", cpu)?)
        table {
            tr { th { "asked, /s" } th { "answered, /s" } th { "failed" } th { "p50, ms" } th { "p99, ms" }
                th { "p99.9, ms" } th { "sent late by p99, ms" } th { "CPU, µs" } th { "CPUs busy" } th { "served well" } }
            @for step in &by_rate {
                tr.knee[Some(step.rate) == results.knee] {
                    td { (thousands(step.rate)) } td { (thousands(step.answered_per_second)) } td { (step.failed) }
                    td { (ms(step.latency_us.p50)) } td { (ms(step.latency_us.p99)) } td { (ms(step.latency_us.p99_9)) }
                    td { (ms(step.late_us.p99)) }
                    td { (format!("{:.1}", step.cpu_us_per_operation)) } td { (format!("{:.2}", step.busy_cpus)) }
                    td { @if step.passed { "yes" } @else { "no" } }
                }
            }
        }
    })
}

fn latencies(results: &Results) -> Markup {
    let row = |name: &str, latency: &Latency| {
        html! { tr {
            td { (name) } td { (thousands(latency.count as f64)) } td { (format!("{:.2}", latency.mean / 1e3)) }
            td { (ms(latency.p50)) } td { (ms(latency.p90)) } td { (ms(latency.p99)) } td { (ms(latency.p99_9)) }
            td { (ms(latency.max)) }
        } }
    };
    html! {
        table {
            tr { th { "what" } th { "answers" } th { "mean" } th { "p50" } th { "p90" } th { "p99" } th { "p99.9" } th { "max" } }
            @for load in &results.loads {
                (row(&load.name, &load.report.latency_us))
                @for (kind, latency) in &load.report.latency_us_by_kind {
                    (row(&format!("– {kind}"), latency))
                }
                @if let Some(late) = &load.report.generator_late_us {
                    (row("– sent late by", late))
                }
            }
        }
        @for load in &results.loads {
            @if let Some(why) = &load.report.first_failure {
                p.bad { (load.name) ": " (load.report.failed) " failed, the first: " (why) }
            }
        }
    }
}

fn costs(results: &Results) -> Markup {
    let total = &results.total;
    let row = |name: &str, us: f64| html! { tr { td { (name) } td { (format!("{us:.2}")) } } };
    html! {
        table {
            tr { th { "CPU per operation" } th { "µs" } }
            (row("proxy", total.proxy_cpu.us_per_request))
            @for (thread, us) in &total.proxy_cpu.us_per_request_by_thread {
                @if *us >= 0.005 { (row(&format!("– thread {thread}"), *us)) }
            }
            (row("generator", total.generator_cpu_us_per_operation))
            (row("simulated KMSs", total.kms_cpu_us_per_operation))
        }
        table {
            tr { th { "KMS calls" } th { "calls" } th { "per operation" } }
            @for (name, calls) in &total.kms_calls {
                tr { td { (name) } td { (thousands(*calls as f64)) }
                    td { (significant(*calls as f64 / ((total.answered + total.failed).max(1)) as f64)) } }
            }
            @if total.kms_calls.is_empty() { tr { td { "none" } td { "0" } td { "0" } } }
        }
    }
}

fn facts(results: &Results) -> Markup {
    let stand = &results.stand;
    let cpus = |list: &[usize]| {
        let list: Vec<_> = list.iter().map(usize::to_string).collect();
        list.join(", ")
    };
    let [before, after] = &results.machine;
    let loads: Vec<_> = stand.load_cpus.iter().flatten().copied().collect();
    let row = |name: &str, value: String| html! { tr { td { (name) } td { (value) } } };
    html! {
        table.facts {
            @for load in &results.loads {
                @let setup = &load.report.setup;
                (row(
                    &format!("load {}", load.name),
                    format!(
                        "{} on {} connections over {}, {}",
                        setup.mix,
                        setup.connections,
                        setup.transport,
                        match setup.rate {
                            Some(rate) => format!("{} /s", thousands(rate)),
                            None if results.steps.is_empty() => "closed loop".to_owned(),
                            None => "in steps".to_owned(),
                        },
                    ),
                ))
            }
            (row("shards", stand.shards.to_string()))
            (row("I/O", stand.io.clone()))
            (row("CPUs", match &stand.proxy_cpus {
                Some(own) => format!(
                    "proxy {}, generator {}, KMSs {}",
                    cpus(own), cpus(&loads), cpus(&stand.kms_cpu.into_iter().collect::<Vec<_>>()),
                ),
                None => "not pinned".to_owned(),
            }))
            (row("CPUs the proxy kept busy", format!("{:.2}", results.total.proxy_cpu.busy_cpus)))
            (row("most memory of the proxy", format!("{:.1} MiB", stand.memory_mib)))
            (row("from its start until it served", format!("{:.0} ms", stand.start_ms)))
            (row("machine, before", before.clone()))
            (row("machine, after", after.clone()))
            (row("ended", results.ended.clone()))
        }
    }
}

fn ms(us: u64) -> String {
    format!("{:.2}", us as f64 / 1e3)
}

/// A whole number with its thousands set apart.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        let shown = [0.0, 999.0, 1_000.0, 1_234_567.4].map(thousands);
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
    }
}
