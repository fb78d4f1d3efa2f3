//! Runs a scenario: starts its stand, prepares, warms up, puts the loads on and looks on meanwhile.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use tsp_rt::{Backend, CoreMain, Rt};

use crate::{
    calls::Kind,
    cpu::CpuTime,
    generator::{self, Generator, Length, Outcome, Phase},
    knee::Search,
    report::{Latency, Report, ServerCpu, Setup, ratio},
    results::{Facts, Interval, LoadResult, Point, Results, Step, Total},
    scenario::{LoadDoc, Scenario, ScenarioDoc, StepsDoc},
    server,
    stand::{self, Cpus, Stand},
};

/// Slices that a run is cut into for the plots, unless they would be shorter than [`SLICE_MIN`].
const SLICES: u32 = 60;

/// Shortest slice. The kernel tells CPU time to a few milliseconds, which is then a few percent.
const SLICE_MIN: Duration = Duration::from_millis(100);

/// Share of the asked rate that a step must answer. Poisson arrivals alone miss the rate by a percent now and then.
const KEPT_UP: f64 = 0.97;

/// Runs `scenario` on the proxy of `binary`, with everything pinned to CPUs if `pins`. `progress` is told how it goes.
///
/// # Errors
/// If something does not start, a tenant's first key is not wrapped and unwrapped, or a thread dies. What fails under load
/// is no error but a figure.
pub fn run(
    scenario: &Scenario,
    binary: &Path,
    pins: bool,
    progress: &mut dyn FnMut(&str),
) -> io::Result<Results> {
    let doc = &scenario.doc;
    let machine_before = server::machine();
    let shards = doc.proxy.shards.unwrap_or(1);
    let cpus = match pins {
        true => Cpus::pinned(&server::allowed_cpus()?, shards),
        false => Cpus::free(),
    };
    progress("starting the KMSs and the proxy");
    let mut stand = Stand::start(scenario, binary, &cpus)?;
    let tenants: Vec<_> = (1..=doc.kms.tenants)
        .map(|number| format!("tenant-{number}"))
        .collect();
    let mut plans = Vec::with_capacity(doc.load.len());
    for load in &doc.load {
        progress(&format!("wrapping what {:?} will unwrap", load.name));
        let (first, last) = load.tenants(doc);
        let own = tenants.get(first - 1..last).unwrap_or_default();
        let plan = generator::prepare(&stand.target(load)?, &load.demand(doc.seed), own)?
            .map_err(|why| io::Error::other(format!("the proxy does not work: {why}")))?;
        plans.push(Arc::new(plan));
    }
    if doc.cold {
        progress("starting the proxy anew");
        stand.restart()?;
    }
    let mut generators = Vec::with_capacity(plans.len());
    let mut lanes = Vec::new();
    for (index, (plan, load)) in plans.iter().zip(&doc.load).enumerate() {
        let own = load.lanes(cpus.load(index)).map_err(io::Error::other)?;
        let (target, connections) = (stand.target(load)?, load.connections);
        generators.push(Generator::start(&target, plan, connections, &own)?);
        lanes.extend(own);
    }
    lanes.sort_unstable();
    lanes.dedup();
    let mut run = Run {
        scenario,
        stand: &stand,
        began: stand::now()?,
        samples: Vec::new(),
        progress,
    };
    run.warm_up(&mut generators)?;
    run.began = stand::now()?;
    run.sample(&generators)?;
    let measured = match &doc.steps {
        Some(steps) => run.steps(&mut generators, steps)?,
        None => run.once(&mut generators)?,
    };
    let samples = run.samples;
    let loads = measured.loads(scenario)?;
    let first_and_last = samples.first().zip(samples.last());
    let (first, last) = first_and_last.ok_or_else(|| io::Error::other("nothing was looked at"))?;
    Ok(Results {
        scenario: scenario.name.clone(),
        about: doc.about.clone(),
        file: scenario.text.clone(),
        ended: httpdate::fmt_http_date(wall_now()?),
        machine: [machine_before, server::machine()],
        stand: Facts {
            shards,
            io: stand.io.clone(),
            proxy_cpus: cpus.proxy.clone(),
            load_cpus: lanes,
            kms_cpu: cpus.kms,
            start_ms: stand.start_time.as_secs_f64() * 1e3,
            memory_mib: memory_mib(stand.proxy_id()),
        },
        total: total(scenario, &measured, first, last),
        intervals: samples
            .iter()
            .zip(samples.iter().skip(1))
            .map(|(from, to)| from.interval(to))
            .collect(),
        loads,
        steps: measured.steps,
        judged_by: doc.steps,
        knee: measured.knee,
    })
}

/// A run under way.
struct Run<'a> {
    scenario: &'a Scenario,
    stand: &'a Stand,
    /// When the measurement began.
    began: Instant,
    samples: Vec<Sample>,
    progress: &'a mut dyn FnMut(&str),
}

/// What came of all stages.
#[derive(Default)]
struct Measured {
    /// By stage: when it began, and the outcome of each load.
    stages: Vec<(Duration, Vec<Outcome>)>,
    steps: Vec<Step>,
    knee: Option<f64>,
}

/// What a look at proxy and KMSs shows; all counts are from the start.
struct Sample {
    at: Duration,
    answered: u64,
    failed: u64,
    proxy: CpuTime,
    here: CpuTime,
    kms_calls: BTreeMap<String, u64>,
}

impl Sample {
    fn operations_since(&self, earlier: &Self) -> u64 {
        (self.answered + self.failed).saturating_sub(earlier.answered + earlier.failed)
    }

    fn kms_calls_since(&self, earlier: &Self) -> BTreeMap<String, u64> {
        let since = |(name, calls): (&String, &u64)| {
            let before = earlier.kms_calls.get(name).copied().unwrap_or_default();
            (name.clone(), calls.saturating_sub(before))
        };
        let all = self.kms_calls.iter().map(since);
        all.filter(|(_, calls)| *calls > 0).collect()
    }

    /// From this one to the next.
    fn interval(&self, next: &Self) -> Interval {
        let operations = next.operations_since(self);
        let per_operation = |sum: f64| (operations > 0).then(|| sum / operations as f64);
        let calls: u64 = next.kms_calls_since(self).values().sum();
        let cpu = next.proxy.since(&self.proxy).total();
        Interval {
            at_s: (self.at + next.at).as_secs_f64() / 2.0,
            seconds: next.at.saturating_sub(self.at).as_secs_f64(),
            operations,
            cpu_us_per_operation: per_operation(cpu.as_secs_f64() * 1e6),
            kms_calls_per_operation: per_operation(calls as f64),
        }
    }
}

enum Event {
    Tick,
    Ended(usize, io::Result<Box<Outcome>>),
}

impl Run<'_> {
    fn sample(&mut self, generators: &[Generator]) -> io::Result<()> {
        let counts = generators
            .iter()
            .map(|generator| generator.watch().counts());
        let (answered, failed) = counts.fold((0, 0), |sum, own| (sum.0 + own.0, sum.1 + own.1));
        self.look(answered, failed)
    }

    fn look(&mut self, answered: u64, failed: u64) -> io::Result<()> {
        self.samples.push(Sample {
            answered,
            failed,
            proxy: CpuTime::of(self.stand.proxy_id())?,
            here: CpuTime::of(std::process::id())?,
            kms_calls: self.stand.kms_calls()?,
            at: self.elapsed()?,
        });
        Ok(())
    }

    fn elapsed(&self) -> io::Result<Duration> {
        Ok(stand::now()?.saturating_duration_since(self.began))
    }

    /// The loads that begin at once, for as long as the scenario says. Nothing of it is kept.
    fn warm_up(&mut self, generators: &mut [Generator]) -> io::Result<()> {
        let doc = &self.scenario.doc;
        let time = Duration::try_from_secs_f64(doc.warm_up_s).unwrap_or_default();
        if time.is_zero() {
            return Ok(());
        }
        let phases: Vec<_> = doc
            .load
            .iter()
            .map(|load| Phase {
                rate: doc.steps.map_or(load.rate, |steps| Some(steps.from)),
                ..match load.from_s {
                    0.0 => phase(load, doc, time),
                    _ => phase(load, doc, Duration::ZERO),
                }
            })
            .collect();
        self.stage("warming up", generators, &phases, time)?;
        self.samples.clear();
        Ok(())
    }

    fn once(&mut self, generators: &mut [Generator]) -> io::Result<Measured> {
        let doc = &self.scenario.doc;
        let all = Duration::try_from_secs_f64(doc.seconds).unwrap_or_default();
        let phases: Vec<_> = doc
            .load
            .iter()
            .map(|load| {
                let (delay, time) = load.times(doc);
                Phase {
                    delay,
                    ..phase(load, doc, time)
                }
            })
            .collect();
        let stage = self.stage("measuring", generators, &phases, all)?;
        Ok(Measured {
            stages: vec![stage],
            ..Measured::default()
        })
    }

    fn steps(&mut self, generators: &mut [Generator], steps: &StepsDoc) -> io::Result<Measured> {
        let mut measured = Measured::default();
        let mut search = Search::new(steps);
        let time = Duration::try_from_secs_f64(steps.seconds).unwrap_or_default();
        let Some(load) = self.scenario.doc.load.first() else {
            return Ok(measured);
        };
        while let Some(rate) = search.next() {
            let phase = Phase {
                rate: Some(rate),
                ..phase(load, &self.scenario.doc, time)
            };
            let from = self.samples.len().saturating_sub(1);
            let doing = format!("at {rate:.0}/s");
            let stage = self.stage(&doing, generators, &[phase], time)?;
            let samples = self.samples.get(from).zip(self.samples.last());
            if let (Some(outcome), Some((from, to))) = (stage.1.first(), samples) {
                let step = step(rate, load, steps, outcome, from, to);
                search.tell(step.passed);
                measured.steps.push(step);
            }
            measured.stages.push(stage);
        }
        measured.knee = search.knee();
        Ok(measured)
    }

    /// Runs one phase of every load side by side, and looks on until all have ended.
    fn stage(
        &mut self,
        doing: &str,
        generators: &mut [Generator],
        phases: &[Phase],
        time: Duration,
    ) -> io::Result<(Duration, Vec<Outcome>)> {
        let slice = (time / SLICES).max(SLICE_MIN);
        let watches: Vec<_> = generators.iter().map(Generator::watch).collect();
        let (events, happened) = mpsc::channel();
        let ticker = Ticker {
            every: slice,
            ticks: events.clone(),
        };
        drop(tsp_rt::spawn_core(
            Backend::Epoll,
            "loadgen-ticks",
            None,
            ticker,
        )?);
        let offset = self.elapsed()?;
        let mut outcomes: Vec<_> = generators.iter().map(|_| None).collect();
        thread::scope(|scope| {
            for (index, (generator, phase)) in generators.iter_mut().zip(phases).enumerate() {
                let events = events.clone();
                let phase = Phase { slice, ..*phase };
                scope.spawn(move || {
                    // Who asked may have failed and gone.
                    drop(events.send(Event::Ended(index, generator.run(phase).map(Box::new))));
                });
            }
            let mut running = outcomes.len();
            while running > 0 {
                let ended = match happened.recv().map_err(io::Error::other)? {
                    Event::Tick => None,
                    Event::Ended(index, outcome) => Some((index, outcome?)),
                };
                let counts = watches.iter().map(generator::Watch::counts);
                let (answered, failed) = counts.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
                if let Some((index, outcome)) = ended {
                    running -= 1;
                    if let Some(slot) = outcomes.get_mut(index) {
                        *slot = Some(*outcome);
                    }
                    if running > 0 {
                        continue;
                    }
                }
                self.look(answered, failed)?;
                self.tell(doing, offset, time);
            }
            Ok::<_, io::Error>(())
        })?;
        Ok((offset, outcomes.into_iter().flatten().collect()))
    }

    fn tell(&mut self, doing: &str, offset: Duration, time: Duration) {
        let [.., from, to] = self.samples.as_slice() else {
            return;
        };
        let interval = from.interval(to);
        let line = format!(
            "{doing}, {:.0} of {:.0} s: {:.0} operations/s, {} failed, {:.1} µs CPU and {:.3} KMS calls per operation",
            to.at.saturating_sub(offset).as_secs_f64(),
            time.as_secs_f64(),
            ratio(interval.operations as f64, interval.seconds),
            to.failed,
            interval.cpu_us_per_operation.unwrap_or_default(),
            interval.kms_calls_per_operation.unwrap_or_default(),
        );
        (self.progress)(&line);
    }
}

impl Measured {
    /// What each load saw, over all stages.
    fn loads(&self, scenario: &Scenario) -> io::Result<Vec<LoadResult>> {
        let mut loads = Vec::new();
        for (index, load) in scenario.doc.load.iter().enumerate() {
            let (delay, _) = load.times(&scenario.doc);
            let mut sum: Option<Outcome> = None;
            let mut timeline = Vec::new();
            for (offset, outcomes) in &self.stages {
                let Some(outcome) = outcomes.get(index) else {
                    continue;
                };
                let lasted = (outcome.ended - outcome.began) + delay;
                timeline.extend(Point::all(
                    &outcome.timeline,
                    offset.as_secs_f64(),
                    lasted.as_secs_f64(),
                ));
                match &mut sum {
                    Some(sum) => sum.add(outcome)?,
                    None => sum = Some(outcome.clone()),
                }
            }
            let Some(outcome) = sum else {
                continue;
            };
            let lanes = load.lanes(None).map_err(io::Error::other)?.len();
            let setup = Setup::new(
                &load.mix,
                load.transport,
                load.connections,
                lanes,
                load.rate,
                load.arrivals,
            );
            loads.push(LoadResult {
                name: load.name.clone(),
                report: Report::new(setup, &outcome, None, None),
                timeline,
            });
        }
        Ok(loads)
    }
}

fn phase(load: &LoadDoc, doc: &ScenarioDoc, time: Duration) -> Phase {
    Phase {
        rate: load.rate,
        arrivals: load.arrivals,
        seed: doc.seed,
        shares_cpu: load.shares_cpu.unwrap_or(!doc.kms.leased),
        ..Phase::closed(Length::Time(time))
    }
}

fn step(
    rate: f64,
    load: &LoadDoc,
    judged_by: &StepsDoc,
    outcome: &Outcome,
    from: &Sample,
    to: &Sample,
) -> Step {
    let took = (outcome.ended - outcome.began).as_secs_f64();
    let cpu_s = to.proxy.since(&from.proxy).total().as_secs_f64();
    let latency_us = Latency::of(&outcome.all_latencies_us());
    let answered_per_second = ratio(outcome.answered() as f64, took);
    let p99_ms = latency_us.p99 as f64 / 1e3;
    Step {
        rate,
        arrivals: load.arrivals,
        answered_per_second,
        failed: outcome.failed(),
        latency_us,
        late_us: Latency::of(&outcome.late_us),
        cpu_us_per_operation: ratio(cpu_s * 1e6, to.operations_since(from) as f64),
        busy_cpus: ratio(cpu_s, (to.at.saturating_sub(from.at)).as_secs_f64()),
        passed: outcome.failed() == 0
            && answered_per_second >= rate * KEPT_UP
            && p99_ms <= judged_by.p99_ms_max,
    }
}

fn total(scenario: &Scenario, measured: &Measured, first: &Sample, last: &Sample) -> Total {
    let operations = last.operations_since(first);
    let seconds = last.at.saturating_sub(first.at);
    let per_operation = |sum: f64| ratio(sum, operations as f64);
    let here = last.here.since(&first.here);
    let of_threads = |name: &str| {
        let own = here
            .threads()
            .filter(|(thread, _)| thread.starts_with(name));
        own.map(|(_, time)| time.as_secs_f64() * 1e6).sum()
    };
    let kms_calls = last.kms_calls_since(first);
    let mut answered_by_kind = BTreeMap::<_, u64>::new();
    let mut keys = 0.0;
    for (_, outcomes) in &measured.stages {
        for (outcome, load) in outcomes.iter().zip(&scenario.doc.load) {
            for (kind, latencies) in Kind::ALL.into_iter().zip(&outcome.latency_us) {
                let count = latencies.len();
                if count > 0 {
                    *answered_by_kind.entry(kind).or_default() += count;
                    keys += count as f64 * kind.keys(load.batch_items) as f64;
                }
            }
        }
    }
    let answered = last.answered.saturating_sub(first.answered);
    Total {
        seconds: seconds.as_secs_f64(),
        answered,
        failed: last.failed.saturating_sub(first.failed),
        answered_by_kind,
        keys_per_operation: ratio(keys, answered as f64),
        proxy_cpu: ServerCpu::of(&last.proxy.since(&first.proxy), operations, seconds),
        generator_cpu_us_per_operation: per_operation(of_threads("loadgen")),
        kms_cpu_us_per_operation: per_operation(of_threads("kmssim")),
        kms_calls_per_operation: per_operation(kms_calls.values().sum::<u64>() as f64),
        kms_calls,
    }
}

/// Ticks until nobody listens.
struct Ticker {
    every: Duration,
    ticks: mpsc::Sender<Event>,
}

impl CoreMain for Ticker {
    async fn run<R: Rt>(self, rt: R) {
        let mut next = rt.now();
        loop {
            next += self.every;
            rt.sleep(next.saturating_duration_since(rt.now())).await;
            if self.ticks.send(Event::Tick).is_err() {
                return;
            }
        }
    }
}

fn wall_now() -> io::Result<SystemTime> {
    tsp_rt::run_here(async |rt| rt.wall_now())
}

/// The most memory that a process has held, in MiB; 0 if the kernel does not tell.
fn memory_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<f64>().ok())
        .unwrap_or_default()
        / 1024.0
}
