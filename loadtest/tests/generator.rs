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
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tsp_loadtest::{
    arrivals::{Arrivals, Bursts},
    calls::Kind,
    client::{Failure, Target},
    compare,
    front::Transport,
    generator::{self, Generator, Length, Outcome, Phase},
    mix::Demand,
    report::{Report, Setup},
};
use tsp_rt::{
    Backend, CoreMain, Listener as _, Rt,
    tls::{self, ClientTls, MaybeTls, ServerTls},
};

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
    tls: Option<ServerTls>,
}

impl Stub {
    /// Serves in the background until the test process ends.
    fn start(fault: Fault) -> SocketAddr {
        Self::start_with(fault, None)
    }

    fn start_with(fault: Fault, tls: Option<ServerTls>) -> SocketAddr {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = std::net::TcpListener::bind(any).unwrap();
        let address = listener.local_addr().unwrap();
        let stub = Self {
            listener,
            fault,
            tls,
        };
        drop(tsp_rt::spawn_core(Backend::Epoll, "stub", None, stub).unwrap());
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
            let tls = self.tls.clone();
            rt.spawn(async move {
                let stream = match &tls {
                    None => MaybeTls::Plain(stream),
                    Some(tls) => match tls::accept(stream, tls).await {
                        Ok(stream) => stream.into(),
                        Err(_) => return,
                    },
                };
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
        "/api/1/document/batch-unwrap" => {
            let edeks = body["edeks"].as_object().unwrap().iter();
            assert!(edeks.clone().all(|(_, edek)| edek == EDEK));
            let keys: Vec<_> = edeks
                .map(|(id, _)| format!(r#""{id}":{{"dek":"{DEK}"}}"#))
                .collect();
            format!(r#"{{"keys":{{{}}},"failures":{{}}}}"#, keys.join(","))
        }
        "/api/1/document/rekey" if body["newTenantId"] != body["tenantId"] => wrapped,
        "/api/1/key/derive-with-secret-path" => {
            let key = "A".repeat(88);
            let key = format!(r#"{{"derivedKey":"{key}","tenantSecretId":1,"current":true}}"#);
            format!(
                r#"{{"hasPrimaryConfig":true,"derivedKeys":{{"patients":{{"patients.name":[{key}]}}}}}}"#
            )
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

fn demand(mix: &str) -> Demand {
    Demand::of(mix.parse().unwrap())
}

/// A generator for a stub that does as `fault` says.
fn generator(mix: &str, fault: Fault, connections: usize, lanes: usize) -> Generator {
    let target = target(Stub::start(fault), "key");
    let plan = generator::prepare(&target, &demand(mix), &tenants()).unwrap();
    Generator::start(
        &target,
        &Arc::new(plan.unwrap()),
        connections,
        &vec![None; lanes],
    )
    .unwrap()
}

fn run(mix: &str, fault: Fault, phase: Phase) -> Outcome {
    generator(mix, fault, 5, 2).run(phase).unwrap()
}

fn requests(requests: u64) -> Phase {
    Phase::closed(Length::Requests(requests))
}

#[test]
fn every_kind_sends_exactly_the_requests_that_were_asked_for() {
    let all = Kind::ALL.map(Kind::as_str).join(",");
    for mix in Kind::ALL
        .map(Kind::as_str)
        .into_iter()
        .chain([&*all, "mixed"])
    {
        let outcome = run(mix, Fault::None, requests(401));
        assert_eq!(outcome.first_failure, None, "{mix}");
        assert_eq!((outcome.answered(), outcome.failed()), (401, 0), "{mix}");
    }
}

#[test]
fn a_phase_can_follow_another_on_the_same_connections() {
    let generator = generator("wrap", Fault::None, 3, 1);
    for count in [0, 1, 100] {
        assert_eq!(generator.run(requests(count)).unwrap().answered(), count);
    }
    assert_eq!(generator.watch().counts(), (101, 0));
}

#[test]
fn an_error_answer_is_counted_and_shown() {
    let outcome = run("security-event", Fault::TenthIsAnError, requests(100));
    assert_eq!((outcome.answered(), outcome.failed()), (90, 10));
    assert_eq!(
        outcome.first_failure,
        Some(Failure::Status(500, "null".to_owned()))
    );
}

#[test]
fn a_wrong_dek_is_a_failure_although_its_status_is_200() {
    let outcome = run("unwrap", Fault::TenthIsAnotherDek, requests(100));
    assert_eq!((outcome.answered(), outcome.failed()), (90, 10));
    assert!(matches!(outcome.first_failure, Some(Failure::Shape(_))));
}

#[test]
fn a_connection_that_ends_is_made_anew() {
    let outcome = run("wrap", Fault::TenthCloses, requests(200));
    assert_eq!(outcome.answered() + outcome.failed(), 200);
    // A request that was sent while the server closed is lost; the others must get through.
    assert!(outcome.answered() >= 150, "{:?}", outcome.first_failure);
}

#[test]
fn a_wrong_api_key_is_noticed_before_the_measurement() {
    let target = target(Stub::start(Fault::None), "wrong");
    let prepared = generator::prepare(&target, &demand("wrap"), &tenants()).unwrap();
    assert!(matches!(prepared, Err(Failure::Status(500, _))));
}

#[test]
fn tls_is_spoken_to_who_is_trusted_and_to_nobody_else() {
    let issue = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (own, another) = (issue(), issue());
    let key = own.signing_key.serialize_pem();
    let server = ServerTls::from_pem(&own.cert.pem(), &key).unwrap();
    let address = Stub::start_with(Fault::None, Some(server));
    let trusting = |pem: &str| {
        let client = ClientTls::with_roots_pem(pem).unwrap();
        target(address, "key").with_tls(client, "localhost")
    };
    let good = trusting(&own.cert.pem());
    let plan = generator::prepare(&good, &demand("mixed"), &tenants()).unwrap();
    let generator = Generator::start(&good, &Arc::new(plan.unwrap()), 3, &[None]).unwrap();
    let outcome = generator.run(requests(100)).unwrap();
    assert_eq!(outcome.first_failure, None);
    assert_eq!(outcome.answered(), 100);

    for stranger in [trusting(&another.cert.pem()), target(address, "key")] {
        let prepared = generator::prepare(&stranger, &demand("wrap"), &tenants()).unwrap();
        assert!(prepared.is_err());
    }
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
            rate: Some(1_000.0),
            shares_cpu,
            ..requests(50)
        };
        let outcome = run("wrap", Fault::None, phase);
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
        rate: Some(100_000.0),
        bursts: Some(bursts),
        ..requests(60)
    };
    let outcome = run("wrap", Fault::None, phase);
    assert_eq!((outcome.answered(), outcome.failed()), (60, 0));
    // Three bursts have two pauses between them, the second of which is not the shortest.
    assert!(outcome.ended - outcome.began > Duration::from_millis(40));
}

#[test]
fn poisson_arrivals_come_at_their_rate_and_are_the_same_for_the_same_seed() {
    let phase = Phase {
        rate: Some(5_000.0),
        arrivals: Arrivals::Poisson,
        ..Phase::closed(Length::Time(Duration::from_millis(200)))
    };
    let counts: Vec<_> = [1, 1, 2]
        .into_iter()
        .map(|seed| run("wrap", Fault::None, Phase { seed, ..phase }).answered())
        .collect();
    assert_eq!(counts[0], counts[1]);
    // A thousand, and the deviation of a Poisson process is its root, 32.
    assert!(
        counts.iter().all(|count| (850..=1_150).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn what_is_answered_stands_in_its_slice() {
    let phase = Phase {
        rate: Some(1_000.0),
        delay: Duration::from_millis(100),
        slice: Duration::from_millis(50),
        ..requests(100)
    };
    let outcome = run("wrap", Fault::TenthIsAnError, phase);
    let slices = outcome.timeline.slices();
    // Nothing ends during the delay, and the last request begins 98 ms after it.
    assert!(slices.len() >= 4);
    assert!(slices[..2].iter().all(|slice| slice.latency_us.is_empty()));
    let answered: u64 = slices.iter().map(|slice| slice.latency_us.len()).sum();
    let failed: u64 = slices.iter().map(|slice| slice.failed).sum();
    assert_eq!((answered, failed), (90, 10));
}

#[test]
fn a_phase_can_be_of_a_length_in_time() {
    let phase = Phase {
        rate: Some(1_000.0),
        ..Phase::closed(Length::Time(Duration::from_millis(30)))
    };
    let outcome = run("wrap", Fault::None, phase);
    // By the requests' intended times, so the number is exact: 15 per lane.
    assert_eq!(outcome.answered(), 30);
}

#[test]
fn a_report_has_the_servers_cpu_time_and_all_figures_in_json() {
    let mixed = "mixed".parse().unwrap();
    let generator = generator("mixed", Fault::None, 2, 1);
    let setup = Setup::new(&mixed, Transport::Tcp, 2, 1, None, Arrivals::Constant);
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
