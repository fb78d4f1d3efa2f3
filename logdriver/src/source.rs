//! Where logging configurations come from: the same file as the proxy's, or the same broker.
//!
//! Both give the whole state each time. A state that cannot be read changes nothing: the last good one stays.

pub mod broker;
pub mod file;

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use crate::{
    clock,
    metrics::Metrics,
    routes::{Maker, Routes, TenantConfig},
};

use self::{broker::BrokerSource, file::FileSource};

/// Shortest and longest wait after a failed look. It doubles between.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// A look at a broker comes so much sooner or later than it is due, in percent.
const JITTER_PERCENT: u32 = 10;

/// A source.
#[derive(Debug)]
pub enum Source {
    /// A TOML file.
    File(FileSource),
    /// A configuration broker.
    Broker(Box<BrokerSource>),
}

/// What a look found.
#[derive(Debug)]
pub enum Look {
    /// The whole state.
    New(Vec<TenantConfig>),
    /// The state is the one that is known.
    Same,
}

impl Source {
    async fn look(&mut self) -> Result<Look, String> {
        match self {
            Self::File(file) => file.look(),
            Self::Broker(broker) => broker.look().await,
        }
    }

    /// What the disk has of an earlier run, for a start without the broker.
    fn reserve(&mut self) -> Option<Vec<TenantConfig>> {
        match self {
            Self::File(_) => None,
            Self::Broker(broker) => broker.reserve(),
        }
    }

    fn every(&self) -> Duration {
        match self {
            Self::File(_) => file::CHECK_EVERY,
            Self::Broker(broker) => jittered(broker.every()),
        }
    }
}

fn jittered(every: Duration) -> Duration {
    let spread = every / 100 * JITTER_PERCENT;
    let mut bytes = [0; 4];
    // Without random bytes the time is not spread, and all else works.
    let _ = getrandom::fill(&mut bytes);
    let part = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
    every - spread + (spread * 2).mul_f64(part)
}

/// Keeps `routes` at the source's state. `hurry` asks for a look at once.
pub async fn run(
    mut source: Source,
    make: Maker,
    routes: watch::Sender<Option<Arc<Routes>>>,
    metrics: Arc<Metrics>,
    mut hurry: mpsc::Receiver<()>,
    mut stop: watch::Receiver<bool>,
) {
    let publish = |tenants| {
        let before = routes.borrow().clone().unwrap_or_default();
        let (next, counts) = before.next(tenants, &make);
        metrics.configs.set(counts.good);
        metrics.configs_left_out.set(counts.bad);
        tracing::info!(
            configs = counts.good,
            left_out = counts.bad,
            "logging configurations are in force"
        );
        routes.send_replace(Some(Arc::new(next)));
    };
    let mut reserve = source.reserve();
    let mut failures = 0_u32;
    loop {
        let wait = match source.look().await {
            Ok(look) => {
                failures = 0;
                metrics.last_refresh.set(clock::now_ms() / 1000);
                match (look, reserve.take()) {
                    (Look::New(tenants), _) | (Look::Same, Some(tenants)) => publish(tenants),
                    (Look::Same, None) => {}
                }
                source.every()
            }
            Err(why) => {
                metrics.refresh_failures.inc();
                if failures.is_power_of_two() || failures == 0 {
                    tracing::warn!("the logging configurations cannot be read: {why}");
                }
                if let Some(tenants) = reserve.take() {
                    tracing::warn!("starting with the copy on disk");
                    publish(tenants);
                }
                failures = failures.saturating_add(1);
                let wait = RETRY_MIN.saturating_mul(2_u32.saturating_pow(failures.min(16) - 1));
                jittered(wait.min(RETRY_MAX))
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = hurry.recv(), if !hurry.is_closed() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}
