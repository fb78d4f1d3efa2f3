//! A value that says it is `Send` and `Sync` and holds itself to its own thread.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of the calling thread, never used again by another. Cheaper than `thread::current().id()`, which counts
/// references.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// Lets a value that belongs to one core stand where a foreign trait demands `Send + Sync`, such as hyper's timers.
///
/// hyper never moves a connection's timer off the connection's task, and our tasks never leave their thread; this type
/// checks it, so that a mistake is a panic and not a data race.
#[derive(Debug)]
pub(crate) struct ThreadBound<T> {
    value: ManuallyDrop<T>,
    owner: u64,
}

#[expect(
    unsafe_code,
    reason = "foreign traits demand Send for what never leaves its thread"
)]
// SAFETY: every access, dropping included, first checks that it happens on the owner's thread; elsewhere the value is not
// touched (an access panics, a drop leaks it).
unsafe impl<T> Send for ThreadBound<T> {}

#[expect(
    unsafe_code,
    reason = "foreign traits demand Sync for what never leaves its thread"
)]
// SAFETY: as for `Send`; a shared reference on another thread gives no access to the value.
unsafe impl<T> Sync for ThreadBound<T> {}

impl<T> ThreadBound<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: ManuallyDrop::new(value),
            owner: thread_number(),
        }
    }

    fn is_owner(&self) -> bool {
        self.owner == thread_number()
    }

    pub(crate) fn get(&self) -> &T {
        assert!(
            self.is_owner(),
            "a value of one core was used on another thread"
        );
        &self.value
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        assert!(
            self.is_owner(),
            "a value of one core was used on another thread"
        );
        &mut self.value
    }
}

impl<T> Drop for ThreadBound<T> {
    fn drop(&mut self) {
        if self.is_owner() {
            #[expect(unsafe_code, reason = "the counterpart of ManuallyDrop::new above")]
            // SAFETY: dropped here only, once, and on the thread that made it.
            unsafe {
                ManuallyDrop::drop(&mut self.value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn on_its_own_thread_the_value_is_used_and_dropped() {
        let value = Rc::new(7);
        let mut bound = ThreadBound::new(Rc::clone(&value));
        assert_eq!(**bound.get(), 7);
        assert_eq!(**bound.get_mut(), 7);
        drop(bound);
        assert_eq!(Rc::strong_count(&value), 1);
    }

    #[test]
    fn on_another_thread_it_panics_and_is_left_alone() {
        let value = Rc::new(7);
        let bound = ThreadBound::new(Rc::clone(&value));
        let used = std::thread::spawn(move || {
            let _ = bound.get();
        });
        assert!(used.join().is_err());
        assert_eq!(Rc::strong_count(&value), 2);
    }
}
