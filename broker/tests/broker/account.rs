//! What a service account may do, and how it is refused.

use tsp_wire::{
    account::{
        RefusedSecret, SECRETS_PATH, SNAPSHOT_PATH, SecretOutcome, env::ServiceAccount,
        token::Request,
    },
    envelope::SigningKey,
};

use crate::support::{World, now_s, on_both, signed};

const GET: Request<'_> = Request {
    method: "GET",
    path: SNAPSHOT_PATH,
    body: b"",
};

fn status(world: &World, method: &str, path: &str, token: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let header = format!("authorization: Bearer {token}\r\n");
    let answer = world.broker.send(method, path, &header, body).unwrap();
    (answer.status, answer.body)
}

#[test]
fn each_refusal_is_told_to_the_log_and_not_to_the_caller() {
    on_both(|world| {
        let account = world.account(&[]);
        let good = signed(&account, &GET, now_s());
        assert_eq!(status(&world, "GET", SNAPSHOT_PATH, &good, b"").0, 200);

        let stranger = ServiceAccount {
            signing_key: SigningKey::from_seed(&[9; 32]).unwrap(),
            ..world.account(&[])
        };
        let body = br#"{"secrets":[]}"#;
        let post = Request {
            method: "POST",
            path: SECRETS_PATH,
            body,
        };
        let revoked = world.account(&[]);
        assert_eq!(
            world
                .broker
                .ask(&revoked, "GET", SNAPSHOT_PATH, "", b"")
                .unwrap()
                .status,
            200
        );
        world.admin(&["account", "revoke", &revoked.config.to_string()]);

        let now = now_s();
        let cases = [
            ("replayed", "GET", SNAPSHOT_PATH, good, &b""[..]),
            (
                "too-old",
                "GET",
                SNAPSHOT_PATH,
                signed(&account, &GET, now - 300),
                b"",
            ),
            (
                "from-the-future",
                "GET",
                SNAPSHOT_PATH,
                signed(&account, &GET, now + 300),
                b"",
            ),
            (
                "method",
                "POST",
                SECRETS_PATH,
                signed(
                    &account,
                    &Request {
                        method: "PUT",
                        ..post
                    },
                    now,
                ),
                body,
            ),
            (
                "path",
                "GET",
                SNAPSHOT_PATH,
                signed(
                    &account,
                    &Request {
                        path: "/account/1/snapshot?x",
                        ..GET
                    },
                    now,
                ),
                b"",
            ),
            (
                "body",
                "POST",
                SECRETS_PATH,
                signed(&account, &post, now),
                br#"{"secrets":[ ]}"#,
            ),
            (
                "signature",
                "GET",
                SNAPSHOT_PATH,
                signed(&stranger, &GET, now),
                b"",
            ),
            (
                "revoked",
                "GET",
                SNAPSHOT_PATH,
                signed(&revoked, &GET, now),
                b"",
            ),
            (
                "malformed",
                "GET",
                SNAPSHOT_PATH,
                "e30.e30.e30".to_owned(),
                b"",
            ),
        ];
        let mut answers = Vec::new();
        for (reason, method, path, token, body) in cases {
            let before = world
                .broker
                .log()
                .matches(&format!("\"reason\":\"{reason}\""))
                .count();
            let (status, answer) = status(&world, method, path, &token, body);
            assert_eq!(status, 401, "{reason}");
            answers.push(answer);
            let log = world.broker.log();
            assert_eq!(
                log.matches(&format!("\"reason\":\"{reason}\"")).count(),
                before + 1,
                "{reason}: {log}"
            );
        }
        let none = world.broker.send("GET", SNAPSHOT_PATH, "", b"").unwrap();
        answers.push(none.body);
        answers.dedup();
        assert_eq!(answers.len(), 1, "one answer for all reasons");
        // A token that was refused is not used up.
        let token = signed(&account, &post, now_s());
        assert_eq!(status(&world, "POST", SECRETS_PATH, &token, b"{}").0, 401);
        assert_eq!(status(&world, "POST", SECRETS_PATH, &token, body).0, 200);
    });
}

#[test]
fn an_account_knows_the_tenants_that_share_a_tag_with_it() {
    on_both(|world| {
        world.admin(&["tenant", "create", "eu-1", "--tag", "eu"]);
        world.admin(&["tenant", "create", "us-1", "--tag", "us"]);
        world.admin(&["tenant", "create", "both", "--tag", "us", "--tag", "eu"]);
        world.admin(&["tenant", "create", "plain"]);
        let kms = world.local_kms("us-1");
        let visible = |account: &ServiceAccount| {
            let snapshot = world.broker.snapshot(account);
            let ids: Vec<_> = snapshot
                .tenants
                .iter()
                .map(|tenant| tenant.id.clone())
                .collect();
            (ids.join(" "), snapshot.kms_configs.len())
        };
        let eu = world.account(&["--tag", "eu"]);
        assert_eq!(visible(&eu), ("eu-1 both".to_owned(), 0));
        let us = world.account(&["--tag", "us"]);
        assert_eq!(visible(&us), ("us-1 both".to_owned(), 1));
        assert_eq!(visible(&world.account(&[])).0, "plain");

        let refused = |outcome: Option<SecretOutcome>| match outcome {
            Some(SecretOutcome::Refused(why)) => why,
            other => panic!("{other:?}"),
        };
        let broker = &world.broker;
        // Of another tag, not there at all, wrapped with what is not the tenant's, too long a path.
        assert_eq!(
            refused(broker.offer(&eu, "us-1", "p", &kms, b"b")),
            RefusedSecret::UnknownTenant
        );
        assert_eq!(
            refused(broker.offer(&us, "none", "p", &kms, b"b")),
            RefusedSecret::UnknownTenant
        );
        assert_eq!(
            refused(broker.offer(&us, "both", "p", &kms, b"b")),
            RefusedSecret::InvalidEdek
        );
        let long = "p".repeat(tsp_wire::api::SECRET_PATH_BYTES_MAX + 1);
        assert_eq!(
            refused(broker.offer(&us, "us-1", &long, &kms, b"b")),
            RefusedSecret::InvalidPath
        );
        // What was refused changed nothing.
        let version = broker.snapshot(&us).version;
        broker.offer(&us, "none", "p", &kms, b"b");
        assert_eq!(broker.snapshot(&us).version, version);
    });
}

#[test]
fn what_is_no_request_is_refused() {
    on_both(|world| {
        let account = world.account(&[]);
        let broker = &world.broker;
        for body in ["", "{}", "[]", r#"{"secrets":[{"tenant":1}]}"#, "\u{0}"] {
            let answer = broker
                .ask(&account, "POST", SECRETS_PATH, "", body.as_bytes())
                .unwrap();
            let text = String::from_utf8(answer.body).unwrap();
            assert_eq!(answer.status, 400, "{body:?}: {text}");
        }
        assert_eq!(broker.send("GET", "/nothing", "", b"").unwrap().status, 404);
        assert_eq!(broker.send("GET", "/health", "", b"").unwrap().status, 200);
        assert_eq!(
            broker
                .send("GET", "/admin/1/tenants", "", b"")
                .unwrap()
                .status,
            401
        );
        let setup = "authorization: Bearer wrong\r\n";
        assert_eq!(
            broker
                .send("POST", "/admin/1/vendors", setup, b"{}")
                .unwrap()
                .status,
            401
        );
    });
}
