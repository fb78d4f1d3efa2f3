//! The logdriver's own standard output, one event a line: for tenants without a logging configuration.

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use futures_util::future::BoxFuture;

use crate::sink::{Event, Failure, Limits, Sink, SinkKind};

/// The most of one call: little enough that other tenants' lines come in between.
const LIMITS: Limits = Limits {
    events_max: 10_000,
    bytes_max: 4 * 1024 * 1024,
    event_bytes_max: 4 * 1024 * 1024,
};

/// Standard output. One for all tenants is enough.
#[must_use]
pub fn stdout() -> Arc<dyn Sink> {
    Arc::new(Stdout)
}

struct Stdout;

impl Sink for Stdout {
    fn kind(&self) -> SinkKind {
        SinkKind::Stdout
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        let bytes = events.iter().map(|event| event.json.len() + 1).sum();
        let mut lines = Vec::with_capacity(bytes);
        for event in events {
            lines.extend_from_slice(&event.json);
            lines.push(b'\n');
        }
        Box::pin(async move {
            // A pipe whose reader is slow blocks, and no runtime's thread may.
            let written = tokio::task::spawn_blocking(move || {
                let mut out = io::stdout().lock();
                out.write_all(&lines)?;
                out.flush()
            });
            match written.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(why)) => Err(Failure::Later {
                    after: None,
                    why: format!("standard output: {why}"),
                }),
                Err(_) => Err(Failure::Later {
                    after: None,
                    why: "standard output: nobody wrote".to_owned(),
                }),
            }
        })
    }
}
