//! `POST document/report-operations`: operations that a client did by itself with a key it had cached.

use tsp_rt::Rt;
use tsp_wire::{
    RayId,
    event::{DATA_DECRYPT, DATA_ENCRYPT},
};

use super::Answer;
use crate::{error::OpError, keys::Caller, shard::Core};

pub(super) async fn report_operations<R: Rt>(
    core: &Core<R>,
    caller: &Caller,
    ray_id: RayId,
    body: &mut [u8],
) -> Result<Answer, OpError> {
    let request = core.parser.borrow_mut().report_operations(body)?;
    if !caller.may_act_for(request.metadata.tenant_id) {
        return Err(OpError::OutOfScope);
    }
    let reporter = core.events.reporter(&request.metadata, ray_id);
    for (_, counts) in &request.operations {
        for (event, count) in [(DATA_ENCRYPT, counts.wraps), (DATA_DECRYPT, counts.unwraps)] {
            if count > 0 {
                reporter.reported(event, count).await?;
            }
        }
    }
    Ok(Answer::Done)
}
