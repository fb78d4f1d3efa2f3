//! Assuming a role: `AssumeRole` of AWS STS (AWS STS API Reference; query protocol, version 2011-06-15), signed with the
//! keys of the configuration. What comes back signs the requests to KMS, or to another service.
//!
//! The role is the key owner's: its trust policy names who may assume it, and by an external id on whose behalf. So no
//! key of the owner's ever leaves the owner's account.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tsp_wire::Secret;
use zeroize::Zeroizing;

use super::{
    KIND,
    answer::{REQUEST_ID, SignedWith, refusal},
    config::{SECRET_ACCESS_KEY_BYTES_MAX, SESSION_TOKEN_BYTES_MAX, is_access_key_id},
    sigv4::{Signer, Stamp},
    xml,
};
use crate::{
    CredentialId, Endpoint, HttpAnswer, HttpRequest, KmsError, KmsOperation, Session, Token,
    TokenCall,
    config::visible,
    text::Clean,
    token::{Proof, Renewal},
};

/// A role, and who assumes it.
pub(super) struct Role {
    /// The `host` header: as it is sent, so as it is signed.
    host: String,
    endpoint: Endpoint,
    /// The keys of the configuration, for the service `sts`.
    signer: Signer,
    arn: String,
    /// The whole form: nothing in it changes from call to call.
    form: Zeroizing<Vec<u8>>,
    /// Where the session's keys will be used.
    region: String,
    /// The service that they will be used at.
    service: &'static str,
    credential: CredentialId,
}

/// The members of a role, checked.
pub(super) struct RoleMembers<'a> {
    pub(super) arn: &'a str,
    pub(super) external_id: Option<&'a str>,
    pub(super) session_name: &'a str,
    pub(super) duration_s: Option<u32>,
}

impl Role {
    /// Name of the service in a signature's scope.
    pub(super) const SERVICE: &str = "sts";

    /// Media type of the query protocol, as AWS's own clients spell it.
    const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";

    /// Sessions are renewed when 15 minutes are left, or down to 10: what AWS's own clients do.
    const RENEWAL: Renewal = Renewal {
        first: Duration::from_secs(15 * 60),
        last: Duration::from_secs(10 * 60),
    };

    pub(super) fn new(
        endpoint: Endpoint,
        signer: Signer,
        members: &RoleMembers<'_>,
        service: &'static str,
    ) -> Self {
        let duration = members.duration_s.map(|seconds| seconds.to_string());
        let fields = [
            Some(("Action", "AssumeRole")),
            Some(("Version", "2011-06-15")),
            Some(("RoleArn", members.arn)),
            Some(("RoleSessionName", members.session_name)),
            members.external_id.map(|id| ("ExternalId", id)),
            duration.as_deref().map(|text| ("DurationSeconds", text)),
        ];
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        let form = crate::form::form(&fields);
        // The region is part of the signer, and so of the token that others with this credential share.
        let credential = signer.credential(&[
            b"AWS role",
            endpoint.identity().as_bytes(),
            &form,
            service.as_bytes(),
        ]);
        Self {
            host: endpoint.host_header(),
            region: signer.region().to_owned(),
            endpoint,
            signer,
            arn: members.arn.to_owned(),
            service,
            form,
            credential,
        }
    }

    pub(super) fn credential(&self) -> CredentialId {
        self.credential
    }

    pub(super) fn call(&self, session: &mut Session, now: SystemTime) -> TokenCall {
        let stamp = Stamp::new(session.clock.correct(now));
        let signed = [
            Some(("content-type", Self::CONTENT_TYPE)),
            Some(("host", self.host.as_str())),
            Some(("x-amz-date", stamp.time())),
            self.signer
                .session_token()
                .map(|token| ("x-amz-security-token", token)),
        ];
        // Once an hour; the place in the session is for the key that signs each request to KMS.
        let authorization = self.signer.sign(&signed, &self.form, &stamp, &mut None);
        // STS answers in JSON of another shape whoever says that JSON will do.
        let unsigned = [("accept", "text/xml"), ("authorization", &authorization)];
        let headers = signed.into_iter().flatten().chain(unsigned);
        TokenCall {
            endpoint: self.endpoint.clone(),
            request: HttpRequest::post("/", headers, &self.form),
        }
    }

    pub(super) fn read(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        if answer.status != 200 {
            return Err(refusal(KmsOperation::Token, answer, SignedWith::Configured));
        }
        self.session_in(answer, now).map_err(|why| {
            KmsError::unusable(KIND, KmsOperation::Token, why)
                .with_request_id(answer.header(REQUEST_ID).and_then(Clean::request_id))
        })
    }

    fn session_in(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, &'static str> {
        let mut keys = Keys::default();
        xml::walk(answer.body, &["AssumeRoleResponse"], |path, text| {
            if let [_, result, credentials, name] = path
                && result == "AssumeRoleResult"
                && credentials == "Credentials"
            {
                keys.push(name, &text);
            }
        })
        .ok_or("its answer is not the XML of an AssumeRoleResponse")?;
        if !is_access_key_id(&keys.access_key_id) {
            return Err("its answer holds no usable AccessKeyId");
        }
        if !visible(&keys.secret_access_key, SECRET_ACCESS_KEY_BYTES_MAX) {
            return Err("its answer holds no usable SecretAccessKey");
        }
        if !visible(&keys.session_token, SESSION_TOKEN_BYTES_MAX) {
            return Err("its answer holds no usable SessionToken");
        }
        let expires_at = OffsetDateTime::parse(&keys.expiration, &Rfc3339)
            .map_err(|_| "its answer holds no usable Expiration")?;
        // Both times are the server's, so the difference is right even where our clock is not.
        let server_now = answer.server_time().unwrap_or(now);
        let life = SystemTime::from(expires_at)
            .duration_since(server_now)
            .ok()
            .filter(|life| !life.is_zero())
            .ok_or("the session in its answer is over already")?;
        let secret = |text: &mut Zeroizing<String>| Secret::new(std::mem::take(&mut **text));
        let signer = Signer::new(
            std::mem::take(&mut keys.access_key_id),
            secret(&mut keys.secret_access_key),
            Some(secret(&mut keys.session_token)),
            self.region.clone(),
            self.service,
        );
        let proof = Proof::Aws(signer);
        Ok(Token::new(
            proof,
            self.credential,
            now,
            life,
            &Self::RENEWAL,
        ))
    }
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Role")
            .field("endpoint", &self.endpoint)
            .field("arn", &self.arn)
            .field("signer", &self.signer)
            .finish_non_exhaustive()
    }
}

/// What `Credentials` holds, as far as it has been read.
struct Keys {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    session_token: Zeroizing<String>,
    expiration: String,
}

impl Default for Keys {
    /// With room for all that is taken, so that no secret leaves a copy behind by growing.
    fn default() -> Self {
        let room = |bytes_max| Zeroizing::new(String::with_capacity(bytes_max + 1));
        Self {
            access_key_id: String::new(),
            secret_access_key: room(SECRET_ACCESS_KEY_BYTES_MAX),
            session_token: room(SESSION_TOKEN_BYTES_MAX),
            expiration: String::new(),
        }
    }
}

impl Keys {
    fn push(&mut self, name: &str, text: &str) {
        let (place, bytes_max) = match name {
            "AccessKeyId" => (
                &mut self.access_key_id,
                super::config::ACCESS_KEY_ID_BYTES_MAX,
            ),
            "SecretAccessKey" => (&mut *self.secret_access_key, SECRET_ACCESS_KEY_BYTES_MAX),
            "SessionToken" => (&mut *self.session_token, SESSION_TOKEN_BYTES_MAX),
            "Expiration" => (&mut self.expiration, EXPIRATION_BYTES_MAX),
            _ => return,
        };
        if place.len() + text.len() <= bytes_max {
            place.push_str(text);
        } else {
            // What is cut must not pass for whole.
            place.clear();
            place.push(' ');
        }
    }
}

/// Longest date, in bytes: with nanoseconds and a time zone it has 35.
const EXPIRATION_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests;
