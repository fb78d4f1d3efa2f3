//! The wrapper around every spawned task: a panic in it must not reach the executor.
//!
//! glommio's executor does not survive a panicking task (its thread ends, and a panic in a future's destructor aborts the
//! process), so neither polling nor dropping the inner future may unwind out of here.

use std::any::Any;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

static TASK_PANICS: AtomicU64 = AtomicU64::new(0);

/// How many tasks of this process panicked so far, on all cores.
#[must_use]
pub fn task_panics() -> u64 {
    TASK_PANICS.load(Ordering::Relaxed)
}

/// The text of a panic, for a log.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "panic without a text".to_owned()
    }
}

fn record(payload: &(dyn Any + Send)) {
    TASK_PANICS.fetch_add(1, Ordering::Relaxed);
    let thread = std::thread::current();
    tracing::error!(
        core = thread.name().unwrap_or("?"),
        "a task panicked and was dropped: {}",
        panic_text(payload)
    );
}

/// Runs `work`; a panic in it is counted and logged, and ends there.
pub(crate) fn counted(work: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
        record(payload.as_ref());
    }
}

/// A future that ends instead of panicking.
pub(crate) struct Guarded<F, K = ()> {
    /// Pinned structurally. Dropped by [`Guarded::end`] and nowhere else.
    inner: ManuallyDrop<F>,
    alive: bool,
    /// Kept as long as the inner future; dropped right after it, inside the poll that ended it.
    kept: Option<K>,
}

impl<F: Future<Output = ()>, K> Guarded<F, K> {
    pub(crate) fn new(inner: F, kept: K) -> Self {
        Self {
            inner: ManuallyDrop::new(inner),
            alive: true,
            kept: Some(kept),
        }
    }
}

impl<F, K> Guarded<F, K> {
    /// Drops the inner future in place, once, then what was kept; survives a panic of its destructor.
    fn end(&mut self) {
        if std::mem::replace(&mut self.alive, false) {
            let inner = &mut self.inner;
            #[expect(unsafe_code, reason = "a pinned field can only be dropped in place")]
            let dropped = catch_unwind(AssertUnwindSafe(|| {
                // SAFETY: `alive` was true, so this is the first drop, and it was set to false, so it is the last; the
                // value is not touched again. It is dropped where it is, as pinning demands.
                unsafe { ManuallyDrop::drop(inner) }
            }));
            if let Err(payload) = dropped {
                record(payload.as_ref());
            }
            self.kept = None;
        }
    }
}

impl<F: Future<Output = ()>, K> Future for Guarded<F, K> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        #[expect(unsafe_code, reason = "pin projection to the one field that is pinned")]
        // SAFETY: `inner` is never moved out of `self`: it is polled in place here and dropped in place by `end`.
        let this = unsafe { self.get_unchecked_mut() };
        if !this.alive {
            return Poll::Ready(());
        }
        #[expect(unsafe_code, reason = "pin projection to the one field that is pinned")]
        // SAFETY: `self` was pinned, so `inner`, a field of it, does not move until it is dropped in place.
        let inner = unsafe { Pin::new_unchecked(&mut *this.inner) };
        match catch_unwind(AssertUnwindSafe(|| inner.poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => {}
            Err(payload) => record(payload.as_ref()),
        }
        this.end();
        Poll::Ready(())
    }
}

impl<F, K> Drop for Guarded<F, K> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use super::*;

    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic!("in a destructor");
        }
    }

    fn poll_once(future: Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_panicking_task_is_ready_and_stays_ready() {
        let before = task_panics();
        let mut task = pin!(Guarded::new(async { panic!("in the middle") }, ()));
        assert_eq!(poll_once(task.as_mut()), Poll::Ready(()));
        assert_eq!(poll_once(task.as_mut()), Poll::Ready(()));
        assert!(task_panics() > before);
    }

    #[test]
    fn a_panic_in_a_destructor_does_not_leave_the_guard() {
        drop(Guarded::new(
            async move {
                let _held = PanicsOnDrop;
                std::future::pending::<()>().await;
            },
            (),
        ));
        let mut task = Box::pin(Guarded::new(
            async move {
                let _held = PanicsOnDrop;
                std::future::pending::<()>().await;
            },
            (),
        ));
        assert_eq!(poll_once(task.as_mut()), Poll::Pending);
        drop(task);
    }

    #[test]
    fn the_inner_future_is_dropped_exactly_once() {
        let held = std::rc::Rc::new(());
        let mut task = Box::pin(Guarded::new(
            {
                let held = std::rc::Rc::clone(&held);
                async move { drop(held) }
            },
            (),
        ));
        assert_eq!(std::rc::Rc::strong_count(&held), 2);
        assert_eq!(poll_once(task.as_mut()), Poll::Ready(()));
        assert_eq!(std::rc::Rc::strong_count(&held), 1);
        drop(task);
        assert_eq!(std::rc::Rc::strong_count(&held), 1);
    }
}
