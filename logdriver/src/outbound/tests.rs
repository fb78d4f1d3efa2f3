use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn local() -> Outbound {
    Outbound::new(Destinations::parse("loopback").unwrap())
}

fn post(url: &str) -> Call {
    let Ok(call) = Call::post(url, "text/plain", b"hello".to_vec()) else {
        panic!("{url}");
    };
    call
}

/// A server that answers each request on a connection with the next of `answers`, and closes when there are none left.
async fn server(
    answers: &'static [&'static str],
) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/path?q=1", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut heads = Vec::new();
        let (mut stream, _) = listener.accept().await.unwrap();
        for answer in answers {
            let mut request = Vec::new();
            while !request.ends_with(b"hello") {
                let mut buffer = [0; 1024];
                let bytes = stream.read(&mut buffer).await.unwrap();
                assert!(bytes > 0);
                request.extend_from_slice(&buffer[..bytes]);
            }
            heads.push(String::from_utf8(request).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        heads
    });
    (url, task)
}

#[tokio::test]
async fn a_call_goes_out_whole_and_the_connection_is_used_again() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    let (url, task) = server(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"; 2]).await;
    assert!(ok.ends_with("hi"));
    let client = local().client(None).unwrap();
    for _ in 0..2 {
        let call = post(&url);
        let Ok(call) = call.header("x-key", "k") else {
            panic!("a header");
        };
        let answer = client.send(call).await.unwrap();
        assert_eq!(&answer.body[..], b"hi");
        answer.judged().unwrap();
    }
    for head in task.await.unwrap() {
        assert!(head.starts_with("POST /path?q=1 HTTP/1.1\r\n"), "{head}");
        for line in [
            "content-type: text/plain",
            "x-key: k",
            "content-length: 5",
            "host: 127.0.0.1:",
        ] {
            assert!(head.contains(line), "{line}: {head}");
        }
    }
}

#[tokio::test]
async fn a_private_address_is_refused_after_the_name_is_looked_up() {
    let (url, task) = server(&[]).await;
    let tenants = Outbound::new(Destinations::of_tenants_endpoints());
    let client = tenants.client(None).unwrap();
    for url in [
        url.clone(),
        url.replace("127.0.0.1", "localhost"),
        url.replace("http", "https")
            .replace("127.0.0.1", "localhost"),
        "http://169.254.169.254/latest".to_owned(),
        "http://[::ffff:169.254.169.254]/latest".to_owned(),
        "https://10.0.0.1/".to_owned(),
        "https://[64:ff9b::10.0.0.1]/".to_owned(),
        "https://0.0.0.0/".to_owned(),
    ] {
        let why = client.send(post(&url)).await.unwrap_err();
        assert!(matches!(why, CallError::Forbidden(_)), "{url}: {why}");
        assert!(matches!(why.into(), Failure::Credentials { .. }));
    }
    task.abort();
}

#[tokio::test]
async fn nothing_leaves_the_operators_networks_in_the_clear() {
    let why = local()
        .client(None)
        .unwrap()
        .send(post("http://192.88.99.1/"))
        .await;
    assert_eq!(why.unwrap_err(), CallError::InTheClear);
}

#[tokio::test]
async fn a_redirection_is_not_followed_and_the_tenant_must_mend_it() {
    let (url, task) = server(&[
        "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
    ])
    .await;
    let answer = local()
        .client(None)
        .unwrap()
        .send(post(&url))
        .await
        .unwrap();
    let Err(Failure::Credentials { why }) = answer.judged() else {
        panic!("{answer:?}");
    };
    assert!(why.contains("not followed"), "{why}");
    task.await.unwrap();
}

#[tokio::test]
async fn an_answer_has_a_greatest_size() {
    let bytes = ANSWER_BYTES_MAX + 1;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
    let answer: &'static str = (head + &"x".repeat(bytes)).leak();
    let answers: &'static [&'static str] = vec![answer].leak();
    let (url, task) = server(answers).await;
    let sent = local().client(None).unwrap().send(post(&url)).await;
    assert_eq!(sent.unwrap_err(), CallError::TooLarge);
    task.abort();
}

#[test]
fn a_status_says_what_to_do() {
    let answer = |status: u16, headers: &[(&'static str, &'static str)]| Answer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect(),
        body: Bytes::new(),
    };
    for status in [200, 202, 204] {
        answer(status, &[]).judged().unwrap();
    }
    for status in [408, 429, 500, 502, 503] {
        let failure = answer(status, &[("retry-after", "7")])
            .judged()
            .unwrap_err();
        let Failure::Later { after, .. } = failure else {
            panic!("{status}");
        };
        assert_eq!(after, Some(Duration::from_secs(7)));
    }
    for status in [301, 307, 401, 403, 404] {
        let failure = answer(status, &[]).judged().unwrap_err();
        assert!(matches!(failure, Failure::Credentials { .. }), "{status}");
    }
    for status in [400, 413, 422] {
        let failure = answer(status, &[]).judged().unwrap_err();
        assert!(matches!(failure, Failure::Refused { .. }), "{status}");
    }
}

#[test]
fn what_is_quoted_is_one_bounded_line_without_keys() {
    let text = "bad\r\nkey ABCDEFGHIJKLMNOPQRST1234 in invalidAuthorizationHeader \u{1b}[31m";
    assert_eq!(
        quote(text),
        "bad key […] in invalidAuthorizationHeader [31m"
    );
    assert!(quote(&"x ".repeat(10_000)).len() <= QUOTE_CHARS_MAX);
}
