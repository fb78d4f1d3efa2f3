//! The simulated network: connections are pairs of pipes, each with latency, a window and faults.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exec::Event;
use super::{SimRt, World};
use crate::resolve::literal;
use crate::{Listener, NetError, Rt, Staleness, Stream};

/// Bytes that one direction of a connection holds, on the way and unread, before the writer has to wait.
const WINDOW_BYTES: usize = 64 << 10;

/// Connections that wait at a listener; more are not answered, as with a full backlog.
const BACKLOG_MAX: usize = 4096;

/// How long a packet that was swallowed waits to be sent again.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// First port given to a client, and to a listener that asked for port 0.
const EPHEMERAL_PORT_MIN: u16 = 32_768;

/// How connections to one address behave. Set with [`SimNet::set_link`]; the default is a quick local network.
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

/// The two ends of a connection, as indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Client,
    Server,
}

impl End {
    fn far(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// The direction in which this end writes.
    fn writes(self) -> Direction {
        match self {
            Self::Client => Direction::ToServer,
            Self::Server => Direction::ToClient,
        }
    }
}

struct Connection {
    server: SocketAddr,
    to_server: Pipe,
    to_client: Pipe,
}

/// One direction.
#[derive(Default)]
struct Pipe {
    /// On the way, with the time of arrival; never earlier than the one before.
    flying: VecDeque<(Duration, Packet)>,
    /// Whether the calendar has an entry for the first of those.
    is_scheduled: bool,
    /// Arrived, not read.
    unread: VecDeque<u8>,
    /// Bytes flying and unread.
    held_bytes: usize,
    /// Bytes that have arrived in all.
    arrived_bytes: u64,
    cut: Option<Cut>,
    /// When the next drop of a [`Drip`] may fall.
    drip_at: Duration,
    writer: Writer,
    reader: Reader,
    reader_waker: Option<Waker>,
    writer_waker: Option<Waker>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Writer {
    #[default]
    Open,
    /// Has sent its end.
    Ended,
    /// Was reset.
    Reset,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Reader {
    #[default]
    Open,
    /// Has seen the end, once all is read.
    Ended,
    /// Has seen a reset, once all is read.
    Reset,
    /// Dropped its end; what arrives is answered by a reset.
    Gone,
}

enum Packet {
    Data(Vec<u8>),
    End,
    Reset,
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

impl Connection {
    fn pipe(&mut self, direction: Direction) -> &mut Pipe {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        }
    }

    /// The pipe that `end` writes into.
    fn out(&mut self, end: End) -> &mut Pipe {
        self.pipe(end.writes())
    }

    /// The pipe that `end` reads from.
    fn into(&mut self, end: End) -> &mut Pipe {
        self.pipe(end.far().writes())
    }

    /// `end` learns that the connection is reset.
    fn reset(&mut self, end: End) {
        let into = self.into(end);
        if into.reader != Reader::Gone {
            into.reader = Reader::Reset;
        }
        let out = self.out(end);
        out.writer = Writer::Reset;
        out.flying.clear();
        out.held_bytes = out.unread.len();
        for pipe in [&mut self.to_server, &mut self.to_client] {
            pipe.wake();
        }
    }

    fn reset_both(&mut self) {
        self.reset(End::Client);
        self.reset(End::Server);
    }

    fn close_far(&mut self) {
        self.to_client.flying.clear();
        self.to_client.held_bytes = self.to_client.unread.len();
        if self.to_client.reader == Reader::Open {
            self.to_client.reader = Reader::Ended;
        }
        // The server's own code learns of it too, if it looks.
        self.to_client.writer = Writer::Reset;
        self.to_server.reader = Reader::Gone;
        self.to_client.wake();
        self.to_server.wake();
    }

    /// Both ends are dropped and nothing is on the way.
    fn is_over(&self) -> bool {
        let over = |pipe: &Pipe| pipe.reader == Reader::Gone && pipe.flying.is_empty();
        over(&self.to_server) && over(&self.to_client)
    }
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader_waker.take(), self.writer_waker.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

/// Puts a packet on its way.
fn send(world: &Rc<World>, number: u64, direction: Direction, packet: Packet) {
    let mut state = world.net.borrow_mut();
    let Some(server) = state
        .connections
        .get(&number)
        .map(|connection| connection.server)
    else {
        return;
    };
    let latency = world.duration(&state.link(server).latency);
    let arrival = world.elapsed.get() + latency;
    let Some(connection) = state.connections.get_mut(&number) else {
        return;
    };
    let pipe = connection.pipe(direction);
    let arrival = pipe
        .flying
        .back()
        .map_or(arrival, |(before, _)| arrival.max(*before));
    pipe.flying.push_back((arrival, packet));
    schedule(world, pipe, number, direction, arrival);
}

fn schedule(world: &Rc<World>, pipe: &mut Pipe, number: u64, direction: Direction, when: Duration) {
    if !pipe.is_scheduled {
        pipe.is_scheduled = true;
        let call = Box::new(move |world: &Rc<World>| arrive(world, number, direction));
        world.events.borrow_mut().add(when, Event::Call(call));
    }
}

/// The first packet of a direction has arrived, or would have.
fn arrive(world: &Rc<World>, number: u64, direction: Direction) {
    let now = world.elapsed.get();
    let mut answer_reset = false;
    {
        let mut state = world.net.borrow_mut();
        let Some(server) = state
            .connections
            .get(&number)
            .map(|connection| connection.server)
        else {
            return;
        };
        let link = state.link(server);
        let drip = link.drip.filter(|drip| drip.direction == direction);
        let Some(connection) = state.connections.get_mut(&number) else {
            return;
        };
        connection.pipe(direction).is_scheduled = false;
        if link.silent {
            let pipe = connection.pipe(direction);
            if !pipe.flying.is_empty() {
                schedule(world, pipe, number, direction, now + RETRANSMIT);
            }
            return;
        }
        while let Some((when, packet)) = connection.pipe(direction).flying.pop_front() {
            if when > now {
                let pipe = connection.pipe(direction);
                pipe.flying.push_front((when, packet));
                schedule(world, pipe, number, direction, when);
                break;
            }
            match packet {
                Packet::Data(mut bytes) => {
                    let pipe = connection.pipe(direction);
                    if drip.is_some() && now < pipe.drip_at {
                        let when = pipe.drip_at;
                        pipe.flying.push_front((when, Packet::Data(bytes)));
                        schedule(world, pipe, number, direction, when);
                        break;
                    }
                    if let Some(drip) = drip {
                        pipe.drip_at = now + drip.every;
                        let rest = bytes.split_off(drip.bytes.clamp(1, bytes.len()));
                        if !rest.is_empty() {
                            pipe.flying.push_front((pipe.drip_at, Packet::Data(rest)));
                        }
                    }
                    answer_reset |= deliver(connection, direction, bytes);
                }
                Packet::End => {
                    let pipe = connection.pipe(direction);
                    if pipe.reader == Reader::Open {
                        pipe.reader = Reader::Ended;
                    }
                    pipe.wake();
                }
                Packet::Reset => {
                    let end = match direction {
                        Direction::ToServer => End::Server,
                        Direction::ToClient => End::Client,
                    };
                    connection.reset(end);
                }
            }
        }
        if connection.is_over() {
            state.connections.remove(&number);
        }
    }
    if answer_reset {
        let back = match direction {
            Direction::ToServer => Direction::ToClient,
            Direction::ToClient => Direction::ToServer,
        };
        send(world, number, back, Packet::Reset);
    }
}

/// Gives bytes to the reader, up to a cut. Returns whether the writer is to get a reset.
fn deliver(connection: &mut Connection, direction: Direction, mut bytes: Vec<u8>) -> bool {
    let pipe = connection.pipe(direction);
    let cut = pipe.cut.filter(|cut| {
        u64::try_from(bytes.len()).is_ok_and(|count| pipe.arrived_bytes + count > cut.after_bytes)
    });
    let sent_bytes = bytes.len();
    if let Some(cut) = cut {
        let left = cut.after_bytes.saturating_sub(pipe.arrived_bytes);
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        pipe.cut = None;
    }
    pipe.arrived_bytes += u64::try_from(bytes.len()).unwrap_or(0);
    if matches!(pipe.reader, Reader::Open) {
        pipe.held_bytes -= sent_bytes - bytes.len();
        pipe.unread.extend(bytes);
    } else {
        pipe.held_bytes -= sent_bytes;
        pipe.wake();
        return pipe.reader == Reader::Gone;
    }
    match cut.map(|cut| cut.with) {
        None => {}
        Some(CutWith::Reset) => connection.reset_both(),
        Some(CutWith::End) => {
            pipe.reader = Reader::Ended;
            pipe.flying.clear();
            pipe.held_bytes = pipe.unread.len();
            let writer = match direction {
                Direction::ToServer => End::Client,
                Direction::ToClient => End::Server,
            };
            connection.reset(writer);
        }
    }
    connection.pipe(direction).wake();
    false
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
    let pipe = |direction| Pipe {
        cut: cut.filter(|cut| cut.direction == direction),
        ..Pipe::default()
    };
    let connection = Connection {
        server,
        to_server: pipe(Direction::ToServer),
        to_client: pipe(Direction::ToClient),
    };
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

/// A listening socket of the simulation. Dropping it resets the connections that wait.
pub struct SimListener {
    world: Rc<World>,
    number: u64,
    address: SocketAddr,
}

impl fmt::Debug for SimListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimListener")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl SimListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(SimStream, SocketAddr)>> {
        if let Some(accepted) = self.try_accept()? {
            return Poll::Ready(Ok(accepted));
        }
        if let Some(queue) = self.world.net.borrow_mut().listeners.get_mut(&self.number) {
            queue.acceptor = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Listener for SimListener {
    type Stream = SimStream;

    fn accept(&mut self) -> impl Future<Output = io::Result<(SimStream, SocketAddr)>> {
        poll_fn(|cx| self.poll_accept(cx))
    }

    fn try_accept(&mut self) -> io::Result<Option<(SimStream, SocketAddr)>> {
        let mut state = self.world.net.borrow_mut();
        Ok(state
            .listeners
            .get_mut(&self.number)
            .and_then(|queue| queue.waiting.pop_front()))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let queue = self.world.net.borrow_mut().listeners.remove(&self.number);
        for (stream, _) in queue.into_iter().flat_map(|queue| queue.waiting) {
            send(
                &self.world,
                stream.number,
                Direction::ToClient,
                Packet::Reset,
            );
            drop(stream);
        }
    }
}

/// One end of a connection of the simulation.
pub struct SimStream {
    world: Rc<World>,
    number: u64,
    end: End,
}

impl fmt::Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimStream")
            .field("number", &self.number)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl SimStream {
    fn with<T>(&self, act: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        self.world
            .net
            .borrow_mut()
            .connections
            .get_mut(&self.number)
            .map(act)
    }

    fn send(&self, packet: Packet) {
        send(&self.world, self.number, self.end.writes(), packet);
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let end = self.end;
        self.with(|connection| {
            let pipe = connection.into(end);
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if pipe.unread.is_empty() {
                return match pipe.reader {
                    Reader::Open => {
                        pipe.reader_waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                    Reader::Ended => Poll::Ready(Ok(())),
                    Reader::Reset | Reader::Gone => {
                        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                    }
                };
            }
            let count = self.world.transfer(pipe.unread.len().min(buf.remaining()));
            let bytes: Vec<u8> = pipe.unread.drain(..count).collect();
            buf.put_slice(&bytes);
            pipe.held_bytes -= count;
            if let Some(writer) = pipe.writer_waker.take() {
                writer.wake();
            }
            Poll::Ready(Ok(()))
        })
        .unwrap_or_else(|| Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let end = self.end;
        let broken = || Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        let Some(room) = self.with(|connection| {
            let pipe = connection.out(end);
            if pipe.writer != Writer::Open {
                return broken();
            }
            let room = WINDOW_BYTES.saturating_sub(pipe.held_bytes).min(buf.len());
            if room == 0 && !buf.is_empty() {
                pipe.writer_waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Ok(room))
        }) else {
            return broken();
        };
        let Poll::Ready(Ok(room)) = room else {
            return room;
        };
        let count = self.world.transfer(room);
        let bytes = buf.get(..count).unwrap_or_default().to_vec();
        if !bytes.is_empty() {
            self.with(|connection| connection.out(end).held_bytes += count);
            self.send(Packet::Data(bytes));
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = self.end;
        let before = self.with(|connection| {
            let pipe = connection.out(end);
            let before = pipe.writer;
            if before == Writer::Open {
                pipe.writer = Writer::Ended;
            }
            before
        });
        match before {
            Some(Writer::Open) => self.send(Packet::End),
            Some(Writer::Ended) => {}
            Some(Writer::Reset) | None => {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream for SimStream {
    fn staleness(&self) -> Staleness {
        let (world, number, end) = (Rc::downgrade(&self.world), self.number, self.end);
        Staleness::sim(move || {
            let Some(world) = world.upgrade() else {
                return true;
            };
            let mut state = world.net.borrow_mut();
            state.connections.get_mut(&number).is_none_or(|connection| {
                let pipe = connection.into(end);
                pipe.reader != Reader::Open || !pipe.unread.is_empty()
            })
        })
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let end = self.end;
        let packet = self.with(|connection| {
            let into = connection.into(end);
            let was = std::mem::replace(&mut into.reader, Reader::Gone);
            let is_unread = !into.unread.is_empty();
            into.held_bytes -= into.unread.len();
            into.unread.clear();
            into.reader_waker = None;
            if let Some(writer) = into.writer_waker.take() {
                writer.wake();
            }
            let out = connection.out(end);
            let writer = std::mem::replace(&mut out.writer, Writer::Ended);
            out.writer_waker = None;
            match writer {
                // As the kernel does: closing with unread bytes resets.
                Writer::Open | Writer::Ended if is_unread => Some(Packet::Reset),
                Writer::Open if was != Reader::Reset => Some(Packet::End),
                Writer::Open | Writer::Ended | Writer::Reset => None,
            }
        });
        if let Some(packet) = packet.flatten() {
            self.send(packet);
        }
        let mut state = self.world.net.borrow_mut();
        if state
            .connections
            .get(&self.number)
            .is_some_and(Connection::is_over)
        {
            state.connections.remove(&self.number);
        }
    }
}
