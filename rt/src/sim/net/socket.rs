//! The listeners and streams of the simulation.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::World;
use super::pipe::{Connection, End, Packet, Reader, Writer, send};
use super::{Direction, WINDOW_BYTES};
use crate::{Accepted, Listener, Staleness, Stream};

/// A listening socket of the simulation. Dropping it resets the connections that wait.
pub struct SimListener {
    pub(super) world: Rc<World>,
    pub(super) number: u64,
    pub(super) address: SocketAddr,
}

impl fmt::Debug for SimListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimListener")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl SimListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        if let Some(accepted) = self.try_accept_socket()? {
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

    fn accept_socket(&mut self) -> impl Future<Output = io::Result<Accepted>> {
        poll_fn(|cx| self.poll_accept(cx))
    }

    fn try_accept_socket(&mut self) -> io::Result<Option<Accepted>> {
        let mut state = self.world.net.borrow_mut();
        Ok(state
            .listeners
            .get_mut(&self.number)
            .and_then(|queue| queue.waiting.pop_front())
            .map(|(stream, peer)| Accepted::sim(stream, peer)))
    }

    fn open(accepted: Accepted) -> io::Result<SimStream> {
        accepted.into_sim()
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
    pub(super) world: Rc<World>,
    pub(super) number: u64,
    pub(super) end: End,
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
