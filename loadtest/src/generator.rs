//! The generator: lanes of connections, one lane per core, that send a plan's calls again and again.
//!
//! Closed loop: every connection sends its next request when the last is answered. Open loop: requests have their times,
//! at a set rate, evenly or as a Poisson process, and the latency of each counts from that time, not from when a connection was free for it; so a stall of the
//! server shows in every request that it delayed. An open loop can pause now and then, so that what is idle in between comes
//! to its end.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt, io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc as std_mpsc,
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::sync::{Mutex, mpsc};
use tsp_rt::{Backend, CoreMain, CoreThread, NetError, Rt, mailbox};

use crate::{
    arrivals::{Arrivals, Bursts, Schedule},
    calls::{Call, Kind, Wrapped},
    client::{Client, Failure, Target},
    mix::{Demand, Plan},
    timeline::Timeline,
};

/// Latencies are counted in microseconds up to this one, a minute, with three digits.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Timers of the event loop have milliseconds; from this long before a request's time on, the lane polls the clock.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// Pause of a connection after it broke, so that a dead server is not asked a million times.
const BREATHER: Duration = Duration::from_millis(10);

/// Connections that wrap what is needed beforehand.
const PREPARING_CONNECTIONS: usize = 16;

/// When a phase ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// After so many requests, over all lanes.
    Requests(u64),
    /// After so long.
    Time(Duration),
}

/// What to do, over all lanes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// When it ends; a time counts from the end of the delay.
    pub length: Length,
    /// Waits so long before the first request.
    pub delay: Duration,
    /// Requests per second for an open loop; `None` is a closed one.
    pub rate: Option<f64>,
    /// How an open loop's requests are spread.
    pub arrivals: Arrivals,
    /// Decides about the arrivals, if they are random.
    pub seed: u64,
    /// Open loop only: waits for its timers alone and so is up to a millisecond late, but leaves its CPU to others in
    /// between. Else it looks at the clock for the last two.
    pub shares_cpu: bool,
    /// Open loop only: pauses between the requests.
    pub bursts: Option<Bursts>,
    /// Length of the slices of [`Outcome::timeline`]; zero keeps none.
    pub slice: Duration,
}

impl Phase {
    /// A closed loop that begins at once, without slices.
    #[must_use]
    pub fn closed(length: Length) -> Self {
        Self {
            length,
            delay: Duration::ZERO,
            rate: None,
            arrivals: Arrivals::Constant,
            seed: 1,
            shares_cpu: false,
            bursts: None,
            slice: Duration::ZERO,
        }
    }
}

/// What came of a phase.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Latencies of the right answers in microseconds, by [`Kind`] in the order of [`Kind::ALL`].
    pub latency_us: Vec<Histogram<u64>>,
    /// Requests that were not answered rightly, by kind of [`Failure`].
    pub failures: [u64; Failure::KINDS.len()],
    /// The first failure seen.
    pub first_failure: Option<Failure>,
    /// Open loop: by how many microseconds the generator itself sent late.
    pub late_us: Histogram<u64>,
    /// What ended when, counted from the start of the phase and its delay.
    pub timeline: Timeline,
    /// When it began and ended, by the earliest and the latest lane.
    pub began: Instant,
    /// See [`Outcome::began`].
    pub ended: Instant,
}

impl Outcome {
    fn new(now: Instant, slice: Duration) -> io::Result<Self> {
        Ok(Self {
            latency_us: Kind::ALL
                .iter()
                .map(|_| histogram())
                .collect::<Result<_, _>>()?,
            failures: [0; Failure::KINDS.len()],
            first_failure: None,
            late_us: histogram()?,
            timeline: Timeline::new(slice, LATENCY_US_MAX),
            began: now,
            ended: now,
        })
    }

    fn count(&mut self, kind: Kind, result: &Result<(), Failure>, latency: Duration) {
        match result {
            Ok(()) => {
                if let Some(histogram) = self.latency_us.get_mut(kind as usize) {
                    histogram.saturating_record(us(latency));
                }
            }
            Err(failure) => {
                if let Some(count) = self.failures.get_mut(failure.index()) {
                    *count += 1;
                }
                if self.first_failure.is_none() {
                    self.first_failure = Some(failure.clone());
                }
            }
        }
    }

    /// Adds what another lane, or another phase, saw; of a timeline of another phase the slices are added one by one.
    pub(crate) fn add(&mut self, other: &Self) -> io::Result<()> {
        for (sum, more) in self.latency_us.iter_mut().zip(&other.latency_us) {
            sum.add(more).map_err(io::Error::other)?;
        }
        for (sum, more) in self.failures.iter_mut().zip(other.failures) {
            *sum += more;
        }
        self.late_us.add(&other.late_us).map_err(io::Error::other)?;
        self.timeline.add(&other.timeline)?;
        self.first_failure = self.first_failure.take().or(other.first_failure.clone());
        self.began = self.began.min(other.began);
        self.ended = self.ended.max(other.ended);
        Ok(())
    }

    /// Latencies of the right answers of all kinds.
    #[must_use]
    pub fn all_latencies_us(&self) -> Histogram<u64> {
        let mut all = self.late_us.clone();
        all.reset();
        for histogram in &self.latency_us {
            // Same bounds, so they can always be added.
            let _ = all.add(histogram);
        }
        all
    }

    /// Requests that were answered rightly.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.latency_us.iter().map(Histogram::len).sum()
    }

    /// Requests that were not.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }
}

fn histogram() -> io::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).map_err(io::Error::other)
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Lanes that are connected and wait for phases. Dropping it closes them.
pub struct Generator {
    lanes: Vec<LaneControl>,
}

/// What a lane has done since its start, for whoever looks on.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn count(&self, answered: bool) {
        let count = if answered {
            &self.answered
        } else {
            &self.failed
        };
        // One lane writes it, and who reads it wants to know no more than the number.
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// A look at a generator's counts, from any thread.
#[derive(Clone, Debug)]
pub struct Watch(Vec<Arc<Counts>>);

impl Watch {
    /// Requests since the start that were answered rightly, and those that were not.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.0.iter().fold((0, 0), |(answered, failed), lane| {
            (
                answered + lane.answered.load(Ordering::Relaxed),
                failed + lane.failed.load(Ordering::Relaxed),
            )
        })
    }
}

struct LaneControl {
    counts: Arc<Counts>,
    phases: mailbox::Sender<Phase>,
    outcomes: std_mpsc::Receiver<io::Result<Outcome>>,
    _thread: CoreThread,
}

impl fmt::Debug for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator")
            .field("lanes", &self.lanes.len())
            .finish_non_exhaustive()
    }
}

impl Generator {
    /// Starts one lane per entry of `cpus`, on that CPU or on any, and shares `connections` among them.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(
        target: &Target,
        plan: &Arc<Plan>,
        connections: usize,
        cpus: &[Option<usize>],
    ) -> io::Result<Self> {
        let mut lanes = Vec::with_capacity(cpus.len());
        for (index, cpu) in cpus.iter().enumerate() {
            let (phases, phases_out) = mailbox::bounded(1);
            let (outcomes_in, outcomes) = std_mpsc::channel();
            let counts = Arc::<Counts>::default();
            let lane = Lane {
                target: target.clone(),
                plan: Arc::clone(plan),
                counts: Arc::clone(&counts),
                connections: share(connections, cpus.len(), index),
                first_call: index * plan.draws() / cpus.len(),
                phases: phases_out,
                outcomes: outcomes_in,
            };
            let name = format!("loadgen-{index}");
            let thread = tsp_rt::spawn_core(Backend::Epoll, &name, *cpu, lane)?;
            lanes.push(LaneControl {
                counts,
                phases,
                outcomes,
                _thread: thread,
            });
        }
        Ok(Self { lanes })
    }

    /// For looking on while it runs.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(
            self.lanes
                .iter()
                .map(|lane| Arc::clone(&lane.counts))
                .collect(),
        )
    }

    /// Does a phase and waits for its end.
    ///
    /// # Errors
    /// If a lane died. What the server does wrong is no error here, but counted in the outcome.
    pub fn run(&self, phase: Phase) -> io::Result<Outcome> {
        let lanes = self.lanes.len();
        for (index, lane) in self.lanes.iter().enumerate() {
            let length = match phase.length {
                Length::Requests(all) => Length::Requests(share_u64(all, lanes, index)),
                Length::Time(time) => Length::Time(time),
            };
            let rate = phase.rate.map(|rate| rate / lanes as f64);
            let bursts = phase.bursts.map(|bursts| Bursts {
                requests: share_u64(bursts.requests, lanes, index).max(1),
                ..bursts
            });
            let phase = Phase {
                length,
                rate,
                bursts,
                // ChaCha makes something else of every number.
                seed: phase.seed ^ ((index as u64) << 32),
                ..phase
            };
            lane.phases.send(phase).map_err(|_| lane_died())?;
        }
        let mut sum: Option<Outcome> = None;
        for lane in &self.lanes {
            let outcome = lane.outcomes.recv().map_err(|_| lane_died())??;
            match &mut sum {
                Some(sum) => sum.add(&outcome)?,
                None => sum = Some(outcome),
            }
        }
        sum.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

fn lane_died() -> io::Error {
    io::Error::other("a lane of the generator died")
}

/// The share of one of `among` in a whole that need not divide.
fn share(whole: usize, among: usize, index: usize) -> usize {
    whole / among + usize::from(index < whole % among)
}

fn share_u64(whole: u64, among: usize, index: usize) -> u64 {
    let (among, index) = (among as u64, index as u64);
    whole / among + u64::from(index < whole % among)
}

struct Lane {
    target: Target,
    plan: Arc<Plan>,
    counts: Arc<Counts>,
    connections: usize,
    /// Where in the cycle of calls this lane begins, so that lanes do not all ask for the same tenant at one time.
    first_call: usize,
    phases: mailbox::Receiver<Phase>,
    outcomes: std_mpsc::Sender<io::Result<Outcome>>,
}

impl CoreMain for Lane {
    async fn run<R: Rt>(mut self, rt: R) {
        let new = |_| Client::new(rt.clone(), self.target.clone());
        let mut clients: Vec<_> = (0..self.connections).map(new).collect();
        let mut next_call = self.first_call;
        while let Some(phase) = self.phases.recv().await {
            let (plan, counts) = (Arc::clone(&self.plan), Arc::clone(&self.counts));
            let outcome = run_phase(&rt, plan, counts, &mut next_call, &mut clients, phase).await;
            if self.outcomes.send(outcome).is_err() {
                return;
            }
        }
    }
}

/// What the connections of a lane share during a phase.
struct Shared {
    plan: Arc<Plan>,
    counts: Arc<Counts>,
    next_call: Cell<usize>,
    issued: Cell<u64>,
    /// The times of an open loop.
    schedule: Option<RefCell<Schedule>>,
    phase: Phase,
    /// When its slices begin.
    started: Instant,
    /// When its requests begin: the same, and the delay.
    began: Instant,
    outcome: RefCell<Outcome>,
    /// Held by the connection that waits for the next request's time; the others wait behind it in order.
    turn: Mutex<()>,
}

async fn run_phase<R: Rt>(
    rt: &R,
    plan: Arc<Plan>,
    counts: Arc<Counts>,
    next_call: &mut usize,
    clients: &mut Vec<Client<R>>,
    phase: Phase,
) -> io::Result<Outcome> {
    let started = rt.now();
    if !phase.delay.is_zero() {
        rt.sleep(phase.delay).await;
    }
    let began = rt.now();
    let schedule = |rate| Schedule::new(rate, phase.arrivals, phase.bursts, phase.seed);
    let shared = Rc::new(Shared {
        plan,
        counts,
        next_call: Cell::new(*next_call),
        issued: Cell::new(0),
        schedule: phase.rate.map(schedule).map(RefCell::new),
        phase,
        started,
        began,
        outcome: RefCell::new(Outcome::new(began, phase.slice)?),
        turn: Mutex::new(()),
    });
    let connections = clients.len();
    let (done, mut all_done) = mpsc::unbounded_channel();
    for mut client in clients.drain(..) {
        let (rt, shared, done) = (rt.clone(), Rc::clone(&shared), done.clone());
        rt.clone().spawn(async move {
            work(&rt, &shared, &mut client).await;
            // The lane waits for it, and is gone only if its thread is.
            drop(done.send(client));
        });
    }
    drop(done);
    while let Some(client) = all_done.recv().await {
        clients.push(client);
    }
    if clients.len() < connections {
        return Err(lane_died());
    }
    *next_call = shared.next_call.get();
    let mut outcome = shared.outcome.replace(Outcome::new(began, Duration::ZERO)?);
    outcome.ended = rt.now();
    Ok(outcome)
}

/// One connection's part in a phase.
async fn work<R: Rt>(rt: &R, shared: &Shared, client: &mut Client<R>) {
    while let Some((call, intended)) = shared.next(rt).await {
        let sent = rt.now();
        let result = client.call(call).await;
        let result = result.map(drop);
        shared.count(call.kind, &result, sent, intended, rt.now());
        if let Err(Failure::Connect(_) | Failure::Broken(_)) = result {
            rt.sleep(BREATHER).await;
        }
    }
}

impl Shared {
    fn count(
        &self,
        kind: Kind,
        result: &Result<(), Failure>,
        sent: Instant,
        intended: Option<Instant>,
        now: Instant,
    ) {
        self.counts.count(result.is_ok());
        let latency = now - intended.unwrap_or(sent);
        let mut outcome = self.outcome.borrow_mut();
        outcome.count(kind, result, latency);
        let latency = result.is_ok().then(|| us(latency));
        // A slice that cannot be made is missing in a plot; the figures of the run are counted elsewhere.
        drop(outcome.timeline.count(now - self.started, latency));
        if let Some(intended) = intended {
            outcome.late_us.saturating_record(us(sent - intended));
        }
    }

    /// The next call, and its intended time in an open loop; waits until then. `None` at the end of the phase.
    async fn next<R: Rt>(&self, rt: &R) -> Option<(&Call, Option<Instant>)> {
        let intended = match &self.schedule {
            None => {
                self.issue(rt.now())?;
                None
            }
            Some(schedule) => {
                let _turn = self.turn.lock().await;
                let due = schedule.borrow_mut().next();
                let intended = self.began + due;
                self.issue(intended)?;
                let polls_for = match self.phase.shares_cpu {
                    true => Duration::ZERO,
                    false => TIMER_SLACK,
                };
                until(rt, intended, polls_for).await;
                Some(intended)
            }
        };
        let place = self.next_call.get();
        self.next_call.set((place + 1) % self.plan.draws());
        Some((self.plan.call(place)?, intended))
    }

    /// Counts one more request that begins at `at`, if the phase is not over by then.
    fn issue(&self, at: Instant) -> Option<()> {
        let issued = self.issued.get();
        let goes_on = match self.phase.length {
            Length::Requests(requests) => issued < requests,
            Length::Time(time) => at < self.began + time,
        };
        self.issued.set(issued + 1);
        goes_on.then_some(())
    }
}

/// Waits until `then`: with a timer, and from `polls_for` before that on by looking at the clock, to the microsecond.
async fn until<R: Rt>(rt: &R, then: Instant, polls_for: Duration) {
    loop {
        let left = then.saturating_duration_since(rt.now());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(polls_for) {
            Some(long) => rt.sleep(long).await,
            None => tsp_rt::yield_now().await,
        }
    }
}

/// Finds the address of `host`.
///
/// # Errors
/// If it has none, or the resolver cannot be run.
pub fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let addresses = tsp_rt::run_here(async |rt| rt.resolve(host, port).await)?;
    let first = addresses.map_err(io::Error::other)?.first().copied();
    first.ok_or_else(|| io::Error::other(NetError::Unresolved))
}

/// Draws the plan of `demand`: wraps the EDEKs that it needs, and checks with the first of each tenant that the proxy
/// unwraps what it wrapped.
///
/// # Errors
/// What the proxy did not answer as it should; the outer error if the demand makes no sense.
pub fn prepare(
    target: &Target,
    demand: &Demand,
    tenants: &[String],
) -> io::Result<Result<Plan, Failure>> {
    let refused = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    demand.check().map_err(refused)?;
    let count = demand.edeks_per_tenant(tenants.len());
    match wrap_all(target, tenants, count.max(1))? {
        Ok(edeks) => demand.plan(tenants, &edeks).map(Ok).map_err(refused),
        Err(why) => Ok(Err(why)),
    }
}

/// Wraps `count` DEKs for each of `tenants`, a few tenants at a time.
fn wrap_all(
    target: &Target,
    tenants: &[String],
    count: usize,
) -> io::Result<Result<Vec<Vec<Wrapped>>, Failure>> {
    tsp_rt::run_here(async |rt| {
        let waiting: VecDeque<_> = tenants.iter().cloned().enumerate().collect();
        let waiting = Rc::new(RefCell::new(waiting));
        let (done, mut all_done) = mpsc::unbounded_channel();
        for _ in 0..PREPARING_CONNECTIONS.min(tenants.len()) {
            let mut client = Client::new(rt.clone(), target.clone());
            let (waiting, done) = (Rc::clone(&waiting), done.clone());
            rt.spawn(async move {
                let next = || waiting.borrow_mut().pop_front();
                while let Some((place, tenant)) = next() {
                    let wrapped = wrap_some(&mut client, &tenant, count).await;
                    // Nobody takes it any more after the first failure.
                    if done.send((place, wrapped)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut edeks = vec![Vec::new(); tenants.len()];
        while let Some((place, wrapped)) = all_done.recv().await {
            if let Some(own) = edeks.get_mut(place) {
                *own = wrapped?;
            }
        }
        Ok(edeks)
    })
}

async fn wrap_some<R: Rt>(
    client: &mut Client<R>,
    tenant: &str,
    count: usize,
) -> Result<Vec<Wrapped>, Failure> {
    let body = client.call(&Call::batch_wrap(tenant, count)).await?;
    let edeks = Wrapped::from_batch_answer(&body).map_err(Failure::Broken)?;
    if let Some(first) = edeks.first() {
        client.call(&Call::unwrap(tenant, first)).await?;
    }
    Ok(edeks)
}

/// Waits until the proxy answers a wrap for `tenant`, looking every 10 ms.
///
/// # Errors
/// The last failure, once `longest` is over.
pub fn wait_until_ready(
    target: &Target,
    tenant: &str,
    longest: Duration,
) -> io::Result<Result<(), Failure>> {
    tsp_rt::run_here(async |rt| {
        let ends = rt.now() + longest;
        let mut client = Client::new(rt.clone(), target.clone());
        let call = Call::wrap(tenant);
        loop {
            match client.call(&call).await {
                Ok(_) => return Ok(()),
                Err(why) if rt.now() >= ends => return Err(why),
                Err(_) => rt.sleep(BREATHER).await,
            }
        }
    })
}
