//! One HTTP request of the control plane's to somebody else's server, on a connection of its own: for what is asked seldom.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Uri,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tsp_rt::{
    NetError, Rt,
    tls::{self, ClientTls, MaybeTls},
};
use tsp_wire::Secret;

/// Largest head of an answer, in bytes. hyper's minimum is 8 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Where to ask.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    tls: Option<ClientTls>,
    host: String,
    port: u16,
    authority: String,
    path: String,
    headers: Arc<[Credential]>,
}

/// A header that goes along with every question, such as an API key.
#[derive(Debug)]
pub(crate) struct Credential {
    name: HeaderName,
    value: Secret<String>,
}

impl Credential {
    /// `None` if the value cannot stand in a header, or the header is one that the request itself has.
    pub(crate) fn new(name: HeaderName, value: Secret<String>) -> Option<Self> {
        let own = [
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::CONTENT_TYPE,
            header::HOST,
            header::TRANSFER_ENCODING,
        ];
        let is_valid = HeaderValue::from_str(value.expose()).is_ok() && !own.contains(&name);
        is_valid.then_some(Self { name, value })
    }
}

/// What to ask.
#[derive(Debug)]
pub(crate) struct Question {
    /// A body with its type, which makes it a POST; a GET otherwise.
    pub(crate) body: Option<(&'static str, Bytes)>,
    /// Longest time for all of it.
    pub(crate) timeout: Duration,
    /// Largest body of the answer, in bytes.
    pub(crate) answer_bytes_max: usize,
}

impl Target {
    /// What `url` names; `path` if it has none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn new(url: &str, path: &str) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "is no URL")?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err("begins with neither http:// nor https://"),
        };
        let authority = uri.authority().ok_or("has no host")?;
        // A user before it, which nobody is shown, is no part of the `Host` header.
        let named = authority.as_str().rsplit('@').next().unwrap_or_default();
        let host = authority.host().trim_start_matches('[');
        Ok(Self {
            tls: https.then(ClientTls::public),
            host: host.trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(if https { 443 } else { 80 }),
            authority: named.to_owned(),
            path: match uri.path() {
                "" | "/" => path.to_owned(),
                given => given.to_owned(),
            },
            headers: Arc::default(),
        })
    }

    /// Whether what is sent can be read on the way.
    pub(crate) fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Its name or address, and its port if it was named.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// The same, trusting `roots` instead of the public authorities.
    pub(crate) fn trusting(self, roots: ClientTls) -> Self {
        let tls = self.tls.map(|_| roots);
        Self { tls, ..self }
    }

    /// The same, with these headers.
    pub(crate) fn with_headers(self, headers: Vec<Credential>) -> Self {
        let headers = headers.into();
        Self { headers, ..self }
    }

    /// Asks. Gives the body of an answer that says that all is well.
    ///
    /// # Errors
    /// Why there is none, in words for a person.
    pub(crate) async fn ask<R: Rt>(&self, rt: &R, question: &Question) -> Result<Bytes, String> {
        let asked = tsp_rt::timeout(rt, question.timeout, self.exchange(rt, question)).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {:?}", question.timeout)))
    }

    async fn exchange<R: Rt>(&self, rt: &R, question: &Question) -> Result<Bytes, String> {
        let to = (self.host.as_str(), self.port);
        let stream = connect(rt, to, self.tls.as_ref(), question.timeout).await;
        let stream = stream.map_err(|why| why.to_string())?;
        let broken = |why: hyper::Error| why.to_string();
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        rt.spawn(async move {
            // What breaks a connection is told to the request on it.
            drop(connection.await);
        });
        let (request, body) = match &question.body {
            None => (Request::get(&self.path), Bytes::new()),
            Some((kind, body)) => {
                let request = Request::post(&self.path).header(header::CONTENT_TYPE, *kind);
                (request, body.clone())
            }
        };
        let mut request = request.header(header::HOST, &self.authority);
        for Credential { name, value } in &*self.headers {
            let value = HeaderValue::from_str(value.expose()).map(|mut value| {
                value.set_sensitive(true);
                value
            });
            request = request.header(name, value.map_err(|why| why.to_string())?);
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|why| why.to_string())?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), question.answer_bytes_max).collect();
        let body = body.await.map_err(|why| why.to_string())?.to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            Err(format!("the answer is {status}"))
        }
    }
}

/// A connection to `host`, by TLS if there is one, to the first of its addresses that takes it.
///
/// # Errors
/// Why none did.
pub(crate) async fn connect<R: Rt>(
    rt: &R,
    (host, port): (&str, u16),
    tls: Option<&ClientTls>,
    timeout: Duration,
) -> Result<MaybeTls<R::Stream>, NetError> {
    let addresses: Vec<SocketAddr> = rt.resolve(host, port).await?;
    let mut failed = NetError::Unresolved;
    // Time for each, so that the first that is silent does not keep the others from being tried.
    let tries = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    for address in addresses {
        match rt.connect(address, timeout / tries).await {
            Ok(stream) => {
                return Ok(match tls {
                    None => MaybeTls::Plain(stream),
                    Some(tls) => tls::connect(stream, tls, host).await?.into(),
                });
            }
            Err(why) => failed = why,
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_leave_out_port_and_path() {
        let target = Target::new("http://[::1]:9000", "/metrics").unwrap();
        let all = (
            &*target.host,
            target.port,
            &*target.authority,
            &*target.path,
        );
        assert_eq!(all, ("::1", 9000, "[::1]:9000", "/metrics"));
        let target = Target::new("https://otel.example/in", "/v1/traces").unwrap();
        assert_eq!(
            (target.port, &*target.path, target.tls.is_some()),
            (443, "/in", true)
        );
        let target = Target::new("http://me:secret@otel.example:4318", "/").unwrap();
        assert_eq!(target.authority, "otel.example:4318");
        assert!(Target::new("localhost:9000", "/").is_err());
        assert!(Target::new("ftp://localhost", "/").is_err());
    }
}
