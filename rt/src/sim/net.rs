//! The simulated network: connections are pairs of pipes, each with latency, a window and faults.

mod link;
mod pipe;
mod socket;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use super::{SimRt, World};
use crate::resolve::literal;
use crate::{NetError, Rt};

pub use link::{Connecting, Cut, CutWith, Direction, Drip, Link};
use pipe::{Connection, End};
pub use socket::{SimListener, SimStream};

/// Bytes that one direction of a connection holds, on the way and unread, before the writer has to wait.
const WINDOW_BYTES: usize = 64 << 10;

/// Connections that wait at a listener; more are not answered, as with a full backlog.
const BACKLOG_MAX: usize = 4096;

/// How long a packet that was swallowed waits to be sent again.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// First port given to a client, and to a listener that asked for port 0.
const EPHEMERAL_PORT_MIN: u16 = 32_768;

/// The controls of the network: names, links, and what happens to open connections.
///
/// Bytes of one direction arrive in order and unchanged. They may be cut up differently than they were written.
#[derive(Clone)]
pub struct SimNet {
    world: Rc<World>,
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNet").finish_non_exhaustive()
    }
}

impl SimNet {
    pub(super) fn new(world: &Rc<World>) -> Self {
        Self {
            world: Rc::clone(world),
        }
    }

    fn state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.world.net.borrow_mut())
    }

    /// Gives `name` these addresses. A name without any, as all are at first, is not resolved.
    pub fn set_name(&self, name: &str, addresses: &[IpAddr]) {
        let name = name.to_owned();
        self.state(|state| state.names.insert(name, Some(addresses.to_vec())));
    }

    /// Questions for `name` are never answered.
    pub fn silence_name(&self, name: &str) {
        let name = name.to_owned();
        self.state(|state| state.names.insert(name, None));
    }

    /// Sets how connections to `server` behave, open ones too, but for [`Link::cut`].
    pub fn set_link(&self, server: SocketAddr, link: Link) {
        self.state(|state| state.links.insert(server, link));
    }

    /// Changes how connections to `server` behave, open ones too, but for [`Link::cut`].
    pub fn change_link(&self, server: SocketAddr, change: impl FnOnce(&mut Link)) {
        self.state(|state| change(state.links.entry(server).or_default()));
    }

    /// Resets all open connections to `server`, at both ends, now.
    pub fn reset_connections(&self, server: SocketAddr) {
        self.state(|state| {
            for connection in state.connections.values_mut() {
                if connection.server == server {
                    connection.reset_both();
                }
            }
        });
    }

    /// Ends all open connections to `server` as if the server had closed them: the client reads an end now, and what it
    /// writes is answered by a reset.
    pub fn close_connections(&self, server: SocketAddr) {
        self.state(|state| {
            for connection in state.connections.values_mut() {
                if connection.server == server {
                    connection.close_far();
                }
            }
        });
    }

    /// How many connections to `server` are open at either end.
    #[must_use]
    pub fn connection_count(&self, server: SocketAddr) -> usize {
        self.state(|state| {
            state
                .connections
                .values()
                .filter(|connection| connection.server == server)
                .count()
        })
    }

    /// How many connections to `server` were made since the start.
    #[must_use]
    pub fn connected_total(&self, server: SocketAddr) -> usize {
        self.state(|state| state.connected.get(&server).copied().unwrap_or(0))
    }
}

/// What the network holds. Ordered maps only: the order of a hash map differs from run to run.
#[derive(Default)]
pub(super) struct State {
    /// `None` is never answered.
    names: BTreeMap<String, Option<Vec<IpAddr>>>,
    links: BTreeMap<SocketAddr, Link>,
    listeners: BTreeMap<u64, Queue>,
    connections: BTreeMap<u64, Connection>,
    connected: BTreeMap<SocketAddr, usize>,
    next_number: u64,
    next_port: u16,
}

/// A listener's side of the state.
struct Queue {
    address: SocketAddr,
    waiting: VecDeque<(SimStream, SocketAddr)>,
    acceptor: Option<Waker>,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn port(&mut self) -> u16 {
        let port = self.next_port.max(EPHEMERAL_PORT_MIN);
        self.next_port = port.checked_add(1).unwrap_or(EPHEMERAL_PORT_MIN);
        port
    }

    fn link(&self, server: SocketAddr) -> Link {
        self.links.get(&server).cloned().unwrap_or_default()
    }
}

pub(super) fn bind(world: &Rc<World>, address: SocketAddr) -> io::Result<SimListener> {
    let mut state = world.net.borrow_mut();
    let mut address = address;
    if address.port() == 0 {
        let used: BTreeSet<u16> = state
            .listeners
            .values()
            .map(|queue| queue.address.port())
            .collect();
        let free = (0..=u16::MAX)
            .map(|_| state.port())
            .find(|port| !used.contains(port));
        address.set_port(free.ok_or(io::ErrorKind::AddrInUse)?);
    }
    let number = state.number();
    let queue = Queue {
        address,
        waiting: VecDeque::new(),
        acceptor: None,
    };
    state.listeners.insert(number, queue);
    drop(state);
    Ok(SimListener {
        world: Rc::clone(world),
        number,
        address,
    })
}

/// The whole of opening a connection, without the timeout.
pub(super) async fn connect(rt: &SimRt, server: SocketAddr) -> Result<SimStream, NetError> {
    let world = &rt.world;
    loop {
        let link = world.net.borrow().link(server);
        rt.sleep(world.duration(&link.latency)).await;
        if link.connecting == Connecting::BlackHole || link.silent {
            rt.sleep(RETRANSMIT).await;
            continue;
        }
        let opened = if link.connecting == Connecting::Refuse {
            None
        } else {
            open(world, server, rt.host, link.cut)
        };
        match opened {
            None => {
                rt.sleep(world.duration(&link.latency)).await;
                return Err(NetError::Refused);
            }
            Some(None) => rt.sleep(RETRANSMIT).await,
            Some(Some(stream)) => {
                rt.sleep(world.duration(&link.latency)).await;
                return Ok(stream);
            }
        }
    }
}

/// Opens a connection at one of the listeners of `server`: `None` if there is none, `Some(None)` if its backlog is full.
#[expect(
    clippy::option_option,
    reason = "the outer says whether anyone listens, the inner whether there was room"
)]
fn open(
    world: &Rc<World>,
    server: SocketAddr,
    host: IpAddr,
    cut: Option<Cut>,
) -> Option<Option<SimStream>> {
    let mut state = world.net.borrow_mut();
    let listening: Vec<u64> = state
        .listeners
        .iter()
        .filter(|(_, queue)| listens_for(queue.address, server))
        .map(|(number, _)| *number)
        .collect();
    let chosen = listening.get(world.below(listening.len()))?;
    if state
        .listeners
        .get(chosen)
        .is_some_and(|queue| queue.waiting.len() >= BACKLOG_MAX)
    {
        return Some(None);
    }
    let number = state.number();
    let client = SocketAddr::new(host, state.port());
    let connection = Connection::new(server, cut);
    state.connections.insert(number, connection);
    *state.connected.entry(server).or_default() += 1;
    let stream = |end| SimStream {
        world: Rc::clone(world),
        number,
        end,
    };
    if let Some(queue) = state.listeners.get_mut(chosen) {
        queue.waiting.push_back((stream(End::Server), client));
        if let Some(acceptor) = queue.acceptor.take() {
            acceptor.wake();
        }
    }
    Some(Some(stream(End::Client)))
}

/// A listener on 0.0.0.0 or [::] takes connections to any address.
fn listens_for(listener: SocketAddr, server: SocketAddr) -> bool {
    listener == server || (listener.ip().is_unspecified() && listener.port() == server.port())
}

pub(super) async fn resolve(
    rt: &SimRt,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, NetError> {
    if let Some(ip) = literal(host) {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    rt.sleep(rt.world.duration(&Link::default().latency)).await;
    let found = rt.world.net.borrow().names.get(host).cloned();
    match found {
        Some(None) => pending().await,
        Some(Some(addresses)) if !addresses.is_empty() => Ok(addresses
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect()),
        Some(Some(_)) | None => Err(NetError::Unresolved),
    }
}
