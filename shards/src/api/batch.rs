//! `POST document/batch-wrap` and `document/batch-unwrap`: many keys of one tenant, with failures per item.
//!
//! Only a bounded number of a batch's items is under way at a time, so that a batch of any size passes with few
//! connections and file descriptors.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Instant};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tsp_rt::Rt;
use tsp_wire::{
    api::BatchAnswer,
    edek,
    event::{DATA_DECRYPT, DATA_ENCRYPT},
};

use super::{Answer, Op};
use crate::{
    dek,
    error::OpError,
    limits::BATCH_ITEMS_PER_TURN,
    shard::{Core, yield_now},
};

pub(super) async fn batch_wrap<R: Rt>(
    mut op: Op<'_, R>,
    body: &mut [u8],
) -> Result<Answer, OpError> {
    let request = op.core.parser.borrow_mut().batch_wrap(body)?;
    let ids = &request.document_ids;
    check_size(op.core, ids.len())?;
    let tenant = op.tenant(request.metadata.tenant_id)?;
    let config = dek::primary(tenant)?;
    let _place = op.core.admission.admit(&tenant.load)?;
    let reporter = op.reporter(&request.metadata);
    let (core, deadline) = (op.core, op.began + op.core.limits.batch_timeout);
    let results = fan_out(core, ids, async |_, _| {
        let dek = dek::generate(&core.rt);
        let edek = dek::wrap(core, tenant, config, &dek, deadline).await?;
        reporter
            .operation(&tenant.id, config.id, DATA_ENCRYPT)
            .await?;
        Ok((dek, edek))
    })
    .await;
    let mut answer = BatchAnswer::with_capacity(ids.len());
    for (id, result) in ids.iter().zip(results) {
        match result {
            Ok((dek, edek)) => answer.push_wrapped(id, &dek, &edek),
            Err(why) => push_failure(&mut answer, id, &why),
        }
    }
    Ok(Answer::Keys(answer.finish()))
}

pub(super) async fn batch_unwrap<R: Rt>(
    mut op: Op<'_, R>,
    body: &mut [u8],
) -> Result<Answer, OpError> {
    let request = op.core.parser.borrow_mut().batch_unwrap(body)?;
    let items = &request.edeks;
    check_size(op.core, items.len())?;
    let tenant = op.tenant(request.metadata.tenant_id)?;
    let _place = op.core.admission.admit(&tenant.load)?;
    let reporter = op.reporter(&request.metadata);
    let (core, deadline) = (op.core, op.began + op.core.limits.batch_timeout);
    let results = fan_out(core, items, async |(_, edek): &(_, &str), now| {
        let mut bytes = core.buffers.take();
        edek::decode_into(edek, &mut bytes)?;
        let edek = dek::read(tenant, &bytes)?;
        let dek = dek::unwrap(core, tenant, &edek, (now, deadline)).await?;
        reporter
            .operation(&tenant.id, edek.config.id, DATA_DECRYPT)
            .await?;
        Ok(dek)
    })
    .await;
    let mut answer = BatchAnswer::with_capacity(items.len());
    for ((id, _), result) in items.iter().zip(results) {
        match result {
            Ok(dek) => answer.push_unwrapped(id, &dek),
            Err(why) => push_failure(&mut answer, id, &why),
        }
    }
    Ok(Answer::Keys(answer.finish()))
}

fn check_size<R: Rt>(core: &Core<R>, items: usize) -> Result<(), OpError> {
    let max = core.limits.batch_items_max;
    if items > max {
        Err(OpError::TooManyItems(max))
    } else {
        Ok(())
    }
}

fn push_failure(answer: &mut BatchAnswer, id: &str, why: &OpError) {
    let error = why.response();
    answer.push_failure(id, error.code, &error.message);
}

/// Does `work` for every item, a bounded number at a time, and gives the results in the items' order. What the time was
/// when the task last had its turn goes to `work`, too: it is not read anew for each item.
pub(super) async fn fan_out<R: Rt, I, T>(
    core: &Core<R>,
    items: &[I],
    work: impl AsyncFn(&I, Instant) -> Result<T, OpError>,
) -> Vec<Result<T, OpError>> {
    let work = &work;
    let begin = |(index, item), now| async move { (index, work(item, now).await) };
    let mut results = Vec::new();
    results.resize_with(items.len(), || None);
    let (mut done, mut put) = (0_usize, |(index, result): (usize, _)| {
        if let Some(place) = results.get_mut(index) {
            *place = Some(result);
        }
    });
    let mut left = items.iter().enumerate();
    let mut under_way = FuturesUnordered::new();
    // An item that needs no KMS is done by its first poll, and leaves its place to the next one.
    let mut spare = None;
    let mut now = core.rt.now();
    loop {
        let next = (under_way.len() < core.limits.batch_fanout_max)
            .then(|| left.next())
            .flatten();
        if let Some(item) = next {
            let mut place = match spare.take() {
                None => Box::pin(begin(item, now)),
                Some(mut place) => {
                    Pin::set(&mut place, begin(item, now));
                    place
                }
            };
            match poll_fn(|cx| Poll::Ready(place.as_mut().poll(cx))).await {
                Poll::Pending => {
                    under_way.push(place);
                    continue;
                }
                Poll::Ready(result) => {
                    put(result);
                    spare = Some(place);
                }
            }
        } else {
            match under_way.next().await {
                None => break,
                Some(result) => put(result),
            }
            now = core.rt.now();
        }
        done += 1;
        if done.is_multiple_of(BATCH_ITEMS_PER_TURN) {
            yield_now().await;
            now = core.rt.now();
            while let Some(Some(result)) = under_way.next().now_or_never() {
                put(result);
                done += 1;
            }
        }
    }
    results.into_iter().flatten().collect()
}
