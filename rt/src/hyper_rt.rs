//! hyper's own small traits over [`Rt`]: timers (without one hyper has no header timeout at all) and an executor.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::Rt;
use crate::thread_bound::ThreadBound;

/// Gives hyper the timers of a core: `http1::Builder::timer(HyperTimer::new(rt.clone()))`.
pub struct HyperTimer<R>(ThreadBound<R>);

impl<R: Rt> HyperTimer<R> {
    /// A timer for connections that stay on `rt`'s core.
    pub fn new(rt: R) -> Self {
        Self(ThreadBound::new(rt))
    }
}

impl<R: Rt> Clone for HyperTimer<R> {
    fn clone(&self) -> Self {
        Self::new(self.0.get().clone())
    }
}

impl<R> fmt::Debug for HyperTimer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperTimer").finish_non_exhaustive()
    }
}

impl<R: Rt> hyper::rt::Timer for HyperTimer<R> {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(HyperSleep::<R>(ThreadBound::new(
            self.0.get().sleep(duration),
        )))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep(deadline.saturating_duration_since(self.0.get().now()))
    }

    fn now(&self) -> Instant {
        self.0.get().now()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn hyper::rt::Sleep>>, new_deadline: Instant) {
        *sleep = self.sleep_until(new_deadline);
    }
}

/// What [`HyperTimer`] gives.
pub struct HyperSleep<R: Rt>(ThreadBound<R::Sleep>);

impl<R: Rt> fmt::Debug for HyperSleep<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperSleep").finish_non_exhaustive()
    }
}

impl<R: Rt> Future for HyperSleep<R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(self.0.get_mut()).poll(cx)
    }
}

impl<R: Rt> hyper::rt::Sleep for HyperSleep<R> {}

/// Gives hyper the tasks of a core.
#[derive(Clone, Debug)]
pub struct HyperExecutor<R>(R);

impl<R: Rt> HyperExecutor<R> {
    /// An executor that spawns on `rt`'s core.
    pub fn new(rt: R) -> Self {
        Self(rt)
    }
}

impl<R: Rt, F: Future + 'static> hyper::rt::Executor<F> for HyperExecutor<R> {
    fn execute(&self, future: F) {
        self.0.spawn(async move {
            future.await;
        });
    }
}
