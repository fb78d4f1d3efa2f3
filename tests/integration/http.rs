//! HTTP/1.1 as the published SDKs' stacks speak it, and as proxies in between do.

use serde_json::json;

use crate::support::{
    config::two_local_tenants,
    http::{self, Request},
    metadata, on_both,
    proxy::{API_KEY, Io, Proxy, Setup},
    request,
};

fn start(io: Io) -> Proxy {
    Setup::serve(io, &two_local_tenants()).start()
}

fn wrap() -> Request {
    Request::api("document/wrap", API_KEY, &metadata("acme"))
}

on_both! {
    fn leading_slashes_are_collapsed(io) {
        let proxy = start(io);
        for path in ["/api/1/document/wrap", "//api/1/document/wrap", "///api/1/document/wrap"] {
            proxy.send(&wrap().path(path)).ok();
        }
    }

    fn other_methods_and_paths_are_errors_in_json(io) {
        let proxy = start(io);
        let authorization = format!("cmk {API_KEY}");
        for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
            let answer = proxy.send(&Request::new(method, "/api/1/document/wrap").header("Authorization", &authorization));
            answer.refused(405, 102);
            assert_eq!(answer.header("allow"), Some("POST"));
        }
        for path in ["/", "/api/1", "/api/1/", "/api/2/document/wrap", "/api/1/document/wrap/", "/api/1/key/derive", "/x%00?a=b"] {
            proxy.send(&wrap().path(path)).refused(404, 102);
        }
    }

    fn a_query_does_not_hide_the_route(io) {
        let proxy = start(io);
        proxy.send(&wrap().path("/api/1/document/wrap?trace=1")).ok();
    }

    fn a_connection_serves_many_requests(io) {
        let proxy = start(io);
        let mut connection = proxy.connect();
        for _ in 0..3 {
            connection.ask(&wrap()).ok();
            connection.ask(&Request::api("document/wrap", API_KEY, &metadata("nobody"))).refused(422, 201);
            connection.ask(&Request::api("document/wrap", "wrong", &metadata("acme"))).refused(401, 101);
            connection.ask(&wrap().path("/nowhere")).refused(404, 102);
        }
        assert!(connection.is_open());
    }

    fn a_client_that_wants_to_close_is_obeyed(io) {
        let proxy = start(io);
        let mut connection = proxy.connect();
        connection.ask(&wrap().header("Connection", "close")).ok();
        assert!(connection.is_ended_by_peer());
    }

    fn a_body_may_come_in_chunks(io) {
        let proxy = start(io);
        for chunk_bytes in [1, 7, 10_000] {
            let mut connection = proxy.connect();
            connection.send(&wrap().chunked_bytes(chunk_bytes)).expect("it can be sent");
            connection.answer().ok();
            connection.ask(&wrap()).ok();
        }
    }

    fn a_request_may_come_byte_by_byte(io) {
        let proxy = start(io);
        let mut connection = proxy.connect();
        for byte in wrap().bytes() {
            connection.send(&[byte]).expect("it can be sent");
        }
        connection.answer().ok();
    }

    fn requests_sent_at_once_are_answered_in_order(io) {
        let proxy = start(io);
        let mut connection = proxy.connect();
        let unknown = Request::api("document/wrap", API_KEY, &metadata("nobody"));
        connection.send(&[wrap().bytes(), unknown.bytes(), wrap().chunked_bytes(5)].concat()).expect("they can be sent");
        connection.answer().ok();
        connection.answer().refused(422, 201);
        connection.answer().ok();
    }

    fn a_client_that_has_finished_sending_still_gets_its_answer(io) {
        let proxy = start(io);
        let mut connection = proxy.connect();
        connection.send(&wrap().bytes()).expect("it can be sent");
        connection.finish_sending();
        connection.answer().ok();
        assert!(connection.is_ended_by_peer());
    }

    /// PHP's client asks so above a mebibyte, and waits.
    fn a_client_that_asks_first_is_told_to_continue(io) {
        let proxy = start(io);
        let mut connection = proxy.connect();
        let request = wrap().header("Expect", "100-continue");
        connection.send(&request.head_bytes()).expect("it can be sent");
        assert_eq!(connection.answer().status, 100);
        connection.send(request.body_bytes()).expect("it can be sent");
        connection.answer().ok();
    }

    fn a_client_that_asks_first_with_a_wrong_key_sends_nothing_in_vain(io) {
        let proxy = start(io);
        let mut connection = proxy.connect();
        let body = "x".repeat(1 << 20);
        let request = Request::api("document/wrap", "wrong", &json!(body)).header("Expect", "100-continue");
        connection.send(&request.head_bytes()).expect("it can be sent");
        connection.answer().refused(401, 101);
    }

    /// Java's own client sends this with every POST over plain HTTP.
    fn an_offer_of_http_2_is_ignored(io) {
        let proxy = start(io);
        let mut connection = proxy.connect();
        for _ in 0..2 {
            let offer = wrap()
                .header("Connection", "Upgrade, HTTP2-Settings")
                .header("Upgrade", "h2c")
                .header("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA");
            connection.ask(&offer).ok();
        }
    }

    fn no_header_but_the_key_is_needed(io) {
        let proxy = start(io);
        proxy.send(&wrap().without("Content-Type")).ok();
        proxy.send(&wrap().without("Content-Type").header("Content-Type", "text/plain; charset=latin1")).ok();
        proxy.send(&wrap().header("Accept", "image/png").header("Accept-Encoding", "gzip, br")).ok();
    }

    fn answers_are_plain_and_not_compressed(io) {
        let proxy = start(io);
        let answer = proxy.send(&wrap().header("Accept-Encoding", "gzip"));
        answer.ok();
        for name in ["content-encoding", "transfer-encoding", "location", "retry-after"] {
            assert_eq!(answer.header(name), None, "{answer:?}");
        }
        assert!(answer.header("content-length").is_some());
    }

    fn metrics_need_no_key_and_health_has_a_port_of_its_own(io) {
        let proxy = start(io);
        assert_eq!(http::get(proxy.http, "/metrics").status, 200);
        assert_eq!(http::get(proxy.health, "/metrics").status, 200);
        for path in ["/health", "/live", "/ready"] {
            assert_eq!(http::get(proxy.health, path).status, 200, "{path}");
            // Not on the API's port, where only the key opens anything.
            http::get(proxy.http, path).refused(401, 101);
        }
        assert_eq!(http::get(proxy.health, "/nowhere").status, 404);
    }

    fn many_clients_at_once_get_their_own_answers(io) {
        let proxy = start(io);
        std::thread::scope(|scope| {
            for client in 0..16 {
                let proxy = &proxy;
                scope.spawn(move || {
                    let mut connection = proxy.connect();
                    for turn in 0..20 {
                        let id = format!("{client}-{turn}");
                        let body = request("acme", json!({ "documentIds": [id] }));
                        let answer = connection.ask(&Request::api("document/batch-wrap", API_KEY, &body)).ok();
                        let keys = answer["keys"].as_object().expect("an object");
                        assert_eq!(keys.keys().collect::<Vec<_>>(), [&id]);
                    }
                });
            }
        });
    }
}
