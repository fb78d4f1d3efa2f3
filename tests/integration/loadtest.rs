//! A scenario of the load test, short, against a real proxy: figures and page are whole.

use std::path::Path;

use tsp_loadtest::{
    page,
    results::{Results, Step},
    runner,
    scenario::Scenario,
    server,
};

/// A scenario that ships, cut to a few hundred requests.
fn shipped(name: &str, cut: impl FnOnce(&mut Scenario)) -> Scenario {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("loadtest/scenarios")
        .join(name);
    let mut scenario = Scenario::read(&path).expect("a scenario that ships is sound");
    cut(&mut scenario);
    scenario
}

fn run(scenario: &Scenario) -> Results {
    let mut told = 0;
    let binary = Path::new(env!("CARGO_BIN_EXE_tsp"));
    let results = runner::run(scenario, binary, false, &mut |_| told += 1);
    assert!(told > 2, "somebody may look on");
    results.expect("everything starts")
}

/// The page has these figures, and needs nothing but itself.
fn assert_page(results: &Results, figures: &[&str]) {
    let page = page::page(results).expect("plots can be drawn");
    for id in figures {
        let figure = page.split_once(&format!(r#"<figure id="{id}">"#));
        let figure = figure.and_then(|(_, rest)| rest.split_once("</figure>"));
        let (figure, _) = figure.unwrap_or_else(|| panic!("no figure {id} in {page}"));
        assert!(
            figure.contains("<svg") && figure.contains("<polyline"),
            "{figure}"
        );
    }
    assert_eq!(page.matches("<figure").count(), figures.len());
    for link in ["href", "src=", "url(", "@import", "<script", "<iframe"] {
        assert!(!page.contains(link), "{link} in {page}");
    }
}

#[test]
fn a_leased_scenario_has_all_its_figures() {
    let scenario = shipped("leased.toml", |scenario| {
        scenario.doc.seconds = 0.6;
        scenario.doc.warm_up_s = 0.1;
        scenario.doc.kms.tenants = 8;
        scenario.doc.load[0].rate = Some(1_000.0);
    });
    let results = run(&scenario);
    let load = &results.loads[0];
    assert_eq!(load.report.first_failure, None);
    assert_eq!((results.total.failed, load.report.failed), (0, 0));
    assert_eq!(results.total.answered, load.report.requests);
    // Poisson arrivals: 600, and the deviation is its root.
    assert!((450..=750).contains(&load.report.requests), "{results}");
    assert!(results.total.proxy_cpu.us_per_request > 0.0);
    // The preparation has leased every key.
    assert!(results.total.kms_calls_per_operation < 0.1, "{results}");
    let seen: u64 = results.intervals.iter().map(|i| i.operations).sum();
    assert_eq!(seen, results.total.answered);
    assert_page(&results, &["throughput", "latency-0", "cpu", "kms-calls"]);
    let json = serde_json::to_value(&results).expect("figures are JSON");
    assert_eq!(json["scenario"], "leased");
    assert_eq!(json["loads"][0]["requests"], load.report.requests);
    assert!(
        json["intervals"]
            .as_array()
            .is_some_and(|all| all.len() > 3)
    );
}

#[test]
fn load_comes_over_tls_and_a_unix_socket_and_the_figures_say_so() {
    for (file, name) in [("tls.toml", "tls"), ("sidecar.toml", "unix")] {
        for rate in [None, Some(800.0)] {
            let scenario = shipped(file, |scenario| {
                scenario.doc.seconds = 0.5;
                scenario.doc.warm_up_s = 0.1;
                scenario.doc.kms.tenants = 2;
                scenario.doc.load[0].rate = rate;
                scenario.doc.load[0].cores = Some(first_cpu());
            });
            let results = run(&scenario);
            let load = &results.loads[0];
            assert_eq!(load.report.first_failure, None);
            assert!(load.report.requests > 100, "{results}");
            assert_eq!(load.report.setup.lanes, 1);
            let json = serde_json::to_value(&results).expect("figures are JSON");
            assert_eq!(json["loads"][0]["setup"]["transport"], name);
            assert_eq!(json["stand"]["load_cpus"][0].to_string(), first_cpu());
            let page = page::page(&results).expect("plots can be drawn");
            assert!(
                page.contains(&format!("connections over {name}, ")),
                "{page}"
            );
        }
    }
}

/// A CPU that this process may use.
fn first_cpu() -> String {
    let cpus = server::allowed_cpus().expect("the kernel tells");
    cpus[0].to_string()
}

#[test]
fn every_operation_through_the_kms_is_a_call() {
    let scenario = shipped("thales.toml", |scenario| {
        scenario.doc.seconds = 0.5;
        scenario.doc.warm_up_s = 0.0;
        scenario.doc.kms.tenants = 2;
        scenario.doc.kms.latency.clear();
        scenario.doc.load[0].rate = Some(400.0);
    });
    let results = run(&scenario);
    assert_eq!(results.total.failed, 0, "{results}");
    let calls: u64 = ["thales wrap", "thales unwrap"]
        .iter()
        .filter_map(|name| results.total.kms_calls.get(*name))
        .sum();
    assert_eq!(calls, results.total.answered);
}

#[test]
fn a_cold_start_and_a_storm_of_one_tenant_run_beside_other_loads() {
    let scenario = shipped("tenant-storm.toml", |scenario| {
        scenario.doc.cold = true;
        scenario.doc.seconds = 0.6;
        scenario.doc.warm_up_s = 0.0;
        scenario.doc.kms.tenants = 3;
        scenario.doc.kms.latency.clear();
        let [others, storm] = scenario.doc.load.as_mut_slice() else {
            panic!("two loads");
        };
        others.tenants = Some((1, 2));
        others.rate = Some(200.0);
        storm.tenants = Some((3, 3));
        storm.connections = 50;
        storm.rate = Some(500.0);
        (storm.from_s, storm.to_s) = (0.2, Some(0.4));
    });
    let results = run(&scenario);
    assert_eq!(results.total.failed, 0, "{results}");
    let [others, storm] = results.loads.as_slice() else {
        panic!("two loads");
    };
    assert!(others.report.requests > 0 && storm.report.requests > 0);
    let early = storm.timeline.iter().filter(|point| point.at_s < 0.15);
    assert!(early.clone().all(|point| point.answered_per_second == 0.0));
    let figures = ["throughput", "latency-0", "latency-1", "cpu", "kms-calls"];
    assert_page(&results, &figures);
}

#[test]
fn steps_go_down_when_one_is_not_served_well() {
    let scenario = shipped("knee.toml", |scenario| {
        scenario.doc.warm_up_s = 0.0;
        scenario.doc.kms.tenants = 2;
        let steps = scenario.doc.steps.as_mut().expect("it has steps");
        steps.seconds = 0.3;
        steps.from = 500.0;
        steps.factor = 10.0;
        // No machine is that quick.
        steps.p99_ms_max = 0.000_1;
    });
    let results = run(&scenario);
    let rates: Vec<_> = results.steps.iter().map(|step| step.rate).collect();
    assert_eq!(rates, [500.0, 50.0, 5.0]);
    let well = |step: &&Step| step.passed || step.failed > 0;
    assert!(results.steps.iter().find(well).is_none() && results.knee.is_none());
    let answered: u64 = results.steps.iter().map(|s| s.latency_us.count).sum();
    assert_eq!(answered, results.total.answered);
    let figures = [
        "latency-by-rate",
        "cpu-by-rate",
        "throughput",
        "latency-0",
        "cpu",
        "kms-calls",
    ];
    assert_page(&results, &figures);
}
