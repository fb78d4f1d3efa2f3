//! Connections: two pipes each, in which packets fly, arrive and are lost.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use super::super::World;
use super::super::exec::Event;
use super::{Cut, CutWith, Direction, RETRANSMIT};

/// The two ends of a connection, as indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
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
    pub(super) fn writes(self) -> Direction {
        match self {
            Self::Client => Direction::ToServer,
            Self::Server => Direction::ToClient,
        }
    }
}

pub(super) struct Connection {
    pub(super) server: SocketAddr,
    to_server: Pipe,
    to_client: Pipe,
}

/// One direction.
#[derive(Default)]
pub(super) struct Pipe {
    /// On the way, with the time of arrival; never earlier than the one before.
    flying: VecDeque<(Duration, Packet)>,
    /// Whether the calendar has an entry for the first of those.
    is_scheduled: bool,
    /// Arrived, not read.
    pub(super) unread: VecDeque<u8>,
    /// Bytes flying and unread.
    pub(super) held_bytes: usize,
    /// Bytes that have arrived in all.
    arrived_bytes: u64,
    cut: Option<Cut>,
    /// When the next drop of a [`Drip`] may fall.
    drip_at: Duration,
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    pub(super) reader_waker: Option<Waker>,
    pub(super) writer_waker: Option<Waker>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    #[default]
    Open,
    /// Has sent its end.
    Ended,
    /// Was reset.
    Reset,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    #[default]
    Open,
    /// Has seen the end, once all is read.
    Ended,
    /// Has seen a reset, once all is read.
    Reset,
    /// Dropped its end; what arrives is answered by a reset.
    Gone,
}

pub(super) enum Packet {
    Data(Vec<u8>),
    End,
    Reset,
}

impl Connection {
    pub(super) fn new(server: SocketAddr, cut: Option<Cut>) -> Self {
        let pipe = |direction| Pipe {
            cut: cut.filter(|cut| cut.direction == direction),
            ..Pipe::default()
        };
        Self {
            server,
            to_server: pipe(Direction::ToServer),
            to_client: pipe(Direction::ToClient),
        }
    }

    fn pipe(&mut self, direction: Direction) -> &mut Pipe {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        }
    }

    /// The pipe that `end` writes into.
    pub(super) fn out(&mut self, end: End) -> &mut Pipe {
        self.pipe(end.writes())
    }

    /// The pipe that `end` reads from.
    pub(super) fn into(&mut self, end: End) -> &mut Pipe {
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

    pub(super) fn reset_both(&mut self) {
        self.reset(End::Client);
        self.reset(End::Server);
    }

    pub(super) fn close_far(&mut self) {
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
    pub(super) fn is_over(&self) -> bool {
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
pub(super) fn send(world: &Rc<World>, number: u64, direction: Direction, packet: Packet) {
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
