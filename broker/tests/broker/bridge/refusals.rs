//! Who is let in, and what is refused.

use serde_json::json;

use super::Bridge;
use crate::support::{Kind, World, on_both};

#[test]
fn only_who_has_the_api_key_and_says_for_whom_gets_in() {
    on_both(|world| {
        let file = world.admin(&[
            "service-account",
            "create",
            "--name",
            "b",
            "--type",
            "bridge",
        ]);
        let bridge = Bridge::with(&world, &file, &[("API_KEY_2", "second-key")]).unwrap();
        let ask = |headers: &str| bridge.send("GET", "/api/1/tenants", headers, b"").status;
        let key = &bridge.key;
        let requestor = "icl-requestor-id: me\r\n";
        assert_eq!(
            ask(&format!("authorization: vab:1:{key}\r\n{requestor}")),
            200
        );
        assert_eq!(
            ask(&format!("authorization: vab:1:second-key\r\n{requestor}")),
            200
        );
        for wrong in [
            String::new(),
            "authorization: vab:1:\r\n".to_owned(),
            format!("authorization: vab:1:{key}x\r\n"),
            format!("authorization: vab:2:{key}\r\n"),
            format!("authorization: Bearer {key}\r\n"),
            format!("authorization: {key}\r\n"),
        ] {
            assert_eq!(ask(&format!("{wrong}{requestor}")), 401, "{wrong}");
        }
        assert_eq!(ask(&format!("authorization: vab:1:{key}\r\n")), 400);
        assert_eq!(
            ask(&format!(
                "authorization: vab:1:{key}\r\nicl-requestor-id: \r\n"
            )),
            400
        );
        for open in ["/live", "/health", "/openapi.json"] {
            assert_eq!(bridge.send("GET", open, "", b"").status, 200);
        }
        // A path that is not there is not told to who may not know.
        assert_eq!(bridge.send("GET", "/api/1/nothing", "", b"").status, 401);
        bridge.bad(404, "GET", "/1/nothing", None);
        bridge.bad(405, "DELETE", "/1/tenants", None);
        let log = bridge.log();
        assert!(!log.contains(key.as_str()) && !log.contains("second-key"));
        assert!(log.contains(r#""ray_id""#) && log.contains(r#""matched_path":"/api/1/tenants""#));
        // The audit trail says for whom.
        bridge.tenant("acme");
        let trail = String::from_utf8(crate::support::dumped(&world)).unwrap_or_default();
        assert!(
            world.kind == Kind::Sqlite || trail.contains("for billing"),
            "{trail}"
        );
    });
}

#[test]
fn what_is_not_as_it_should_be_is_refused_and_what_is_unknown_is_told_to_the_log() {
    let world = World::new(Kind::Sqlite);
    let bridge = Bridge::start(&world);
    bridge.tenant("acme");
    bridge.bad(
        422,
        "POST",
        "/1/tenants",
        Some(&json!({ "id": "acme", "name": "Again" })),
    );
    bridge.bad(
        422,
        "POST",
        "/1/tenants",
        Some(&json!({ "id": "", "name": "None" })),
    );
    bridge.bad(
        422,
        "POST",
        "/1/tenants",
        Some(&json!({ "id": "x", "name": "\n" })),
    );
    let address = json!({ "id": "x", "name": "X", "tenantAdminEmail": "nobody" });
    bridge.bad(422, "POST", "/1/tenants", Some(&address));
    bridge.bad(404, "GET", "/1/tenants/x", None);
    bridge.bad(
        400,
        "POST",
        "/1/tenants",
        Some(&json!({ "id": 1, "name": "X" })),
    );
    bridge.bad(400, "POST", "/1/tenants", None);
    bridge.bad(
        422,
        "POST",
        "/2/tenants",
        Some(&json!({ "id": "x", "name": "X", "tags": [99] })),
    );
    bridge.bad(404, "GET", "/1/tenants/x", None);
    bridge.bad(400, "PUT", "/1/tenants/x", Some(&json!({})));
    bridge.bad(422, "DELETE", "/1/tenants/x", None);
    bridge.bad(
        422,
        "POST",
        "/1/tenants/x/invite",
        Some(&json!({ "tenantAdminEmail": "a@b" })),
    );
    bridge.bad(404, "GET", "/1/tenants/x/assignments", None);
    bridge.bad(404, "GET", "/1/kms/configs/99999/assignments", None);
    for query in [
        "page=0",
        "page=x",
        "pageSize=0",
        "sortColumn=x",
        "status=x",
        "page=1&page=2",
    ] {
        bridge.bad(400, "GET", &format!("/1/tenants?{query}"), None);
    }
    bridge.bad(
        400,
        "GET",
        "/1/tenants/secrets?updatedSince=yesterday",
        None,
    );
    bridge.bad(400, "GET", "/1/tenants/secrets?ids=1,x", None);
    bridge.bad(400, "GET", "/1/kms/configs/x", None);
    bridge.bad(422, "GET", "/1/kms/configs/0", None);
    for config in [
        json!({}),
        json!({ "type": "AWS", "version": 2, "credentials": {}, "keyPath": {} }),
        json!({ "type": "AWS", "version": 1, "credentials": { "accessKeyId": "CANARY-a" }, "keyPath": {} }),
        json!({ "type": "LOCAL", "version": 1, "credentials": { "key": "CANARY-b" } }),
    ] {
        let why = bridge.bad(
            400,
            "POST",
            "/1/kms/configs",
            Some(&json!({ "config": config })),
        );
        assert!(!why.contains("CANARY"), "{why}");
    }
    let big = json!({ "tagText": "x".repeat(2 << 20) });
    bridge.bad(413, "POST", "/1/tags", Some(&big));
    bridge.bad(422, "POST", "/1/tags", Some(&json!({ "tagText": "" })));
    // NUL is no character of a text that PostgreSQL stores.
    bridge.bad(404, "GET", "/1/tenants/%00", None);
    bridge.bad(400, "GET", "/1/tenants/%ff", None);
    bridge.good("GET", "/1/tenants?query=%00&verbose=1", None);

    let unknown = json!({ "id": "odd", "name": "Odd", "colour": "red", "tags": [1] });
    bridge.good("POST", "/1/tenants", Some(&unknown));
    let log = bridge.log();
    for name in ["colour", "tags", "verbose"] {
        assert!(log.contains(&format!(r#""name":"{name}""#)), "{name}");
    }
    assert!(!log.contains("CANARY"));
}

#[test]
fn leasing_that_a_tenant_requires_is_not_taken_away() {
    on_both(|world| {
        let bridge = Bridge::start(&world);
        bridge.tenant("acme");
        let (with, without) = (bridge.aws("s", true), bridge.aws("s", false));
        let required = json!({ "keyLeasingRequired": true });
        bridge.good(
            "POST",
            &format!("/1/kms/configs/{without}/tenants/acme"),
            None,
        );
        bridge.bad(400, "PUT", "/1/tenants/acme", Some(&required));
        bridge.good(
            "DELETE",
            &format!("/1/kms/configs/{without}/tenants/acme"),
            None,
        );
        bridge.good("PUT", "/1/tenants/acme", Some(&required));
        bridge.bad(
            400,
            "POST",
            &format!("/1/kms/configs/{without}/tenants/acme"),
            None,
        );
        bridge.good("POST", &format!("/1/kms/configs/{with}/tenants/acme"), None);
        let off = json!({ "leasingAllowed": false });
        bridge.bad(422, "PUT", &format!("/1/kms/configs/{with}"), Some(&off));
    });
}

#[test]
fn a_bridge_does_not_start_without_its_broker_or_with_a_proxys_account() {
    let mut world = World::new(Kind::Sqlite);
    let create = |more: &[&str]| {
        let mut all = vec!["service-account", "create", "--name", "b"];
        all.extend(more);
        world.admin(&all)
    };
    let (file, of_proxy) = (create(&["--type", "bridge"]), create(&[]));
    assert!(Bridge::with(&world, &of_proxy, &[]).is_none());
    let other = file.replace("CONFIG_BROKER_URL", "IGNORED");
    assert!(Bridge::with(&world, &other, &[]).is_none());
    let bridge = Bridge::with(&world, &file, &[("VAB_REQUEST_TIMEOUT", "60000")]).unwrap();
    bridge.good("GET", "/1/tenants", None);
    world.broker.kill_now();
    bridge.bad(502, "GET", "/1/tenants", None);
    assert!(Bridge::with(&world, &file, &[]).is_none());
    world.kill_and_restart();
    bridge.good("GET", "/1/tenants", None);
    // A revoked one is of no use, and a bridge's account opens nothing.
    let account = crate::support::account_of(&file);
    let snapshot = world
        .broker
        .ask(&account, "GET", tsp_wire::account::SNAPSHOT_PATH, "", b"");
    assert_eq!(snapshot.unwrap().status, 401);
    world.admin(&["account", "revoke", &account.config.to_string()]);
    bridge.bad(502, "GET", "/1/tenants", None);
}

#[test]
fn a_request_that_takes_too_long_is_given_up() {
    let world = World::new(Kind::Sqlite);
    let file = [
        "service-account",
        "create",
        "--name",
        "b",
        "--type",
        "bridge",
    ];
    let file = world.admin(&file);
    // The start has no such limit.
    let bridge = Bridge::with(&world, &file, &[("VAB_REQUEST_TIMEOUT", "100")]).unwrap();
    world.broker.freeze();
    bridge.bad(504, "GET", "/1/tenants", None);
}
