//! The numbers that a proxy's shards give their events: which are missing, and whether the process that gave them ended in
//! order.
//!
//! A shard that ends in order says so with its last event ([`TSP_EVENTS_ENDED`]). When another process answers at the same
//! address, or the address is gone, and a shard of the former process has not said so, that process died, and what it held is
//! lost: how much that was, nobody knows. What the store kept tells it also where the logdriver itself was killed meanwhile.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use serde::Deserialize;
use tsp_wire::event::{EventSource, TSP_EVENTS_ENDED, TSP_EVENTS_LOST};

use crate::{
    metrics::Metrics,
    store::{Incoming, Number, SHARDS_MAX, Shards, processes},
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
        let Event { fields } = serde_json::from_slice(event.json()).ok()?;
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

/// What came by a connection.
#[derive(Debug)]
pub(super) enum Heard {
    /// A proxy is looked for at that address.
    Dialled(SocketAddr),
    /// So are all addresses that one name more has had for a while.
    NameDialled,
    /// That process answers there.
    Process(SocketAddr, u64),
    /// Numbers, in the order in which they came, and what they tell of their shards.
    Numbers {
        /// Where they came from.
        from: SocketAddr,
        /// Themselves.
        numbers: Vec<Number>,
        /// By process and number of the shard.
        shards: Shards,
    },
    /// Nothing more: the proxy has that address no longer.
    Gone(SocketAddr),
}

/// What is known of the numbers.
#[derive(Debug)]
pub(super) struct Numbers {
    metrics: Arc<Metrics>,
    shards: Shards,
    /// Where proxies are looked for, and how many names may have more such addresses yet.
    dialled: HashSet<SocketAddr>,
    names: usize,
    /// The process that was heard last at each address.
    latest: HashMap<SocketAddr, u64>,
}

impl Numbers {
    /// `shards` is what was known when the last process of the logdriver ended. Proxies have so many `names`.
    pub(super) fn new(metrics: Arc<Metrics>, shards: Shards, names: usize) -> Self {
        Self {
            metrics,
            shards,
            dialled: HashSet::new(),
            names,
            latest: HashMap::new(),
        }
    }

    /// Takes note. Gives the processes that ended without saying so, as is known now.
    pub(super) fn hear(&mut self, heard: Heard) -> Vec<u64> {
        match heard {
            Heard::Dialled(at) => {
                self.dialled.insert(at);
                Vec::new()
            }
            Heard::NameDialled => {
                self.names = self.names.saturating_sub(1);
                if self.names > 0 {
                    return Vec::new();
                }
                let known = self.shards.values().map(|shard| shard.address);
                let nowhere: HashSet<_> = known.filter(|at| !self.dialled.contains(at)).collect();
                nowhere
                    .into_iter()
                    .flat_map(|at| self.close(at, None))
                    .collect()
            }
            Heard::Process(at, instance) => self.follow(at, instance),
            Heard::Numbers {
                from,
                numbers,
                shards,
            } => {
                let missing = self.missing(&numbers, &shards);
                self.metrics.missing.inc_by(missing);
                let mut died = Vec::new();
                for ((instance, _), _) in shards {
                    died.extend(self.follow(from, instance));
                }
                died
            }
            Heard::Gone(from) => {
                self.dialled.remove(&from);
                self.latest.remove(&from);
                self.close(from, None)
            }
        }
    }

    /// How many numbers are left out before these, of shards of which there is `news`.
    fn missing(&mut self, numbers: &[Number], news: &Shards) -> u64 {
        let (mut missing, mut expected) = (0, HashMap::new());
        for number in numbers {
            let key = (number.instance, number.shard);
            let next = expected.entry(key).or_insert_with(|| {
                let known = self.shards.get(&key);
                known.map_or(number.number, |shard| shard.next)
            });
            missing += number.number.saturating_sub(*next);
            // What comes late was counted as missing.
            *next = number.number.saturating_add(1).max(*next);
        }
        processes::take(&mut self.shards, news);
        if self.shards.len() > SHARDS_MAX {
            self.shards.retain(|_, shard| !shard.ended);
        }
        if self.shards.len() > SHARDS_MAX {
            self.shards.clear();
        }
        missing
    }

    /// That process answers there, so no other does.
    fn follow(&mut self, at: SocketAddr, instance: u64) -> Vec<u64> {
        if self.latest.insert(at, instance) == Some(instance) {
            return Vec::new();
        }
        self.close(at, Some(instance))
    }

    /// Nothing more comes from there but of one process. Gives those that did not say so.
    fn close(&mut self, at: SocketAddr, but_of: Option<u64>) -> Vec<u64> {
        let mut silent: BTreeMap<u64, BTreeMap<u16, u64>> = BTreeMap::new();
        for ((instance, number), shard) in &mut self.shards {
            if shard.address == at && Some(*instance) != but_of && !shard.ended {
                shard.ended = true;
                let shards = silent.entry(*instance).or_default();
                shards.insert(*number, shard.next.saturating_sub(1));
            }
        }
        for (instance, shards) in &silent {
            let last = shards
                .iter()
                .map(|(number, last)| format!("{number}:{last}"));
            self.metrics.proxies_died.inc();
            tracing::warn!(
                address = %at,
                instance = format_args!("{instance:016x}"),
                last_numbers = last.collect::<Vec<_>>().join(" "),
                "a proxy ended without saying so: the events that it held are lost, and nobody knows how many; the last \
                 numbers, shard by shard, are here, and its tenants are told"
            );
        }
        silent.into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::Shard;

    /// An event as the tests write it: process, shard, number, and whether it is the last.
    type Told = (u64, u16, u64, bool);

    const fn number(instance: u64, shard: u16, number: u64) -> Told {
        (instance, shard, number, false)
    }

    const fn ended(instance: u64, shard: u16, number: u64) -> Told {
        (instance, shard, number, true)
    }

    fn heard(from: SocketAddr, told: &[Told]) -> Heard {
        let mut shards = Shards::new();
        for (instance, shard, number, ended) in told {
            let news = Shard {
                address: from,
                next: number + 1,
                event_ms: 0,
                ended: *ended,
            };
            shards.insert((*instance, *shard), news);
        }
        let numbers = told.iter().map(|(instance, shard, number, _)| Number {
            instance: *instance,
            shard: *shard,
            number: *number,
        });
        let numbers = numbers.collect();
        Heard::Numbers {
            from,
            numbers,
            shards,
        }
    }

    fn numbers(shards: Shards) -> Numbers {
        Numbers::new(Arc::new(Metrics::new().unwrap()), shards, 2)
    }

    const NOBODY: [u64; 0] = [];

    const HERE: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5555);

    #[test]
    fn gaps_are_counted_by_shard() {
        let mut numbers = numbers(Shards::new());
        let mut missing = |all: &[Told]| {
            let before = numbers.metrics.missing.get();
            numbers.hear(heard(HERE, all));
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
    fn a_process_that_ends_without_a_word_has_died() {
        let mut numbers = numbers(Shards::new());
        let there = SocketAddr::from(([127, 0, 0, 2], 5555));
        let mut died = |from, all: &[Told]| numbers.hear(heard(from, all));
        assert_eq!(died(HERE, &[number(1, 0, 0), number(1, 1, 0)]), NOBODY);
        // One shard said so, the other did not.
        assert_eq!(died(HERE, &[ended(1, 0, 1)]), NOBODY);
        assert_eq!(died(HERE, &[number(2, 0, 0)]), [1]);
        // All that were heard of did, and what comes late does not unsay it.
        assert_eq!(died(HERE, &[number(2, 0, 1), ended(2, 0, 2)]), NOBODY);
        assert_eq!(died(HERE, &[number(2, 0, 0)]), NOBODY);
        assert_eq!(died(HERE, &[number(3, 1, 0)]), NOBODY);
        // Another proxy is another matter.
        assert_eq!(died(there, &[number(4, 0, 0)]), NOBODY);
        assert_eq!(numbers.hear(Heard::Gone(HERE)), [3]);
        assert_eq!(numbers.hear(Heard::Gone(HERE)), NOBODY);
        // One that has said nothing yet answers questions.
        assert_eq!(numbers.hear(Heard::Process(there, 4)), NOBODY);
        assert_eq!(numbers.hear(Heard::Process(there, 5)), [4]);
        assert_eq!(numbers.metrics.proxies_died.get(), 3);
    }

    #[test]
    fn what_the_store_knew_tells_of_deaths_while_nobody_was_there() {
        let there = SocketAddr::from(([127, 0, 0, 2], 5555));
        let shard = |address, ended| Shard {
            address,
            next: 5,
            event_ms: 0,
            ended,
        };
        let known = Shards::from([
            ((1, 0), shard(HERE, false)),
            ((2, 0), shard(HERE, true)),
            ((3, 0), shard(there, false)),
            ((4, 0), shard(there, true)),
        ]);
        let mut numbers = numbers(known);
        assert_eq!(numbers.hear(Heard::Dialled(HERE)), NOBODY);
        // A name that cannot be looked up yet may be that one's.
        assert_eq!(numbers.hear(Heard::NameDialled), NOBODY);
        assert_eq!(numbers.hear(Heard::NameDialled), [3]);
        assert_eq!(numbers.hear(heard(HERE, &[number(1, 0, 7)])), NOBODY);
        assert_eq!(numbers.metrics.missing.get(), 2);
        assert_eq!(numbers.hear(heard(HERE, &[number(5, 0, 0)])), [1]);
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
