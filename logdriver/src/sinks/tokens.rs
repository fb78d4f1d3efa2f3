//! Tokens for clouds' log systems: fetched when one is wanted, kept until it is time for the next.

use std::sync::Arc;

use tokio::sync::Mutex;
use tsp_kms::{CloudLogs, Endpoint, KmsError, Retry, Session, Signed, Token, TokenStep};

use crate::{
    clock,
    outbound::{Answer, Call, Client, quote},
    sink::Failure,
};

/// Steps that a token may take: signing, a call, a repair of the clock, and one to spare.
const STEPS_MAX: usize = 4;

/// A cloud's log system, and the token to write there.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) logs: CloudLogs,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    session: Session,
    token: Option<Arc<Token>>,
}

impl Tokens {
    pub(super) fn new(logs: CloudLogs) -> Self {
        Self {
            logs,
            state: Mutex::default(),
        }
    }

    /// The token, fresh; `None` if requests are signed with what the configuration holds.
    pub(super) async fn token(&self, client: &Client) -> Result<Option<Arc<Token>>, Failure> {
        let mut state = self.state.lock().await;
        let now = clock::system();
        if let Some(token) = state.token.as_ref().filter(|token| now < token.renew_at()) {
            return Ok(Some(Arc::clone(token)));
        }
        match self.fetch(client, &mut state.session).await {
            Ok(token) => {
                state.token.clone_from(&token);
                Ok(token)
            }
            // The old one serves until its end.
            Err(failure) => match &state.token {
                Some(token) if now < token.expires_at() => Ok(Some(Arc::clone(token))),
                Some(_) | None => Err(failure),
            },
        }
    }

    /// Forgets the token, which was refused.
    pub(super) async fn forget(&self) {
        self.state.lock().await.token = None;
    }

    /// Lends what is remembered between calls.
    pub(super) async fn with_session<T>(&self, lend: impl FnOnce(&mut Session) -> T) -> T {
        lend(&mut self.state.lock().await.session)
    }

    async fn fetch(
        &self,
        client: &Client,
        session: &mut Session,
    ) -> Result<Option<Arc<Token>>, Failure> {
        let mut refused: Option<KmsError> = None;
        for _ in 0..STEPS_MAX {
            let step = self
                .logs
                .token_step(refused.as_ref(), session, clock::system());
            let call = match step.map_err(|why| failure_of(&why))? {
                None => return Ok(None),
                Some(TokenStep::Call(call)) => call,
                // A millisecond of RSA.
                Some(TokenStep::Sign(sign)) => {
                    let signed = tokio::task::spawn_blocking(sign).await;
                    let signed = signed.map_err(|_| Failure::Later {
                        after: None,
                        why: "nobody signed".to_owned(),
                    })?;
                    match signed.map_err(|why| failure_of(&why))? {
                        Signed::Token(token) => return Ok(Some(Arc::new(token))),
                        Signed::Call(call) => call,
                    }
                }
            };
            let answer = client.send_for_kms(&call.endpoint, &call.request).await?;
            let read = answer.for_kms(|answer| self.logs.read_token(answer, clock::system()));
            match read {
                Ok(token) => return Ok(Some(Arc::new(token))),
                Err(why) if why.retry() == Retry::AfterNewToken => refused = Some(why),
                Err(why) if session.repair(&why) => {}
                Err(why) => return Err(failure_of(&why)),
            }
        }
        Err(Failure::Credentials {
            why: "no token after several tries".to_owned(),
        })
    }
}

/// What an error of `kms` means for a delivery.
pub(super) fn failure_of(error: &KmsError) -> Failure {
    use tsp_kms::KmsErrorKind::{
        Account, Authorization, Configuration, Throttled, Unreachable, UnwrapFailed, WrapFailed,
    };

    let code = error
        .code()
        .map_or_else(String::new, |code| format!("{code}: "));
    let why = format!("{code}{}", quote(error.sentence()));
    match (error.retry(), error.kind()) {
        (Retry::Throttled { after }, _) => Failure::Later { after, why },
        (Retry::Transient | Retry::AfterClockRepair { .. }, _) | (_, Throttled | Unreachable) => {
            Failure::Later { after: None, why }
        }
        (_, Authorization | Configuration | Account) => Failure::Credentials { why },
        (_, WrapFailed | UnwrapFailed) => Failure::Later { after: None, why },
    }
}

/// An endpoint as a URL without a path.
pub(super) fn base_url(endpoint: &Endpoint) -> String {
    let scheme = if endpoint.tls { "https" } else { "http" };
    let (host, port) = (&endpoint.host, endpoint.port);
    if host.contains(':') {
        format!("{scheme}://[{host}]:{port}")
    } else {
        format!("{scheme}://{host}:{port}")
    }
}

/// Posts JSON with a bearer token; once more with another one, if the first is refused.
pub(super) async fn bearer(
    tokens: &Tokens,
    client: &Client,
    url: &str,
    body: Vec<u8>,
) -> Result<Answer, Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let token = tokens.token(client).await?;
        let header = token.as_ref().and_then(|token| token.header());
        let header = header.ok_or_else(|| Failure::Credentials {
            why: "there is no token to write with".to_owned(),
        })?;
        let call = Call::post(url, "application/json", body.clone())?
            .gzip()
            .header("authorization", header)?;
        let answer = client.send(call).await?;
        if answer.status.as_u16() != 401 {
            return Ok(answer);
        }
        tokens.forget().await;
        if tries == 2 {
            return Ok(answer);
        }
    }
}
