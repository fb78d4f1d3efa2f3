//! What was found, in words for an auditor.

use std::fmt;

use crate::chain::LogdriverId;

/// What a log is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Chain by chain.
    pub chains: Vec<Chain>,
    /// The first lines that hold no event of a chain.
    pub unreadable: Vec<u64>,
    /// How many do.
    pub unreadable_count: u64,
}

/// One tenant's events at one logdriver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Whose events they are.
    pub tenant: String,
    /// Which logdriver delivered them.
    pub logdriver: LogdriverId,
    /// The first place in the export.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// Different events in the export, the edited ones too.
    pub events: u64,
    /// Events that came again.
    pub duplicates: u64,
    /// The place of the last checkpoint that holds: all before it is proven. 0 if there is none.
    pub proven: u64,
    /// Whether lines are in another order than events.
    pub out_of_order: bool,
    /// What is wrong, by place.
    pub findings: Vec<Finding>,
}

/// Something that is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// An event is not what was delivered.
    Edited {
        /// Its place.
        place: u64,
        /// Its line.
        line: u64,
    },
    /// Two different events, each whole in itself, claim one place.
    Forked {
        /// The place.
        place: u64,
        /// The line of the second.
        line: u64,
    },
    /// Events are not in the export.
    Missing {
        /// The first of them.
        from: u64,
        /// The last.
        to: u64,
    },
    /// An event does not follow from the one before it: one of the two was replaced, and its link made anew.
    Rewritten {
        /// The later one's place.
        place: u64,
    },
    /// A checkpoint that none of the given keys signed.
    Unsigned {
        /// Its place.
        place: u64,
    },
    /// A signed checkpoint says that the chain was another.
    Contradicted {
        /// Its place.
        place: u64,
    },
    /// No signed checkpoint at all.
    NoCheckpoint,
    /// A proxy lost events before they were stored, and says so.
    Lost {
        /// The place of the event that says it.
        place: u64,
        /// How many.
        count: u64,
    },
    /// A proxy ended without saying so: what it had not handed over is lost.
    Died {
        /// The place of the event that says it.
        place: u64,
        /// The proxy's process.
        proxy: String,
        /// When the last event happened that came of it.
        last_event_at: String,
    },
}

impl Finding {
    /// Where it belongs.
    #[must_use]
    pub fn place(&self) -> u64 {
        match self {
            Self::Edited { place, .. }
            | Self::Forked { place, .. }
            | Self::Rewritten { place }
            | Self::Unsigned { place }
            | Self::Contradicted { place }
            | Self::Lost { place, .. }
            | Self::Died { place, .. } => *place,
            Self::Missing { from, .. } => *from,
            Self::NoCheckpoint => u64::MAX,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edited { place, line } => write!(
                f,
                "EDITED     event {place} (record {line}) is not as it was delivered"
            ),
            Self::Forked { place, line } => write!(
                f,
                "FORKED     record {line} is another event {place} than the one before it in the export"
            ),
            Self::Missing { from, to } if from == to => {
                write!(f, "MISSING    event {from} is not in the export")
            }
            Self::Missing { from, to } => write!(
                f,
                "MISSING    events {from} to {to} ({}) are not in the export",
                to - from + 1
            ),
            Self::Rewritten { place } => write!(
                f,
                "REWRITTEN  event {place} does not follow from the one before it: one of the two was replaced"
            ),
            Self::Unsigned { place } => write!(
                f,
                "UNSIGNED   checkpoint {place} is signed by none of the given keys"
            ),
            Self::Contradicted { place } => write!(
                f,
                "REWRITTEN  the signed checkpoint {place} tells of another history than the events before it"
            ),
            Self::NoCheckpoint => f.write_str(
                "UNPROVEN   there is no checkpoint signed by a given key: nothing proves who wrote these events",
            ),
            Self::Lost { place, count } => write!(
                f,
                "LOST       a proxy lost {count} before they were stored, says event {place}"
            ),
            Self::Died {
                place,
                proxy,
                last_event_at,
            } => write!(
                f,
                "DIED       the proxy {proxy} ended without handing over all: what happened there after {last_event_at} may be missing, \
                 says event {place}"
            ),
        }
    }
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        !self.chains.is_empty()
            && self.unreadable_count == 0
            && self.chains.iter().all(|chain| chain.findings.is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chain in &self.chains {
            write!(f, "{chain}")?;
        }
        if self.unreadable_count > 0 {
            let lines: Vec<_> = self.unreadable.iter().map(u64::to_string).collect();
            let more = if self.unreadable_count > self.unreadable.len() as u64 {
                ", …"
            } else {
                ""
            };
            writeln!(
                f,
                "NO EVENT   in {} records: no delivered event with its link can be read in {}{more}",
                self.unreadable_count,
                lines.join(", ")
            )?;
        }
        let word = match (self.chains.is_empty(), self.is_sound()) {
            (true, _) => "There is no event in this export.",
            (false, true) => "The log is whole: nothing was deleted, edited or replaced.",
            (false, false) => "The log is NOT whole: see the lines in capitals.",
        };
        writeln!(f, "{word}")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tenant, logdriver) = (&self.tenant, self.logdriver);
        writeln!(f, "Tenant {tenant}, logdriver {logdriver}")?;
        writeln!(
            f,
            "  events {} to {}: {} in the export",
            self.first, self.last, self.events
        )?;
        if self.first > 1 {
            writeln!(
                f,
                "  note: the export begins with event {}; of those before it nothing is said",
                self.first
            )?;
        }
        if self.duplicates > 0 {
            writeln!(
                f,
                "  note: {} came more than once, which is no fault",
                self.duplicates
            )?;
        }
        if self.out_of_order {
            writeln!(
                f,
                "  note: the export is not in the order of events, which is no fault"
            )?;
        }
        match self.last.checked_sub(self.proven) {
            Some(after) if after > 0 && self.proven > 0 => writeln!(
                f,
                "  note: a signed checkpoint proves all up to event {}; the {after} after it are tied to it, but whether more \
                 followed only a later checkpoint can tell",
                self.proven
            )?,
            Some(0) => writeln!(
                f,
                "  a signed checkpoint proves all up to event {}",
                self.proven
            )?,
            Some(_) | None => {}
        }
        for finding in &self.findings {
            writeln!(f, "  {finding}")?;
        }
        Ok(())
    }
}
