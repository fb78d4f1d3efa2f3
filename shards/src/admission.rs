//! Operations in flight, per shard and per tenant, and what is refused first.
//!
//! A request takes a place when its tenant is known and gives it back when its answer is ready. A tenant's share is
//! below the shard's, so that one tenant's hanging KMS cannot take every place.

use std::{cell::Cell, rc::Rc};

use crate::error::OpError;

/// Places of a whole shard.
#[derive(Debug)]
pub(crate) struct Admission {
    inflight: Rc<Cell<usize>>,
    inflight_max: usize,
    tenant_inflight_max: usize,
}

/// Tells this shard's tenants apart, whatever becomes of their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TenantNumber(pub(crate) u64);

impl TenantNumber {
    /// For what is done for no tenant in particular. No shard sees so many tenants.
    pub(crate) const NOBODY: Self = Self(u64::MAX);
}

/// Places that one tenant has taken on this shard. Outlives the snapshots.
#[derive(Debug)]
pub(crate) struct TenantLoad {
    pub(crate) number: TenantNumber,
    inflight: Rc<Cell<usize>>,
}

/// One request's place; given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    shard: Rc<Cell<usize>>,
    tenant: Rc<Cell<usize>>,
}

impl Admission {
    pub(crate) fn new(inflight_max: usize, tenant_inflight_max: usize) -> Self {
        Self {
            inflight: Rc::default(),
            inflight_max,
            tenant_inflight_max,
        }
    }

    /// Takes a place for a request of the tenant whose load this is.
    pub(crate) fn admit(&self, tenant: &TenantLoad) -> Result<Place, OpError> {
        if self.inflight.get() >= self.inflight_max {
            return Err(OpError::Overloaded);
        }
        if tenant.inflight.get() >= self.tenant_inflight_max {
            return Err(OpError::TenantOverloaded);
        }
        self.inflight.set(self.inflight.get() + 1);
        tenant.inflight.set(tenant.inflight.get() + 1);
        Ok(Place {
            shard: Rc::clone(&self.inflight),
            tenant: Rc::clone(&tenant.inflight),
        })
    }
}

impl TenantLoad {
    pub(crate) fn new(number: TenantNumber) -> Self {
        Self {
            number,
            inflight: Rc::default(),
        }
    }

    /// The same tenant's load, for the next snapshot's table.
    pub(crate) fn share(&self) -> Self {
        Self {
            number: self.number,
            inflight: Rc::clone(&self.inflight),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shard.set(self.shard.get().saturating_sub(1));
        self.tenant.set(self.tenant.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_cannot_take_every_place() {
        let admission = Admission::new(4, 2);
        let [slow, other, third] = [1, 2, 3].map(|number| TenantLoad::new(TenantNumber(number)));
        let held: Vec<_> = (0..2).map(|_| admission.admit(&slow).unwrap()).collect();
        assert!(matches!(
            admission.admit(&slow),
            Err(OpError::TenantOverloaded)
        ));
        assert!(matches!(
            admission.admit(&slow.share()),
            Err(OpError::TenantOverloaded)
        ));
        let others: Vec<_> = (0..2).map(|_| admission.admit(&other).unwrap()).collect();
        assert!(matches!(admission.admit(&third), Err(OpError::Overloaded)));
        drop(held);
        assert!(admission.admit(&slow).is_ok());
        drop(others);
    }
}
