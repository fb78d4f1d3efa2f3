//! A log system on loopback, in the test's hands: a webhook's server that answers as it is told to.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use serde_json::{Map, Value};

use crate::support::number;

/// What it does with a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Takes it if its `x-token` is this one, and answers 401 otherwise.
    Wants(&'static str),
    /// Answers 429 with this `Retry-After`, in seconds.
    Throttles(u64),
    /// Reads it and says nothing.
    Hangs,
}

struct State {
    manner: Manner,
    calls: Vec<Instant>,
    taken: Vec<(Instant, Map<String, Value>)>,
}

/// The server. Its threads end with the test's process.
pub(crate) struct Peer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Peer {
    pub(crate) fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // A thousand tenants come at one time; who finds the queue full comes again after a second.
        rustix::net::listen(&listener, 4096).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            manner,
            calls: Vec::new(),
            taken: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), state) = (stream, Arc::clone(&shared)) else {
                    return;
                };
                thread::spawn(move || while serve(&stream, &state).is_some() {});
            }
        });
        Self { address, state }
    }

    /// A tenant of the configuration file that has it as its log system.
    pub(crate) fn tenant(&self, id: &str, token: &str) -> String {
        let url = format!("http://{}/", self.address);
        format!(
            "[[tenant]]\nid = \"{id}\"\nlogging = {{ type = \"WEBHOOK\", url = \"{url}\", hmacSecret = \"0123456789abcdef0123456789abcdef\", headers = {{ x-token = \"{token}\" }} }}\n"
        )
    }

    pub(crate) fn behave(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }

    /// When each call came.
    pub(crate) fn calls(&self) -> Vec<Instant> {
        self.state.lock().unwrap().calls.clone()
    }

    /// The events of the calls that it took.
    pub(crate) fn taken(&self) -> Vec<Map<String, Value>> {
        let state = self.state.lock().unwrap();
        state.taken.iter().map(|(_, event)| event.clone()).collect()
    }

    /// When each of those came, by the number that the test gave it.
    pub(crate) fn arrivals(&self) -> HashMap<u64, Instant> {
        let state = self.state.lock().unwrap();
        let numbered = |(at, event): &(Instant, _)| Some((number(event)?, *at));
        state.taken.iter().filter_map(numbered).collect()
    }
}

/// One call. `None` when there is no other to come.
fn serve(mut stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut token) = (0, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().ok()?,
                "x-token" => value.trim().clone_into(&mut token),
                _ => {}
            }
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let answer = {
        let mut state = state.lock().unwrap();
        state.calls.push(Instant::now());
        match state.manner {
            Manner::Wants(wanted) if wanted == token => {
                let events: Vec<_> = serde_json::from_slice(&body).ok()?;
                let now = Instant::now();
                state
                    .taken
                    .extend(events.into_iter().map(|event| (now, event)));
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()
            }
            Manner::Wants(_) => "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_owned(),
            Manner::Throttles(seconds) => format!(
                "HTTP/1.1 429 Too Many Requests\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n"
            ),
            Manner::Hangs => String::new(),
        }
    };
    stream.write_all(answer.as_bytes()).ok()
}
