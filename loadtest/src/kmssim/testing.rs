//! What the providers' tests share: a simulator without a socket, with a clock that stands still.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::{
    exchange::{Reply, Request, Verdict},
    sim::{Answer, Clock, Plan, Sim},
    world::{Client, Sample, SampleShape, WorldDoc},
};

/// When the vectors were signed: 20260115T101530Z.
pub(crate) const VECTORS_UNIX_S: u64 = 1_768_472_130;

pub(crate) fn at(unix_s: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s)
}

/// A file of `tests/data`.
pub(crate) fn data(name: &str) -> Value {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).expect("JSON")
}

/// The text of a member that must be there.
#[track_caller]
pub(crate) fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member]
        .as_str()
        .unwrap_or_else(|| panic!("no {member} in {value}"))
}

/// One simulator under test.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) sim: Sim,
    pub(crate) clients: Vec<Client>,
}

impl Trial {
    pub(crate) fn of_world(world: &WorldDoc) -> Self {
        let clock = Clock::Frozen(at(VECTORS_UNIX_S));
        Self {
            sim: Sim::new(world.clone(), 1, clock).expect("a world"),
            clients: Vec::new(),
        }
    }

    pub(crate) fn of_sample(shape: &SampleShape) -> Self {
        let sample = Sample::new(shape);
        Self {
            clients: sample.clients,
            ..Self::of_world(&sample.world)
        }
    }

    pub(crate) fn set_time(&mut self, unix_s: u64) {
        self.sim.clock = Clock::Frozen(at(unix_s));
    }

    pub(crate) fn plan(&mut self, request: &Request) -> Plan {
        #[expect(clippy::disallowed_methods, reason = "quotas count by the real clock")]
        let (real, now) = (SystemTime::now(), std::time::Instant::now());
        self.sim.serve(request, real, now)
    }

    #[track_caller]
    pub(crate) fn send(&mut self, request: &Request) -> Reply {
        match self.plan(request).answer {
            Answer::Http(reply) => reply,
            Answer::Raw(script) => panic!("no answer but {script:?}"),
        }
    }

    /// The body of an answer that must be good.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: &Request) -> Value {
        let reply = self.send(request);
        assert_eq!(
            reply.verdict,
            Verdict::Answered,
            "{} {}",
            reply.code,
            reply.reason
        );
        assert_eq!(
            reply.status,
            200,
            "{}",
            String::from_utf8_lossy(&reply.body)
        );
        serde_json::from_slice(&reply.body).expect("JSON")
    }

    /// Code and verdict of an answer that must be none.
    #[track_caller]
    pub(crate) fn refused(&mut self, request: &Request) -> (u16, String, Verdict) {
        let reply = self.send(request);
        assert_ne!(
            reply.verdict,
            Verdict::Answered,
            "{}",
            String::from_utf8_lossy(&reply.body)
        );
        (reply.status, reply.code, reply.verdict)
    }
}

pub(crate) fn body(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).expect("JSON")
}

/// Access keys, as a signer needs them.
#[derive(Clone, Debug)]
pub(crate) struct AwsSigner {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    pub(crate) session_token: Option<String>,
    pub(crate) region: String,
    pub(crate) service: &'static str,
    pub(crate) unix_s: u64,
}

impl AwsSigner {
    pub(crate) fn sign(&self, url: &str, headers: &[(&str, &str)], body: &str) -> Request {
        let identity = Credentials::new(
            self.access_key_id.clone(),
            self.secret_access_key.clone(),
            self.session_token.clone(),
            None,
            "test",
        )
        .into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(self.service)
            .time(at(self.unix_s))
            .settings(SigningSettings::default())
            .build()
            .expect("all is given")
            .into();
        let signed_body = SignableBody::Bytes(body.as_bytes());
        let signable = SignableRequest::new("POST", url, headers.iter().copied(), signed_body)
            .expect("a request");
        let (instructions, _) = sign(signable, &params).expect("a signature").into_parts();
        let added: Vec<_> = instructions
            .headers()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let all: Vec<_> = headers
            .iter()
            .copied()
            .chain(
                added
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str())),
            )
            .collect();
        Request::made(
            Method::POST,
            url,
            &all,
            Bytes::copy_from_slice(body.as_bytes()),
        )
    }

    /// An operation of KMS.
    pub(crate) fn kms(&self, operation: &str, body: &Value) -> Request {
        let url = format!("https://kms.{}.amazonaws.com/", self.region);
        let target = format!("TrentService.{operation}");
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", target.as_str()),
        ];
        self.sign(&url, &headers, &body.to_string())
    }

    /// An operation of STS.
    pub(crate) fn sts(&self, form: &[(&str, &str)]) -> Request {
        let url = format!("https://sts.{}.amazonaws.com/", self.region);
        let headers = [(
            "content-type",
            "application/x-www-form-urlencoded; charset=utf-8",
        )];
        self.sign(&url, &headers, &encoded(form))
    }
}

pub(crate) fn encoded(form: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish()
}

/// A POST with a form.
pub(crate) fn post_form(url: &str, form: &[(&str, &str)]) -> Request {
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    Request::made(Method::POST, url, &headers, encoded(form))
}

/// A POST with JSON and a bearer token.
pub(crate) fn post_json(url: &str, token: &str, body: &Value) -> Request {
    let bearer = format!("Bearer {token}");
    let headers = [
        ("content-type", "application/json"),
        ("accept", "application/json"),
        ("authorization", bearer.as_str()),
    ];
    Request::made(Method::POST, url, &headers, body.to_string())
}
