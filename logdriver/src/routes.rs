//! Which tenant's events go where. Made anew of every state of the configurations; a sink whose configuration stayed stays,
//! with its connection and its token.

use std::{collections::HashMap, fmt, sync::Arc};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::sink::Sink;

/// Makes a sink of a logging configuration; fails with what is wrong, in words that hold no secret.
pub type Maker = Arc<dyn Fn(&[u8]) -> Result<Arc<dyn Sink>, String> + Send + Sync>;

/// A tenant that the source knows.
#[derive(Debug)]
pub struct TenantConfig {
    /// Its id.
    pub tenant: String,
    /// Its logging configuration, in JSON; or why there is none that can be used; or none.
    pub logging: Option<Result<Zeroizing<Vec<u8>>, String>>,
}

/// Where a tenant's events go.
#[derive(Clone)]
pub enum Route {
    /// To its log system.
    Sink(Arc<dyn Sink>),
    /// Nowhere: its configuration cannot be used, and events are not for anybody else.
    Held,
    /// The tenant has no configuration, or nobody knows it.
    None,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sink(sink) => write!(f, "Sink({})", sink.kind()),
            Self::Held => f.write_str("Held"),
            Self::None => f.write_str("None"),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Routes {
    tenants: HashMap<String, (Option<[u8; 32]>, Route)>,
}

/// How many configurations there are, and how many of them cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In force.
    pub good: i64,
    /// Not.
    pub bad: i64,
}

impl Routes {
    /// Where the events of `tenant` go.
    #[must_use]
    pub fn of(&self, tenant: &str) -> Route {
        self.tenants
            .get(tenant)
            .map_or(Route::None, |(_, route)| route.clone())
    }

    /// Whether the source knows `tenant`.
    #[must_use]
    pub fn knows(&self, tenant: &str) -> bool {
        self.tenants.contains_key(tenant)
    }

    /// The state after this one.
    #[must_use]
    pub fn next(&self, tenants: Vec<TenantConfig>, make: &Maker) -> (Self, Counts) {
        let mut next = HashMap::with_capacity(tenants.len());
        let mut counts = Counts::default();
        for TenantConfig { tenant, logging } in tenants {
            let entry = match logging {
                None => (None, Route::None),
                Some(Ok(json)) => {
                    let print: [u8; 32] = Sha256::digest(&*json).into();
                    let route = match self.tenants.get(&tenant) {
                        Some((Some(known), route)) if *known == print => route.clone(),
                        _ => made(&tenant, &json, make),
                    };
                    (Some(print), route)
                }
                Some(Err(why)) => {
                    unusable(&tenant, &why);
                    (None, Route::Held)
                }
            };
            match entry.1 {
                Route::Sink(_) => counts.good += 1,
                Route::Held => counts.bad += 1,
                Route::None => {}
            }
            next.insert(tenant, entry);
        }
        (Self { tenants: next }, counts)
    }
}

fn made(tenant: &str, json: &[u8], make: &Maker) -> Route {
    match make(json) {
        Ok(sink) => Route::Sink(sink),
        Err(why) => {
            unusable(tenant, &why);
            Route::Held
        }
    }
}

fn unusable(tenant: &str, why: &str) {
    tracing::warn!(
        tenant_id = tenant,
        "its logging configuration cannot be used, so its events are held: {why}"
    );
}
