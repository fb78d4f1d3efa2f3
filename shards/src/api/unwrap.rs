//! `POST document/unwrap`: unwraps one EDEK.

use tsp_rt::Rt;
use tsp_wire::{api::unwrapped, edek, event::DATA_DECRYPT};

use super::{Answer, Op};
use crate::{dek, error::OpError};

pub(super) async fn unwrap<R: Rt>(mut op: Op<'_, R>, body: &mut [u8]) -> Result<Answer, OpError> {
    let request = op.core.parser.borrow_mut().unwrap(body)?;
    let tenant = op.tenant(request.metadata.tenant_id)?;
    let mut bytes = op.core.buffers.take();
    edek::decode_into(request.encrypted_document_key, &mut bytes)?;
    let edek = dek::read(tenant, &bytes)?;
    let _place = op.core.admission.admit(&tenant.load)?;
    let times = (op.core.rt.now(), op.deadline());
    let dek = dek::unwrap(op.core, tenant, &edek, times).await?;
    let reporter = op.reporter(&request.metadata);
    reporter
        .operation(&tenant.id, edek.config.id, DATA_DECRYPT)
        .await?;
    let memory = op.core.buffers.take_bytes();
    Ok(Answer::Keys(unwrapped(memory, &dek)))
}
