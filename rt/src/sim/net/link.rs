//! How connections to one address behave: latency and faults.

use std::ops::RangeInclusive;
use std::time::Duration;

/// How connections to one address behave. Set with
/// [`SimNet::set_link`](super::SimNet::set_link); the default is a quick local network.
#[derive(Debug, Clone)]
pub struct Link {
    /// How long a packet takes one way; each draws its own, but none overtakes another.
    pub latency: RangeInclusive<Duration>,
    /// What becomes of new connections.
    pub connecting: Connecting,
    /// Swallows all packets of open connections while set; they arrive after it is cleared, as TCP's repetition does.
    pub silent: bool,
    /// Cuts each connection that is opened while this is set, once.
    pub cut: Option<Cut>,
    /// Lets bytes through slowly.
    pub drip: Option<Drip>,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(50)..=Duration::from_micros(150),
            connecting: Connecting::Accept,
            silent: false,
            cut: None,
            drip: None,
        }
    }
}

/// What becomes of new connections of a [`Link`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connecting {
    /// They reach the listener, if there is one.
    Accept,
    /// They are refused, even if someone listens.
    Refuse,
    /// Nobody answers.
    BlackHole,
}

/// One of the two ways of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the side that connected to the side that listened.
    ToServer,
    /// The other.
    ToClient,
}

/// Cuts a connection in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The direction whose bytes count.
    pub direction: Direction,
    /// Exactly so many bytes arrive. Zero cuts as soon as there would be one.
    pub after_bytes: u64,
    /// What the reader of that direction sees then.
    pub with: CutWith,
}

/// What the reader of a [`Cut`] direction sees; the writer gets a reset in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutWith {
    /// A reset.
    Reset,
    /// An early end, as if the far end had closed.
    End,
}

/// So many bytes at a time, and a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drip {
    /// The direction that is slow.
    pub direction: Direction,
    /// Bytes at a time, one at least.
    pub bytes: usize,
    /// The pause before each.
    pub every: Duration,
}
