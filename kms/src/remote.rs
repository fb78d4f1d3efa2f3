//! The one shape of every KMS that is asked over the network.

use std::{fmt, time::SystemTime};

use tsp_wire::Dek;

use crate::{
    CredentialId, Endpoint, HttpAnswer, HttpRequest, KmsError, KmsKind, Session, Token, TokenStep,
};

/// One key at a KMS, with the credentials to use it: how to ask, and what the answers mean.
///
/// Immutable, and shared by all cores; what changes from call to call is in the [`Session`], which each core has for
/// itself, and in the [`Token`].
pub trait RemoteKms: fmt::Debug + Send + Sync {
    /// Which KMS this is.
    fn kind(&self) -> KmsKind;

    /// Where to connect.
    fn endpoint(&self) -> &Endpoint;

    /// The request that wraps `dek`. `token` is the credential's, if there is a [`RemoteKms::credential`].
    ///
    /// # Errors
    /// [`KmsError`] if no request can be right.
    fn wrap_request(
        &self,
        dek: &Dek,
        token: Option<&Token>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<HttpRequest, KmsError>;

    /// Takes the blob out of the answer to a wrap.
    ///
    /// # Errors
    /// [`KmsError`], with what the KMS said; see [`KmsError::kind`].
    fn read_wrap(&self, answer: &HttpAnswer<'_>) -> Result<Vec<u8>, KmsError>;

    /// The request that unwraps `blob`.
    ///
    /// # Errors
    /// [`KmsErrorKind::UnwrapFailed`](crate::KmsErrorKind::UnwrapFailed) if this KMS cannot have made `blob`.
    fn unwrap_request(
        &self,
        blob: &[u8],
        token: Option<&Token>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<HttpRequest, KmsError>;

    /// Takes the DEK out of the answer to an unwrap. The caller wipes the answer's body.
    ///
    /// # Errors
    /// [`KmsError`], with what the KMS said; see [`KmsError::kind`].
    fn read_unwrap(&self, answer: &HttpAnswer<'_>) -> Result<Dek, KmsError>;

    /// Names the credential that a token has to be fetched for. `None` if requests are signed with what the
    /// configuration holds.
    fn credential(&self) -> Option<CredentialId> {
        None
    }

    /// The next step towards a fresh token. `last` is the token before, which may hold what renews it; `refused` is the
    /// error with which the KMS refused it, if it did.
    ///
    /// An error of [`RemoteKms::read_token`] that asks for [`Retry::AfterNewToken`](crate::Retry::AfterNewToken) is
    /// `refused` of the next step: there may be another way to prove the credential, and if there is none, this says so.
    ///
    /// Called only where there is a [`RemoteKms::credential`].
    ///
    /// # Errors
    /// [`KmsError`] if the credential can give none.
    fn token_step(
        &self,
        last: Option<&Token>,
        refused: Option<&KmsError>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<TokenStep, KmsError> {
        let _ = (last, refused, session, now);
        Err(KmsError::without_tokens(self.kind()))
    }

    /// Takes the token out of the answer to a [`TokenStep::Call`].
    ///
    /// # Errors
    /// [`KmsError`], with what the token endpoint said.
    fn read_token(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        let _ = (answer, now);
        Err(KmsError::without_tokens(self.kind()))
    }
}
