//! A small blocking HTTP/1.1 client that can also be rude: half a body, no end, two requests at once.

use std::{
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use serde_json::Value;

/// Longest wait for an answer's next byte. Longer than any limit of the proxy on a request.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// One answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The first header of that name, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of a JSON answer, after a look at what must hold for every one.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{self:?}"
        );
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body of a success.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// Checks that this is the error `code` with `status`, in the form that all clients read; gives its message.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        let body = self.json();
        let message = assert_error_object(&body, code);
        for name in ["dek", "edek", "keys", "failures", "derivedKeys"] {
            assert!(
                body.get(name).is_none(),
                "{name} would make a success of this for two clients: {body}"
            );
        }
        message
    }
}

/// Checks an error object, of an answer or of one item in a batch; gives its message.
#[track_caller]
pub(crate) fn assert_error_object(object: &Value, code: u16) -> String {
    assert_eq!(object["code"].as_u64(), Some(u64::from(code)), "{object}");
    let message = object["message"].as_str().unwrap_or_default();
    assert!(
        !message.is_empty(),
        "one client drops the code when the message is empty: {object}"
    );
    message.to_owned()
}

/// A request to be sent as it is.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &'static str, path: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            headers: vec![("Host".into(), "localhost".into())],
            body: Vec::new(),
        }
    }

    /// A call of the API: `endpoint` is what follows `/api/1/`.
    pub(crate) fn api(endpoint: &str, key: &str, body: &Value) -> Self {
        Self::new("POST", &format!("/api/1/{endpoint}"))
            .header("Authorization", &format!("cmk {key}"))
            .header("Content-Type", "application/json")
            .body(body.to_string())
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(found, _)| found != name);
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// The head with the given framing header, up to and with the empty line.
    fn head(&self, framing: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n").expect("a String takes everything");
        }
        write!(head, "{framing}\r\n").expect("a String takes everything");
        head.into_bytes()
    }

    /// Head that announces the body's length, without the body.
    pub(crate) fn head_bytes(&self) -> Vec<u8> {
        self.head(&format!("Content-Length: {}\r\n", self.body.len()))
    }

    pub(crate) fn body_bytes(&self) -> &[u8] {
        &self.body
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The same request with its body in chunks of `chunk_bytes`.
    pub(crate) fn chunked_bytes(&self, chunk_bytes: usize) -> Vec<u8> {
        let mut bytes = self.head("Transfer-Encoding: chunked\r\n");
        for chunk in self.body.chunks(chunk_bytes) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    }
}

/// One connection, with what was read beyond the last answer.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    #[track_caller]
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::try_open(address)
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    pub(crate) fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.set_write_timeout(Some(READ_TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            read: Vec::new(),
        })
    }

    #[track_caller]
    pub(crate) fn open_unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path)
            .unwrap_or_else(|error| panic!("cannot connect to {}: {error}", path.display()));
        Self::of_unix(stream)
    }

    /// What is asked of the stream here is the same for all stream sockets.
    pub(crate) fn of_unix(stream: UnixStream) -> Self {
        let stream = TcpStream::from(OwnedFd::from(stream));
        stream
            .set_read_timeout(Some(READ_TIMEOUT))
            .expect("the time is not zero");
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be sent; answers can still be read.
    pub(crate) fn finish_sending(&mut self) {
        self.stream
            .shutdown(Shutdown::Write)
            .expect("an open connection can be half closed");
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, request: &Request) -> Answer {
        self.send(&request.bytes())
            .expect("the request can be sent");
        self.answer()
    }

    #[track_caller]
    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().unwrap_or_else(|error| {
            panic!(
                "no whole answer: {error}; read {:?}",
                String::from_utf8_lossy(&self.read)
            )
        })
    }

    /// Reads the next answer; an interim one (100) counts as one, without a body.
    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        let head_end = loop {
            if let Some(at) = find(&self.read, b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let head = String::from_utf8_lossy(&self.read[..head_end]).into_owned();
        self.read.drain(..head_end + 4);
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status =
            status.ok_or_else(|| io::Error::other(format!("no status line: {status_line:?}")))?;
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        if status < 200 || status == 204 || status == 304 {
            return Ok(answer);
        }
        if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().map_err(io::Error::other)?;
            while self.read.len() < length {
                self.fill()?;
            }
            answer.body = self.read.drain(..length).collect();
        } else {
            assert_eq!(
                answer.header("transfer-encoding"),
                Some("chunked"),
                "an answer without an end"
            );
            answer.body = self.chunks()?;
        }
        Ok(answer)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(at) = find(&self.read, b"\r\n") {
                    break at;
                }
                self.fill()?;
            };
            let size = String::from_utf8_lossy(&self.read[..line_end]).into_owned();
            let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            while self.read.len() < line_end + 2 + size + 2 {
                self.fill()?;
            }
            body.extend_from_slice(&self.read[line_end + 2..line_end + 2 + size]);
            self.read.drain(..line_end + 2 + size + 2);
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0; 64 * 1024];
        let length = loop {
            match self.stream.read(&mut piece) {
                // A signal to this thread, which has nothing to do with us.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read.extend_from_slice(&piece[..length]);
        Ok(())
    }

    /// Whether the other side ends the connection, by a FIN or a reset, without sending anything more.
    #[track_caller]
    pub(crate) fn is_ended_by_peer(&mut self) -> bool {
        match self.fill() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => true,
            Ok(()) => panic!("unasked for: {:?}", String::from_utf8_lossy(&self.read)),
        }
    }

    /// Whether the connection is open and silent right now.
    pub(crate) fn is_open(&self) -> bool {
        self.stream
            .set_nonblocking(true)
            .expect("a socket can be made non-blocking");
        let peeked = self.stream.peek(&mut [0]);
        self.stream
            .set_nonblocking(false)
            .expect("a socket can be made blocking");
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// One request on a connection of its own.
#[track_caller]
pub(crate) fn ask(address: SocketAddr, request: &Request) -> Answer {
    Connection::open(address).ask(request)
}

/// `GET path`, on a connection of its own.
#[track_caller]
pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &Request::new("GET", path))
}
