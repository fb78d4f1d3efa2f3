//! A puller on the event socket, as a log-event driver is one.

use std::{collections::VecDeque, ffi::CString, net::SocketAddr, time::Duration};

use anng::{Socket, protocols::pipeline0::Pull0};
use serde_json::Value;
use tokio::runtime::Runtime;
use tsp_wire::event::FRAME_VERSION;

/// Longest wait for an event that must come.
const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The far end of the proxy's PUSH socket.
pub(crate) struct EventPuller {
    runtime: Runtime,
    socket: Socket<Pull0>,
    /// Events of the last message that nobody has asked for yet.
    waiting: VecDeque<Value>,
}

impl EventPuller {
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime can be made");
        let url = CString::new(format!("tcp://{address}")).expect("no zero byte in it");
        let socket = runtime
            .block_on(Pull0::dial(url))
            .expect("the event socket listens");
        Self {
            runtime,
            socket,
            waiting: VecDeque::new(),
        }
    }

    /// The next event. A message holds one, or several with a line feed between them when many had to wait.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Value {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            let next = self
                .runtime
                .block_on(async { tokio::time::timeout(EVENT_TIMEOUT, self.socket.pull()).await });
            let message = next
                .expect("an event comes in time")
                .expect("the socket works");
            let (version, events) = message.as_slice().split_first().expect("it is not empty");
            assert_eq!(*version, FRAME_VERSION);
            let events = events.split(|byte| *byte == b'\n');
            self.waiting
                .extend(events.map(|event| serde_json::from_slice::<Value>(event).expect("JSON")));
        }
    }

    /// The next `count` events, in the order of their `requestId`s and names: shards and sockets keep no common order.
    #[track_caller]
    pub(crate) fn next_sorted(&mut self, count: usize) -> Vec<Value> {
        let mut events: Vec<_> = (0..count).map(|_| self.next()).collect();
        events.sort_by_key(|event| {
            (
                event["iclFields"]["requestId"].to_string(),
                event["iclFields"]["event"].to_string(),
            )
        });
        events
    }
}
