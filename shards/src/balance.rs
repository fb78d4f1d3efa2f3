//! How connections spread over the shards.
//!
//! The kernel spreads TCP connections by a hash, which is even for thousands of them and poor for a sidecar's few long
//! ones; a Unix socket has one queue for all shards. So the shard that accepts a connection looks at how many each shard
//! holds, and hands a fresh one to the emptiest if it holds clearly more than the mean itself. That is one look at
//! one number per shard for each connection, and nothing for a request: a connection stays where it was put.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
};

/// Set in a shard's number once it takes nothing from the others, because it is about to end.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// A shard may hold more than the mean by this part of it, and not hand over. The kernel's hash stays below it when there
/// are hundreds of connections for each shard, so those are left where they are.
const SLACK_PART: usize = 8;

/// How many connections one shard holds or was promised. On a cache line of its own: the shard writes it often.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Held(AtomicUsize);

impl Held {
    fn count(&self) -> usize {
        self.0.load(Relaxed) & !CLOSED
    }
}

/// One shard's view of how many connections every shard holds.
pub(crate) struct Balance {
    all: Arc<[Held]>,
    index: usize,
}

/// A connection's place in the count of its shard; given back on drop.
pub(crate) struct Seat {
    all: Arc<[Held]>,
    shard: usize,
}

/// Where a fresh connection is served.
#[derive(Debug)]
pub(crate) enum Seating {
    /// On the shard that accepted it.
    Here(Seat),
    /// On this other shard.
    There(usize, Seat),
    /// Nowhere: every shard that could take it holds as many as it may.
    Full,
}

/// Whose connections a listener gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// The shard's own part: the kernel has spread them already.
    Own,
    /// All shards': no other shard listens there.
    Everyones,
}

impl Balance {
    /// The views of `shards` shards on the same numbers.
    pub(crate) fn among(shards: usize) -> Vec<Self> {
        let all: Arc<[Held]> = (0..shards).map(|_| Held::default()).collect();
        let view = |index| Self {
            all: Arc::clone(&all),
            index,
        };
        (0..shards).map(view).collect()
    }

    /// Finds a place for a connection that this shard has accepted, on a shard that holds less than `max`.
    pub(crate) fn seat(&self, share: Share, max: usize) -> Seating {
        let (mut total, mut own) = (0, 0);
        let mut emptiest = None;
        for (shard, held) in self.all.iter().enumerate() {
            let value = held.0.load(Relaxed);
            let count = value & !CLOSED;
            total += count;
            if shard == self.index {
                own = count;
            } else if value & CLOSED == 0
                && emptiest.is_none_or(|(_, least): (usize, usize)| count < least)
            {
                emptiest = Some((shard, count));
            }
        }
        let mean = (total + 1).div_ceil(self.all.len().max(1));
        let enough = match share {
            Share::Own => mean + mean / SLACK_PART,
            Share::Everyones => 0,
        };
        if let Some((shard, least)) = emptiest
            && least < own
            && (own >= enough || own >= max)
            && self.all.get(shard).is_some_and(|held| promise(held, max))
        {
            return Seating::There(shard, self.seat_of(shard));
        }
        if own >= max {
            return Seating::Full;
        }
        Seating::Here(self.seat_here())
    }

    /// A place on this shard, whatever the others hold.
    pub(crate) fn seat_here(&self) -> Seat {
        if let Some(own) = self.all.get(self.index) {
            own.0.fetch_add(1, AcqRel);
        }
        self.seat_of(self.index)
    }

    fn seat_of(&self, shard: usize) -> Seat {
        Seat {
            all: Arc::clone(&self.all),
            shard,
        }
    }

    /// How many connections this shard holds, those on their way to it included.
    pub(crate) fn own(&self) -> usize {
        self.all.get(self.index).map_or(0, |held| {
            // What was promised before `close` is seen after it.
            held.0.load(Acquire) & !CLOSED
        })
    }

    /// From now on no other shard hands over to this one.
    pub(crate) fn close(&self) {
        if let Some(own) = self.all.get(self.index) {
            own.0.fetch_or(CLOSED, AcqRel);
        }
    }
}

/// Counts one more for a shard, unless it has closed or holds `max`.
fn promise(held: &Held, max: usize) -> bool {
    let more = |value| (value < max).then_some(value + 1);
    held.0.fetch_update(AcqRel, Acquire, more).is_ok()
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(held) = self.all.get(self.shard) {
            held.0.fetch_sub(1, AcqRel);
        }
    }
}

impl fmt::Debug for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<_> = self.all.iter().map(Held::count).collect();
        f.debug_struct("Balance")
            .field("index", &self.index)
            .field("held", &counts)
            .finish()
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens `count` connections, each accepted by the shard that `accepts` names; what each shard holds then.
    fn open(
        balances: &[Balance],
        count: usize,
        share: Share,
        mut accepts: impl FnMut(usize) -> usize,
    ) -> (Vec<usize>, Vec<Seat>) {
        let seats = (0..count).map(
            |n| match balances[accepts(n)].seat(share, usize::MAX >> 1) {
                Seating::Here(seat) | Seating::There(_, seat) => seat,
                Seating::Full => panic!("there is no limit"),
            },
        );
        let seats: Vec<_> = seats.collect();
        (balances.iter().map(Balance::own).collect(), seats)
    }

    #[test]
    fn however_the_kernel_spreads_32_connections_no_shard_of_two_holds_more_than_18() {
        // Every order in which two shards can accept 16 connections, the last 16 all by one.
        for order in 0..1_u32 << 16 {
            for last in [0, 1] {
                let balances = Balance::among(2);
                let accepts = |n| {
                    if n < 16 {
                        (order >> n & 1) as usize
                    } else {
                        last
                    }
                };
                let (held, _seats) = open(&balances, 32, Share::Own, accepts);
                assert!(held.iter().all(|count| *count <= 18), "{order:b}: {held:?}");
            }
        }
    }

    #[test]
    fn what_everyone_shares_is_dealt_out_evenly() {
        for (shards, connections) in [(2, 2), (2, 32), (4, 32), (8, 8), (3, 32)] {
            let balances = Balance::among(shards);
            let (held, _seats) = open(&balances, connections, Share::Everyones, |_| 0);
            let (least, most) = (held.iter().min(), held.iter().max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{held:?}");
        }
    }

    #[test]
    fn many_connections_that_are_nearly_even_stay_where_they_were_accepted() {
        let balances = Balance::among(2);
        // 1,000 each, give or take the 3 % that a hash does.
        let accepts = |n| usize::from((n + 1) * 47 / 100 > n * 47 / 100);
        let (held, _seats) = open(&balances, 2_000, Share::Own, accepts);
        assert!((1_055..=1_060).contains(&held[0]), "{held:?}");
    }

    #[test]
    fn a_seat_is_counted_once_and_given_back() {
        let balances = Balance::among(2);
        let first = balances[0].seat_here();
        let Seating::There(1, second) = balances[0].seat(Share::Own, 10) else {
            panic!("the other shard is empty");
        };
        assert_eq!((balances[0].own(), balances[1].own()), (1, 1));
        drop((first, second));
        assert_eq!((balances[0].own(), balances[1].own()), (0, 0));
    }

    #[test]
    fn a_full_shard_hands_over_and_full_shards_refuse() {
        let balances = Balance::among(2);
        let seats: Vec<_> = (0..3).map(|_| balances[0].seat_here()).collect();
        let Seating::There(1, more) = balances[0].seat(Share::Own, 3) else {
            panic!("there is room on the other shard");
        };
        let all = [balances[1].seat_here(), balances[1].seat_here()];
        assert!(matches!(balances[0].seat(Share::Own, 3), Seating::Full));
        assert!(matches!(balances[1].seat(Share::Own, 3), Seating::Full));
        drop((seats, more, all));
    }

    #[test]
    fn a_shard_that_ends_is_handed_nothing_and_serves_what_it_was_promised() {
        let balances = Balance::among(2);
        let first = balances[0].seat_here();
        let Seating::There(1, promised) = balances[0].seat(Share::Everyones, 10) else {
            panic!("the other shard is empty");
        };
        balances[1].close();
        assert_eq!(balances[1].own(), 1);
        let here = balances[0].seat(Share::Everyones, 10);
        assert!(matches!(here, Seating::Here(_)));
        drop(promised);
        assert_eq!(balances[1].own(), 0);
        drop((here, first));
    }
}
