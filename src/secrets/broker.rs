//! Tenant secrets at a configuration broker, which all proxies of the vendor share.
//!
//! The broker creates where there is none, in one transaction, so an offer may be sent again when no answer came: if the
//! first was taken, the second finds it there. What its answer tells is stored for good.

use std::{sync::Arc, time::Duration};

use tsp_rt::mailbox;
use tsp_shards::SecretOffer;
use tsp_wire::{
    account::{self, RefusedSecret, SECRETS_MAX, SECRETS_PATH, SecretOutcome, SecretsAnswer},
    snapshot::TenantSecretDoc,
};

use crate::{
    config::Problem,
    secrets::keeper::OFFERS_MAX,
    source::broker::client::{Call, Client, Failure},
};

/// Longest time for one try. Two fit into the five seconds that a shard waits.
const TIMEOUT: Duration = Duration::from_millis(2_400);

/// How often an offer is sent at most.
const TRIES_MAX: usize = 2;

/// Largest answer, in bytes: everything that was offered, and what is said of it.
const ANSWER_BYTES_MAX: usize = 2 * account::REQUEST_BYTES_MAX;

// A batch of the keeper's is one request.
const _: () = assert!(OFFERS_MAX <= SECRETS_MAX);

/// Stores tenant secrets at a broker.
#[derive(Debug)]
pub(crate) struct BrokerStore {
    client: Arc<Client>,
    /// Clients with another account.
    renewals: mailbox::Receiver<Arc<Client>>,
}

impl BrokerStore {
    pub(crate) fn new(client: Arc<Client>, renewals: mailbox::Receiver<Arc<Client>>) -> Self {
        Self { client, renewals }
    }

    /// Where it stores.
    pub(crate) fn url(&self) -> &str {
        self.client.url()
    }

    /// Stores `offers` unless their places have a current secret; gives each place's, or why it has none.
    ///
    /// # Errors
    /// If nothing is known to be stored.
    pub(crate) fn take(
        &mut self,
        offers: &[SecretOffer],
    ) -> Result<Vec<Result<TenantSecretDoc, Problem>>, Problem> {
        if let Some(client) = self.renewals.try_recv() {
            self.client = client;
        }
        let problem = |why: String| Problem::new(self.client.url(), why);
        let request = account::SecretsRequest {
            secrets: offers.iter().map(to_wire).collect(),
        };
        let body = serde_json::to_vec(&request).map_err(|why| problem(why.to_string()))?;
        let answer = self.send(&body).map_err(|why| problem(why.to_string()))?;
        outcomes(&answer, offers)
            .map(|outcomes| outcomes.map(|outcome| outcome.map_err(problem)).collect())
            .ok_or_else(|| problem(Failure::Malformed("not one outcome per secret").to_string()))
    }

    fn send(&self, body: &[u8]) -> Result<SecretsAnswer, Failure> {
        let mut tries = 1;
        loop {
            let answer = self.client.call(&Call {
                method: "POST",
                path: SECRETS_PATH,
                body,
                etag: None,
                timeout: TIMEOUT,
                answer_bytes_max: ANSWER_BYTES_MAX,
            });
            match answer {
                Ok(answer) if answer.status == 200 && !answer.gzip => {
                    let read = serde_json::from_slice(&answer.body);
                    return read.map_err(|_| Failure::Malformed("not what a broker says"));
                }
                Ok(_) => return Err(Failure::Malformed("not what a broker says")),
                Err(why) if why.may_pass() && tries < TRIES_MAX => tries += 1,
                Err(why) => return Err(why),
            }
        }
    }
}

fn to_wire(offer: &SecretOffer) -> account::SecretOffer {
    account::SecretOffer {
        tenant: offer.tenant.as_str().to_owned(),
        secret_type: offer.secret_type,
        path: offer.path.to_string(),
        edek: offer.edek.clone(),
    }
}

/// What became of each offer; `None` if that is not what the answer tells.
fn outcomes<'a>(
    answer: &'a SecretsAnswer,
    offers: &'a [SecretOffer],
) -> Option<impl Iterator<Item = Result<TenantSecretDoc, String>> + 'a> {
    let is_of = |secret: &account::TenantSecret, offer: &SecretOffer| {
        secret.tenant == offer.tenant.as_str()
            && secret.secret_type == offer.secret_type
            && secret.path == *offer.path
    };
    let told = answer.secrets.iter().zip(offers);
    let sound = told.clone().all(|(outcome, offer)| match outcome {
        SecretOutcome::Created(secret) => is_of(secret, offer) && secret.edek == offer.edek,
        SecretOutcome::Existing(secret) => is_of(secret, offer),
        SecretOutcome::Refused(_) => true,
    });
    let outcomes = told.map(|(outcome, offer)| match outcome {
        SecretOutcome::Created(secret) | SecretOutcome::Existing(secret) => {
            Ok(secret.clone().into())
        }
        SecretOutcome::Refused(why) => {
            let why = match why {
                RefusedSecret::UnknownTenant => "the broker knows no such tenant (any more)",
                RefusedSecret::InvalidEdek => {
                    "the broker does not take its EDEK: its KMS config is not assigned to the tenant (any more)"
                }
                RefusedSecret::InvalidPath => "the broker takes no path as long as that",
                RefusedSecret::Unknown => {
                    "the broker refuses it for a reason that this version does not know"
                }
            };
            Err(format!("tenant {:?}: {why}", offer.tenant.as_str()))
        }
    });
    (sound && answer.secrets.len() == offers.len()).then_some(outcomes)
}

#[cfg(test)]
mod tests {
    use tsp_wire::derive::RotationStatus;

    use super::*;
    use crate::secrets::tests::offer;

    fn secret(offer: &SecretOffer, edek: &[u8]) -> account::TenantSecret {
        account::TenantSecret {
            id: 7,
            tenant: offer.tenant.as_str().to_owned(),
            secret_type: offer.secret_type,
            path: offer.path.to_string(),
            status: RotationStatus::Current,
            edek: edek.to_owned(),
        }
    }

    #[test]
    fn an_answer_is_believed_only_if_it_is_about_what_was_offered() {
        let (first, _) = offer("acme", "p", b"first");
        let (second, _) = offer("globex", "q", b"second");
        let offers = [first, second];
        let created = SecretOutcome::Created(secret(&offers[0], &offers[0].edek));
        let existing = SecretOutcome::Existing(secret(&offers[1], b"other"));
        let told = |secrets: &[SecretOutcome]| {
            let answer = SecretsAnswer {
                secrets: secrets.to_vec(),
            };
            outcomes(&answer, &offers).map(Iterator::collect::<Vec<_>>)
        };
        let sound = told(&[created.clone(), existing.clone()]).unwrap();
        assert_eq!(sound[0].as_ref().unwrap().edek, offers[0].edek);
        assert_eq!(sound[1].as_ref().unwrap().edek, b"other");
        let refused = SecretOutcome::Refused(RefusedSecret::UnknownTenant);
        let partly = told(&[refused, existing.clone()]).unwrap();
        assert!(partly[0].is_err() && partly[1].is_ok());

        assert!(told(std::slice::from_ref(&created)).is_none());
        assert!(told(&[existing.clone(), created.clone()]).is_none());
        let not_ours = SecretOutcome::Created(secret(&offers[0], b"not what was offered"));
        assert!(told(&[not_ours, existing]).is_none());
    }
}
