//! `POST event/security-event`: takes an event of the application's into the tenant's log. It is only queued.

use tsp_rt::Rt;
use tsp_wire::RayId;

use super::Answer;
use crate::{error::OpError, shard::Core};

pub(super) async fn security_event<R: Rt>(
    core: &Core<R>,
    ray_id: RayId,
    body: &mut [u8],
) -> Result<Answer, OpError> {
    let request = core.parser.borrow_mut().security_event(body)?;
    let reporter = core.events.reporter(&request.metadata, ray_id);
    reporter
        .application(request.event, request.timestamp_ms)
        .await?;
    Ok(Answer::Done)
}
