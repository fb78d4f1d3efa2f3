//! What happened: counters per provider and operation, token calls per credential, and the last requests that were
//! refused or failed. Never a secret.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::exchange::{Operation, Provider, Reply, Subject, Verdict};

/// Records kept of each sort; the oldest go first.
const RECORDS_MAX: usize = 1000;
/// Credentials whose token calls are counted.
const CREDENTIALS_MAX: usize = 100_000;
/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 500;

/// A request that was not served.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    /// Counts all records from 1.
    number: u64,
    unix_ms: u64,
    provider: Option<Provider>,
    operation: Operation,
    /// Why: one of the words of [`super::exchange::Refusal`] or [`super::exchange::Failure`].
    why: Value,
    status: u16,
    /// The API's own code.
    code: String,
    reason: String,
    key: String,
    caller: String,
}

/// Counters of one provider and operation.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) answered: u64,
    pub(crate) challenged: u64,
    pub(crate) refused: u64,
    pub(crate) failed: u64,
    /// Of all these, those that a fault struck.
    pub(crate) faulted: u64,
}

/// Counters of connections.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Connections {
    pub(crate) accepted: u64,
    pub(crate) open: u64,
    /// Closed by the simulator, which was told to or found them idle for too long.
    pub(crate) closed: u64,
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
    pub(crate) handshakes_failed: u64,
    /// Turned away, because too many were open or because the control API says so.
    pub(crate) turned_away: u64,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    counts: [[Counts; Operation::ALL.len()]; Provider::ALL.len()],
    /// Requests that belong to no provider.
    pub(crate) strays: u64,
    tokens: BTreeMap<String, u64>,
    refused: VecDeque<Record>,
    failed: VecDeque<Record>,
    records: u64,
    pub(crate) connections: Connections,
}

impl Journal {
    /// Everything from zero, but for the connections that are open.
    pub(crate) fn clear(&mut self) {
        let open = self.connections.open;
        *self = Self::default();
        self.connections.open = open;
    }

    pub(crate) fn record(
        &mut self,
        provider: Option<Provider>,
        subject: &Subject,
        reply: &Reply,
        struck: bool,
        unix_ms: u64,
    ) {
        let operation = subject.operation.unwrap_or(Operation::Other);
        let row = provider.and_then(|provider| self.counts.get_mut(provider.index()));
        match row.and_then(|row| row.get_mut(operation.index())) {
            Some(counts) => {
                counts.requests += 1;
                counts.faulted += u64::from(struck);
                match reply.verdict {
                    Verdict::Answered => counts.answered += 1,
                    Verdict::Challenged => counts.challenged += 1,
                    Verdict::Refused(_) => counts.refused += 1,
                    Verdict::Failed(_) => counts.failed += 1,
                }
            }
            None => self.strays += 1,
        }
        if let (Operation::Token, Some(provider)) = (operation, provider) {
            let name = format!("{}:{}", provider.as_str(), subject.caller);
            if self.tokens.len() < CREDENTIALS_MAX || self.tokens.contains_key(&name) {
                *self.tokens.entry(name).or_default() += 1;
            }
        }
        let why = match reply.verdict {
            Verdict::Answered | Verdict::Challenged => return,
            Verdict::Refused(why) => serde_json::to_value(why),
            Verdict::Failed(why) => serde_json::to_value(why),
        };
        self.records += 1;
        let record = Record {
            number: self.records,
            unix_ms,
            provider,
            operation,
            why: why.unwrap_or_default(),
            status: reply.status,
            code: reply.code.clone(),
            reason: reply.reason.chars().take(REASON_CHARS_MAX).collect(),
            key: subject.key().chars().take(REASON_CHARS_MAX).collect(),
            caller: subject.caller.chars().take(REASON_CHARS_MAX).collect(),
        };
        let records = if matches!(reply.verdict, Verdict::Refused(_)) {
            &mut self.refused
        } else {
            &mut self.failed
        };
        if records.len() == RECORDS_MAX {
            records.pop_front();
        }
        records.push_back(record);
    }

    pub(crate) fn refused(&self) -> &VecDeque<Record> {
        &self.refused
    }

    pub(crate) fn failed(&self) -> &VecDeque<Record> {
        &self.failed
    }

    /// Counters as JSON: operations without a request are left out.
    pub(crate) fn metrics(&self) -> Value {
        let mut providers = Map::new();
        let mut totals = Counts::default();
        for (provider, row) in Provider::ALL.iter().zip(&self.counts) {
            let mut operations = Map::new();
            for (operation, counts) in Operation::ALL.iter().zip(row) {
                if counts.requests > 0 {
                    operations.insert(operation.as_str().to_owned(), json!(counts));
                }
                totals.requests += counts.requests;
                totals.answered += counts.answered;
                totals.challenged += counts.challenged;
                totals.refused += counts.refused;
                totals.failed += counts.failed;
                totals.faulted += counts.faulted;
            }
            providers.insert(provider.as_str().to_owned(), operations.into());
        }
        json!({
            "totals": totals,
            "providers": providers,
            "tokens": self.tokens,
            "strays": self.strays,
            "connections": self.connections,
        })
    }
}
