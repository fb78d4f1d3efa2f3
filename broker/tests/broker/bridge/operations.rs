//! What each operation does.

use serde_json::{Value, json};
use tsp_wire::account::{Memory, SecretOutcome};

use super::{Bridge, aws};
use crate::{
    lifecycle::{memory_of, only_config, secret_of},
    support::{Kind, World, dumped, on_both, sql},
};

fn ids(page: &Value, name: &str) -> Vec<String> {
    let result = page["result"].as_array().unwrap().iter();
    result
        .map(|entry| entry[name].to_string().trim_matches('"').to_owned())
        .collect()
}

#[test]
fn a_bridges_configuration_is_opened_by_proxies_and_by_nobody_else() {
    on_both(|world| {
        let bridge = Bridge::start(&world);
        let account = world.account(&[]);
        bridge.tenant("acme");
        let id = bridge.aws("CANARY-bridge-1", true);
        let path = format!("/1/kms/configs/{id}");

        // As it is shown: sealed, or without credentials.
        let shown = bridge.good("GET", &path, None);
        assert_eq!(
            shown["decryptedConfig"],
            json!({ "type": "AWS", "version": 1, "keyPath": { "keyID": "alias/acme", "region": "eu-central-1" } })
        );
        assert_eq!(
            (
                &shown["leasingAllowed"],
                &shown["assignmentCount"],
                &shown["secretCount"]
            ),
            (&json!(true), &json!(0), &json!(0))
        );
        assert_eq!(shown["createdBy"]["type"], "Va");
        assert_eq!(shown["createdBy"]["name"], "bridge");

        let assignment = bridge.good("POST", &format!("{path}/tenants/acme"), None);
        assert_eq!(
            (
                &assignment["active"],
                &assignment["primary"],
                &assignment["tenantId"]
            ),
            (&json!(true), &json!(false), &json!("acme"))
        );
        let primary = json!({ "active": true, "primary": true });
        let assignment = bridge.good("PUT", &format!("{path}/tenants/acme"), Some(&primary));
        assert_eq!(assignment["primary"], true);

        let opened = |expected: &str| {
            let snapshot = world.broker.snapshot(&account);
            let config = only_config(&snapshot, &account);
            let assignment = &snapshot.tenants[0].assignments[0];
            assert!(assignment.active && assignment.primary);
            assert_eq!(secret_of(config).expose(), expected);
        };
        opened("CANARY-bridge-1");

        // Other credentials; the key path stays, and may be named to make sure.
        let update = |secret: &str| {
            let mut config = aws(secret);
            config.as_object_mut().unwrap().remove("keyPath");
            json!({ "config": config })
        };
        let sealed = bridge.good("PUT", &path, Some(&update("CANARY-bridge-2")));
        assert!(sealed["encryptedConfig"].as_str().unwrap().len() > 100);
        opened("CANARY-bridge-2");
        bridge.good(
            "PUT",
            &path,
            Some(&json!({ "config": aws("CANARY-bridge-3") })),
        );
        opened("CANARY-bridge-3");
        let mut other = aws("x");
        other["keyPath"]["keyID"] = "alias/other".into();
        let why = bridge.bad(422, "PUT", &path, Some(&json!({ "config": other })));
        assert!(why.contains("never changes"), "{why}");
        let azure = json!({ "config": { "type": "AZURE", "version": 1,
            "credentials": { "clientId": "c", "clientSecret": "s", "tenantGuid": "t" } } });
        bridge.bad(422, "PUT", &path, Some(&azure));

        // Leasing alone: nothing is sealed anew.
        let changed = bridge.good("PUT", &path, Some(&json!({ "leasingAllowed": false })));
        assert_eq!(changed["leasingAllowed"], false);
        opened("CANARY-bridge-3");
        world.admin(&["segment", "rotate"]);
        opened("CANARY-bridge-3");
        bridge.good("PUT", &path, Some(&update("CANARY-bridge-4")));
        opened("CANARY-bridge-4");

        world.admin(&["audit", "verify"]);
        let places = [
            ("database", dumped(&world)),
            ("broker's log", world.broker.log().into_bytes()),
            ("broker's memory", memory_of(world.broker.pid())),
            ("bridge's log", bridge.log().into_bytes()),
            ("bridge's memory", memory_of(bridge.pid())),
        ];
        for (place, bytes) in places {
            let found = memchr::memmem::find(&bytes, b"CANARY-bridge");
            assert_eq!(found, None, "in the {place}");
        }
    });
}

#[test]
fn every_kind_of_kms_is_sealed_listed_and_deleted() {
    on_both(|world| {
        let bridge = Bridge::start(&world);
        let account = world.account(&[]);
        bridge.tenant("acme");
        let kinds = [
            aws("s"),
            json!({ "type": "GCP", "version": 1, "credentials": { "client_email": "e", "private_key": "k" },
                "keyPath": { "projectId": "p", "locationId": "l", "keyRingId": "r", "cryptoKeyId": "c" } }),
            json!({ "type": "AZURE", "version": 1,
                "credentials": { "clientId": "c", "clientSecret": "s", "tenantGuid": "t" },
                "keyPath": { "vaultBaseUrl": "https://v.example", "keyName": "k" } }),
            json!({ "type": "THALES", "version": 1, "credentials": { "authDomain": "root",
                "connection": "local_account", "username": "u", "password": "p" },
                "keyPath": { "serviceUrl": "https://c.example", "keyId": "k" } }),
        ];
        let mut made = Vec::new();
        for config in &kinds {
            let sealed = bridge.good("POST", "/1/kms/configs", Some(&json!({ "config": config })));
            assert_eq!(sealed["kmsType"], config["type"]);
            assert_eq!(sealed["leasingAllowed"], false);
            let id = sealed["id"].as_i64().unwrap();
            let shown = bridge.good("GET", &format!("/1/kms/configs/{id}"), None);
            assert_eq!(shown["decryptedConfig"]["keyPath"], config["keyPath"]);
            bridge.good("POST", &format!("/1/kms/configs/{id}/tenants/acme"), None);
            made.push(id);
        }
        let snapshot = world.broker.snapshot(&account);
        let opened = snapshot
            .open(&account)
            .unwrap()
            .configs(&snapshot, &mut Memory::default());
        assert_eq!((opened.kms.len(), opened.left_out.len()), (4, 0));
        assert_eq!(snapshot.kms_configs.len(), 4);

        let numbers: Vec<_> = made.iter().map(ToString::to_string).collect();
        let list = |query: &str| bridge.good("GET", &format!("/1/kms/configs?{query}"), None);
        assert_eq!(ids(&list("sortDirection=asc"), "id"), numbers);
        assert_eq!(ids(&list("kmsType=THALES"), "id"), numbers[3..]);
        assert_eq!(list("leasingEnabled=true")["totalPages"], 0);
        let second = list("sortDirection=asc&pageSize=3&page=2");
        assert_eq!(
            (ids(&second, "id"), &second["page"], &second["totalPages"]),
            (numbers[3..].to_vec(), &json!(2), &json!(2))
        );
        bridge.good(
            "DELETE",
            &format!("/1/kms/configs/{}/tenants/acme", made[1]),
            None,
        );
        let fewest = list("sortColumn=assignments&sortDirection=asc&pageSize=1");
        assert_eq!(ids(&fewest, "id"), numbers[1..2]);
        bridge.bad(422, "DELETE", &format!("/1/kms/configs/{}", made[0]), None);
        let gone = bridge.good("DELETE", &format!("/1/kms/configs/{}", made[1]), None);
        assert_eq!(gone, json!({ "id": made[1] }));
        bridge.bad(422, "GET", &format!("/1/kms/configs/{}", made[1]), None);
    });
}

#[test]
fn a_key_path_that_nobody_signed_gets_no_new_credentials() {
    let world = World::new(Kind::Postgres);
    let bridge = Bridge::start(&world);
    let azure = |secret: &str, path: Option<&str>| {
        let mut config = json!({ "type": "AZURE", "version": 1,
            "credentials": { "clientId": "c", "clientSecret": secret, "tenantGuid": "t" } });
        if let Some(path) = path {
            config["keyPath"] = json!({ "vaultBaseUrl": path, "keyName": "k" });
        }
        json!({ "config": config })
    };
    let vault = "https://v.example";
    let made = bridge.good("POST", "/1/kms/configs", Some(&azure("1", Some(vault))));
    let bridges = format!("/1/kms/configs/{}", made["id"]);
    // One that an admin made has the vendor's own signature.
    let content = json!({ "type": "AZURE", "key_path": { "vaultBaseUrl": vault, "keyName": "k" },
        "credentials": { "clientId": "c", "clientSecret": "s", "tenantGuid": "t" } });
    let file = world.file("azure.json", &content.to_string());
    let admins = world.admin(&["kms", "create", "--file", &file]);
    let admins = format!("/1/kms/configs/{}", admins.trim());
    for path in [&bridges, &admins] {
        bridge.good("PUT", path, Some(&azure("2", None)));
        // A broker that has the credentials sent to itself; then one that says who signed that.
        let lie = |changes: &str| {
            let id = path.rsplit('/').next().unwrap();
            sql(
                &world,
                &format!("UPDATE kms_configs SET {changes} WHERE id = {id}"),
            );
        };
        let keeps = "path_signer = path_signer";
        let other = r#"key_path = '{"keyName":"k","vaultBaseUrl":"https://evil.example"}'"#;
        lie(other);
        for who in [keeps, "path_signature = ''", "path_signer = ''"] {
            lie(who);
            let why = bridge.bad(422, "PUT", path, Some(&azure("CANARY", None)));
            assert!(why.contains("say keyPath"), "{why}");
        }
        lie(&other.replace("evil", "v"));
        // One from before key paths were signed: said once, it is signed.
        bridge.bad(422, "PUT", path, Some(&azure("3", None)));
        bridge.good("PUT", path, Some(&azure("3", Some(vault))));
        bridge.good("PUT", path, Some(&azure("4", None)));
    }
    // The signature is for one config.
    let (from, to) = (bridges.rsplit('/').next(), admins.rsplit('/').next());
    let copied =
        "(path_signer, path_signature) = (SELECT path_signer, path_signature FROM kms_configs";
    let statement = format!(
        "UPDATE kms_configs SET {copied} WHERE id = {}) WHERE id = {}",
        from.unwrap(),
        to.unwrap()
    );
    sql(&world, &statement);
    bridge.bad(422, "PUT", &admins, Some(&azure("5", None)));
}

#[test]
fn tenants_are_made_found_changed_invited_and_deleted() {
    on_both(|world| {
        let bridge = Bridge::start(&world);
        let account = world.account(&[]);
        let made = bridge.good(
            "POST",
            "/1/tenants",
            Some(&json!({ "id": "acme", "name": "Acme" })),
        );
        assert_eq!(
            (&made["emailSent"], &made["tags"][0]["default"]),
            (&json!(false), &json!(true))
        );
        assert_eq!(made["createdBy"]["type"], "Va");
        let none = json!({ "id": "globex", "name": "Globex_Inc" });
        let made = bridge.good("POST", "/2/tenants", Some(&none));
        assert_eq!(made["tags"], json!([]));
        let invited =
            json!({ "id": "ü/1", "name": "Umlaut", "tenantAdminEmail": "eve@acme.example" });
        let made = bridge.good("POST", "/1/tenants", Some(&invited));
        assert!(
            made["invitationLink"]
                .as_str()
                .unwrap()
                .contains("/invitation#")
        );
        // One without a tag reaches no proxy.
        assert_eq!(world.broker.snapshot(&account).tenants.len(), 2);

        let list = |query: &str| {
            ids(
                &bridge.good("GET", &format!("/1/tenants?{query}"), None),
                "id",
            )
        };
        assert_eq!(
            list("sortColumn=id&sortDirection=asc"),
            ["acme", "globex", "ü/1"]
        );
        assert_eq!(list("query=LOBEX"), ["globex"]);
        assert_eq!(list("query=x_i"), ["globex"]);
        assert_eq!(list("query=x%25i"), [""; 0]);
        assert_eq!(list("status=accepted"), [""; 0]);
        assert_eq!(list("status=not-accepted&pageSize=2&page=2").len(), 1);
        let shown = bridge.good("GET", "/1/tenants/%C3%BC%2F1", None);
        assert_eq!(
            (
                &shown["invited"],
                &shown["primaryKmsConfigId"],
                &shown["tenantCreatedConfigs"]
            ),
            (&json!(true), &Value::Null, &json!(false))
        );
        let again = json!({ "tenantAdminEmail": "eve@other.example" });
        let invited = bridge.good("POST", "/1/tenants/%C3%BC%2F1/invite", Some(&again));
        assert_eq!(invited["invitedTenantAdminEmail"], "eve@other.example");

        let change = json!({ "name": "Acme Corp", "keyLeasingRequired": true });
        let changed = bridge.good("PUT", "/1/tenants/acme", Some(&change));
        assert_eq!(
            (&changed["name"], &changed["keyLeasingRequired"]),
            (&json!("Acme Corp"), &json!(true))
        );
        let gone = bridge.good("DELETE", "/1/tenants/globex", None);
        assert_eq!(gone, json!({ "id": "globex" }));
        world.admin(&["tenant", "archive", "acme"]);
        assert_eq!(list("status=archived"), ["acme"]);
        assert_eq!(list("status=not-accepted"), ["ü/1"]);

        // What the vendor wants of all that come.
        world.admin(&["vendor", "set", "--leasing-required", "true"]);
        let made = bridge.good(
            "POST",
            "/1/tenants",
            Some(&json!({ "id": "late", "name": "Late" })),
        );
        assert_eq!(made["keyLeasingRequired"], true);
        world.admin(&["audit", "verify"]);
    });
}

#[test]
fn an_invitation_of_a_bridges_is_answered_and_then_the_tenant_is_its_own_master() {
    on_both(|world| {
        let bridge = Bridge::start(&world);
        let invited =
            json!({ "id": "acme", "name": "Acme", "tenantAdminEmail": "eve@acme.example" });
        let made = bridge.good("POST", "/1/tenants", Some(&invited));
        let link = made["invitationLink"].as_str().unwrap();
        let of_vendor = bridge.aws("CANARY-vendor", false);
        let assignment = format!("/1/kms/configs/{of_vendor}/tenants/acme");
        bridge.good("POST", &assignment, None);
        world.admin_as("eve", &["tenant", "accept", link]);
        let file = world.file("own.json", &crate::lifecycle::aws("CANARY-own"));
        world.admin_as("eve", &["kms", "create", "--file", &file]);

        assert_eq!(
            bridge.good("GET", "/1/tenants/acme", None)["tenantCreatedConfigs"],
            true
        );
        let page = bridge.good("GET", "/1/kms/configs", None);
        assert_eq!(ids(&page, "id"), [of_vendor.to_string()]);
        bridge.bad(400, "PUT", &assignment, Some(&json!({ "active": false })));
        bridge.bad(400, "DELETE", &assignment, None);
        bridge.bad(422, "DELETE", "/1/tenants/acme", None);
        let invitee = json!({ "tenantAdminEmail": "eve@acme.example" });
        bridge.bad(422, "POST", "/1/tenants/acme/invite", Some(&invitee));
    });
}

#[test]
fn an_assignment_is_active_or_disabled_and_one_is_primary() {
    on_both(|world| {
        let bridge = Bridge::start(&world);
        bridge.tenant("acme");
        bridge.tenant("globex");
        let (first, second) = (bridge.aws("s", true), bridge.aws("s", true));
        let path = |kms: i64, tenant: &str| format!("/1/kms/configs/{kms}/tenants/{tenant}");
        for (kms, tenant) in [(first, "acme"), (second, "acme"), (first, "globex")] {
            bridge.good("POST", &path(kms, tenant), None);
        }
        bridge.bad(400, "POST", &path(first, "acme"), None);
        let primary = json!({ "primary": true });
        bridge.good("PUT", &path(first, "acme"), Some(&primary));
        bridge.good("PUT", &path(second, "acme"), Some(&primary));
        assert_eq!(
            bridge.good("GET", &path(first, "acme"), None)["primary"],
            false
        );
        assert_eq!(
            bridge.good("GET", "/1/tenants/acme", None)["primaryKmsConfigId"],
            second
        );
        let wrong = json!({ "active": false, "primary": true });
        bridge.bad(400, "PUT", &path(first, "acme"), Some(&wrong));
        let off = bridge.good(
            "PUT",
            &path(first, "acme"),
            Some(&json!({ "active": false })),
        );
        assert_eq!(
            (&off["active"], &off["primary"]),
            (&json!(false), &json!(false))
        );
        bridge.bad(400, "PUT", &path(first, "acme"), Some(&primary));

        let of_tenant = |query: &str| {
            let path = format!("/1/tenants/acme/assignments?{query}");
            ids(&bridge.good("GET", &path, None), "kmsConfigId")
        };
        let (one, two) = (first.to_string(), second.to_string());
        assert_eq!(of_tenant("sortDirection=asc"), [one.clone(), two.clone()]);
        assert_eq!(of_tenant("status=disabled"), [&*one]);
        assert_eq!(of_tenant("status=primary"), [&*two]);
        assert_eq!(of_tenant("status=active"), [&*two]);
        assert_eq!(of_tenant(&format!("query={one}")), [&*one]);
        let of_config = |query: &str| {
            let path = format!("/1/kms/configs/{first}/assignments?{query}");
            ids(&bridge.good("GET", &path, None), "tenantId")
        };
        assert_eq!(
            of_config("sortColumn=active&sortDirection=asc"),
            ["acme", "globex"]
        );
        assert_eq!(of_config("query=GLOB"), ["globex"]);

        let gone = bridge.good("DELETE", &path(first, "acme"), None);
        assert_eq!(gone, json!({ "kmsConfigId": first, "tenantId": "acme" }));
        bridge.bad(404, "GET", &path(first, "acme"), None);
        bridge.bad(404, "PUT", &path(first, "acme"), Some(&primary));
        bridge.bad(404, "DELETE", &path(first, "acme"), None);
        for method in ["GET", "POST", "DELETE"] {
            bridge.bad(400, method, &path(first, "nobody"), None);
            bridge.bad(400, method, &path(999_999, "acme"), None);
        }
        world.admin(&["kms", "list"]);
    });
}

#[test]
fn tags_are_made_given_taken_and_go_when_nothing_uses_them() {
    on_both(|world| {
        let bridge = Bridge::start(&world);
        for tenant in ["acme", "globex"] {
            bridge.tenant(tenant);
        }
        let make = |text: &str| {
            let tag = bridge.good("POST", "/1/tags", Some(&json!({ "tagText": text })));
            assert_eq!(
                (&tag["tagText"], &tag["default"]),
                (&json!(text), &json!(false))
            );
            tag["id"].as_i64().unwrap()
        };
        let (eu, us) = (make("eu"), make("us"));
        bridge.bad(422, "POST", "/1/tags", Some(&json!({ "tagText": "eu" })));
        let list = |query: &str| {
            ids(
                &bridge.good("GET", &format!("/1/tags?{query}"), None),
                "tagText",
            )
        };
        assert_eq!(list(""), ["us", "eu", "default"]);
        assert_eq!(list("tagText=E"), ["eu", "default"]);

        let path = format!("/1/tags/{eu}/tenants");
        let tenants = json!({ "tenantIds": ["acme", "nobody", "globex"] });
        let done = bridge.good("POST", &path, Some(&tenants));
        assert_eq!(done["succeeded"], json!(["acme", "globex"]));
        assert_eq!(done["failed"][0]["tenantId"], "nobody");
        let in_eu = world.account(&["--tag", "eu"]);
        assert_eq!(world.broker.snapshot(&in_eu).tenants.len(), 2);

        // An account still names it, so it stays.
        bridge.good(
            "DELETE",
            &path,
            Some(&json!({ "tenantIds": ["acme", "globex"] })),
        );
        assert_eq!(list("tagText=eu"), ["eu"]);
        assert_eq!(world.broker.snapshot(&in_eu).tenants.len(), 0);
        let with = json!({ "tagAdditions": [us] });
        bridge.good("PUT", "/1/tenants/acme", Some(&with));
        let without = json!({ "tagRemovals": [us], "tagAdditions": [eu] });
        let tenant = bridge.good("PUT", "/1/tenants/acme", Some(&without));
        assert_eq!(tenant["tags"].as_array().unwrap().len(), 2);
        assert_eq!(list("tagText=us"), [""; 0]);
        bridge.bad(400, "PUT", "/1/tenants/acme", Some(&with));
        bridge.bad(
            400,
            "POST",
            &format!("/1/tags/{us}/tenants"),
            Some(&tenants),
        );
        let tagged = json!({ "id": "late", "name": "Late", "tags": [eu] });
        let tenant = bridge.good("POST", "/2/tenants", Some(&tagged));
        assert_eq!(tenant["tags"][0]["id"], eu);
        world.admin(&["audit", "verify"]);
    });
}

fn offered(
    world: &World,
    account: &tsp_wire::account::env::ServiceAccount,
    path: &str,
    kms: i64,
) -> i64 {
    let outcome = world
        .broker
        .offer(account, "acme", path, &kms.to_string(), b"blob");
    let Some(SecretOutcome::Created(secret)) = outcome else {
        panic!("{outcome:?}")
    };
    i64::try_from(secret.id).unwrap()
}

#[test]
fn tenant_secrets_are_listed_and_rotated() {
    on_both(|world| {
        let bridge = Bridge::start(&world);
        bridge.tenant("acme");
        let account = world.account(&[]);
        let (first, second) = (bridge.aws("s", true), bridge.aws("s", true));
        for kms in [first, second] {
            bridge.good("POST", &format!("/1/kms/configs/{kms}/tenants/acme"), None);
        }
        let primary = |kms: i64| {
            let path = format!("/1/kms/configs/{kms}/tenants/acme");
            bridge.good("PUT", &path, Some(&json!({ "primary": true })));
        };
        primary(first);
        let (p, q) = (
            offered(&world, &account, "p", first),
            offered(&world, &account, "q", first),
        );
        let list = |query: &str, body: Option<&Value>| {
            bridge.good(
                "GET",
                &format!("/1/tenants/secrets?sortDirection=asc&{query}"),
                body,
            )
        };
        let secrets = |query: &str, body: Option<&Value>| {
            let mut found = ids(&list(query, body), "id");
            found.sort();
            found
        };
        let mut both = vec![p.to_string(), q.to_string()];
        both.sort();
        let all = list("", None);
        let secret = &all["result"][0];
        assert_eq!(
            (
                &secret["tenantId"],
                &secret["migrationStatus"],
                &secret["rotationStatus"],
                &secret["secretType"]
            ),
            (
                &json!("acme"),
                &json!("Current"),
                &json!("Current"),
                &json!("Deterministic")
            )
        );
        assert_eq!(secret["secretFingerprint"].as_str().unwrap().len(), 44);
        let tag = secret["tenantTags"][0].as_i64().unwrap();
        let fingerprint = secret["secretFingerprint"]
            .as_str()
            .unwrap()
            .replace('+', "%2B");
        assert!(
            secrets(&format!("query={fingerprint}"), None).len() == 2,
            "the same EDEK"
        );
        assert_eq!(secrets("", None), both);
        assert_eq!(secrets("", Some(&json!({ "ids": [p] }))), [p.to_string()]);
        assert_eq!(secrets(&format!("ids={q}"), None), [q.to_string()]);
        assert_eq!(secrets("", Some(&json!({ "ids": [] }))), [""; 0]);
        assert_eq!(secrets("", Some(&json!({ "tags": [tag] }))), both);
        assert_eq!(secrets("", Some(&json!({ "tags": [tag + 1] }))), [""; 0]);
        assert_eq!(secrets("secretType=deterministic-encryption", None), both);
        assert_eq!(secrets("secretType=vector", None), [""; 0]);
        assert_eq!(secrets(&format!("query={first}"), None), both);
        assert_eq!(
            secrets(
                "createdSince=2020-01-01T00:00:00%2B01:00&updatedSince=2020-01-01T00:00:00Z",
                None
            ),
            both
        );
        assert_eq!(secrets("createdSince=2999-01-01T00:00:00Z", None), [""; 0]);
        let count =
            bridge.good("GET", &format!("/1/kms/configs/{first}"), None)["secretCount"].clone();
        assert_eq!(count, 2);

        // Another primary: what the former one wraps is to be wrapped anew.
        assert_eq!(secrets("migrationStatus=current", None), both);
        primary(second);
        assert_eq!(secrets("migrationStatus=needs-migration", None), both);
        assert_eq!(
            list("", None)["result"][0]["migrationStatus"],
            "NeedsMigration"
        );

        let step = |step: &str| format!("/1/tenants/acme/secrets/rotate/{step}");
        let of_p = json!({ "secretType": "Deterministic", "secretPath": "p" });
        bridge.bad(404, "POST", &step("commit"), Some(&of_p));
        let begun = bridge.good("POST", &step("begin"), Some(&of_p));
        assert_eq!(
            (&begun["id"], &begun["rotationStatus"]),
            (&json!(p), &json!("InRotation"))
        );
        bridge.bad(422, "POST", &step("begin"), Some(&of_p));
        bridge.bad(422, "POST", &step("commit"), Some(&of_p));
        let new = offered(&world, &account, "p", second);
        bridge.bad(422, "POST", &step("commit"), Some(&json!({ "id": new })));
        let ended = bridge.good("POST", &step("commit"), Some(&json!({ "id": p })));
        assert_eq!(ended["rotationStatus"], "Archived");
        assert_eq!(secrets("rotationStatus=archived", None), [p.to_string()]);
        bridge.bad(404, "POST", &step("begin"), Some(&json!({ "id": 1 })));
        bridge.bad(400, "POST", &step("begin"), Some(&json!({})));
        let mut too_much = of_p;
        too_much["id"] = p.into();
        bridge.bad(400, "POST", &step("begin"), Some(&too_much));
        world.admin(&["audit", "verify"]);
    });
}
