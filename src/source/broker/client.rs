//! One request to the broker at a time, on the calling thread: by TLS, with a token of its own, within bounds.
//!
//! A connection is made for each: there is one request in ten minutes, and TLS sessions resume.

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, Uri, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tsp_rt::{Rt, tls::ClientTls};
use tsp_wire::account::{
    ErrorAnswer,
    env::ServiceAccount,
    token::{self, CLOCK_ERROR_S_MAX},
};

use crate::ask;

/// Longest time for a connection, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest head of an answer, in bytes. hyper's minimum is 8 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Longest piece of an error answer that is repeated in the log, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// A broker, and who asks it.
pub(crate) struct Client {
    account: ServiceAccount,
    tls: Option<ClientTls>,
    host: String,
    port: u16,
    authority: String,
    /// The broker's clock less this machine's, in seconds; 0 while they agree.
    clock_offset_s: AtomicI64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.account.broker_url)
    }
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) body: &'a [u8],
    /// Of the state that is known.
    pub(crate) etag: Option<&'a str>,
    /// Longest time for all of it.
    pub(crate) timeout: Duration,
    /// Largest answer as it travels.
    pub(crate) answer_bytes_max: usize,
}

/// An answer of 200 or 304.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) etag: Option<String>,
    pub(crate) gzip: bool,
    pub(crate) body: Vec<u8>,
}

/// Why there is none. The text says whose fault that is.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection, or it broke.
    Way(String),
    /// The account was refused although the clocks agree, or nobody knows whether they do.
    Refused { theirs: Option<SystemTime> },
    /// The account was refused, and the clocks differ by so many seconds.
    Clock { theirs: SystemTime, ahead_s: i64 },
    /// The broker answered that it cannot.
    Status { status: u16, message: String },
    /// The answer is none.
    Malformed(&'static str),
    /// This process cannot ask.
    Own(String),
}

impl Failure {
    /// Whether the same request may well succeed a moment later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Way(_) => true,
            Self::Status { status, .. } => *status >= 500,
            Self::Refused { .. } | Self::Clock { .. } | Self::Malformed(_) | Self::Own(_) => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: &SystemTime| {
            OffsetDateTime::from(*time)
                .format(&Rfc3339)
                .unwrap_or_default()
        };
        match self {
            Self::Way(why) => write!(
                f,
                "the broker cannot be reached: {why}; it, or the network to it, is at fault"
            ),
            Self::Refused { theirs: None } => f.write_str(
                "the broker refuses the service account: it was revoked, or is of another broker; the broker's log has \
                 the reason",
            ),
            Self::Refused {
                theirs: Some(theirs),
            } => write!(
                f,
                "the broker refuses the service account: it was revoked, or is of another broker. It is not the clock: \
                 the broker's says {}, and so does this machine's. The broker's log has the reason",
                time(theirs)
            ),
            Self::Clock { theirs, ahead_s } => write!(
                f,
                "the broker refuses the service account: its clock says {}, which is {} s {} of this machine's; or the \
                 account was revoked. The broker's log has the reason",
                time(theirs),
                ahead_s.unsigned_abs(),
                if *ahead_s > 0 { "ahead" } else { "behind" }
            ),
            Self::Status { status, message } if *status >= 500 => {
                write!(f, "the broker is at fault: it answers {status} {message:?}")
            }
            Self::Status { status, message } => write!(
                f,
                "the broker answers {status} {message:?}: CONFIG_BROKER_URL may lead to something else, or the broker is \
                 of another version"
            ),
            Self::Malformed(what) => write!(
                f,
                "the broker's answer is of no use ({what}): CONFIG_BROKER_URL may lead to something else"
            ),
            Self::Own(why) => write!(f, "the broker cannot be asked: {why}"),
        }
    }
}

impl Client {
    /// `roots` replaces the public authorities.
    ///
    /// # Errors
    /// If the account's URL is none.
    pub(crate) fn new(account: ServiceAccount, roots: Option<ClientTls>) -> Result<Self, String> {
        let uri: Uri = account
            .broker_url
            .parse()
            .map_err(|_| "is no URL".to_owned())?;
        let authority = uri.authority().ok_or("has no host")?.to_string();
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let tls = https.then(|| roots.unwrap_or_else(ClientTls::public));
        Ok(Self {
            host: host.to_owned(),
            port,
            authority,
            tls,
            account,
            clock_offset_s: AtomicI64::new(0),
        })
    }

    pub(crate) fn account(&self) -> &ServiceAccount {
        &self.account
    }

    pub(crate) fn url(&self) -> &str {
        &self.account.broker_url
    }

    /// The time, by the broker's clock where this machine's is known to be wrong.
    pub(crate) fn now(&self) -> SystemTime {
        #[expect(
            clippy::disallowed_methods,
            reason = "threads of the control plane, on which no core runs"
        )]
        let now = SystemTime::now();
        self.corrected(now)
    }

    fn corrected(&self, now: SystemTime) -> SystemTime {
        let offset = self.clock_offset_s.load(Ordering::Relaxed);
        let by = Duration::from_secs(offset.unsigned_abs());
        let corrected = if offset < 0 {
            now.checked_sub(by)
        } else {
            now.checked_add(by)
        };
        corrected.unwrap_or(now)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`Failure`]
    pub(crate) fn call(&self, call: &Call<'_>) -> Result<Answered, Failure> {
        tsp_rt::run_here(|rt| async move {
            let asked = tsp_rt::timeout(&rt, call.timeout, self.ask(&rt, call)).await;
            asked.unwrap_or_else(|_| {
                let seconds = call.timeout.as_secs_f32();
                Err(Failure::Way(format!("no whole answer within {seconds} s")))
            })
        })
        .unwrap_or_else(|why| Err(Failure::Own(why.to_string())))
    }

    /// Asks; once more if a clock was to blame.
    async fn ask<R: Rt>(&self, rt: &R, call: &Call<'_>) -> Result<Answered, Failure> {
        match self.exchange(rt, call).await {
            Err(Failure::Clock { theirs, ahead_s }) => {
                let now = rt.wall_now();
                let offset = seconds_of(theirs) - seconds_of(now);
                let used = if offset.abs() > CLOCK_ERROR_S_MAX {
                    offset
                } else {
                    0
                };
                self.clock_offset_s.store(used, Ordering::Relaxed);
                let answered = self.exchange(rt, call).await;
                match &answered {
                    Ok(_) => tracing::warn!(
                        offset_s = offset,
                        "this machine's clock is wrong, or the broker's: they differ by {} s. Requests to the broker \
                         carry its time",
                        offset.unsigned_abs()
                    ),
                    // Whatever it was, it was not the clock.
                    Err(Failure::Refused { .. }) => return Err(Failure::Clock { theirs, ahead_s }),
                    Err(_) => {}
                }
                answered
            }
            asked => asked,
        }
    }

    async fn exchange<R: Rt>(&self, rt: &R, call: &Call<'_>) -> Result<Answered, Failure> {
        let request = self.request(rt, call)?;
        let to = (self.host.as_str(), self.port);
        let connecting = ask::connect(rt, to, self.tls.as_ref(), CONNECT_TIMEOUT);
        let connecting = tsp_rt::timeout(rt, CONNECT_TIMEOUT, connecting);
        let stream = connecting.await.and_then(|connected| connected);
        let stream = stream.map_err(|why| Failure::Way(why.to_string()))?;
        let broken = |why: hyper::Error| Failure::Way(why.to_string());
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        rt.spawn(async move {
            // What breaks a connection is told to the call that is on it.
            drop(connection.await);
        });
        let answer = sender.send_request(request).await.map_err(broken)?;
        self.read(rt, call, answer).await
    }

    fn request<R: Rt>(&self, rt: &R, call: &Call<'_>) -> Result<Request<Full<Bytes>>, Failure> {
        let own = |why: &str| Failure::Own(why.to_owned());
        let mut id = [0; token::ID_BYTES];
        getrandom::fill(&mut id).map_err(|_| own("no random numbers"))?;
        let signed = token::Request {
            method: call.method,
            path: call.path,
            body: call.body,
        };
        let now_s = seconds_of(self.corrected(rt.wall_now()));
        let account = &self.account;
        let token = token::sign(account.id, &account.signing_key, &signed, now_s, id)
            .ok_or_else(|| own("no token can be signed"))?;
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        // Snapshots are large; what else is answered is not unpacked here, whatever stands before the broker.
        request = if call.body.is_empty() {
            request.header(header::ACCEPT_ENCODING, "gzip")
        } else {
            request.header(header::CONTENT_TYPE, "application/json")
        };
        if let Some(etag) = call.etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let body = Full::new(Bytes::copy_from_slice(call.body));
        request
            .body(body)
            .map_err(|_| own("no request can be made"))
    }

    async fn read<R: Rt>(
        &self,
        rt: &R,
        call: &Call<'_>,
        answer: Response<Incoming>,
    ) -> Result<Answered, Failure> {
        let (head, body) = answer.into_parts();
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        let status = head.status.as_u16();
        let theirs = text(header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        if status == 401 {
            let ours = self.corrected(rt.wall_now());
            let ahead = theirs.map(|theirs| (theirs, seconds_of(theirs) - seconds_of(ours)));
            return Err(match ahead {
                Some((theirs, ahead_s)) if ahead_s.abs() > CLOCK_ERROR_S_MAX => {
                    Failure::Clock { theirs, ahead_s }
                }
                _ => Failure::Refused { theirs },
            });
        }
        let body = Limited::new(body, call.answer_bytes_max).collect().await;
        let body = body.map_err(|why| match why.downcast_ref::<hyper::Error>() {
            Some(broken) => Failure::Way(broken.to_string()),
            None => Failure::Malformed("too large"),
        })?;
        let body = Vec::from(body.to_bytes());
        if status != 200 && status != 304 {
            let message = serde_json::from_slice::<ErrorAnswer>(&body);
            let message = message.map(|answer| answer.message).unwrap_or_default();
            let message = message.chars().take(SHOWN_CHARS_MAX).collect();
            return Err(Failure::Status { status, message });
        }
        let gzip = match text(header::CONTENT_ENCODING) {
            None | Some("identity") => false,
            Some("gzip") => true,
            Some(_) => return Err(Failure::Malformed("a coding that nobody asked for")),
        };
        Ok(Answered {
            status,
            etag: text(header::ETAG).map(str::to_owned),
            gzip,
            body,
        })
    }
}

fn seconds_of(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}
