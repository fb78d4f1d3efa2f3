//! What a tenant's home shard does for all: asks the KMS once, and tells every shard.

use std::{collections::hash_map::Entry, rc::Rc, sync::Arc, time::Instant};

use tokio::sync::oneshot;
use tsp_kms::{Fingerprint, KmsError, KmsErrorKind};
use tsp_rt::Rt;
use tsp_wire::{
    KmsConfigId, TenantId,
    edek::{LeasedForm, encode_unleased},
};

use super::{
    KeyId,
    held::{Key, Lease, Life, Purpose},
};
use crate::{
    dek,
    error::OpError,
    metrics::KeyOperation,
    shard::Core,
    snapshot::{KmsHandle, Tenant},
};

/// What shards tell each other about keys.
#[derive(Debug)]
pub(crate) enum Message {
    /// To a tenant's home.
    Ask(Box<Ask>),
    /// To a shard: what came of it.
    Answer(Box<Answer>),
    /// To itself: all that was sent before has been read.
    Flush(oneshot::Sender<()>),
}

#[derive(Debug)]
pub(crate) struct Ask {
    pub(super) from: usize,
    pub(super) id: KeyId,
    pub(super) tenant: TenantId,
    pub(super) config: KmsConfigId,
    pub(super) fingerprint: Fingerprint,
    pub(super) deadline: Instant,
    pub(super) want: Want,
}

/// What is wanted of the KMS.
#[derive(Debug)]
pub(super) enum Want {
    /// The key in this blob.
    Open(Purpose, Box<[u8]>),
    /// A lease, of another number than this.
    Lease { not: i32 },
    /// That the lease of this number may still be used.
    Proof(i32),
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(super) id: KeyId,
    pub(super) generation: u64,
    pub(super) tenant: TenantId,
    pub(super) config: KmsConfigId,
    pub(super) fingerprint: Fingerprint,
    /// The lease that was to be proven, or replaced.
    pub(super) lease: Option<i32>,
    /// When the KMS's answer was asked for.
    pub(super) at: Instant,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Opened(Arc<Key>),
    Leased(Arc<Lease>),
    LeaseProven,
    /// The KMS says no.
    Refused(KmsError),
    /// The KMS could not be asked, or not now.
    Unavailable(KmsError),
    /// This shard does not know the config as the asking one does.
    ByYourself,
}

/// A shard asks.
pub(super) fn asked<R: Rt>(core: &Rc<Core<R>>, ask: Ask) {
    match core.keyring.flights.borrow_mut().entry(ask.id) {
        Entry::Vacant(flight) => drop(flight.insert(vec![ask.from])),
        Entry::Occupied(mut flight) => {
            // What comes of it goes to all shards, or to those that asked.
            let askers = flight.get_mut();
            if !askers.contains(&ask.from) {
                askers.push(ask.from);
            }
            return;
        }
    }
    let flight = Rc::clone(core);
    core.rt.spawn(async move { fly(flight, ask).await });
}

async fn fly<R: Rt>(core: Rc<Core<R>>, ask: Ask) {
    let (at, generation) = (core.rt.now(), core.keyring.generation.get());
    let lease = match ask.want {
        Want::Open(..) => None,
        Want::Lease { not: number } | Want::Proof(number) => Some(number),
    };
    let mut answer = Answer {
        id: ask.id,
        generation,
        tenant: ask.tenant.clone(),
        config: ask.config,
        fingerprint: ask.fingerprint,
        lease,
        at,
        outcome: Outcome::ByYourself,
    };
    let view = core.slot.load();
    let place = view.as_ref().and_then(|view| {
        let tenant = view.tenant(ask.tenant.as_str())?;
        let config = tenant.active(ask.config.number())?;
        (config.fingerprint == ask.fingerprint).then_some((tenant, config))
    });
    let mut for_all = false;
    if let Some((tenant, config)) = place {
        match known(&core, tenant, &ask, at) {
            Some((at, outcome)) => (answer.at, answer.outcome) = (at, outcome),
            None => {
                for_all = true;
                answer.outcome = match find_out(&core, tenant, config, &ask).await {
                    Ok(outcome) => outcome,
                    Err(OpError::Kms(why)) => match why.kind() {
                        KmsErrorKind::Unreachable | KmsErrorKind::Throttled => {
                            Outcome::Unavailable(why)
                        }
                        KmsErrorKind::WrapFailed
                        | KmsErrorKind::UnwrapFailed
                        | KmsErrorKind::Authorization
                        | KmsErrorKind::Configuration
                        | KmsErrorKind::Account => Outcome::Refused(why),
                    },
                    Err(_) => Outcome::ByYourself,
                };
            }
        }
    }
    let askers = core.keyring.flights.borrow_mut().remove(&ask.id);
    let told = if for_all {
        (0..core.keyring.peers.len()).collect()
    } else {
        askers.unwrap_or_default()
    };
    for shard in told {
        let copy = Answer {
            tenant: answer.tenant.clone(),
            outcome: answer.outcome.clone(),
            ..answer
        };
        let copy = Message::Answer(Box::new(copy));
        core.keyring.peers.deliver(&core.rt, shard, copy).await;
    }
}

/// What this shard knows already, and since when.
fn known<R: Rt>(
    core: &Core<R>,
    tenant: &Tenant,
    ask: &Ask,
    now: Instant,
) -> Option<(Instant, Outcome)> {
    let keyring = &core.keyring;
    let lease = || tenant.keys.lease(ask.config);
    match ask.want {
        Want::Open(..) => {
            let held = tenant.keys.get(&ask.id)?;
            let good = held.proof.is_good(now, &keyring.lives);
            good.then(|| (held.proof.at(), Outcome::Opened(Arc::clone(&held.key))))
        }
        Want::Lease { not } => {
            let lease = lease().filter(|lease| {
                lease.lease.number != not
                    && lease.life(now, &keyring.lives, keyring.wraps_max) == Life::Young
                    && lease.proof.is_good(now, &keyring.lives)
            })?;
            Some((lease.proof.at(), Outcome::Leased(Arc::clone(&lease.lease))))
        }
        Want::Proof(number) => {
            let lease = lease().filter(|lease| {
                lease.lease.number == number && lease.proof.is_good(now, &keyring.lives)
            })?;
            Some((lease.proof.at(), Outcome::LeaseProven))
        }
    }
}

/// Asks the KMS.
async fn find_out<R: Rt>(
    core: &Rc<Core<R>>,
    tenant: &Tenant,
    config: &KmsHandle,
    ask: &Ask,
) -> Result<Outcome, OpError> {
    match &ask.want {
        Want::Open(purpose, blob) => {
            let key = dek::unwrap_key(core, tenant, config, blob, ask.deadline).await?;
            core.metrics.key_operation(match purpose {
                Purpose::Leased => KeyOperation::LeasedKeyUnwrap,
                Purpose::Secret => KeyOperation::SecretUnwrap,
            });
            Ok(Outcome::Opened(Key::new(*purpose, key)))
        }
        Want::Lease { .. } => make(core, tenant, config, ask.deadline)
            .await
            .map(|lease| Outcome::Leased(Arc::new(lease))),
        Want::Proof(_) => {
            // Any key will do: what counts is whether this one's KMS still wraps for us.
            let throw_away = dek::generate(&core.rt);
            dek::wrap_key(core, tenant, config, &throw_away, ask.deadline).await?;
            core.metrics.key_operation(KeyOperation::LeasedKeyWrap);
            Ok(Outcome::LeaseProven)
        }
    }
}

/// Makes a lease, and has its key opened meanwhile, so that its first EDEKs open without a call, also when the KMS goes away
/// right after.
async fn make<R: Rt>(
    core: &Rc<Core<R>>,
    tenant: &Tenant,
    config: &KmsHandle,
    deadline: Instant,
) -> Result<Lease, OpError> {
    let made = core.rt.now();
    let key = dek::generate(&core.rt);
    let blob = dek::wrap_key(core, tenant, config, &key, deadline).await?;
    core.metrics.key_operation(KeyOperation::LeasedKeyWrap);
    let mut number = [0; 4];
    core.rt.random(&mut number);
    let number = (i32::from_le_bytes(number) & i32::MAX).max(1);
    let wrapped = encode_unleased(config.id, &blob);
    let open = Ask {
        from: core.keyring.peers.index,
        id: KeyId::opened(Purpose::Leased, &tenant.id, &wrapped),
        tenant: tenant.id.clone(),
        config: config.id,
        fingerprint: config.fingerprint,
        deadline: core.rt.now() + core.limits.kms_operation_timeout,
        want: Want::Open(Purpose::Leased, blob.into()),
    };
    asked(core, open);
    Ok(Lease {
        number,
        config: config.id,
        fingerprint: config.fingerprint,
        key: Key::new(Purpose::Leased, key),
        form: LeasedForm::new(config.id, number, &wrapped),
        made,
    })
}
