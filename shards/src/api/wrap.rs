//! `POST document/wrap`: makes a DEK and wraps it with the tenant's primary KMS config.

use tsp_rt::Rt;
use tsp_wire::{api::wrapped, event::DATA_ENCRYPT};

use super::{Answer, Op};
use crate::{dek, error::OpError};

pub(super) async fn wrap<R: Rt>(mut op: Op<'_, R>, body: &mut [u8]) -> Result<Answer, OpError> {
    let request = op.core.parser.borrow_mut().wrap(body)?;
    let tenant = op.tenant(request.metadata.tenant_id)?;
    let config = dek::primary(tenant)?;
    let _place = op.core.admission.admit(&tenant.load)?;
    let dek = dek::generate(&op.core.rt);
    let edek = dek::wrap(op.core, tenant, config, &dek, op.deadline()).await?;
    let reporter = op.reporter(&request.metadata);
    reporter
        .operation(&tenant.id, config.id, DATA_ENCRYPT)
        .await?;
    let memory = op.core.buffers.take_bytes();
    Ok(Answer::Keys(wrapped(memory, &dek, &edek)))
}
