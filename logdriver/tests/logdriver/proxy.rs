//! The proxy's ends of the event socket, in the test's hands: one that pushes, and one that keeps what it hands out until it
//! is acknowledged.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use anng::{
    Message,
    pipes::TcpOptions,
    protocols::{pipeline0::Push0, reqrep0::Rep0},
};
use tsp_wire::event::{FRAME_VERSION, Take, Taken};

use crate::support::INSTANCE;

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Pushes messages. They wait while nobody pulls.
pub(crate) struct Pusher {
    pub(crate) address: SocketAddr,
    messages: Option<mpsc::SyncSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Pusher {
    pub(crate) fn start() -> Self {
        let (messages, queue) = mpsc::sync_channel::<Vec<u8>>(16);
        let (bound, address) = mpsc::channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let mut socket = Push0::socket().unwrap();
                let listener = socket.listen_tcp(any_port(), &TcpOptions::default()).await;
                bound.send(listener.unwrap().local_addr().unwrap()).unwrap();
                while let Ok(message) = queue.recv() {
                    socket
                        .push(Message::from(message.as_slice()))
                        .await
                        .unwrap();
                }
                // Until the kernel has the last one: nng drops it otherwise.
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            });
        });
        Self {
            address: address.recv().unwrap(),
            messages: Some(messages),
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// Events of one message.
    pub(crate) fn push(&self, events: &[Vec<u8>]) {
        let mut message = vec![FRAME_VERSION];
        message.extend(events.join(&b'\n'));
        self.push_raw(message);
    }

    pub(crate) fn push_raw(&self, message: Vec<u8>) {
        self.messages.as_ref().unwrap().send(message).unwrap();
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.messages = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Keeps events until they are acknowledged. Makes its own: numbers 0, 1, 2, … of some tenants.
pub(crate) struct Keeper {
    pub(crate) address: SocketAddr,
    acknowledged: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// `make` gives event `number`, for up to `events`, in batches of `batch`.
    pub(crate) fn start(
        events: u64,
        batch: u64,
        make: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let (bound, address) = mpsc::channel();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicBool::new(false));
        let (count, end) = (Arc::clone(&acknowledged), Arc::clone(&ended));
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let socket = Rep0::socket().unwrap();
                let listener = socket.listen_tcp(any_port(), &TcpOptions::default()).await;
                bound.send(listener.unwrap().local_addr().unwrap()).unwrap();
                let mut context = socket.context();
                let mut next = 0;
                let mut number = 0;
                let mut out: VecDeque<(u64, u64, Vec<u8>)> = VecDeque::new();
                while !end.load(Ordering::Relaxed) {
                    let wait = std::time::Duration::from_millis(50);
                    let Ok(asked) = tokio::time::timeout(wait, context.receive()).await else {
                        continue;
                    };
                    let (question, responder) = asked.unwrap();
                    let take = Take::from_bytes(question.as_slice()).unwrap();
                    if let Some((batch, upto, _)) = out.front()
                        && *batch == take.stored
                    {
                        count.store(*upto, Ordering::Relaxed);
                        out.pop_front();
                    }
                    if out.is_empty() && next < events && take.more {
                        let upto = (next + batch).min(events);
                        let lines: Vec<_> = (next..upto).map(&make).collect();
                        number += 1;
                        out.push_back((number, upto, lines.join(&b'\n')));
                        next = upto;
                    }
                    let (batch, lines) = match out.front() {
                        Some((batch, _, lines)) if take.more => (*batch, lines.as_slice()),
                        _ => (0, [].as_slice()),
                    };
                    let instance = INSTANCE;
                    let head = Taken { instance, batch }.to_bytes();
                    let answer = [head.as_slice(), lines].concat();
                    // Who asked may be dead.
                    let _ = responder.reply(Message::from(answer.as_slice())).await;
                }
            });
        });
        Self {
            address: address.recv().unwrap(),
            acknowledged,
            ended,
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("tcp+ack://{}", self.address)
    }

    /// Events that a logdriver has said to be on its disk.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
