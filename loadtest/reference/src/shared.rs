//! A value that all of tokio's threads read and seldom one of them replaces.

use std::{
    ops::{Deref, DerefMut},
    sync::PoisonError,
};

/// The ordinary lock for that. A panic while it is held leaves the last whole value, since every change is one assignment
/// or one insertion.
#[expect(
    clippy::disallowed_types,
    reason = "sharing among threads is what the reference does and the proxy does not"
)]
#[derive(Debug, Default)]
pub(crate) struct Shared<T>(std::sync::RwLock<T>);

impl<T> Shared<T> {
    #[expect(clippy::disallowed_types, reason = "as above")]
    pub(crate) fn new(value: T) -> Self {
        Self(std::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> impl Deref<Target = T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> impl DerefMut<Target = T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
