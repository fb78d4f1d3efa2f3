//! The examination of one KMS config: each check in its turn, up to the first that fails.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tsp_kms::{
    Endpoint, HttpAnswer, HttpRequest, Kms, KmsError, KmsKind, KmsOperation, LocalKms, RemoteKms,
    Retry, Session, Signed, Token, TokenCall, TokenStep,
};
use tsp_rt::Rt;
use tsp_shards::{Destinations, Open, Probe, Probed, Stage, Timing};
use tsp_wire::Dek;

use super::diagnosis::{Check, Diagnosis};

/// Steps that a token may take: a refusal of one way, a repair of the clock, and some to spare.
const TOKEN_STEPS_MAX: usize = 6;

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
                probe: Probe::new(rt.clone(), Arc::clone(destinations)),
                rt,
                kms: &**kms,
                session: Session::default(),
                token: None,
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
    probe: Probe<R>,
    kms: &'a dyn RemoteKms,
    session: Session,
    token: Option<Token>,
    chart: &'a mut Chart,
}

impl<R: Rt> Examination<'_, R> {
    async fn run(mut self, dek: &Dek) -> Result<(), Failure> {
        self.way().await?;
        if self.kms.credential().is_some() {
            let began = self.rt.now();
            self.fetch_token(None).await?;
            let took = self.rt.now() - began;
            self.chart.set(Check::Credential, State::Good(Some(took)));
        }

        let kms = self.kms;
        let wrapped = self
            .call(
                |token, session, now| kms.wrap_request(dek, token, session, now),
                |answer| kms.read_wrap(answer),
            )
            .await;
        if !matches!(&wrapped, Err((check, _)) if !matches!(check, Check::Key)) {
            self.chart.good(Check::Credential);
        }
        let (blob, took) = wrapped?;
        self.chart.good(Check::Key);
        self.chart.set(Check::Wrap, State::Good(Some(took)));

        let (unwrapped, took) = self
            .call(
                |token, session, now| kms.unwrap_request(&blob, token, session, now),
                |answer| kms.read_unwrap(answer),
            )
            .await?;
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
        let (timings, failure) = match self.probe.open(endpoint).await {
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

    /// One operation, and once more where the proxy itself would mend something first.
    async fn call<T>(
        &mut self,
        request: impl Fn(Option<&Token>, &mut Session, SystemTime) -> Result<HttpRequest, KmsError>,
        read: impl Fn(&HttpAnswer<'_>) -> Result<T, KmsError>,
    ) -> Result<(T, Duration), Failure> {
        let mut again = true;
        loop {
            let now = self.rt.wall_now();
            let request = request(self.token.as_ref(), &mut self.session, now);
            let request = request.map_err(|why| Diagnosis::of_kms(&why))?;
            let probed = self.exchange(self.kms.endpoint(), request).await?;
            let why = match read(&probed.answer()) {
                Ok(value) => return Ok((value, probed.took)),
                Err(why) => why,
            };
            let mended = again
                && match why.retry() {
                    Retry::AfterClockRepair { .. } => self.session.repair(&why),
                    Retry::AfterNewToken if self.token.is_some() => {
                        self.fetch_token(Some(why.clone())).await?;
                        true
                    }
                    Retry::No
                    | Retry::Transient
                    | Retry::Throttled { .. }
                    | Retry::AfterNewToken => false,
                };
            if !mended {
                return Err(Diagnosis::of_kms(&why));
            }
            again = false;
        }
    }

    async fn exchange(
        &mut self,
        endpoint: &Endpoint,
        request: HttpRequest,
    ) -> Result<Probed, Failure> {
        let failed = |failure| Diagnosis::of_probe(&failure, &host_of(endpoint));
        let open: Open<R> = self
            .probe
            .open(endpoint)
            .await
            .map_err(|(_, failure)| failed(failure))?;
        let probed = open.exchange(request).await.map_err(failed)?;
        if let Some(server_time) = probed.answer().server_time() {
            let state = match Diagnosis::of_clock(self.rt.wall_now(), server_time) {
                None => State::Good(None),
                Some(diagnosis) => State::Failed(diagnosis),
            };
            self.chart.set(Check::Clock, state);
        }
        Ok(probed)
    }

    async fn fetch_token(&mut self, mut refused: Option<KmsError>) -> Result<(), Failure> {
        let mut last = self.token.take();
        for _ in 0..TOKEN_STEPS_MAX {
            let step = self.kms.token_step(
                last.as_ref(),
                refused.take().as_ref(),
                &mut self.session,
                self.rt.wall_now(),
            );
            let why = match self.token_by(step).await? {
                Ok(token) => {
                    self.token = Some(token);
                    return Ok(());
                }
                Err(why) => why,
            };
            match why.retry() {
                Retry::AfterNewToken => {
                    last = None;
                    refused = Some(why);
                }
                Retry::AfterClockRepair { .. } if self.session.repair(&why) => {}
                Retry::No
                | Retry::Transient
                | Retry::Throttled { .. }
                | Retry::AfterClockRepair { .. } => return Err(Diagnosis::of_kms(&why)),
            }
        }
        Err(Diagnosis::of_kms(
            &self.no_token("its token endpoint asks for ever more steps"),
        ))
    }

    /// Takes one step. What fails on the way to the token endpoint is the outer error.
    async fn token_by(
        &mut self,
        step: Result<TokenStep, KmsError>,
    ) -> Result<Result<Token, KmsError>, Failure> {
        let signed = match step {
            Err(why) => return Ok(Err(why)),
            Ok(TokenStep::Call(call)) => Ok(Signed::Call(call)),
            Ok(TokenStep::Sign(sign)) => match self.rt.offload(sign).await {
                Ok(signed) => signed,
                Err(_) => Err(self.no_token("nothing could be signed")),
            },
        };
        let TokenCall { endpoint, request } = match signed {
            Err(why) => return Ok(Err(why)),
            Ok(Signed::Token(token)) => return Ok(Ok(token)),
            Ok(Signed::Call(call)) => *call,
        };
        let probed = self.exchange(&endpoint, request).await;
        // Whatever is wrong on that way, it is the token that does not come.
        let probed = probed.map_err(|(_, diagnosis)| (Check::Credential, diagnosis))?;
        Ok(self.kms.read_token(&probed.answer(), self.rt.wall_now()))
    }

    fn no_token(&self, why: &'static str) -> KmsError {
        KmsError::unreachable(self.kms.kind(), KmsOperation::Token, Retry::No, why)
    }
}

fn host_of(endpoint: &Endpoint) -> String {
    format!("{}:{}", endpoint.host, endpoint.port)
}
