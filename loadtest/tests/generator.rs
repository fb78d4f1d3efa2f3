//! The generator against a stub of the proxy: every request is sent, every wrong answer is noticed.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at its first surprise"
)]

use std::{
    cell::Cell,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tsp_loadtest::{
    client::{Failure, Target},
    compare,
    generator::{self, Bursts, Generator, Length, Outcome, Phase},
    report::{Report, Setup},
    scenario::Scenario,
};
use tsp_rt::{Backend, CoreMain, Listener as _, Rt};

const DEK: &str = "r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=";
const EDEK: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";

/// What the stub does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Every tenth answer is a 500.
    TenthIsAnError,
    /// Every tenth answer to an unwrap holds another DEK.
    TenthIsAnotherDek,
    /// Every tenth answer is the last of its connection, without saying so.
    TenthCloses,
}

struct Stub {
    listener: std::net::TcpListener,
    fault: Fault,
}

impl Stub {
    /// Serves in the background until the test process ends.
    fn start(fault: Fault) -> SocketAddr {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = std::net::TcpListener::bind(any).unwrap();
        let address = listener.local_addr().unwrap();
        drop(tsp_rt::spawn_core(Backend::Epoll, "stub", None, Self { listener, fault }).unwrap());
        address
    }
}

impl CoreMain for Stub {
    async fn run<R: Rt>(self, rt: R) {
        let mut listener = rt.adopt(self.listener).unwrap();
        let answered = Rc::new(Cell::new(0));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (answered, fault) = (Rc::clone(&answered), self.fault);
            rt.spawn(async move {
                let service = service_fn(|request| answer(request, fault, &answered));
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                drop(served.await);
            });
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    fault: Fault,
    answered: &Cell<u32>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let authorized = request
        .headers()
        .get("authorization")
        .is_some_and(|key| key == "cmk key");
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let wrapped = format!(r#"{{"dek":"{DEK}","edek":"{EDEK}"}}"#);
    let text = match path.as_str() {
        "/api/1/document/wrap" => wrapped,
        "/api/1/document/unwrap" if body["encryptedDocumentKey"] == EDEK => {
            format!(r#"{{"dek":"{DEK}"}}"#)
        }
        "/api/1/document/batch-wrap" => {
            let ids = body["documentIds"].as_array().unwrap().iter();
            let keys: Vec<_> = ids.map(|id| format!("{id}:{wrapped}")).collect();
            format!(r#"{{"keys":{{{}}},"failures":{{}}}}"#, keys.join(","))
        }
        "/api/1/event/security-event" => "null".to_owned(),
        _ => "unknown".to_owned(),
    };
    // A faulty wrap beforehand would make a right unwrap look wrong.
    if fault != Fault::TenthIsAnotherDek || path.ends_with("/unwrap") {
        answered.set(answered.get() + 1);
    }
    let tenth = answered.get() > 0 && answered.get().is_multiple_of(10);
    let text = if tenth && fault == Fault::TenthIsAnotherDek {
        text.replace(DEK, &DEK.to_lowercase())
    } else {
        text
    };
    let mut response = Response::new(Full::new(text.into()));
    if !authorized || (tenth && fault == Fault::TenthIsAnError) {
        *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
    }
    if tenth && fault == Fault::TenthCloses {
        response
            .headers_mut()
            .insert("connection", "close".parse().unwrap());
    }
    Ok(response)
}

fn tenants() -> Vec<String> {
    ["tenant-a", "tenant-b"].map(String::from).to_vec()
}

fn target(address: SocketAddr, key: &str) -> Target {
    Target::new(address, "stub", key).unwrap()
}

fn run(scenario: Scenario, fault: Fault, phase: Phase) -> Outcome {
    let target = target(Stub::start(fault), "key");
    let calls = generator::prepare(&target, scenario, &tenants())
        .unwrap()
        .unwrap();
    let generator = Generator::start(&target, &calls, 5, &[None, None]).unwrap();
    generator.run(phase).unwrap()
}

fn requests(requests: u64) -> Phase {
    Phase {
        length: Length::Requests(requests),
        rate: None,
        shares_cpu: false,
        bursts: None,
    }
}

#[test]
fn every_scenario_sends_exactly_the_requests_that_were_asked_for() {
    for scenario in [
        Scenario::Wrap,
        Scenario::Unwrap,
        Scenario::BatchWrap100,
        Scenario::Mixed,
        Scenario::SecurityEvent,
    ] {
        let outcome = run(scenario, Fault::None, requests(401));
        assert_eq!(outcome.first_failure, None, "{scenario}");
        assert_eq!(
            (outcome.answered(), outcome.failed()),
            (401, 0),
            "{scenario}"
        );
    }
}

#[test]
fn a_phase_can_follow_another_on_the_same_connections() {
    let target = target(Stub::start(Fault::None), "key");
    let calls = generator::prepare(&target, Scenario::Wrap, &tenants())
        .unwrap()
        .unwrap();
    let generator = Generator::start(&target, &calls, 3, &[None]).unwrap();
    for count in [0, 1, 100] {
        assert_eq!(generator.run(requests(count)).unwrap().answered(), count);
    }
}

#[test]
fn an_error_answer_is_counted_and_shown() {
    let outcome = run(
        Scenario::SecurityEvent,
        Fault::TenthIsAnError,
        requests(100),
    );
    assert_eq!((outcome.answered(), outcome.failed()), (90, 10));
    assert_eq!(
        outcome.first_failure,
        Some(Failure::Status(500, "null".to_owned()))
    );
}

#[test]
fn a_wrong_dek_is_a_failure_although_its_status_is_200() {
    let outcome = run(Scenario::Unwrap, Fault::TenthIsAnotherDek, requests(100));
    assert_eq!((outcome.answered(), outcome.failed()), (90, 10));
    assert!(matches!(outcome.first_failure, Some(Failure::Shape(_))));
}

#[test]
fn a_connection_that_ends_is_made_anew() {
    let outcome = run(Scenario::Wrap, Fault::TenthCloses, requests(200));
    assert_eq!(outcome.answered() + outcome.failed(), 200);
    // A request that was sent while the server closed is lost; the others must get through.
    assert!(outcome.answered() >= 150, "{:?}", outcome.first_failure);
}

#[test]
fn a_wrong_api_key_is_noticed_before_the_measurement() {
    let target = target(Stub::start(Fault::None), "wrong");
    let prepared = generator::prepare(&target, Scenario::Wrap, &tenants()).unwrap();
    assert!(matches!(prepared, Err(Failure::Status(500, _))));
}

#[test]
fn nobody_at_the_address_is_an_error() {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let waited = generator::wait_until_ready(&target(address, "key"), "t", Duration::ZERO);
    assert!(matches!(waited.unwrap(), Err(Failure::Connect(_))));
}

#[test]
fn an_open_loop_sends_at_its_rate_and_counts_from_the_intended_start() {
    for shares_cpu in [false, true] {
        let phase = Phase {
            length: Length::Requests(50),
            rate: Some(1_000.0),
            shares_cpu,
            bursts: None,
        };
        let outcome = run(Scenario::Wrap, Fault::None, phase);
        assert_eq!((outcome.answered(), outcome.failed()), (50, 0));
        assert_eq!(outcome.late_us.len(), 50);
        // 25 per lane at 500 a second: the last begins after 48 ms, however quick the server is.
        assert!(outcome.ended - outcome.began >= Duration::from_millis(48));
        // Latency counts from the intended start, so lateness of the generator is part of it.
        let slowest: u64 = outcome
            .latency_us
            .iter()
            .map(hdrhistogram::Histogram::max)
            .max()
            .unwrap();
        assert!(slowest >= outcome.late_us.max());
    }
}

#[test]
fn an_open_loop_pauses_between_bursts() {
    let bursts = Bursts {
        requests: 20,
        pause_min: Duration::from_millis(20),
        pause_max: Duration::from_millis(30),
    };
    let phase = Phase {
        length: Length::Requests(60),
        rate: Some(100_000.0),
        shares_cpu: false,
        bursts: Some(bursts),
    };
    let outcome = run(Scenario::Wrap, Fault::None, phase);
    assert_eq!((outcome.answered(), outcome.failed()), (60, 0));
    // Three bursts have two pauses between them, the second of which is not the shortest.
    assert!(outcome.ended - outcome.began > Duration::from_millis(40));
}

#[test]
fn a_phase_can_be_of_a_length_in_time() {
    let phase = Phase {
        length: Length::Time(Duration::from_millis(30)),
        rate: Some(1_000.0),
        shares_cpu: false,
        bursts: None,
    };
    let outcome = run(Scenario::Wrap, Fault::None, phase);
    // By the requests' intended times, so the number is exact: 15 per lane.
    assert_eq!(outcome.answered(), 30);
}

#[test]
fn a_report_has_the_servers_cpu_time_and_all_figures_in_json() {
    let target = target(Stub::start(Fault::None), "key");
    let calls = generator::prepare(&target, Scenario::Mixed, &tenants())
        .unwrap()
        .unwrap();
    let generator = Generator::start(&target, &calls, 2, &[None]).unwrap();
    let setup = Setup::new(Scenario::Mixed, 2, 1, None);
    // The stub runs in this process, so this process is its server.
    let here = Some(std::process::id());
    let report: Report = compare::run_watched(&generator, requests(400), here, setup).unwrap();
    assert_eq!(report.requests, 400);
    let line = report.to_string();
    assert!(
        line.contains("µs CPU per request, p99 ") && !line.contains("FAILED"),
        "{line}"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert!(json["server_cpu"]["us_per_request"].as_f64().unwrap() > 0.0);
    assert!(
        !json["server_cpu"]["us_per_request_by_thread"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    assert_eq!(json["latency_us_by_kind"].as_array().unwrap().len(), 4);
}
