//! `POST document/rekey`: unwraps an EDEK for one tenant and wraps the same DEK for another, or for the same tenant's
//! present primary config.

use std::rc::Rc;

use tsp_rt::Rt;
use tsp_wire::{
    api::wrapped,
    edek,
    event::{DATA_DECRYPT, DATA_ENCRYPT},
};

use super::{Answer, Op};
use crate::{dek, error::OpError};

pub(super) async fn rekey<R: Rt>(mut op: Op<'_, R>, body: &mut [u8]) -> Result<Answer, OpError> {
    let request = op.core.parser.borrow_mut().rekey(body)?;
    let source = op.tenant(request.metadata.tenant_id)?;
    let target = op.other_tenant(request.new_tenant_id)?;
    let config = dek::primary(target)?;
    let mut bytes = op.core.buffers.take();
    edek::decode_into(request.encrypted_document_key, &mut bytes)?;
    let edek = dek::read(source, &bytes)?;
    let _place = op.core.admission.admit(&source.load)?;
    let _target_place = match Rc::ptr_eq(source, target) {
        true => None,
        false => Some(op.core.admission.admit(&target.load)?),
    };
    let times = (op.core.rt.now(), op.deadline());
    let dek = dek::unwrap(op.core, source, &edek, times).await?;
    let rewrapped = dek::wrap(op.core, target, config, &dek, op.deadline()).await?;
    let reporter = op.reporter(&request.metadata);
    reporter
        .operation(&source.id, edek.config.id, DATA_DECRYPT)
        .await?;
    reporter
        .operation(&target.id, config.id, DATA_ENCRYPT)
        .await?;
    let memory = op.core.buffers.take_bytes();
    Ok(Answer::Keys(wrapped(memory, &dek, &rewrapped)))
}
