//! `POST event/security-event`: takes an event of the application's into the tenant's log. It is only queued.

use tsp_rt::Rt;
use tsp_wire::RayId;

use super::Answer;
use crate::{error::OpError, keys::Caller, shard::Core};

pub(super) async fn security_event<R: Rt>(
    core: &Core<R>,
    caller: &Caller,
    ray_id: RayId,
    body: &mut [u8],
) -> Result<Answer, OpError> {
    let request = core.parser.borrow_mut().security_event(body)?;
    if !caller.may_act_for(request.metadata.tenant_id) {
        return Err(OpError::OutOfScope);
    }
    let reporter = core.events.reporter(&request.metadata, ray_id);
    reporter
        .application(request.event, request.timestamp_ms)
        .await?;
    Ok(Answer::Done)
}
