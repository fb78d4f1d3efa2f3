use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tsp_rt::{
    Listener as _, Rt as _,
    sim::{Sim, SimRt, SimStream},
};

use super::*;

const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nhost: kms\r\ncontent-length: 4\r\n\r\nbody";
const BODY_BYTES_MAX: usize = 4 * FIRST_BYTES;

/// A connection whose far end takes a request, sends `pieces` one by one, and then closes it, if it is to.
async fn far_end(rt: &SimRt, pieces: Vec<Vec<u8>>, close: bool) -> SimStream {
    let mut listener = rt.bind("10.0.0.2:80".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    rt.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"body") {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        for piece in pieces {
            // The near end may have had enough.
            if stream.write_all(&piece).await.is_err() {
                return;
            }
            tsp_rt::yield_now().await;
        }
        if !close {
            std::future::pending::<()>().await;
        }
    });
    rt.connect(address, Duration::from_secs(1)).await.unwrap()
}

fn pieces(answer: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (answer.len() + 1)).collect();
    cuts.sort_unstable();
    let (mut pieces, mut start) = (Vec::new(), 0);
    for end in cuts.into_iter().chain([answer.len()]) {
        pieces.push(answer[start..end].to_vec());
        start = end;
    }
    pieces
}

/// Status, body, and whether the connection is good for more.
type Seen = Result<(u16, Vec<u8>, bool), (CallError, bool)>;

fn ours(answer: &[u8], cuts: &[usize], close: bool) -> Seen {
    let pieces = pieces(answer, cuts);
    Sim::new(1).run(async move |rt| {
        let mut stream = far_end(&rt, pieces, close).await;
        let buffers = Buffers::default();
        let exchanged = exchange(&mut stream, REQUEST, &buffers, BODY_BYTES_MAX).await;
        exchanged
            .map(|(answer, reusable)| (answer.status(), answer.read().body.to_vec(), reusable))
            .map_err(|unanswered| (unanswered.why, unanswered.before_first_byte))
    })
}

fn error(answer: &str) -> String {
    let (why, before_first_byte) = ours(answer.as_bytes(), &[], true).unwrap_err();
    assert_eq!(before_first_byte, answer.is_empty());
    format!("{why:?}")
}

#[test]
fn an_answer_ends_where_its_head_says() {
    // What comes, the status, the body, whether there may be another exchange.
    let cases: &[(&str, u16, &str, bool)] = &[
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            200,
            "hello",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
            200,
            "hello",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello!",
            200,
            "hello",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\nhello",
            200,
            "hello",
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            200,
            "hello",
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
            200,
            "hello",
            true,
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, "", true),
        (
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
            304,
            "",
            true,
        ),
        (
            "HTTP/1.1 403 Forbidden\ncontent-length: 2\n\nno",
            403,
            "no",
            true,
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200\r\ncontent-length: 1\r\n\r\nx",
            200,
            "x",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            200,
            "",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nhel\r\n02\r\nlo\r\n0\r\nx: y\r\n\r\n",
            200,
            "hello",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            200,
            "hello",
            false,
        ),
    ];
    for (answer, status, body, reusable) in cases {
        let expected = (*status, body.as_bytes().to_vec(), *reusable);
        // In one piece, in two wherever they are cut, and byte by byte; the connection stays open.
        let all: Vec<_> = (0..answer.len()).collect();
        for cuts in (0..answer.len()).map(|cut| vec![cut]).chain([all]) {
            let seen = ours(answer.as_bytes(), &cuts, false);
            // Bytes too many are seen if they have come by then.
            let surplus = answer.ends_with('!') && !cuts.is_empty();
            match seen {
                Ok((status, body, _)) if surplus => {
                    assert_eq!((status, body), (expected.0, expected.1.clone()))
                }
                seen => assert_eq!(seen.unwrap(), expected, "{answer:?} cut at {cuts:?}"),
            }
        }
    }
    let to_the_end = b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n\r\nhello";
    let seen = ours(to_the_end, &[40, 48], true).unwrap();
    assert_eq!(seen, (200, b"hello".to_vec(), false));
}

#[test]
fn what_is_no_answer_is_told_apart() {
    for cut_off in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y",
        "HTTP/1.1 100 Continue\r\n\r\n",
    ] {
        assert_eq!(error(cut_off), "CutOff", "{cut_off:?}");
    }
    for not_http in [
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello!!0\r\n\r\n",
    ] {
        assert_eq!(error(not_http), "NotHttp", "{not_http:?}");
    }
    let long = "x".repeat(2 * BODY_BYTES_MAX);
    for long_head in [
        format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\nx: {long}"),
    ] {
        assert_eq!(error(&long_head), "NotHttp", "{long_head:.60}");
    }
    // Without an end, and without a close.
    let garbage = ours(b"garbage", &[], false).unwrap_err();
    assert!(matches!(garbage, (CallError::NotHttp, false)));
    let tiny_chunks = format!("1;{}\r\nx\r\n", "e".repeat(900)).repeat(100);
    for too_long in [
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            BODY_BYTES_MAX + 1
        ),
        format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
            BODY_BYTES_MAX + 1
        ),
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{tiny_chunks}"),
        format!("HTTP/1.1 200 OK\r\n\r\n{long}"),
    ] {
        assert_eq!(error(&too_long), "AnswerTooLong", "{:.60}", too_long);
    }
}

/// What hyper makes of it: the second opinion.
fn theirs(answer: &[u8], cuts: &[usize]) -> Option<(u16, Vec<u8>)> {
    let pieces = pieces(answer, cuts);
    Sim::new(1).run(async move |rt| {
        let stream = TokioIo::new(far_end(&rt, pieces, true).await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        rt.spawn(async move { drop(connection.await) });
        let request = hyper::Request::post("/")
            .body(Full::new(&b"body"[..]))
            .unwrap();
        let response = sender.send_request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?;
        Some((status, body.to_bytes().to_vec()))
    })
}

fn answers() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..300);
    let chunks = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..80), 0..6);
    let headers = "(date: [ -~]{0,20}\r\n|X-Amz-[a-z]{1,9}:[ -~]{0,20}\r\n|connection: (close|keep-alive)\r\n){0,6}";
    let status = prop_oneof![Just(200_u16), 200..204_u16, 205..304_u16, 400..600_u16];
    (status, headers, body, chunks, 0..3_u8, 0..8_usize).prop_map(
        |(status, headers, body, chunks, kind, less)| {
            let mut answer = format!("HTTP/1.1 {status} Some Words\r\n{headers}").into_bytes();
            match kind {
                0 => {
                    answer.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes());
                    answer.extend(body);
                }
                1 => {
                    answer.extend(b"transfer-encoding: chunked\r\n\r\n");
                    for chunk in chunks {
                        answer.extend(format!("{:x}\r\n", chunk.len()).bytes());
                        answer.extend(chunk);
                        answer.extend(b"\r\n");
                    }
                    answer.extend(b"0\r\n\r\n");
                }
                _ => {
                    answer.extend(b"\r\n");
                    answer.extend(body);
                }
            }
            // Now and then it breaks off.
            answer.truncate(answer.len().saturating_sub(less.saturating_sub(4)));
            answer
        },
    )
}

proptest! {
    #[test]
    fn answers_are_read_as_hyper_reads_them(
        answer in answers(),
        cuts in prop::collection::vec(any::<usize>(), 0..6),
    ) {
        let ours = ours(&answer, &cuts, true);
        let theirs = theirs(&answer, &cuts);
        prop_assert_eq!(ours.ok().map(|(status, body, _)| (status, body)), theirs);
    }

    #[test]
    fn no_bytes_make_it_panic_or_keep_too_much(
        start in prop_oneof![
            Just(&b""[..]),
            Just(&b"HTTP/1.1 200 OK\r\n"[..]),
            Just(&b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"[..]),
        ],
        rest in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..400),
            "[0-9a-f;:\r\n HTP/.]{0,400}".prop_map(String::into_bytes),
            "([0-9a-f]{1,5}\r\n[a-z]{0,9}\r?\n?){0,40}".prop_map(String::into_bytes),
        ],
        cuts in prop::collection::vec(any::<usize>(), 0..6),
    ) {
        if let Ok((_, body, _)) = ours(&[start, &rest].concat(), &cuts, true) {
            prop_assert!(body.len() <= BODY_BYTES_MAX);
        }
    }
}
