//! hyper over both real back ends: server and client, with the timers and the executor of this crate.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tsp_rt::{HyperExecutor, HyperTimer, Listener, Rt, bind_reuseport, timeout};

const LOCALHOST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const LONG: Duration = Duration::from_secs(60);

fn serve<R: Rt>(rt: &R, header_timeout: Duration) -> SocketAddr {
    let mut listener = rt
        .adopt(bind_reuseport(LOCALHOST, 1).unwrap().remove(0))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let rt = rt.clone();
    rt.clone().spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(async |request: Request<hyper::body::Incoming>| {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Ok::<_, Infallible>(Response::new(Full::new(body)))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(HyperTimer::new(rt.clone()))
                .header_read_timeout(header_timeout)
                .serve_connection(TokioIo::new(stream), service);
            HyperExecutor::new(rt.clone()).execute(connection);
        }
    });
    address
}

on_both_backends! {
    async fn requests_of_many_connections_are_answered(rt) {
        let address = serve(&rt, LONG);
        let (done, mut dones) = tsp_rt::mailbox::bounded(50);
        for n in 0..50_usize {
            let (rt, done) = (rt.clone(), done.clone());
            rt.clone().spawn(async move {
                let stream = rt.connect(address, LONG).await.unwrap();
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
                HyperExecutor::new(rt).execute(connection);
                for round in 0..20 {
                    sender.ready().await.unwrap();
                    let body = Bytes::from(vec![b'x'; n * round * 10]);
                    let request = Request::post("/").body(Full::new(body.clone())).unwrap();
                    let answer = sender.send_request(request).await.unwrap();
                    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
                }
                done.send(()).unwrap();
            });
        }
        drop(done);
        let mut count = 0;
        while timeout(&rt, LONG, dones.recv()).await.unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 50);
    }

    async fn a_client_that_never_speaks_is_dropped(rt) {
        let address = serve(&rt, Duration::from_millis(50));
        let mut stream = rt.connect(address, LONG).await.unwrap();
        let begin = rt.now();
        timeout(&rt, LONG, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        assert!(rt.now() - begin >= Duration::from_millis(40));
    }
}
