//! Single calls to a remote KMS from the command line: with the token it wants, and once more where the proxy itself
//! would mend something first. No pool, no breaker: each call has a connection of its own.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tsp_kms::{
    Blame, Endpoint, HttpAnswer, HttpRequest, KmsError, KmsOperation, RemoteKms, Retry, Session,
    Signed, Token, TokenCall, TokenStep,
};
use tsp_rt::Rt;
use tsp_shards::{Destinations, Open, Probe, ProbeFailure, Probed};

/// Steps that a token may take: a refusal of one way, a repair of the clock, and some to spare.
const TOKEN_STEPS_MAX: usize = 6;

/// Calls to one KMS with one config.
#[derive(Debug)]
pub(crate) struct KmsCalls<'a, R> {
    rt: R,
    probe: Probe<R>,
    kms: &'a dyn RemoteKms,
    session: Session,
    token: Option<Token>,
    /// The last clock that was seen in an answer, and ours at that time.
    pub(crate) clocks: Option<Clocks>,
}

/// Two clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    pub(crate) ours: SystemTime,
    pub(crate) theirs: SystemTime,
}

/// Why a call brought nothing.
#[derive(Debug)]
pub(crate) enum CallFailure {
    /// Something on the way to a host, and whether it was to bring a token.
    Way {
        failure: ProbeFailure,
        host: String,
        for_token: bool,
    },
    /// What the KMS answered, or what is known before it is asked.
    Kms(KmsError),
}

impl CallFailure {
    /// Whether the same call may well succeed later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Way { .. } => true,
            Self::Kms(why) => why.retryable(),
        }
    }
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Way { failure, host, .. } => write!(f, "{host}: {}", failure.why),
            Self::Kms(why) => write!(f, "{why}"),
        }
    }
}

impl From<KmsError> for CallFailure {
    fn from(why: KmsError) -> Self {
        Self::Kms(why)
    }
}

impl<'a, R: Rt> KmsCalls<'a, R> {
    /// Calls to `kms`, whose endpoints may lead to `destinations`.
    pub(crate) fn new(rt: R, kms: &'a dyn RemoteKms, destinations: &Arc<Destinations>) -> Self {
        Self {
            probe: Probe::new(rt.clone(), Arc::clone(destinations)),
            rt,
            kms,
            session: Session::default(),
            token: None,
            clocks: None,
        }
    }

    pub(crate) fn probe(&self) -> &Probe<R> {
        &self.probe
    }

    /// One operation, and how long its last exchange took. Once more where something is mended first.
    ///
    /// # Errors
    /// [`CallFailure`]
    pub(crate) async fn call<T>(
        &mut self,
        request: impl Fn(Option<&Token>, &mut Session, SystemTime) -> Result<HttpRequest, KmsError>,
        read: impl Fn(&HttpAnswer<'_>) -> Result<T, KmsError>,
    ) -> Result<(T, Duration), CallFailure> {
        if self.kms.credential().is_some() && self.token.is_none() {
            self.fetch_token(None).await?;
        }
        let mut again = true;
        loop {
            let now = self.rt.wall_now();
            let request = request(self.token.as_ref(), &mut self.session, now)?;
            let probed = self.exchange(self.kms.endpoint(), request, false).await?;
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
                    | Retry::Later { .. }
                    | Retry::AfterNewToken => false,
                };
            if !mended {
                return Err(why.into());
            }
            again = false;
        }
    }

    /// Gets a token, for a credential that needs one.
    ///
    /// # Errors
    /// [`CallFailure`]
    pub(crate) async fn fetch_token(
        &mut self,
        mut refused: Option<KmsError>,
    ) -> Result<(), CallFailure> {
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
                | Retry::Later { .. }
                | Retry::AfterClockRepair { .. } => return Err(why.into()),
            }
        }
        Err(self
            .no_token(
                Blame::Endpoint,
                "its token endpoint asks for ever more steps",
            )
            .into())
    }

    /// Takes one step. What fails on the way to the token endpoint is the outer error.
    async fn token_by(
        &mut self,
        step: Result<TokenStep, KmsError>,
    ) -> Result<Result<Token, KmsError>, CallFailure> {
        let signed = match step {
            Err(why) => return Ok(Err(why)),
            Ok(TokenStep::Call(call)) => Ok(Signed::Call(call)),
            Ok(TokenStep::Sign(sign)) => match self.rt.offload(sign).await {
                Ok(signed) => signed,
                Err(_) => Err(self.no_token(Blame::Proxy, "nothing could be signed")),
            },
        };
        let TokenCall { endpoint, request } = match signed {
            Err(why) => return Ok(Err(why)),
            Ok(Signed::Token(token)) => return Ok(Ok(token)),
            Ok(Signed::Call(call)) => *call,
        };
        let probed = self.exchange(&endpoint, request, true).await?;
        Ok(self.kms.read_token(&probed.answer(), self.rt.wall_now()))
    }

    async fn exchange(
        &mut self,
        endpoint: &Endpoint,
        request: HttpRequest,
        for_token: bool,
    ) -> Result<Probed, CallFailure> {
        let failed = |failure| CallFailure::Way {
            failure,
            host: host_of(endpoint),
            for_token,
        };
        let open: Open<R> = self
            .probe
            .open(endpoint)
            .await
            .map_err(|(_, failure)| failed(failure))?;
        let probed = open.exchange(request).await.map_err(failed)?;
        if let Some(theirs) = probed.answer().server_time() {
            let ours = self.rt.wall_now();
            self.clocks = Some(Clocks { ours, theirs });
        }
        Ok(probed)
    }

    fn no_token(&self, blame: Blame, why: &'static str) -> KmsError {
        KmsError::unreachable(self.kms.kind(), KmsOperation::Token, Retry::No, blame, why)
    }
}

/// Host and port, for people.
pub(crate) fn host_of(endpoint: &Endpoint) -> String {
    format!("{}:{}", endpoint.host, endpoint.port)
}
