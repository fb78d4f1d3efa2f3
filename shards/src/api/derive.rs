//! `POST key/derive-with-secret-path`: derives keys from a tenant's secrets. A path that has no secret yet gets one.
//!
//! A request is answered for all of its paths or for none. What the tenant's configuration forbids is found out before
//! anything is created.

use std::{sync::Arc, time::Instant};

use tsp_rt::Rt;
use tsp_wire::{
    api::{DeriveAnswer, DeriveRequest, Derived, DerivedPath, SecretBuf},
    derive::Deriver,
    event::DATA_DERIVE,
};

use super::{Answer, Op, batch::fan_out};
use crate::{
    dek,
    error::OpError,
    limits::DERIVED_KEYS_PER_TURN,
    metrics::KeyOperation,
    secrets::{self, Creation, TenantSecret},
    shard::{Core, yield_now},
    snapshot::Tenant,
};

pub(super) async fn derive<R: Rt>(mut op: Op<'_, R>, body: &mut [u8]) -> Result<Answer, OpError> {
    let request = op.core.parser.borrow_mut().derive(body)?;
    check_size(op.core, &request)?;
    let tenant = op.tenant(request.metadata.tenant_id)?;
    let known = known_paths(&op, tenant, &request)?;
    let _place = op.core.admission.admit(&tenant.load)?;
    let (core, deadline) = (op.core, op.began + op.core.limits.batch_timeout);
    let opened = fan_out(core, &known, async |path, _| {
        path.open(core, tenant, &request, deadline).await
    })
    .await;
    let paths = opened.into_iter().collect::<Result<Vec<_>, _>>()?;
    let reporter = op.reporter(&request.metadata);
    for path in paths.iter().filter(|path| !path.secrets.is_empty()) {
        let keys = path.derivation_paths.len();
        reporter.derivation(&tenant.id, DATA_DERIVE, keys).await?;
    }
    let has_primary = tenant.primary.is_some();
    Ok(Answer::Keys(
        answer(core, has_primary, &request, &paths).await,
    ))
}

fn check_size<R: Rt>(core: &Core<R>, request: &DeriveRequest<'_>) -> Result<(), OpError> {
    let (keys_max, paths_max) = (core.limits.batch_items_max, core.limits.secret_paths_max);
    let keys = request.paths.iter().map(|(_, paths)| paths.len());
    if keys.sum::<usize>() > keys_max {
        Err(OpError::TooManyItems(keys_max))
    } else if request.paths.len() > paths_max {
        Err(OpError::TooManySecretPaths(paths_max))
    } else {
        Ok(())
    }
}

/// One secret path of a request, and the secrets that the snapshot has for it.
struct KnownPath<'a> {
    secret_path: &'a str,
    derivation_paths: &'a [&'a str],
    current: Option<Arc<TenantSecret>>,
    in_rotation: Option<Arc<TenantSecret>>,
}

/// The same path, and what its keys are derived with: the current secret first.
struct OpenPath<'a> {
    secret_path: &'a str,
    derivation_paths: &'a [&'a str],
    secrets: Vec<Derived>,
    derivers: Vec<Deriver>,
}

/// Looks all paths up. Fails if one has a secret of a config that is not active.
fn known_paths<'a, R: Rt>(
    op: &Op<'a, R>,
    tenant: &'a Tenant,
    request: &'a DeriveRequest<'_>,
) -> Result<Vec<KnownPath<'a>>, OpError> {
    let known = |secret: Option<&Arc<TenantSecret>>| {
        let known =
            secret.map(|secret| dek::read(tenant, &secret.sealed).map(|_| Arc::clone(secret)));
        known.transpose()
    };
    let mut paths = Vec::with_capacity(request.paths.len());
    for (secret_path, derivation_paths) in &request.paths {
        let secrets = &op.view.secrets;
        let path = secrets.path(&tenant.id, request.secret_type, secret_path);
        paths.push(KnownPath {
            secret_path,
            derivation_paths,
            current: known(path.and_then(|path| path.current.as_ref()))?,
            in_rotation: known(path.and_then(|path| path.in_rotation.as_ref()))?,
        });
    }
    Ok(paths)
}

impl<'a> KnownPath<'a> {
    /// Opens the path's secrets; has one created where there is none and the tenant can encrypt.
    async fn open<R: Rt>(
        &self,
        core: &Core<R>,
        tenant: &Tenant,
        request: &DeriveRequest<'_>,
        deadline: Instant,
    ) -> Result<OpenPath<'a>, OpError> {
        let mut open = OpenPath {
            secret_path: self.secret_path,
            derivation_paths: self.derivation_paths,
            secrets: Vec::with_capacity(2),
            derivers: Vec::with_capacity(2),
        };
        if self.derivation_paths.is_empty() {
            return Ok(open);
        }
        let created = match (&self.current, &tenant.primary) {
            (None, Some(_)) => {
                let (id, path) = (&tenant.id, self.secret_path);
                let secret = Creation::current(core, id, request.secret_type, path, deadline);
                Some(secret.await?)
            }
            (Some(_), _) | (None, None) => None,
        };
        let current = created.as_ref().or(self.current.as_ref());
        let in_rotation = self.in_rotation.as_ref();
        let both = [(current, true), (in_rotation, false)];
        for (known, current) in both
            .into_iter()
            .filter_map(|(known, is)| Some((known?, is)))
        {
            let deriver = secrets::open(core, tenant, known, deadline, |secret| {
                Deriver::new(secret, tenant.id.as_str(), request.derivation)
            });
            open.derivers.push(deriver.await?);
            open.secrets.push(Derived {
                secret: known.id,
                current,
            });
        }
        Ok(open)
    }
}

/// Derives all keys, with turns for the shard's other tasks in between.
async fn answer<R: Rt>(
    core: &Core<R>,
    has_primary: bool,
    request: &DeriveRequest<'_>,
    paths: &[OpenPath<'_>],
) -> SecretBuf {
    let sizes = paths.iter().map(|path| DerivedPath {
        secret_path: path.secret_path,
        derivation_paths: path.derivation_paths,
        secrets: &path.secrets,
    });
    let mut answer = DeriveAnswer::new(has_primary, request.derivation, sizes);
    let mut this_turn = 0;
    for path in paths {
        answer.begin_path(path.secret_path);
        for derivation_path in path.derivation_paths {
            answer.push_pair(derivation_path, &path.secrets, |position| {
                let deriver = path.derivers.get(position)?;
                Some(deriver.derive(derivation_path))
            });
            core.metrics
                .key_operations(KeyOperation::Derive, path.secrets.len());
            this_turn += path.secrets.len();
            if this_turn >= DERIVED_KEYS_PER_TURN {
                this_turn = 0;
                yield_now().await;
            }
        }
    }
    answer.finish()
}
