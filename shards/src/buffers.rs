//! Memory that a shard's requests use one after another, so that the usual one allocates nothing for its bodies.

use std::{
    cell::RefCell,
    fmt,
    ops::{Deref, DerefMut},
    rc::Rc,
};

/// Most buffers that wait for their next use. More are only free at once after a crowd of requests.
const KEPT_MAX: usize = 64;

/// Largest buffer that is kept, in bytes: room for a request or an EDEK of any KMS. With [`KEPT_MAX`] it bounds what a
/// shard keeps to 256 KiB.
const KEPT_BYTES_MAX: usize = 4 << 10;

/// A shard's free buffers. They hold no secrets: who used one for a secret has wiped it.
#[derive(Clone, Default)]
pub(crate) struct Buffers(Rc<RefCell<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer, for as long as it is not dropped.
    pub(crate) fn take(&self) -> Buffer<'_> {
        Buffer {
            bytes: self.take_bytes(),
            home: self,
        }
    }

    /// The same without the way back: [`Buffers::give`].
    pub(crate) fn take_bytes(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a buffer for its next use.
    pub(crate) fn give(&self, mut bytes: Vec<u8>) {
        let mut free = self.0.borrow_mut();
        let fits = (1..=KEPT_BYTES_MAX).contains(&bytes.capacity());
        if fits && free.len() < KEPT_MAX {
            bytes.clear();
            free.push(bytes);
        }
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffers({} free)", self.0.borrow().len())
    }
}

/// A buffer that goes back to its shard when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer<'a> {
    bytes: Vec<u8>,
    home: &'a Buffers,
}

impl<'a> Buffer<'a> {
    /// Has `bytes` go to `home` in the end.
    pub(crate) fn of(bytes: Vec<u8>, home: &'a Buffers) -> Self {
        Self { bytes, home }
    }
}

impl Deref for Buffer<'_> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_and_with_its_memory() {
        let buffers = Buffers::default();
        let mut one = buffers.take();
        one.extend_from_slice(b"something");
        let place = one.as_ptr();
        drop(one);
        let again = buffers.take();
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), place);
    }

    #[test]
    fn what_a_crowd_or_a_giant_leaves_is_not_kept() {
        let buffers = Buffers::default();
        let crowd: Vec<_> = (0..2 * KEPT_MAX)
            .map(|_| Buffer::of(vec![1; 100], &buffers))
            .collect();
        drop(crowd);
        assert_eq!(buffers.0.borrow().len(), KEPT_MAX);
        buffers.0.borrow_mut().clear();
        drop(Buffer::of(vec![1; KEPT_BYTES_MAX + 1], &buffers));
        drop(buffers.take());
        assert!(buffers.0.borrow().is_empty());
    }
}
