//! [`Rt`] in simulation: one thread, virtual time, a network in memory, everything in an order drawn from a seed.
//!
//! The same seed gives the same run, to the byte, as long as the code under test asks nothing else for the time, for
//! randomness or for the order of a `HashMap`, and starts no thread. (rustls does ask: with TLS, runs with one seed agree in
//! what happens but not in every length.) A failing run names its seed:
//!
//! ```
//! use std::time::Duration;
//! use tsp_rt::{Listener, Rt, sim};
//!
//! sim::for_seeds(20, |seed| {
//!     sim::Sim::new(seed).run(async |rt| {
//!         let mut listener = rt.bind("10.0.0.2:443".parse().unwrap()).unwrap();
//!         let address = listener.local_addr().unwrap();
//!         let (near, far) = (rt.connect(address, Duration::from_secs(1)), listener.accept());
//!         let near = near.await.unwrap();
//!         let (far, peer) = far.await.unwrap();
//!         drop((near, far, peer));
//!     });
//! });
//! ```
//!
//! - **Order.** Each step polls one of the tasks that can run, drawn at random.
//! - **Time.** A step takes one microsecond; when nothing can run, the clock jumps to the next timer or packet. The wall
//!   clock starts at [`WALL_EPOCH`].
//! - **Failure.** A panic in any task fails the run, unless [`Sim::catch_task_panics`] is set. So does a deadlock (nothing
//!   can run and nothing is due) and running past a bound of steps.
//! - **Network.** See [`SimNet`].
//!
//! Its randomness is predictable. Only dev-dependencies may switch the feature on.

mod exec;
mod net;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use rand_chacha::{ChaCha8Rng, ChaCha20Rng};
use rand_core::{Rng, SeedableRng};

use crate::guard::{Guarded, panic_text};
use crate::{NetError, Rt};

use exec::{Events, Tasks, Turn};
pub use net::{Connecting, Cut, CutWith, Direction, Drip, Link, SimListener, SimNet, SimStream};

/// Where the wall clock of every simulation starts: 2026-01-01T00:00:00Z, after the Unix epoch.
pub const WALL_EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// What a step costs: about what polling a task costs. It also lets a loop that yields until a time see the time pass.
const STEP_TIME: Duration = Duration::from_micros(1);

/// Steps after which a run is taken to be caught in a loop: some seconds of the machine's time.
const STEPS_MAX: u64 = 10_000_000;

/// Longest sleep that is added to a time; more is forever.
const SLEEP_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The address of a handle that was given none.
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// Calls `run` with `count` seeds, from zero. `TSP_SIM_SEED=n` in the environment runs that seed alone, to look into a
/// failure; `TSP_SIM_SEEDS=n` runs as many seeds as that.
///
/// # Panics
/// If a run does, and if a variable is not a number.
pub fn for_seeds(count: u64, run: impl Fn(u64)) {
    #[expect(clippy::expect_used, reason = "a test's own environment")]
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a seed is a number"))
    };
    if let Some(seed) = number("TSP_SIM_SEED") {
        run(seed);
        return;
    }
    for seed in 0..number("TSP_SIM_SEEDS").unwrap_or(count) {
        run(seed);
    }
}

/// One run to be.
#[derive(Debug, Clone)]
pub struct Sim {
    seed: u64,
    steps_max: u64,
    catch_task_panics: bool,
    short_transfers: bool,
}

impl Sim {
    /// A run whose order, latencies and random bytes follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            steps_max: STEPS_MAX,
            catch_task_panics: false,
            short_transfers: true,
        }
    }

    /// Steps after which the run is taken to be caught in a loop. Ten million if not set.
    #[must_use]
    pub fn steps_max(mut self, steps: u64) -> Self {
        self.steps_max = steps;
        self
    }

    /// Counts and logs a panic of a task, as the real back ends do, instead of failing the run. For tests of that.
    #[must_use]
    pub fn catch_task_panics(mut self) -> Self {
        self.catch_task_panics = true;
        self
    }

    /// Reads and writes take as many bytes as they can. If not set, every fourth is cut short at random, as TCP may.
    #[must_use]
    pub fn whole_transfers(mut self) -> Self {
        self.short_transfers = false;
        self
    }

    /// Runs `main` to its end and returns what it returns; the tasks it leaves behind are dropped.
    ///
    /// # Panics
    /// With the seed in the text: if `main` or a task panics, on a deadlock, and after too many steps.
    pub fn run<T, F: Future<Output = T>>(self, main: impl FnOnce(SimRt) -> F) -> T {
        let seed = self.seed;
        let world = Rc::new(World::new(self));
        let rt = SimRt {
            world: Rc::clone(&world),
            host: HOST,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| world.run(main(rt))));
        // In any case, since tasks hold the world that holds them.
        let cleared = catch_unwind(AssertUnwindSafe(|| world.clear()));
        match outcome.and_then(|value| cleared.map(|()| value)) {
            Ok(value) => value,
            #[expect(clippy::panic, reason = "a simulation fails its test by panicking")]
            Err(payload) => panic!(
                "simulation with seed {seed} failed at {:?}: {} (TSP_SIM_SEED={seed} repeats it)",
                world.elapsed.get(),
                panic_text(payload.as_ref())
            ),
        }
    }
}

/// All of a simulation.
struct World {
    config: Sim,
    /// The monotonic clock's zero. Any instant will do: only differences are ever seen.
    base: Instant,
    elapsed: Cell<Duration>,
    steps: Cell<u64>,
    /// Draws the order, latencies and faults.
    dice: RefCell<ChaCha8Rng>,
    /// What [`Rt::random`] gives; apart from the dice, so that asking for a key does not change the order.
    keys: RefCell<ChaCha20Rng>,
    tasks: Tasks,
    events: RefCell<Events>,
    net: RefCell<net::State>,
}

impl World {
    fn new(config: Sim) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "an arbitrary zero, never compared with the real clock"
        )]
        let base = Instant::now();
        Self {
            base,
            elapsed: Cell::new(Duration::ZERO),
            steps: Cell::new(0),
            dice: RefCell::new(ChaCha8Rng::seed_from_u64(config.seed)),
            keys: RefCell::new(ChaCha20Rng::seed_from_u64(config.seed)),
            tasks: Tasks::new(),
            events: RefCell::default(),
            net: RefCell::default(),
            config,
        }
    }

    fn run<T>(self: &Rc<Self>, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        let waker = self.tasks.main_waker();
        loop {
            self.let_happen();
            match self.tasks.next(|count| self.below(count)) {
                Turn::Main => {
                    self.step();
                    if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker))
                    {
                        return value;
                    }
                }
                Turn::Task(task) => {
                    self.step();
                    task.poll();
                }
                Turn::Nobody => self.jump(),
            }
        }
    }

    /// All that is due by now.
    fn let_happen(self: &Rc<Self>) {
        loop {
            // A statement of its own: what happens may add to the calendar.
            let due = self.events.borrow_mut().pop_due(self.elapsed.get());
            let Some(event) = due else { return };
            self.step();
            event.happen(self);
        }
    }

    fn step(&self) {
        let steps = self.steps.get() + 1;
        assert!(
            steps <= self.config.steps_max,
            "no end after {} steps: a loop that never waits?",
            self.config.steps_max
        );
        self.steps.set(steps);
        self.elapsed.set(self.elapsed.get() + STEP_TIME);
    }

    /// Nothing can run: on to the next event.
    fn jump(&self) {
        #[expect(clippy::panic, reason = "a simulation fails its test by panicking")]
        let Some(when) = self.events.borrow().next_time() else {
            panic!(
                "deadlock: nothing can run and nothing is due; {} tasks wait",
                self.tasks.len()
            );
        };
        self.elapsed.set(when.max(self.elapsed.get()));
    }

    /// Drops what is left, tasks first: their destructors may still use the network.
    fn clear(&self) {
        self.tasks.close();
        let events = std::mem::take(&mut *self.events.borrow_mut());
        drop(events);
        let net = std::mem::take(&mut *self.net.borrow_mut());
        drop(net);
    }

    /// A number below `bound`, drawn; zero if `bound` is.
    fn below(&self, bound: usize) -> usize {
        if bound < 2 {
            return 0;
        }
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        // The bias of the remainder is of no matter here.
        usize::try_from(self.dice.borrow_mut().next_u64() % bound).unwrap_or(0)
    }

    fn duration(&self, range: &RangeInclusive<Duration>) -> Duration {
        let span = range.end().saturating_sub(*range.start());
        let nanos = usize::try_from(span.as_nanos())
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        *range.start() + Duration::from_nanos(u64::try_from(self.below(nanos)).unwrap_or(0))
    }

    /// How many bytes of `count` a read or write moves.
    fn transfer(&self, count: usize) -> usize {
        if self.config.short_transfers && count > 1 && self.below(4) == 0 {
            1 + self.below(count)
        } else {
            count
        }
    }
}

/// A core in the simulation, and the way to all its controls. Clones are handles to the same simulation.
///
/// The simulation has one pool of tasks. To run several shards, give each a handle.
#[derive(Clone)]
pub struct SimRt {
    world: Rc<World>,
    host: IpAddr,
}

impl fmt::Debug for SimRt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimRt")
            .field("seed", &self.world.config.seed)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl SimRt {
    /// A handle whose connections come from `host`. The first handle's come from 10.0.0.1.
    #[must_use]
    pub fn on_host(&self, host: IpAddr) -> Self {
        Self {
            world: Rc::clone(&self.world),
            host,
        }
    }

    /// Listens on `address`; port 0 is a free port. Several listeners may share an address, as with `SO_REUSEPORT`: each
    /// connection goes to one of them, drawn.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if no port is free.
    pub fn bind(&self, address: SocketAddr) -> io::Result<SimListener> {
        net::bind(&self.world, address)
    }

    /// The network's controls.
    #[must_use]
    pub fn net(&self) -> SimNet {
        SimNet::new(&self.world)
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.world.elapsed.get()
    }

    /// Spawned tasks that have not ended.
    #[must_use]
    pub fn task_count(&self) -> usize {
        self.world.tasks.len()
    }

    /// A number below `bound`, drawn from the seed, for a test's own choices.
    #[must_use]
    pub fn below(&self, bound: usize) -> usize {
        self.world.below(bound)
    }
}

impl Rt for SimRt {
    type Listener = SimListener;
    type Stream = SimStream;
    type Sleep = SimSleep;

    fn now(&self) -> Instant {
        self.world.base + self.world.elapsed.get()
    }

    fn wall_now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + WALL_EPOCH + self.world.elapsed.get()
    }

    fn sleep(&self, duration: Duration) -> SimSleep {
        SimSleep {
            until: self.world.elapsed.get() + duration.min(SLEEP_MAX),
            event: None,
            world: Rc::clone(&self.world),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.world.config.catch_task_panics {
            self.world.tasks.spawn(Box::pin(Guarded::new(task, ())));
        } else {
            self.world.tasks.spawn(Box::pin(task));
        }
    }

    /// Always an error: the simulation has no real sockets. Use [`SimRt::bind`].
    fn adopt(&self, _listener: impl Into<OwnedFd>) -> io::Result<SimListener> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn connect(&self, address: SocketAddr, timeout: Duration) -> Result<SimStream, NetError> {
        crate::timeout(self, timeout, net::connect(self, address)).await?
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, NetError> {
        net::resolve(self, host, port).await
    }

    /// Predictable.
    fn random(&self, out: &mut [u8]) {
        self.world.keys.borrow_mut().fill_bytes(out);
    }

    /// In place, and a millisecond of virtual time later: a thread of its own would bring an order of its own.
    async fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetError> {
        self.sleep(Duration::from_millis(1)).await;
        Ok(work())
    }
}

/// What [`SimRt::sleep`](Rt::sleep) returns.
pub struct SimSleep {
    until: Duration,
    event: Option<exec::EventId>,
    world: Rc<World>,
}

impl fmt::Debug for SimSleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSleep")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl SimSleep {
    fn cancel(&mut self) {
        if let Some(event) = self.event.take() {
            let cancelled = self.world.events.borrow_mut().cancel(event);
            drop(cancelled);
        }
    }
}

impl Future for SimSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.cancel();
        if self.world.elapsed.get() >= self.until {
            return Poll::Ready(());
        }
        let wake = exec::Event::Wake(cx.waker().clone());
        let event = self.world.events.borrow_mut().add(self.until, wake);
        self.event = Some(event);
        Poll::Pending
    }
}

impl Drop for SimSleep {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests;
