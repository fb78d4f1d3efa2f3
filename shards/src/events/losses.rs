//! Events that were dropped, by tenant, until an event has told of them.

use std::collections::BTreeMap;

use crate::limits::LOST_EVENTS_TENANTS_MAX;

/// Events that were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    /// How many.
    pub(super) count: u64,
    /// When the first was, in milliseconds since 1970.
    pub(super) first_ms: i64,
    /// When the last was.
    pub(super) last_ms: i64,
}

/// All that has not been told.
#[derive(Debug, Default)]
pub(super) struct Losses {
    tenants: BTreeMap<Box<str>, Loss>,
    /// Those of tenants that found no place above.
    others: Option<Loss>,
}

impl Loss {
    fn and(self, more: Self) -> Self {
        Self {
            count: self.count.saturating_add(more.count),
            first_ms: self.first_ms.min(more.first_ms),
            last_ms: self.last_ms.max(more.last_ms),
        }
    }
}

impl Losses {
    pub(super) fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.others.is_none()
    }

    /// Remembers one more event of `tenant_id` that was dropped now.
    pub(super) fn add(&mut self, tenant_id: &str, now_ms: i64) {
        let one = Loss {
            count: 1,
            first_ms: now_ms,
            last_ms: now_ms,
        };
        if let Some(known) = self.tenants.get_mut(tenant_id) {
            *known = known.and(one);
        } else if !tenant_id.is_empty() && self.tenants.len() < LOST_EVENTS_TENANTS_MAX {
            self.tenants.insert(tenant_id.into(), one);
        } else {
            self.others = Some(self.others.map_or(one, |others| others.and(one)));
        }
    }

    /// The next that is to be told: whose, or nobody's in particular, and what. It stays until [`Self::told`].
    pub(super) fn next(&self) -> Option<(&str, Loss)> {
        let tenant = self.tenants.first_key_value();
        tenant
            .map(|(tenant_id, loss)| (&**tenant_id, *loss))
            .or_else(|| Some(("", self.others?)))
    }

    /// Forgets what [`Self::next`] gave.
    pub(super) fn told(&mut self) {
        if self.tenants.pop_first().is_none() {
            self.others = None;
        }
    }

    /// How many events they are.
    pub(super) fn count(&self) -> u64 {
        let all = self.tenants.values().chain(&self.others);
        all.fold(0, |sum, loss| sum.saturating_add(loss.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_by_tenant_and_those_of_too_many_tenants_together() {
        let mut losses = Losses::default();
        assert_eq!(losses.next(), None);
        for number in 0..LOST_EVENTS_TENANTS_MAX {
            losses.add(&format!("tenant-{number:04}"), 5);
        }
        for time in [9, 7, 8] {
            losses.add("tenant-0000", time);
            losses.add(&format!("late-{time}"), time);
        }
        assert_eq!(
            losses.count(),
            u64::try_from(LOST_EVENTS_TENANTS_MAX).unwrap() + 6
        );
        let (count, first_ms, last_ms) = (4, 5, 9);
        let first = Loss {
            count,
            first_ms,
            last_ms,
        };
        assert_eq!(losses.next(), Some(("tenant-0000", first)));
        for _ in 0..LOST_EVENTS_TENANTS_MAX {
            assert!(losses.next().is_some_and(|(tenant, _)| !tenant.is_empty()));
            losses.told();
        }
        let (count, first_ms, last_ms) = (3, 7, 9);
        let rest = Loss {
            count,
            first_ms,
            last_ms,
        };
        assert_eq!(losses.next(), Some(("", rest)));
        losses.told();
        assert!(losses.is_empty());
    }
}
