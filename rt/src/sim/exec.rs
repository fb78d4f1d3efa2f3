//! The simulation's tasks and its calendar.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use super::World;

type Body = Pin<Box<dyn Future<Output = ()>>>;

/// The main future's number.
const MAIN: usize = usize::MAX;

/// All spawned tasks, and which can run.
pub(super) struct Tasks {
    /// By number; never reused, so a late wake of an ended task finds nothing.
    bodies: RefCell<BTreeMap<usize, Task>>,
    next_number: Cell<usize>,
    /// Woken, not yet polled, each once; the order is that of the wakes, the draw is from all of them.
    ready: RefCell<Vec<Arc<Bell>>>,
    /// Wakers must be `Send`, so wakes come through a channel, although always from this thread.
    rung: (
        crossbeam_channel::Sender<Arc<Bell>>,
        crossbeam_channel::Receiver<Arc<Bell>>,
    ),
    main: Arc<Bell>,
    closing: Cell<bool>,
}

struct Task {
    /// Taken out while it is polled.
    body: Rc<Cell<Option<Body>>>,
}

/// One task's waker.
struct Bell {
    number: usize,
    rung: AtomicBool,
    queue: crossbeam_channel::Sender<Arc<Self>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        if !self.rung.swap(true, Ordering::Relaxed) {
            let queue = self.queue.clone();
            // Fails only after the simulation has ended.
            let _ = queue.send(self);
        }
    }
}

/// Whose turn it is.
pub(super) enum Turn<'a> {
    Main,
    Task(Running<'a>),
    Nobody,
}

/// A task that is about to be polled.
pub(super) struct Running<'a> {
    tasks: &'a Tasks,
    bell: Arc<Bell>,
    body: Rc<Cell<Option<Body>>>,
}

impl Tasks {
    pub(super) fn new() -> Self {
        let rung = crossbeam_channel::unbounded();
        let main = Arc::new(Bell {
            number: MAIN,
            rung: AtomicBool::new(true),
            queue: rung.0.clone(),
        });
        Self {
            bodies: RefCell::default(),
            next_number: Cell::new(0),
            ready: RefCell::new(vec![Arc::clone(&main)]),
            rung,
            main,
            closing: Cell::new(false),
        }
    }

    pub(super) fn main_waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.main))
    }

    pub(super) fn len(&self) -> usize {
        self.bodies.borrow().len()
    }

    pub(super) fn spawn(&self, body: Body) {
        if self.closing.get() {
            // As on the real back ends, it is dropped unpolled.
            return;
        }
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let task = Task {
            body: Rc::new(Cell::new(Some(body))),
        };
        self.bodies.borrow_mut().insert(number, task);
        let bell = Arc::new(Bell {
            number,
            rung: AtomicBool::new(true),
            queue: self.rung.0.clone(),
        });
        self.ready.borrow_mut().push(bell);
    }

    /// Draws one of those that can run.
    pub(super) fn next(&self, below: impl Fn(usize) -> usize) -> Turn<'_> {
        let mut ready = self.ready.borrow_mut();
        ready.extend(self.rung.1.try_iter());
        while !ready.is_empty() {
            let drawn = below(ready.len());
            let bell = ready.swap_remove(drawn);
            bell.rung.store(false, Ordering::Relaxed);
            if bell.number == MAIN {
                return Turn::Main;
            }
            if let Some(task) = self.bodies.borrow().get(&bell.number) {
                let body = Rc::clone(&task.body);
                return Turn::Task(Running {
                    tasks: self,
                    bell,
                    body,
                });
            }
        }
        Turn::Nobody
    }

    /// Drops all tasks, one by one, and refuses new ones.
    pub(super) fn close(&self) {
        self.closing.set(true);
        loop {
            // A statement of its own: the destructor may come back here.
            let Some((_, task)) = self.bodies.borrow_mut().pop_first() else {
                return;
            };
            drop(task);
        }
    }
}

impl Running<'_> {
    /// Polls the task. Its panic, if it is not guarded, is the caller's.
    pub(super) fn poll(self) {
        let Some(mut body) = self.body.take() else {
            return;
        };
        let waker = Waker::from(Arc::clone(&self.bell));
        if body
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            self.body.set(Some(body));
            return;
        }
        let task = self.tasks.bodies.borrow_mut().remove(&self.bell.number);
        drop(task);
        drop(body);
    }
}

/// What can be due.
pub(super) enum Event {
    Wake(Waker),
    Call(Call),
}

pub(super) type Call = Box<dyn FnOnce(&Rc<World>)>;

impl Event {
    pub(super) fn happen(self, world: &Rc<World>) {
        match self {
            Self::Wake(waker) => waker.wake(),
            Self::Call(call) => call(world),
        }
    }
}

/// The time of an event, and a number that keeps those of one time in the order in which they were added.
pub(super) type EventId = (Duration, u64);

/// The calendar.
#[derive(Default)]
pub(super) struct Events {
    due: BTreeMap<EventId, Event>,
    next_number: u64,
}

impl Events {
    pub(super) fn add(&mut self, when: Duration, event: Event) -> EventId {
        let id = (when, self.next_number);
        self.next_number += 1;
        self.due.insert(id, event);
        id
    }

    pub(super) fn cancel(&mut self, id: EventId) -> Option<Event> {
        self.due.remove(&id)
    }

    pub(super) fn next_time(&self) -> Option<Duration> {
        self.due.first_key_value().map(|((when, _), _)| *when)
    }

    pub(super) fn pop_due(&mut self, now: Duration) -> Option<Event> {
        let entry = self.due.first_entry()?;
        if entry.key().0 <= now {
            Some(entry.remove())
        } else {
            None
        }
    }
}
