//! Connections that nobody uses for a while: nothing of theirs is lost, and nothing is taken for what it is not.

use std::{rc::Rc, time::Duration};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tsp_rt::{Rt as _, sim::SimStream};

use crate::{
    A, in_world, ms,
    world::{API_KEY, Setup, World, metadata, shard_address},
};

/// Long enough to rest, short of every limit on idle connections.
const PAUSE: Duration = Duration::from_secs(10);

/// A client that spells its requests itself.
struct Client {
    world: Rc<World>,
    stream: SimStream,
    /// Read, and not part of the answer before.
    left: Vec<u8>,
}

fn request(path: &str, key: &str, more: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST /api/1/document/{path} HTTP/1.1\r\nhost: tsp\r\nauthorization: cmk {key}\r\n{more}content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn wrap() -> Vec<u8> {
    request("wrap", API_KEY, "", &metadata(A))
}

impl Client {
    async fn connect(world: &Rc<World>) -> Self {
        let address = shard_address(0);
        let stream = world.rt.connect(address, Duration::from_secs(1)).await;
        Self {
            world: Rc::clone(world),
            stream: stream.expect("the shard takes connections"),
            left: Vec::new(),
        }
    }

    async fn pause(&self) {
        self.world.rt.sleep(PAUSE).await;
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next answer's status and body; `None` at the connection's end.
    async fn answer(&mut self) -> Option<(u16, Vec<u8>)> {
        loop {
            let end = self.left.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                let head = String::from_utf8(self.left[..end].to_vec()).unwrap();
                let status = head[9..12].parse().unwrap();
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                let whole = end + 4 + length.map_or(0, |length| length.parse::<usize>().unwrap());
                if self.left.len() >= whole {
                    let rest = self.left.split_off(whole);
                    let body = std::mem::replace(&mut self.left, rest).split_off(end + 4);
                    return Some((status, body));
                }
            }
            let mut more = [0; 4096];
            match self.stream.read(&mut more).await {
                Ok(0) | Err(_) => {
                    assert_eq!(self.left, b"", "half an answer");
                    return None;
                }
                Ok(count) => self.left.extend_from_slice(&more[..count]),
            }
        }
    }

    async fn assert_wraps(&mut self) {
        assert_eq!(self.answer().await.map(|(status, _)| status), Some(200));
    }
}

#[test]
fn a_connection_that_rested_serves_the_next_request_however_it_comes() {
    in_world(Setup::default, async |world| {
        let mut client = Client::connect(&world).await;
        // Also before its first request.
        client.pause().await;
        for piece in [usize::MAX, 1, 7, 100] {
            for bytes in wrap().chunks(piece.min(wrap().len())) {
                client.send(bytes).await;
                client.world.rt.sleep(ms(1)).await;
            }
            client.assert_wraps().await;
            client.pause().await;
        }
        // As long as it likes.
        for _ in 0..20 {
            client.pause().await;
            client.send(&wrap()).await;
            client.assert_wraps().await;
        }
    });
}

#[test]
fn half_of_the_next_request_may_come_with_the_one_before() {
    in_world(Setup::default, async |world| {
        let mut client = Client::connect(&world).await;
        for half in [1, 20, wrap().len() - 1] {
            let both = [wrap(), wrap()[..half].to_vec()].concat();
            client.send(&both).await;
            client.assert_wraps().await;
            client.pause().await;
            client.send(&wrap()[half..]).await;
            client.assert_wraps().await;
        }
    });
}

#[test]
fn an_answer_that_is_read_late_comes_whole() {
    in_world(Setup::default, async |world| {
        let ids: Vec<String> = (0..400).map(|id| id.to_string()).collect();
        let mut body = metadata(A);
        body["documentIds"] = json!(ids);
        let mut client = Client::connect(&world).await;
        for _ in 0..2 {
            client
                .send(&request("batch-wrap", API_KEY, "", &body))
                .await;
            client.pause().await;
            client.pause().await;
            let (status, answer) = client.answer().await.unwrap();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert_eq!(status, 200);
            assert_eq!(answer["keys"].as_object().unwrap().len(), ids.len());
        }
        client.send(&wrap()).await;
        client.assert_wraps().await;
    });
}

#[test]
fn the_body_of_a_refused_request_is_never_taken_for_a_request() {
    in_world(Setup::default, async |world| {
        let body = String::from_utf8(wrap()).unwrap();
        for more in ["", "expect: 100-continue\r\n"] {
            let mut client = Client::connect(&world).await;
            let refused = request(
                "wrap",
                "0000000000000000",
                more,
                &Value::String(body.clone()),
            );
            let head = refused
                .windows(4)
                .position(|four| four == b"\r\n\r\n")
                .unwrap()
                + 4;
            // The head alone, then pauses, then a body that looks like a request with a good key.
            client.send(&refused[..head]).await;
            client.pause().await;
            drop(client.stream.write_all(body.as_bytes()).await);
            client.pause().await;
            let mut answers = 0;
            while let Some((status, _)) = client.answer().await {
                assert_eq!(status, 401);
                answers += 1;
            }
            assert!(answers <= 1, "{answers} answers to one request");
        }
        assert_eq!(world.kms.calls.get(), 0);
    });
}

#[test]
fn a_drain_ends_connections_at_rest() {
    in_world(Setup::default, async |world| {
        let mut client = Client::connect(&world).await;
        client.send(&wrap()).await;
        client.assert_wraps().await;
        client.pause().await;
        world.controls.borrow()[0].drain();
        assert_eq!(client.answer().await, None);
        while !world.ended.get() {
            world.rt.sleep(ms(1)).await;
        }
    });
}

#[test]
fn a_request_that_is_on_its_way_at_a_drain_is_answered_and_is_the_last() {
    in_world(Setup::default, async |world| {
        let mut resting = Client::connect(&world).await;
        resting.send(&wrap()).await;
        resting.assert_wraps().await;
        resting.pause().await;
        let mut kept = Client::connect(&world).await;
        kept.send(&wrap()).await;
        kept.assert_wraps().await;
        let mut fresh = Client::connect(&world).await;
        world.controls.borrow()[0].drain();
        world.rt.sleep(ms(50)).await;
        for client in [&mut resting, &mut kept, &mut fresh] {
            client.send(&wrap()).await;
            client.assert_wraps().await;
            assert_eq!(client.answer().await, None);
        }
        while !world.ended.get() {
            world.rt.sleep(ms(1)).await;
        }
    });
}

#[test]
fn a_connection_at_rest_is_closed_when_it_has_been_idle_for_too_long() {
    in_world(Setup::default, async |world| {
        let mut client = Client::connect(&world).await;
        client.send(&wrap()).await;
        client.assert_wraps().await;
        let began = world.rt.now();
        assert_eq!(client.answer().await, None);
        let took = world.rt.now() - began;
        let limit = tsp_shards::Limits::default().idle_timeout;
        assert!((limit..limit + ms(2_000)).contains(&took), "{took:?}");
    });
}
