//! The examination of one KMS config: each check in its turn, up to the first that fails.

use std::{sync::Arc, time::Duration};

use tsp_kms::{Kms, KmsKind, LocalKms, RemoteKms};
use tsp_rt::Rt;
use tsp_shards::{Destinations, Stage, Timing};
use tsp_wire::Dek;

use super::diagnosis::{Check, Diagnosis};
use crate::kms_calls::{CallFailure, Clocks, KmsCalls, host_of};

/// The tenant that the built-in KMS wraps the throw-away value for. No real one can be called so: it is empty.
const NOBODY: &str = "";

/// One KMS config, ready to be examined.
#[derive(Debug)]
pub(crate) struct Patient {
    pub(crate) id: i64,
    /// The tenants that use it.
    pub(crate) tenants: Vec<String>,
    pub(crate) kms: Kms,
}

/// What one check came to.
#[derive(Debug)]
pub(crate) enum State {
    /// Good, and how long it took if that says something.
    Good(Option<Duration>),
    Failed(Diagnosis),
    /// Something before it failed, or the KMS gives nothing to judge by.
    Unknown,
    /// This config needs no such thing.
    NotNeeded,
}

/// What the examination of one KMS config came to.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) id: i64,
    pub(crate) kind: KmsKind,
    pub(crate) tenants: Vec<String>,
    pub(crate) checks: Vec<(Check, State)>,
}

impl Chart {
    fn new(patient: &Patient) -> Self {
        Self {
            id: patient.id,
            kind: patient.kms.kind(),
            tenants: patient.tenants.clone(),
            checks: Check::ALL.map(|check| (check, State::Unknown)).into(),
        }
    }

    fn set(&mut self, check: Check, state: State) {
        for (known, slot) in &mut self.checks {
            if *known == check {
                *slot = state;
                return;
            }
        }
    }

    /// Says that a check is good, unless more is known about it already.
    fn good(&mut self, check: Check) {
        let unknown =
            |(known, state): &(Check, State)| *known == check && matches!(state, State::Unknown);
        if self.checks.iter().any(unknown) {
            self.set(check, State::Good(None));
        }
    }

    /// Whether nothing failed. What failed keeps the rest from being looked at, so that needs no look here.
    pub(crate) fn is_healthy(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The checks that failed, and why.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (Check, &Diagnosis)> {
        self.checks.iter().filter_map(|(check, state)| match state {
            State::Failed(diagnosis) => Some((*check, diagnosis)),
            State::Good(_) | State::Unknown | State::NotNeeded => None,
        })
    }
}

/// A check that failed: what comes after it has no sense.
type Failure = (Check, Diagnosis);

/// Examines `patient` with a random value made for this one time.
pub(crate) async fn examine<R: Rt>(
    rt: R,
    patient: &Patient,
    destinations: &Arc<Destinations>,
) -> Chart {
    let mut chart = Chart::new(patient);
    let dek = Dek::fill_with(|dek| rt.random(dek));
    let examined = match &patient.kms {
        Kms::Local(kms) => examine_local(&rt, kms, &dek, &mut chart),
        Kms::Remote(kms) => {
            let examination = Examination {
                calls: KmsCalls::new(rt.clone(), &**kms, destinations),
                rt,
                kms: &**kms,
                chart: &mut chart,
            };
            examination.run(&dek).await
        }
    };
    if let Err((check, diagnosis)) = examined {
        chart.set(check, State::Failed(diagnosis));
    }
    chart
}

fn examine_local<R: Rt>(
    rt: &R,
    kms: &LocalKms,
    dek: &Dek,
    chart: &mut Chart,
) -> Result<(), Failure> {
    for check in [
        Check::Dns,
        Check::Tcp,
        Check::Tls,
        Check::Clock,
        Check::Credential,
    ] {
        chart.set(check, State::NotNeeded);
    }
    let mut nonce = [0; 12];
    rt.random(&mut nonce);
    let began = rt.now();
    let blob = kms.wrap(NOBODY, dek, nonce);
    chart.good(Check::Key);
    chart.set(Check::Wrap, State::Good(Some(rt.now() - began)));
    let began = rt.now();
    let unwrapped = kms
        .unwrap(NOBODY, &blob)
        .map_err(|why| Diagnosis::of_kms(&why))?;
    came_back(dek, &unwrapped)?;
    chart.set(Check::Unwrap, State::Good(Some(rt.now() - began)));
    Ok(())
}

fn came_back(sent: &Dek, received: &Dek) -> Result<(), Failure> {
    if sent.expose() == received.expose() {
        Ok(())
    } else {
        Err((Check::Unwrap, Diagnosis::of_another_value()))
    }
}

struct Examination<'a, R> {
    rt: R,
    kms: &'a dyn RemoteKms,
    calls: KmsCalls<'a, R>,
    chart: &'a mut Chart,
}

impl<R: Rt> Examination<'_, R> {
    async fn run(mut self, dek: &Dek) -> Result<(), Failure> {
        self.way().await?;
        if self.kms.credential().is_some() {
            let began = self.rt.now();
            let fetched = self.calls.fetch_token(None).await;
            self.seen(fetched)?;
            let took = self.rt.now() - began;
            self.chart.set(Check::Credential, State::Good(Some(took)));
        }

        let kms = self.kms;
        let wrapped = self
            .calls
            .call(
                |token, session, now| kms.wrap_request(dek, token, session, now),
                |answer| kms.read_wrap(answer),
            )
            .await;
        let wrapped = self.seen(wrapped);
        if !matches!(&wrapped, Err((check, _)) if !matches!(check, Check::Key)) {
            self.chart.good(Check::Credential);
        }
        let (blob, took) = wrapped?;
        self.chart.good(Check::Key);
        self.chart.set(Check::Wrap, State::Good(Some(took)));

        let unwrapped = self
            .calls
            .call(
                |token, session, now| kms.unwrap_request(&blob, token, session, now),
                |answer| kms.read_unwrap(answer),
            )
            .await;
        let (unwrapped, took) = self.seen(unwrapped)?;
        came_back(dek, &unwrapped)?;
        self.chart.set(Check::Unwrap, State::Good(Some(took)));
        Ok(())
    }

    /// Goes the way to the KMS once, without saying anything there.
    async fn way(&mut self) -> Result<(), Failure> {
        let endpoint = self.kms.endpoint();
        if !endpoint.tls {
            self.chart.set(Check::Tls, State::NotNeeded);
        }
        let (timings, failure) = match self.calls.probe().open(endpoint).await {
            Ok(open) => (open.timings, None),
            Err((timings, failure)) => (timings, Some(failure)),
        };
        for Timing { stage, took } in timings {
            let check = match stage {
                Stage::Resolve => Check::Dns,
                Stage::Connect => Check::Tcp,
                Stage::Tls => Check::Tls,
                Stage::Answer => continue,
            };
            self.chart.set(check, State::Good(Some(took)));
        }
        match failure {
            None => Ok(()),
            Some(failure) => Err(Diagnosis::of_probe(&failure, &host_of(endpoint))),
        }
    }

    /// What a call came to. Whatever that is, it may have shown the KMS's clock.
    fn seen<T>(&mut self, result: Result<T, CallFailure>) -> Result<T, Failure> {
        if let Some(Clocks { ours, theirs }) = self.calls.clocks.take() {
            let state = match Diagnosis::of_clock(ours, theirs) {
                None => State::Good(None),
                Some(diagnosis) => State::Failed(diagnosis),
            };
            self.chart.set(Check::Clock, state);
        }
        result.map_err(|why| match why {
            CallFailure::Kms(why) => Diagnosis::of_kms(&why),
            CallFailure::Way {
                failure,
                host,
                for_token,
            } => {
                let (check, diagnosis) = Diagnosis::of_probe(&failure, &host);
                // Whatever is wrong on that way, it is the token that does not come.
                (if for_token { Check::Credential } else { check }, diagnosis)
            }
        })
    }
}
