//! The threads that open the first snapshot: as long as nobody is served, all cores have nothing better to do.

use std::{num::NonZeroUsize, thread};

use tsp_wire::account::{Learned, Work};

use crate::cores::CorePlan;

/// Who helps the calling thread.
#[derive(Debug)]
pub(super) struct Crew {
    /// One entry per helper; `None` leaves the place to the kernel.
    helpers: Vec<Option<usize>>,
}

impl Crew {
    /// One thread for each core's worth of time that this process may use, the calling one among them.
    pub(super) fn here() -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            helpers: vec![None; threads - 1],
        }
    }

    /// Helpers go where `plan` has threads: the calling one is on the control core, and they would inherit that.
    pub(super) fn use_cores(&mut self, plan: &CorePlan) {
        let mut cpus: Vec<_> = plan.shard_cpus.iter().flatten().copied().collect();
        cpus.sort_unstable();
        cpus.dedup();
        cpus.retain(|cpu| Some(*cpu) != plan.control_cpu);
        if plan.control_cpu.is_some() {
            self.helpers = cpus.into_iter().map(Some).collect();
        }
    }

    /// Does all of `work`, in any order.
    pub(super) fn run(&self, work: Vec<Work<'_>>) -> Vec<Learned> {
        // The calling thread takes the first piece in any case.
        let helpers = self.helpers.iter().take(work.len().saturating_sub(1));
        let (queue, waiting) = crossbeam_channel::unbounded();
        for work in work {
            // Its other end is right here.
            let _ = queue.send(work);
        }
        let do_all = || waiting.try_iter().map(Work::run).collect::<Vec<_>>();
        thread::scope(|scope| {
            let helpers: Vec<_> = helpers
                .filter_map(|cpu| {
                    let help = move || {
                        if let Some(id) = *cpu {
                            // Where it cannot go there, it helps where it is.
                            let _ = core_affinity::set_for_current(core_affinity::CoreId { id });
                        }
                        do_all()
                    };
                    let builder = thread::Builder::new().name("tsp-open".to_owned());
                    // What nobody helps with is done here.
                    builder.spawn_scoped(scope, help).ok()
                })
                .collect();
            let mut learned = do_all();
            for helper in helpers {
                match helper.join() {
                    Ok(more) => learned.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            learned
        })
    }
}
