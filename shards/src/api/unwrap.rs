//! `POST document/unwrap`: unwraps one EDEK.

use tsp_rt::Rt;
use tsp_wire::{api::unwrapped, event::DATA_DECRYPT};

use super::{Answer, Op};
use crate::{dek, error::OpError};

pub(super) async fn unwrap<R: Rt>(mut op: Op<'_, R>, body: &mut [u8]) -> Result<Answer, OpError> {
    let request = op.core.parser.borrow_mut().unwrap(body)?;
    let tenant = op.tenant(request.metadata.tenant_id)?;
    let edek = dek::read_edek(tenant, request.encrypted_document_key)?;
    let _place = op.core.admission.admit(&tenant.load)?;
    let dek = dek::unwrap(op.core, tenant, &edek, op.deadline()).await?;
    let reporter = op.reporter(&request.metadata);
    reporter
        .operation(&tenant.id, edek.config.id, DATA_DECRYPT)
        .await?;
    Ok(Answer::Keys(unwrapped(&dek)))
}
