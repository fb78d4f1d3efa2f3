//! Which core does what: one shard per core, and a core of its own for the control plane where there are enough.
//!
//! What must stay true: only cores that the container's cpuset allows are ever named, and under a CPU quota that is
//! smaller than the cpuset nothing is pinned unless the operator says so. Pinned threads of many containers would
//! all pick the same first cores of a shared machine.

use std::{num::NonZeroUsize, thread};

use crate::config::Problem;

/// From this many cores on, the control core is a core of its own. Below it the data plane would lose too much.
const OWN_CONTROL_CORE_FROM: usize = 4;

/// Added to the niceness of the control plane's threads where they share a core with a shard, so that a refresh or
/// a scrape does not delay requests. 5 leaves them about a quarter of a contended core, enough to answer probes.
const SHARED_CORE_NICENESS: i32 = 5;

/// What the operator asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreWishes {
    /// `TSP_SHARDS`: how many shards.
    pub shards: Option<NonZeroUsize>,
    /// `TSP_CORES`: the shards' cores, ascending, without duplicates.
    pub cores: Option<Vec<usize>>,
    /// `TSP_CONTROL_CORE`: the control plane's core.
    pub control_core: Option<usize>,
}

/// What the machine, or the container, has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The cores this process may run on, ascending. Empty if the kernel does not tell.
    pub allowed: Vec<usize>,
    /// How many cores' worth of time it may use: the cpuset, cut down by a cgroup's quota.
    pub parallelism: usize,
}

impl Machine {
    /// Asks the kernel.
    #[must_use]
    pub fn here() -> Self {
        let mut allowed: Vec<usize> = core_affinity::get_core_ids()
            .unwrap_or_default()
            .into_iter()
            .map(|core| core.id)
            .collect();
        allowed.sort_unstable();
        let parallelism = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            allowed,
            parallelism,
        }
    }
}

/// Who runs where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorePlan {
    /// One entry per shard; `None` leaves the place to the kernel.
    pub shard_cpus: Vec<Option<usize>>,
    /// Core of the control plane's threads.
    pub control_cpu: Option<usize>,
    /// Whether a shard runs on that core too, so that the control plane should stand back.
    pub control_shares: bool,
}

impl CorePlan {
    /// Fits the wishes to the machine.
    ///
    /// # Errors
    /// Every core that was asked for and is not allowed, by variable.
    pub fn new(machine: &Machine, wishes: &CoreWishes) -> Result<Self, Vec<Problem>> {
        let problems = forbidden_cores(machine, wishes);
        if !problems.is_empty() {
            return Err(problems);
        }
        let explicit = wishes.cores.is_some() || wishes.control_core.is_some();
        let whole_machine = machine.parallelism >= machine.allowed.len();
        let pin = !machine.allowed.is_empty() && (explicit || whole_machine);
        Ok(if pin {
            Self::pinned(machine, wishes)
        } else {
            Self::floating(machine, wishes)
        })
    }

    /// The kernel places all threads.
    fn floating(machine: &Machine, wishes: &CoreWishes) -> Self {
        let own_core = machine.parallelism >= OWN_CONTROL_CORE_FROM;
        let fitting = machine
            .parallelism
            .saturating_sub(usize::from(own_core))
            .max(1);
        let shards = wishes.shards.map_or(fitting, NonZeroUsize::get);
        Self {
            shard_cpus: vec![None; shards],
            control_cpu: None,
            control_shares: shards >= machine.parallelism,
        }
    }

    /// Every thread has its core. `machine.allowed` has at least one.
    fn pinned(machine: &Machine, wishes: &CoreWishes) -> Self {
        let mut pool = match &wishes.cores {
            Some(cores) => cores.clone(),
            None => machine.allowed.clone(),
        };
        if wishes.cores.is_none() && pool.len() > 1 {
            pool.retain(|core| Some(*core) != wishes.control_core);
        }
        let control_cpu = wishes.control_core.or_else(|| {
            if wishes.cores.is_some() {
                machine
                    .allowed
                    .iter()
                    .rev()
                    .find(|core| !pool.contains(core))
                    .copied()
            } else if pool.len() >= OWN_CONTROL_CORE_FROM {
                pool.pop()
            } else {
                // Fewer shards than cores leave one over.
                wishes
                    .shards
                    .and_then(|shards| pool.get(shards.get()).copied())
            }
        });
        let control_cpu = control_cpu.or_else(|| pool.first().copied());
        let shards = wishes.shards.map_or(pool.len(), NonZeroUsize::get);
        let shard_cpus: Vec<_> = pool
            .iter()
            .copied()
            .cycle()
            .take(shards)
            .map(Some)
            .collect();
        let control_shares = shard_cpus.contains(&control_cpu);
        Self {
            shard_cpus,
            control_cpu,
            control_shares,
        }
    }

    /// The shards' cores for a log line, such as `0,1,2` or `any`.
    #[must_use]
    pub fn shard_cpus_text(&self) -> String {
        let cpus: Vec<String> = self.shard_cpus.iter().map(|cpu| cpu_text(*cpu)).collect();
        if self.shard_cpus.iter().all(Option::is_none) {
            "any".to_owned()
        } else {
            cpus.join(",")
        }
    }

    /// The control plane's core for a log line.
    #[must_use]
    pub fn control_cpu_text(&self) -> String {
        cpu_text(self.control_cpu)
    }

    /// Moves the calling thread, and with it all threads it starts later, to the control core. `false` if the kernel
    /// refuses.
    #[must_use]
    pub fn pin_control_thread(&self) -> bool {
        self.control_cpu
            .is_none_or(|id| core_affinity::set_for_current(core_affinity::CoreId { id }))
    }

    /// Makes the calling thread, and all threads it starts later, stand back where a shard shares their core. To be
    /// called after the shards were started, since they would inherit it. `false` if the kernel refuses.
    #[must_use]
    pub fn yield_to_shards(&self) -> bool {
        !self.control_shares || rustix::process::nice(SHARED_CORE_NICENESS).is_ok()
    }
}

fn cpu_text(cpu: Option<usize>) -> String {
    cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string())
}

fn forbidden_cores(machine: &Machine, wishes: &CoreWishes) -> Vec<Problem> {
    let forbidden = |cores: &[usize], name: &str| {
        let outside: Vec<_> = cores
            .iter()
            .filter(|core| !machine.allowed.contains(core))
            .map(usize::to_string)
            .collect();
        (!outside.is_empty()).then(|| {
            let allowed: Vec<_> = machine.allowed.iter().map(usize::to_string).collect();
            let (outside, allowed) = (outside.join(","), allowed.join(","));
            Problem::new(
                name,
                format!("core {outside} is not among this process's cores ({allowed})"),
            )
        })
    };
    let cores = wishes
        .cores
        .as_deref()
        .and_then(|cores| forbidden(cores, "TSP_CORES"));
    let control = wishes
        .control_core
        .and_then(|core| forbidden(&[core], "TSP_CONTROL_CORE"));
    cores.into_iter().chain(control).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cores: std::ops::Range<usize>) -> Machine {
        Machine {
            parallelism: cores.len(),
            allowed: cores.collect(),
        }
    }

    fn plan(machine: &Machine, wishes: CoreWishes) -> (Vec<usize>, usize, bool) {
        let plan = CorePlan::new(machine, &wishes).unwrap();
        let shards = plan.shard_cpus.iter().map(|cpu| cpu.unwrap()).collect();
        (shards, plan.control_cpu.unwrap(), plan.control_shares)
    }

    fn shards(count: usize) -> Option<NonZeroUsize> {
        NonZeroUsize::new(count)
    }

    #[test]
    fn below_four_cores_the_control_plane_shares_the_first() {
        assert_eq!(
            plan(&machine(0..1), CoreWishes::default()),
            (vec![0], 0, true)
        );
        assert_eq!(
            plan(&machine(0..2), CoreWishes::default()),
            (vec![0, 1], 0, true)
        );
        assert_eq!(
            plan(&machine(4..7), CoreWishes::default()),
            (vec![4, 5, 6], 4, true)
        );
    }

    #[test]
    fn from_four_cores_on_it_has_its_own() {
        assert_eq!(
            plan(&machine(0..4), CoreWishes::default()),
            (vec![0, 1, 2], 3, false)
        );
        assert_eq!(
            plan(&machine(8..13), CoreWishes::default()),
            (vec![8, 9, 10, 11], 12, false)
        );
    }

    #[test]
    fn the_number_of_shards_can_be_set() {
        let wishes = |count| CoreWishes {
            shards: shards(count),
            ..CoreWishes::default()
        };
        assert_eq!(plan(&machine(0..4), wishes(1)), (vec![0], 3, false));
        assert_eq!(plan(&machine(0..3), wishes(1)), (vec![0], 1, false));
        assert_eq!(plan(&machine(0..2), wishes(3)), (vec![0, 1, 0], 0, true));
        assert_eq!(
            plan(&machine(0..4), wishes(5)),
            (vec![0, 1, 2, 0, 1], 3, false)
        );
    }

    #[test]
    fn the_cores_can_be_set() {
        let cores = |cores: &[usize]| CoreWishes {
            cores: Some(cores.to_vec()),
            ..Default::default()
        };
        assert_eq!(plan(&machine(0..8), cores(&[2, 3])), (vec![2, 3], 7, false));
        assert_eq!(plan(&machine(0..2), cores(&[0, 1])), (vec![0, 1], 0, true));
        let control = |core| CoreWishes {
            control_core: Some(core),
            ..Default::default()
        };
        assert_eq!(plan(&machine(0..4), control(0)), (vec![1, 2, 3], 0, false));
        assert_eq!(plan(&machine(0..1), control(0)), (vec![0], 0, true));
        let both = CoreWishes {
            cores: Some(vec![1, 2]),
            control_core: Some(2),
            shards: None,
        };
        assert_eq!(plan(&machine(0..4), both), (vec![1, 2], 2, true));
    }

    #[test]
    fn a_core_outside_the_cpuset_is_refused() {
        let wishes = CoreWishes {
            cores: Some(vec![1, 5, 9]),
            control_core: Some(7),
            shards: None,
        };
        let problems = CorePlan::new(&machine(0..4), &wishes).unwrap_err();
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "TSP_CORES: core 5,9 is not among this process's cores (0,1,2,3)",
                "TSP_CONTROL_CORE: core 7 is not among this process's cores (0,1,2,3)",
            ]
        );
    }

    #[test]
    fn under_a_quota_nothing_is_pinned_unless_asked_for() {
        let quota = Machine {
            allowed: (0..64).collect(),
            parallelism: 2,
        };
        let floating = CorePlan::new(&quota, &CoreWishes::default()).unwrap();
        assert_eq!(floating.shard_cpus, [None, None]);
        assert_eq!(
            (floating.control_cpu, floating.control_shares),
            (None, true)
        );
        assert_eq!(floating.shard_cpus_text(), "any");

        let wide = Machine {
            allowed: (0..64).collect(),
            parallelism: 8,
        };
        let floating = CorePlan::new(&wide, &CoreWishes::default()).unwrap();
        assert_eq!(
            (floating.shard_cpus.len(), floating.control_shares),
            (7, false)
        );

        let asked = CoreWishes {
            cores: Some(vec![10, 11]),
            ..Default::default()
        };
        assert_eq!(plan(&quota, asked), (vec![10, 11], 63, false));
    }

    #[test]
    fn this_machine_has_at_least_one_core() {
        let plan = CorePlan::new(&Machine::here(), &CoreWishes::default()).unwrap();
        assert!(!plan.shard_cpus.is_empty());
    }
}
