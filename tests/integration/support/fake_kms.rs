//! A KMS whose every answer the test decides: to hold a request in flight, to cut it off. It checks no signature; tests/peers
//! and kmssim do.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{base64, text, to_base64};

/// Longest wait for a call that a test expects.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What the "ciphertext" starts with; the plaintext follows.
const BLOB_PREFIX: &[u8] = b"FAKE-CIPHERTEXT:";

/// One call that waits for its answer.
#[derive(Debug)]
pub(crate) struct Call {
    operation: String,
    body: Value,
    /// The W3C trace context that came with it.
    pub(crate) traceparent: Option<String>,
    answer: Sender<Option<Vec<u8>>>,
}

impl Call {
    /// Answers as a KMS that is well.
    pub(crate) fn succeed(self) {
        let answer = success(&self.operation, &self.body);
        self.answer(200, &answer);
    }

    pub(crate) fn answer(self, status: u16, body: &Value) {
        let _ = self.answer.send(Some(response(status, body)));
    }

    /// Closes the connection without an answer.
    pub(crate) fn hang_up(self) {
        let _ = self.answer.send(None);
    }
}

/// A server on loopback. Its threads end with the test process.
#[derive(Debug)]
pub(crate) struct FakeKms {
    address: SocketAddr,
    calls: Receiver<Call>,
}

impl FakeKms {
    /// Hands every call to the test.
    pub(crate) fn asking() -> Self {
        let (sender, calls) = channel();
        let address = serve(move |operation, body, traceparent| {
            let (answer, decided) = channel();
            let call = Call {
                operation: operation.to_owned(),
                body,
                traceparent: traceparent.map(str::to_owned),
                answer,
            };
            sender.send(call).ok()?;
            decided.recv().ok()?
        });
        Self { address, calls }
    }

    /// Answers every call at once, with `date` in the header of that name.
    pub(crate) fn dated(date: &'static str) -> Self {
        let address = serve(move |operation, body, _| {
            let mut answer = response(200, &success(operation, &body));
            let after_status = answer.iter().position(|byte| *byte == b'\n')? + 1;
            let header = format!("Date: {date}\r\n").into_bytes();
            answer.splice(after_status..after_status, header);
            Some(answer)
        });
        Self {
            address,
            calls: channel().1,
        }
    }

    /// Takes every call and never answers.
    pub(crate) fn silent() -> Self {
        let address = serve(|_, _, _| {
            thread::park();
            None
        });
        Self {
            address,
            calls: channel().1,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    #[track_caller]
    pub(crate) fn next_call(&self) -> Call {
        self.calls
            .recv_timeout(CALL_TIMEOUT)
            .expect("the proxy calls its KMS")
    }
}

fn success(operation: &str, body: &Value) -> Value {
    let key = "arn:aws:kms:us-east-1:111122223333:key/11111111-2222-3333-4444-555555555555";
    match operation {
        "Encrypt" => {
            let blob = [BLOB_PREFIX, &base64(text(body, "Plaintext"))].concat();
            json!({ "CiphertextBlob": to_base64(&blob), "KeyId": key, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT" })
        }
        "Decrypt" => {
            let blob = base64(text(body, "CiphertextBlob"));
            let plaintext = blob
                .strip_prefix(BLOB_PREFIX)
                .expect("our own ciphertext comes back");
            json!({ "Plaintext": to_base64(plaintext), "KeyId": key, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT" })
        }
        other => panic!("{other} is no operation of ours"),
    }
}

fn response(status: u16, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!("HTTP/1.1 {status} Decided\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

/// Serves each connection on a thread of its own; `decide` is told operation, body and trace context, and gives the answer's
/// bytes, or `None` to hang up.
fn serve(
    decide: impl Fn(&str, Value, Option<&str>) -> Option<Vec<u8>> + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let decide = decide.clone();
            // An error is the proxy's end of the connection; nobody is left to tell.
            thread::spawn(move || drop(serve_connection(stream, decide)));
        }
    });
    address
}

fn serve_connection(
    stream: TcpStream,
    decide: impl Fn(&str, Value, Option<&str>) -> Option<Vec<u8>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let (mut operation, mut length, mut traceparent) = (String::new(), 0, None);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "x-amz-target" => value
                    .trim()
                    .trim_start_matches("TrentService.")
                    .clone_into(&mut operation),
                "traceparent" => traceparent = Some(value.trim().to_owned()),
                "content-length" => length = value.trim().parse().map_err(io::Error::other)?,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = serde_json::from_slice(&body)?;
        let Some(answer) = decide(&operation, body, traceparent.as_deref()) else {
            return Ok(());
        };
        writer.write_all(&answer)?;
    }
}
