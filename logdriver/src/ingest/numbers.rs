//! The numbers that a proxy's shards give their events: which are missing, and whether the process that gave them ended in
//! order.
//!
//! A shard that ends in order says so with its last event ([`TSP_EVENTS_ENDED`]). When another process answers at the same
//! address, or the address is gone, and a shard of the former process has not said so, that process died, and what it held is
//! lost: how much that was, nobody knows.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use serde::Deserialize;
use tsp_wire::event::{EventSource, TSP_EVENTS_ENDED, TSP_EVENTS_LOST};

use crate::{
    metrics::Metrics,
    store::{Incoming, NextNumbers, SHARDS_MAX},
};

/// How an event of a proxy's own goes on, where it says what happened.
const OWN: &[u8] = br#""event":"TSP_EVENTS_"#;

/// A proxy's word on its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// So many were dropped.
    Lost(u64),
    /// The shard has ended in order.
    Ended,
}

impl Word {
    /// What an event says of other events; nothing, as a rule.
    pub(super) fn of(event: &Incoming) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event {
            #[serde(rename = "iclFields")]
            fields: Fields,
        }
        #[derive(Deserialize)]
        struct Fields {
            event: String,
            source: String,
            #[serde(default = "one")]
            count: u64,
        }
        const fn one() -> u64 {
            1
        }
        // Nearly all events are done with here.
        if !event.fields().starts_with(OWN) {
            return None;
        }
        let Event { fields } = serde_json::from_slice(&event.json).ok()?;
        if fields.source != EventSource::Tsp.as_str() {
            return None;
        }
        match fields.event.as_str() {
            TSP_EVENTS_LOST => Some(Self::Lost(fields.count)),
            TSP_EVENTS_ENDED => Some(Self::Ended),
            _ => None,
        }
    }
}

/// An event's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) instance: u64,
    pub(super) shard: u16,
    pub(super) number: u64,
    /// Whether it is the shard's last.
    pub(super) ended: bool,
}

/// What came by a connection.
#[derive(Debug)]
pub(super) enum Heard {
    /// Numbers, in the order in which they came.
    Numbers(SocketAddr, Vec<Number>),
    /// Nothing more: the proxy has that address no longer.
    Gone(SocketAddr),
}

/// What is known of the numbers.
#[derive(Debug)]
pub(super) struct Numbers {
    metrics: Arc<Metrics>,
    /// The number that each shard of a process gives next.
    next: NextNumbers,
    /// The process at each address.
    processes: HashMap<SocketAddr, Process>,
}

/// A process of a proxy.
#[derive(Debug)]
struct Process {
    instance: u64,
    shards: BTreeMap<u16, Last>,
}

/// What came last of a shard.
#[derive(Debug)]
struct Last {
    number: u64,
    ended: bool,
}

impl Numbers {
    /// `next` is what was known when the last process ended.
    pub(super) fn new(metrics: Arc<Metrics>, next: NextNumbers) -> Self {
        Self {
            metrics,
            next,
            processes: HashMap::new(),
        }
    }

    pub(super) fn hear(&mut self, heard: &Heard) {
        match heard {
            Heard::Numbers(from, numbers) => {
                for number in numbers {
                    let missing = self.missing(number);
                    self.metrics.missing.inc_by(missing);
                    self.follow(*from, number);
                }
            }
            Heard::Gone(from) => {
                if let Some(former) = self.processes.remove(from) {
                    self.close(*from, &former);
                }
            }
        }
    }

    /// How many numbers are left out before this one.
    fn missing(&mut self, number: &Number) -> u64 {
        let key = (number.instance, number.shard);
        if self.next.len() >= SHARDS_MAX && !self.next.contains_key(&key) {
            self.next.clear();
        }
        let next = self.next.entry(key).or_insert(number.number);
        let missing = number.number.saturating_sub(*next);
        // What comes late was counted as missing.
        *next = number.number.saturating_add(1).max(*next);
        missing
    }

    fn follow(&mut self, from: SocketAddr, number: &Number) {
        let process = Process {
            instance: number.instance,
            shards: BTreeMap::new(),
        };
        let known = self.processes.get(&from);
        if known.is_none_or(|known| known.instance != number.instance)
            && let Some(former) = self.processes.insert(from, process)
        {
            self.close(from, &former);
        }
        let Some(Process { shards, .. }) = self.processes.get_mut(&from) else {
            return;
        };
        if shards.len() >= SHARDS_MAX && !shards.contains_key(&number.shard) {
            return;
        }
        let last = shards.entry(number.shard).or_insert(Last {
            number: number.number,
            ended: false,
        });
        last.number = last.number.max(number.number);
        last.ended |= number.ended;
    }

    /// Nothing more comes of that process.
    fn close(&self, from: SocketAddr, former: &Process) {
        let silent = former.shards.iter().filter(|(_, last)| !last.ended);
        let silent: Vec<_> = silent
            .map(|(shard, last)| format!("{shard}:{}", last.number))
            .collect();
        if silent.is_empty() {
            return;
        }
        self.metrics.proxies_died.inc();
        tracing::warn!(
            address = %from,
            instance = format_args!("{:016x}", former.instance),
            last_numbers = silent.join(" "),
            "a proxy ended without saying so: the events that it held are lost, and nobody knows how many; the last \
             numbers, shard by shard, are here"
        );
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn number(instance: u64, shard: u16, number: u64) -> Number {
        Number {
            instance,
            shard,
            number,
            ended: false,
        }
    }

    fn ended(instance: u64, shard: u16, at: u64) -> Number {
        Number {
            ended: true,
            ..number(instance, shard, at)
        }
    }

    fn numbers() -> Numbers {
        Numbers::new(Arc::new(Metrics::new().unwrap()), NextNumbers::new())
    }

    const HERE: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5555);

    #[test]
    fn gaps_are_counted_by_shard() {
        let mut numbers = numbers();
        let mut missing = |all: &[Number]| {
            let before = numbers.metrics.missing.get();
            numbers.hear(&Heard::Numbers(HERE, all.to_vec()));
            numbers.metrics.missing.get() - before
        };
        assert_eq!(
            missing(&[number(1, 0, 7), number(1, 0, 8), number(1, 1, 0)]),
            0
        );
        assert_eq!(
            missing(&[number(1, 0, 11), number(1, 1, 1), number(2, 0, 5)]),
            2
        );
        // Late, and then on from where it was.
        assert_eq!(missing(&[number(1, 0, 9), number(1, 0, 12)]), 0);
    }

    #[test]
    fn a_process_that_ends_without_a_word_is_counted() {
        let mut numbers = numbers();
        let there = SocketAddr::from(([127, 0, 0, 2], 5555));
        let mut died = |heard: &[Heard]| {
            let before = numbers.metrics.proxies_died.get();
            for heard in heard {
                numbers.hear(heard);
            }
            numbers.metrics.proxies_died.get() - before
        };
        let of = |all: &[Number]| Heard::Numbers(HERE, all.to_vec());
        assert_eq!(died(&[of(&[number(1, 0, 0), number(1, 1, 0)])]), 0);
        // One shard said so, the other did not.
        assert_eq!(died(&[of(&[ended(1, 0, 1)]), of(&[number(2, 0, 0)])]), 1);
        // All that were heard of did.
        assert_eq!(died(&[of(&[ended(2, 0, 1)]), of(&[number(3, 1, 0)])]), 0);
        // Another proxy is another matter.
        assert_eq!(died(&[Heard::Numbers(there, vec![number(4, 0, 0)])]), 0);
        assert_eq!(died(&[Heard::Gone(HERE), Heard::Gone(HERE)]), 1);
    }

    #[test]
    fn only_a_proxy_has_a_word_on_its_events() {
        let word = |name: &str, source: &str, label: &str| {
            let json = format!(
                r#"{{"tenantId":"acme","timestamp":"2023-11-14T22:13:20.000Z","iclFields":{{"event":"{name}","requestingId":"","#,
            ) + &format!(
                r#""dataLabel":"{label}","source":"{source}","count":3}},"customFields":{{}}}}"#
            );
            Word::of(&Incoming::read(Bytes::from(json)).unwrap())
        };
        assert_eq!(word("TSP_EVENTS_LOST", "tsp", ""), Some(Word::Lost(3)));
        assert_eq!(word("TSP_EVENTS_ENDED", "tsp", ""), Some(Word::Ended));
        assert_eq!(word("TSP_EVENTS_ENDED", "app", ""), None);
        assert_eq!(word("DATA_ENCRYPT", "tsp", "TSP_EVENTS_LOST"), None);
    }
}
