//! `tsp doctor`: a dry run of every KMS config, from the name to the unwrapped value.
//!
//! It wraps and unwraps a random value that it has just made, so no key that protects data is touched. It speaks to the
//! KMSs as a shard would, by the same code, but from this process: run it where the proxy runs, or the network it finds
//! is another one.

mod diagnosis;
mod examination;
mod report;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use futures_util::StreamExt as _;
use tsp_shards::Destinations;

use self::examination::{Chart, Patient};
use crate::{
    RunError,
    config::{self, Environment, Problem},
    source::{self, Loaded},
};

/// Up to this many KMS configs are examined one after the other, so that their times are the KMSs' own.
const ONE_BY_ONE_MAX: usize = 16;

/// How many are examined at one time when there are more. Their times hold some waiting for each other.
const AT_ONE_TIME: usize = 8;

/// Options of `tsp doctor`.
#[derive(Debug, Default)]
pub struct DoctorOptions {
    /// The configuration file; else the one that `TSP_CONFIG_FILE` names, or a broker.
    pub config: Option<PathBuf>,
    /// The tenant whose KMS configs are examined; else all are.
    pub tenant: Option<String>,
    /// Report in JSON.
    pub json: bool,
}

/// What the doctor found.
#[derive(Debug)]
pub struct Doctored {
    /// The report, for standard output.
    pub report: String,
    /// Whether all is well.
    pub verdict: Result<(), RunError>,
}

/// Examines the KMS configs of a configuration file, or of a broker.
#[must_use]
pub fn doctor(options: &DoctorOptions) -> Doctored {
    let tenants_write = source::is_broker(options.config.as_deref());
    let (patients, mut problems) = patients(options);
    let (patients, destinations) = match config::destinations(&Environment, tenants_write) {
        Ok(destinations) => (patients, Arc::new(destinations)),
        // Nobody is asked before it is known who may be.
        Err(more) => {
            problems.extend(more);
            (Vec::new(), Arc::new(Destinations::of_tenants_endpoints()))
        }
    };
    let at_one_time = if patients.len() > ONE_BY_ONE_MAX {
        AT_ONE_TIME
    } else {
        1
    };
    let charts = tsp_rt::run_here(|rt| async move {
        futures_util::stream::iter(&patients)
            .map(|patient| examination::examine(rt.clone(), patient, &destinations))
            .buffered(at_one_time)
            .collect::<Vec<Chart>>()
            .await
    });
    let charts = match charts {
        Ok(charts) => charts,
        Err(why) => {
            return Doctored {
                report: String::new(),
                verdict: Err(RunError::Internal(format!("no event loop: {why}"))),
            };
        }
    };
    let report = if options.json {
        format!("{:#}\n", report::json(&charts, &problems))
    } else if charts.is_empty() {
        String::new()
    } else {
        report::table(&charts)
    };
    let unhealthy = charts.iter().filter(|chart| !chart.is_healthy()).count();
    let verdict = if !problems.is_empty() {
        Err(RunError::Configuration(problems))
    } else if unhealthy > 0 {
        Err(RunError::Unhealthy {
            unhealthy,
            of: charts.len(),
        })
    } else {
        Ok(())
    };
    Doctored { report, verdict }
}

/// The KMS configs that can be examined, and what is wrong with the rest.
fn patients(options: &DoctorOptions) -> (Vec<Patient>, Vec<Problem>) {
    match source::look_once(options.config.as_deref()) {
        Ok((loaded, not_of_now)) => {
            let (patients, mut problems) = chosen(loaded, options.tenant.as_deref());
            problems.extend(not_of_now);
            (patients, problems)
        }
        Err(problems) => (Vec::new(), problems),
    }
}

/// The KMS configs of `tenant`, or all of them.
fn chosen(loaded: Loaded, tenant: Option<&str>) -> (Vec<Patient>, Vec<Problem>) {
    let Loaded {
        kms,
        unusable: _,
        tenants,
        left_out: mut problems,
        allow_local: _,
        age: _,
    } = loaded;
    let users = |id: i64| {
        let users = tenants.iter().filter(|tenant| {
            let mut assignments = tenant.assignments.iter();
            assignments.any(|assignment| assignment.kms == id && assignment.active)
        });
        users.map(|tenant| tenant.id.clone()).collect::<Vec<_>>()
    };
    if let Some(name) = tenant {
        if !tenants.iter().any(|tenant| tenant.id == name) {
            let why = "there is no such tenant in the configuration";
            problems.push(Problem::new(format!("tenant {name:?}"), why));
            return (Vec::new(), problems);
        }
        let assigned: BTreeSet<_> = kms
            .iter()
            .map(|config| config.id)
            .filter(|id| users(*id).iter().any(|user| user == name))
            .collect();
        if assigned.is_empty() {
            let why = "no KMS config that can be used is active for it";
            problems.push(Problem::new(format!("tenant {name:?}"), why));
        }
    }
    let mut patients = Vec::with_capacity(kms.len());
    for config in kms {
        let tenants = users(config.id);
        if tenant.is_some_and(|name| !tenants.iter().any(|user| user == name)) {
            continue;
        }
        match tsp_shards::validate_kms(&config) {
            Ok(kms) => patients.push(Patient {
                id: config.id,
                tenants,
                kms,
            }),
            Err(why) => problems.push(Problem::new(format!("kms {}", config.id), why)),
        }
    }
    (patients, problems)
}

#[cfg(test)]
mod tests;
