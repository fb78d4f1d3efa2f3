//! One call to a KMS by itself, stage by stage and each stage timed: what a diagnosis is made from.
//!
//! An endpoint is trusted, spoken to and bounded exactly as a shard's own calls are. There is no pool, no breaker and no
//! second try here: a diagnosis wants to see what there is.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use tsp_kms::{Endpoint, HttpAnswer, HttpRequest};
use tsp_rt::{NetError, Rt, tls::MaybeTls};
use tsp_wire::destinations::{Destinations, Forbidden};

use crate::{
    buffers::Buffers,
    limits::Limits,
    upstream::{Answer, CallError, Dialer, client_tls, exchange, secure},
};

/// Longest time for one stage: twice what a shard allows a whole call, so that what is slow is told from what is gone.
const STAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The stages of a call, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Finding the addresses of a name.
    Resolve,
    /// Opening a TCP connection.
    Connect,
    /// The TLS handshake; there is none at an endpoint without TLS.
    Tls,
    /// From the request to the whole answer.
    Answer,
}

/// How long a stage took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Which stage.
    pub stage: Stage,
    /// Its time.
    pub took: Duration,
}

/// A stage that failed. Those before it were good.
#[derive(Clone, Debug)]
pub struct ProbeFailure {
    /// Which stage.
    pub stage: Stage,
    /// How it failed.
    pub why: ProbeError,
}

/// How a stage can fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// The network, or TLS; also a stage that took too long.
    Net(NetError),
    /// The endpoint leads to where the proxy may not connect.
    Forbidden(Forbidden),
    /// The far end does not speak HTTP.
    NotHttp,
    /// The far end closed the connection before its answer was complete.
    CutOff,
    /// The answer is longer than any real one.
    TooLong,
    /// The configured certificates are none.
    Roots,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(why) => write!(f, "{why}"),
            Self::Forbidden(why) => write!(f, "{why} ({})", why.address),
            Self::NotHttp => f.write_str("the answer is not HTTP"),
            Self::CutOff => f.write_str("the connection was closed before the answer was complete"),
            Self::TooLong => f.write_str("the answer is too long"),
            Self::Roots => f.write_str("the configured certificates cannot be read"),
        }
    }
}

impl std::error::Error for ProbeError {}

impl From<CallError> for ProbeError {
    fn from(why: CallError) -> Self {
        match why {
            CallError::Connect(why) => Self::Net(why),
            CallError::Forbidden(why) => Self::Forbidden(why),
            CallError::Late(_) => Self::Net(NetError::Timeout),
            CallError::NotHttp => Self::NotHttp,
            CallError::CutOff => Self::CutOff,
            CallError::AnswerTooLong => Self::TooLong,
            CallError::Roots => Self::Roots,
            // These come of pools and breakers, which a probe has none of.
            CallError::TooManyWaiters | CallError::Down | CallError::Broken => {
                Self::Net(NetError::Exhausted)
            }
        }
    }
}

/// Makes single calls on one core.
#[derive(Debug)]
pub struct Probe<R> {
    rt: R,
    dialer: Dialer<R>,
    answer_bytes_max: usize,
}

/// A connection that is ready for one call.
#[derive(Debug)]
pub struct Open<R: Rt> {
    rt: R,
    stream: MaybeTls<R::Stream>,
    answer_bytes_max: usize,
    /// How long it took to get here.
    pub timings: Vec<Timing>,
}

/// What came back. The body may hold a key, and is wiped.
pub struct Probed {
    answer: Answer,
    /// From the request to the whole answer.
    pub took: Duration,
}

impl Probed {
    /// The answer as [`RemoteKms`](tsp_kms::RemoteKms) reads it.
    #[must_use]
    pub fn answer(&self) -> HttpAnswer<'_> {
        self.answer.read()
    }
}

impl fmt::Debug for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probed")
            .field("answer", &self.answer)
            .field("took", &self.took)
            .finish()
    }
}

impl<R: Rt> Probe<R> {
    /// A probe on `rt`'s core, for endpoints that may lead to `destinations`.
    pub fn new(rt: R, destinations: Arc<Destinations>) -> Self {
        let answer_bytes_max = Limits::default().kms_answer_bytes_max;
        Self {
            dialer: Dialer::new(rt.clone(), destinations),
            rt,
            answer_bytes_max,
        }
    }

    /// Connects to `endpoint`, with TLS if it asks for that.
    ///
    /// # Errors
    /// The stage that failed, and the timings of those before it.
    pub async fn open(&self, endpoint: &Endpoint) -> Result<Open<R>, (Vec<Timing>, ProbeFailure)> {
        let mut timings = Vec::with_capacity(4);
        match self.open_timed(endpoint, &mut timings).await {
            Ok(stream) => Ok(Open {
                rt: self.rt.clone(),
                stream,
                answer_bytes_max: self.answer_bytes_max,
                timings,
            }),
            Err(failure) => Err((timings, failure)),
        }
    }

    async fn open_timed(
        &self,
        endpoint: &Endpoint,
        timings: &mut Vec<Timing>,
    ) -> Result<MaybeTls<R::Stream>, ProbeFailure> {
        let failed = |stage| {
            move |why: CallError| ProbeFailure {
                stage,
                why: why.into(),
            }
        };
        let tls = client_tls(endpoint).map_err(failed(Stage::Tls))?;
        let mut time = |stage, since: Instant| {
            let took = self.rt.now().saturating_duration_since(since);
            timings.push(Timing { stage, took });
        };

        let began = self.rt.now();
        let addresses = self
            .in_time(self.dialer.resolve(endpoint))
            .await
            .map_err(failed(Stage::Resolve))?;
        time(Stage::Resolve, began);

        let began = self.rt.now();
        let stream = self
            .dialer
            .connect(&addresses, 0, began + STAGE_TIMEOUT)
            .await
            .map_err(failed(Stage::Connect))?;
        time(Stage::Connect, began);

        let began = self.rt.now();
        let secured = secure(stream, tls.as_ref(), endpoint);
        let stream = self.in_time(secured).await.map_err(failed(Stage::Tls))?;
        if tls.is_some() {
            time(Stage::Tls, began);
        }
        Ok(stream)
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, NetError>>,
    ) -> Result<T, CallError> {
        Ok(tsp_rt::timeout(&self.rt, STAGE_TIMEOUT, work).await??)
    }
}

impl<R: Rt> Open<R> {
    /// Sends `request` and reads the answer.
    ///
    /// # Errors
    /// [`Stage::Answer`], with what went wrong.
    pub async fn exchange(self, request: HttpRequest) -> Result<Probed, ProbeFailure> {
        let rt = self.rt.clone();
        let exchanged = tsp_rt::timeout(&rt, STAGE_TIMEOUT, self.exchange_untimed(request)).await;
        exchanged
            .unwrap_or_else(|late| Err(CallError::Connect(late)))
            .map_err(|why| ProbeFailure {
                stage: Stage::Answer,
                why: why.into(),
            })
    }

    async fn exchange_untimed(mut self, request: HttpRequest) -> Result<Probed, CallError> {
        let (began, buffers) = (self.rt.now(), Buffers::default());
        let exchanged = exchange(
            &mut self.stream,
            request.bytes(),
            &buffers,
            self.answer_bytes_max,
        );
        let (answer, _) = exchanged.await.map_err(|unanswered| unanswered.why)?;
        Ok(Probed {
            answer,
            took: self.rt.now().saturating_duration_since(began),
        })
    }
}
