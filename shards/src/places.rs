//! Who may use one of a pool's connections: a bounded number in all and per tenant, in turn between tenants.
//!
//! Waiting is first come, first served within a tenant and one by one between tenants, so that a tenant with a long
//! queue costs the others one place at a time. No tenant holds more than its share, so that a KMS that hangs for one
//! leaves connections for the rest.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use tokio::sync::oneshot;

use crate::admission::TenantNumber;

/// The places of one pool.
#[derive(Debug)]
pub(crate) struct Places(Rc<State>);

#[derive(Debug)]
struct State {
    free: Cell<usize>,
    total: usize,
    tenant_max: usize,
    waiting: Cell<usize>,
    waiters_max: usize,
    /// No tenant fills the whole queue.
    tenant_waiters_max: usize,
    tenants: RefCell<HashMap<TenantNumber, Tenant>>,
    /// Tenants that have waiters and are below their share, in turn.
    turns: RefCell<VecDeque<TenantNumber>>,
}

#[derive(Debug)]
struct Tenant {
    held: usize,
    queued: bool,
    waiters: VecDeque<oneshot::Sender<Place>>,
}

/// The right to use one connection; dropping it hands the place on.
#[derive(Debug)]
pub(crate) struct Place(Option<(Rc<State>, TenantNumber)>);

/// A place, or the wait for one. Dropping it gives it up.
#[derive(Debug)]
pub(crate) enum Turn {
    Now(Place),
    Later(oneshot::Receiver<Place>),
}

impl Turn {
    /// `None` never comes while there are places to be had.
    pub(crate) async fn place(self) -> Option<Place> {
        match self {
            Self::Now(place) => Some(place),
            Self::Later(place) => place.await.ok(),
        }
    }
}

/// More operations wait already than may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooManyWaiters;

impl Places {
    pub(crate) fn new(total: usize, tenant_max: usize, waiters_max: usize) -> Self {
        Self(Rc::new(State {
            free: Cell::new(total),
            total,
            tenant_max,
            waiting: Cell::new(0),
            waiters_max,
            tenant_waiters_max: waiters_max.div_ceil(2),
            tenants: RefCell::default(),
            turns: RefCell::default(),
        }))
    }

    /// Whether any place is taken or waited for.
    pub(crate) fn in_use(&self) -> bool {
        self.0.free.get() < self.0.total || self.0.waiting.get() > 0
    }

    /// Asks for a place for `tenant`.
    pub(crate) fn take(&self, tenant: TenantNumber) -> Result<Turn, TooManyWaiters> {
        let state = &self.0;
        let new = || Tenant {
            held: 0,
            queued: false,
            waiters: VecDeque::new(),
        };
        if state.free.get() > 0 && state.waiting.get() == 0 {
            let mut tenants = state.tenants.borrow_mut();
            let entry = tenants.entry(tenant).or_insert_with(new);
            if entry.held < state.tenant_max {
                entry.held += 1;
                state.free.set(state.free.get() - 1);
                return Ok(Turn::Now(Place(Some((Rc::clone(state), tenant)))));
            }
        }
        if state.waiting.get() >= state.waiters_max {
            state.forget_the_gone();
            if state.waiting.get() >= state.waiters_max {
                return Err(TooManyWaiters);
            }
        }
        let (give, place) = oneshot::channel();
        {
            let mut tenants = state.tenants.borrow_mut();
            let entry = tenants.entry(tenant).or_insert_with(new);
            if entry.waiters.len() >= state.tenant_waiters_max {
                return Err(TooManyWaiters);
            }
            entry.waiters.push_back(give);
        }
        state.waiting.set(state.waiting.get() + 1);
        state.queue(tenant);
        State::serve(state);
        Ok(Turn::Later(place))
    }
}

impl State {
    /// Gives `tenant` a turn if it has a use for one and has none yet.
    fn queue(&self, tenant: TenantNumber) {
        if let Some(entry) = self.tenants.borrow_mut().get_mut(&tenant)
            && !entry.queued
            && !entry.waiters.is_empty()
            && entry.held < self.tenant_max
        {
            entry.queued = true;
            self.turns.borrow_mut().push_back(tenant);
        }
    }

    /// Hands free places out, a tenant at a time.
    fn serve(state: &Rc<Self>) {
        while state.free.get() > 0 {
            let Some(tenant) = state.turns.borrow_mut().pop_front() else {
                break;
            };
            let waiter = {
                let mut tenants = state.tenants.borrow_mut();
                let Some(entry) = tenants.get_mut(&tenant) else {
                    continue;
                };
                entry.queued = false;
                let waiter = loop {
                    match entry.waiters.pop_front() {
                        None => break None,
                        Some(waiter) => {
                            state.waiting.set(state.waiting.get() - 1);
                            if !waiter.is_closed() {
                                break Some(waiter);
                            }
                        }
                    }
                };
                if waiter.is_some() {
                    entry.held += 1;
                } else if entry.held == 0 {
                    tenants.remove(&tenant);
                }
                waiter
            };
            if let Some(waiter) = waiter {
                state.free.set(state.free.get() - 1);
                // A waiter that leaves in this instant drops the place, which then comes back by the usual way.
                let unused = waiter.send(Place(Some((Rc::clone(state), tenant))));
                state.queue(tenant);
                drop(unused);
            }
        }
    }

    fn release(state: &Rc<Self>, tenant: TenantNumber) {
        state.free.set(state.free.get() + 1);
        {
            let mut tenants = state.tenants.borrow_mut();
            if let Some(entry) = tenants.get_mut(&tenant) {
                entry.held -= 1;
                if entry.held == 0 && entry.waiters.is_empty() && !entry.queued {
                    tenants.remove(&tenant);
                }
            }
        }
        state.queue(tenant);
        Self::serve(state);
    }

    fn forget_the_gone(&self) {
        let mut waiting = 0;
        for entry in self.tenants.borrow_mut().values_mut() {
            entry.waiters.retain(|waiter| !waiter.is_closed());
            waiting += entry.waiters.len();
        }
        self.waiting.set(waiting);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((state, tenant)) = self.0.take() {
            State::release(&state, tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(number: u64) -> TenantNumber {
        TenantNumber(number)
    }

    fn got(turn: &mut Turn) -> Option<Place> {
        match turn {
            Turn::Now(place) => Some(Place(place.0.take())),
            Turn::Later(place) => place.try_recv().ok(),
        }
    }

    #[test]
    fn a_tenant_gets_no_more_than_its_share() {
        let places = Places::new(4, 2, 100);
        let mut first: Vec<_> = (0..3).map(|_| places.take(tenant(1)).unwrap()).collect();
        let held: Vec<_> = first.iter_mut().map(got).collect();
        assert_eq!(held.iter().filter(|place| place.is_some()).count(), 2);
        let mut other = places.take(tenant(2)).unwrap();
        assert!(got(&mut other).is_some());
        drop(held);
        assert!(got(&mut first[2]).is_some());
        drop((first, other));
        assert!(!places.in_use());
        assert!(places.0.tenants.borrow().is_empty());
    }

    #[test]
    fn tenants_take_turns_whatever_the_length_of_their_queues() {
        let places = Places::new(1, 1, 1_000);
        let mut busy = places.take(tenant(0)).unwrap();
        let mut held = got(&mut busy);
        let mut waiting: Vec<(u64, Turn)> = Vec::new();
        waiting.extend((0..100).map(|_| (1, places.take(tenant(1)).unwrap())));
        waiting.extend((0..2).map(|_| (2, places.take(tenant(2)).unwrap())));
        let mut order = Vec::new();
        for _ in 0..6 {
            drop(held.take());
            held = waiting.iter_mut().find_map(|(number, place)| {
                let place = got(place)?;
                order.push(*number);
                Some(place)
            });
        }
        assert_eq!(order, [1, 2, 1, 2, 1, 1]);
    }

    #[test]
    fn who_gives_up_is_passed_over_and_who_comes_too_late_is_refused() {
        let places = Places::new(1, 1, 3);
        let held = got(&mut places.take(tenant(0)).unwrap());
        assert!(held.is_some());
        let mut gone: Vec<_> = (0..2).map(|_| places.take(tenant(1)).unwrap()).collect();
        assert_eq!(places.take(tenant(1)).unwrap_err(), TooManyWaiters);
        gone.push(places.take(tenant(2)).unwrap());
        assert_eq!(places.take(tenant(3)).unwrap_err(), TooManyWaiters);
        drop(gone);
        let mut patient = places.take(tenant(1)).unwrap();
        drop(held);
        assert!(got(&mut patient).is_some());
        assert!(!places.in_use());
    }
}
