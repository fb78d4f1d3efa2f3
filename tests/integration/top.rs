//! `tsp top` on a live proxy.

use crate::support::{
    config::two_local_tenants,
    metadata, on_both,
    proxy::{Io, Proxy, Setup},
};

fn top(options: &[&str]) -> (Option<i32>, String) {
    let setup = Setup::bare().argument("top");
    let setup = options
        .iter()
        .fold(setup, |setup, option| setup.argument(option));
    let ended = setup.run_to_end();
    (ended.code, ended.output)
}

fn url(proxy: &Proxy) -> String {
    format!("http://{}/metrics", proxy.health)
}

on_both! {
    fn a_live_proxy_is_shown(io) {
        let proxy = Setup::serve(io, &two_local_tenants()).start();
        proxy.call("document/wrap", &metadata("acme")).ok();
        let (code, shown) = top(&["--once", "--every", "0.1", "--url", &url(&proxy)]);
        assert_eq!(code, Some(0), "{shown}");
        for piece in [
            &format!("on {}  ready  {}", io.as_str(), url(&proxy)),
            "2 tenants, 2 KMS configs",
            "document/wrap ",
            "keys in memory",
            "by shard:  0: ",
        ] {
            assert!(shown.contains(piece), "{piece:?} is not in\n{shown}");
        }
        assert!(!shown.contains('\x1b'), "no colours without a terminal");
    }
}

#[test]
fn what_is_no_proxy_is_told() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/metrics", free.local_addr().expect("it is bound"));
    drop(free);
    let (code, told) = top(&["--once", "--url", &url]);
    assert_eq!(code, Some(70), "{told}");
    let (code, told) = top(&["--every", "0"]);
    assert!(code == Some(64) && told.contains("--every"), "{told}");
    let (code, told) = top(&["--url", "localhost:9000"]);
    assert!(code == Some(64) && told.contains("--url"), "{told}");
}
