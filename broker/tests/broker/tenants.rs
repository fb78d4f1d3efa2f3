//! Tenants' own organizations: how they come to be, and that their configurations are theirs.

use std::thread;

use tsp_wire::account::{ConfigError, Memory, env::ServiceAccount};

use crate::support::{Kind, World, on_both, sql};

/// The tenant `acme`, whose own admin is `eve`.
fn with_tenant(world: &World) {
    world.admin(&["tenant", "create", "acme"]);
    let link = world.admin(&["tenant", "invite", "acme", "eve@acme.example"]);
    let accepted = world.admin_as(
        "eve",
        &["tenant", "accept", link.trim(), "--name", "Acme Inc."],
    );
    assert!(
        accepted.ends_with("tenant acme of Vendor\n"),
        "a link from hand to hand needs no more: {accepted}"
    );
}

fn local(world: &World, name: &str) -> String {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let content = format!(r#"{{"type":"LOCAL","credentials":{{"key":"{key}"}}}}"#);
    world.file(name, &content)
}

fn own_config(world: &World, who: &str) -> String {
    let file = local(world, "own.json");
    let id = world.admin_as(who, &["kms", "create", "--file", &file]);
    id.trim().to_owned()
}

/// What serves a tenant, as a proxy sees it: number, active, primary, and whether it believes it.
fn serving(
    world: &World,
    account: &ServiceAccount,
    tenant: &str,
) -> Vec<(u64, bool, bool, Result<(), ConfigError>)> {
    let snapshot = world.broker.snapshot(account);
    let configs = snapshot
        .open(account)
        .unwrap()
        .configs(&snapshot, &mut Memory::default());
    let mut tenants = snapshot.tenants.iter();
    let tenant = tenants.find(|there| there.id == tenant).unwrap();
    let assignment = |there: &tsp_wire::account::Assignment| {
        let mut left_out = configs.left_out.iter();
        let bad = left_out.find(|left_out| {
            let whose = left_out.tenant.as_ref();
            left_out.kms == there.kms && whose.is_none_or(|whose| *whose == tenant.id)
        });
        let good = bad.map_or(Ok(()), |bad| Err(bad.why.clone()));
        (there.kms, there.active, there.primary, good)
    };
    tenant.assignments.iter().map(assignment).collect()
}

fn number(id: &str) -> u64 {
    id.parse().unwrap()
}

#[test]
fn a_tenant_that_has_configs_of_its_own_says_itself_which_ones_serve_it() {
    on_both(|world| {
        with_tenant(&world);
        let account = world.account(&[]);
        let vendors = world.local_kms("acme");
        let own = own_config(&world, "eve");
        world.admin_as("eve", &["kms", "assign", &own, "acme", "--primary"]);
        let expected = vec![
            (number(&vendors), true, false, Ok(())),
            (number(&own), true, true, Ok(())),
        ];
        assert_eq!(serving(&world, &account, "acme"), expected);

        // The vendor neither sees the tenant's config among its own nor changes anything.
        assert!(
            !world
                .admin(&["kms", "list"])
                .contains(&format!("\"id\": {own}"))
        );
        assert!(world.admin(&["tenant", "list"]).contains("\"ownKms\": 1"));
        for refused in [
            world.refused(&["kms", "primary", &vendors, "acme"]),
            world.refused(&["kms", "disable", &vendors, "acme"]),
            world.refused(&["kms", "unassign", &vendors, "acme"]),
        ] {
            assert!(refused.contains("says itself"), "{refused}");
        }
        for refused in [
            world.refused(&["kms", "assign", &own, "acme"]),
            world.refused(&["kms", "unassign", &own, "acme"]),
            world.refused(&["kms", "delete", &own]),
        ] {
            assert!(
                refused.contains("no such KMS config") || refused.contains("says itself"),
                "{refused}"
            );
        }
        // The tenant does with the vendor's what it likes, and with no other of the vendor's.
        world.admin_as("eve", &["kms", "disable", &vendors, "acme"]);
        assert!(!serving(&world, &account, "acme")[0].1);
        world.admin_as("eve", &["kms", "unassign", &vendors, "acme"]);
        let again = world.refused_as("eve", &["kms", "assign", &vendors, "acme"]);
        assert!(again.contains("no such KMS config"), "{again}");

        // Leasing, and other credentials for the same key.
        world.admin_as("eve", &["kms", "leasing", &own, "true"]);
        let snapshot = world.broker.snapshot(&account);
        let config = &snapshot.kms_configs[0];
        assert_eq!((config.revision, config.leasing_allowed), (2, true));
        world.admin(&["tenant", "set", "acme", "--leasing-required", "true"]);
        let refused = world.refused_as("eve", &["kms", "leasing", &own, "false"]);
        assert!(refused.contains("requires leasing"), "{refused}");
        let file = local(&world, "own.json");
        world.admin_as(
            "eve",
            &["kms", "update", &own, "--file", &file, "--leasing"],
        );
        assert_eq!(
            serving(&world, &account, "acme"),
            [(number(&own), true, true, Ok(()))]
        );

        // Both rotate: the vendor's proxies go on opening it, and so does the tenant.
        world.admin(&["segment", "rotate"]);
        world.admin_as("eve", &["segment", "rotate"]);
        world.admin_as("eve", &["kms", "leasing", &own, "true"]);
        assert_eq!(
            serving(&world, &account, "acme"),
            [(number(&own), true, true, Ok(()))]
        );

        let refused = world.refused_as("eve", &["kms", "delete", &own]);
        assert!(refused.contains("still assigned"), "{refused}");
        world.broker.offer(&account, "acme", "p", &own, b"blob");
        world.admin_as("eve", &["kms", "unassign", &own, "acme"]);
        let version = world.broker.snapshot(&account).version;
        world.admin_as("eve", &["kms", "delete", &own]);
        let snapshot = world.broker.snapshot(&account);
        assert!(snapshot.secrets.is_empty());
        assert!(
            snapshot.version > version,
            "or proxies would not hear of it"
        );
        // Without any of its own, the vendor may again.
        world.admin(&["kms", "leasing", &vendors, "true"]);
        world.admin(&["kms", "assign", &vendors, "acme", "--primary"]);

        world.admin_as("eve", &["audit", "verify"]);
        world.admin(&["audit", "verify"]);
    });
}

#[test]
fn an_invitation_is_answered_once_and_only_as_it_was_made() {
    on_both(|world| {
        world.admin(&["tenant", "create", "acme"]);
        let first = world.admin(&["tenant", "invite", "acme", "eve@acme.example"]);
        let link = world.admin(&["tenant", "invite", "acme", "eve@acme.example"]);
        let link = link.trim();
        // A new one takes the place of the old.
        let refused = world.refused_as("eve", &["tenant", "accept", first.trim()]);
        assert!(refused.contains("is over"), "{refused}");
        // Another vendor's fingerprint: as if the broker were not the vendor's.
        let mut parts = link.split('.').map(str::to_owned).collect::<Vec<_>>();
        let at = parts.len() - 2;
        let fingerprint = std::mem::replace(&mut parts[at], "A".repeat(32));
        let refused = world.refused_as("eve", &["tenant", "accept", &parts.join(".")]);
        assert!(
            refused.contains("another vendor than the link"),
            "{refused}"
        );
        // Another key than the vendor vouched for.
        parts[at] = fingerprint;
        parts[at + 1] = "A".repeat(43);
        let refused = world.refused_as("eve", &["tenant", "accept", &parts.join(".")]);
        assert!(
            refused.contains("not signed by the invitation's"),
            "{refused}"
        );

        world.admin_as("eve", &["tenant", "accept", link]);
        let refused = world.refused_as("mallory", &["tenant", "accept", link]);
        assert!(refused.contains("was answered"), "{refused}");
        let refused = world.refused(&["tenant", "invite", "acme", "eve@acme.example"]);
        assert!(refused.contains("accepted already"), "{refused}");
        let refused = world.refused(&["tenant", "delete", "acme"]);
        assert!(refused.contains("archived, not deleted"), "{refused}");

        // Each side keeps to its own.
        let refused = world.refused_as("eve", &["tenant", "create", "globex"]);
        assert!(refused.contains("a vendor's admins"), "{refused}");
        let refused = world.refused_as("eve", &["secrets", "export"]);
        assert!(refused.contains("a vendor's admins"), "{refused}");
        let refused = world.refused(&["tenant", "links"]);
        assert!(refused.contains("a tenant's organization"), "{refused}");
        world.admin(&["tenant", "archive", "acme"]);
        let own = own_config(&world, "eve");
        let refused = world.refused_as("eve", &["kms", "assign", &own, "acme"]);
        assert!(refused.contains("archived"), "{refused}");
    });
}

#[test]
fn an_invitation_is_over_after_a_week() {
    let world = World::new(Kind::Postgres);
    world.admin(&["tenant", "create", "acme"]);
    let link = world.admin(&["tenant", "invite", "acme", "eve@acme.example"]);
    sql(
        &world,
        "UPDATE invitations SET expires = expires - 7 * 24 * 60 * 60",
    );
    let refused = world.refused_as("eve", &["tenant", "accept", link.trim()]);
    assert!(refused.contains("is over"), "{refused}");
}

#[test]
fn a_link_that_the_broker_mailed_needs_a_word_of_the_vendors() {
    on_both(|world| {
        world.admin(&["tenant", "create", "acme"]);
        let link = world.admin(&["tenant", "invite", "acme", "eve@acme.example"]);
        // What a mail has: all but the invitation's key.
        let (mailed, _) = link.rsplit_once('.').unwrap();
        let accepted = world.admin_as("eve", &["tenant", "accept", mailed]);
        let code = accepted.split("the code ").nth(1).unwrap();
        let code = code.lines().next().unwrap();
        let own = own_config(&world, "eve");
        let refused = world.refused_as("eve", &["kms", "assign", &own, "acme"]);
        assert!(refused.contains("has not confirmed"), "{refused}");
        let wrong = "0".repeat(code.len());
        let refused = world.refused(&["tenant", "confirm", "acme", &wrong]);
        assert!(refused.contains("another organization"), "{refused}");
        world.admin(&["tenant", "confirm", "acme", code]);
        world.admin_as("eve", &["kms", "assign", &own, "acme", "--primary"]);
        let account = world.account(&[]);
        assert_eq!(
            serving(&world, &account, "acme"),
            [(number(&own), true, true, Ok(()))]
        );
    });
}

#[test]
fn one_organization_is_the_tenant_of_several_vendors() {
    on_both(|world| {
        with_tenant(&world);
        let broker = world.broker.url();
        world.admin_as(
            "other",
            &[
                "init",
                "--broker",
                &broker,
                "--name",
                "Other",
                "--email",
                "bob@other.example",
            ],
        );
        world.admin_as("other", &["tenant", "create", "acme"]);
        let link = world.admin_as(
            "other",
            &["tenant", "invite", "acme", "mallory@acme.example"],
        );
        let refused = world.refused_as("eve", &["tenant", "accept", link.trim()]);
        assert!(refused.contains("another address"), "{refused}");
        let link = world.admin_as("other", &["tenant", "invite", "acme", "eve@acme.example"]);
        world.admin_as("eve", &["tenant", "accept", link.trim()]);
        let links: serde_json::Value =
            serde_json::from_str(&world.admin_as("eve", &["tenant", "links"])).unwrap();
        let vendors: Vec<_> = links
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["vendor"]["id"].to_string())
            .collect();
        assert_eq!(vendors.len(), 2);

        let accounts = [
            world.account(&[]),
            crate::support::account_of(
                &world.admin_as("other", &["service-account", "create", "--name", "cluster"]),
            ),
        ];
        let own = own_config(&world, "eve");
        let refused = world.refused_as("eve", &["kms", "assign", &own, "acme"]);
        assert!(refused.contains("several vendors"), "{refused}");
        let assign = |vendor| {
            [
                "kms",
                "assign",
                &own,
                "acme",
                "--primary",
                "--vendor",
                vendor,
            ]
        };
        world.admin_as("eve", &assign(&vendors[0]));
        // One vendor at a time, since it is sealed to that vendor's proxies.
        let refused = world.refused_as("eve", &assign(&vendors[1]));
        assert!(refused.contains("another tenant"), "{refused}");
        let good = [(number(&own), true, true, Ok(()))];
        assert_eq!(serving(&world, &accounts[0], "acme"), good);
        assert_eq!(serving(&world, &accounts[1], "acme"), []);
        world.admin_as(
            "eve",
            &["kms", "unassign", &own, "acme", "--vendor", &vendors[0]],
        );
        world.admin_as("eve", &assign(&vendors[1]));
        assert_eq!(serving(&world, &accounts[0], "acme"), []);
        assert_eq!(serving(&world, &accounts[1], "acme"), good);
        world.admin_as("other", &["audit", "verify"]);
    });
}

#[test]
fn a_tenants_organization_has_several_admins_and_auditors() {
    on_both(|world| {
        with_tenant(&world);
        let link = world.admin_as("eve", &["admin", "invite", "dan@acme.example"]);
        let accepted = world.admin_as("dan", &["admin", "accept", link.trim()]);
        let key = accepted.trim().rsplit(' ').next().unwrap().to_owned();
        world.admin_as("eve", &["admin", "grant", "dan@acme.example", &key]);
        let link = world.admin_as("eve", &["admin", "invite", "zoe@acme.example", "--auditor"]);
        world.admin_as("zoe", &["admin", "accept", link.trim()]);
        let own = own_config(&world, "dan");
        let refused = world.refused_as("zoe", &["kms", "assign", &own, "acme"]);
        assert!(refused.contains("an auditor"), "{refused}");
        world.admin_as("dan", &["kms", "assign", &own, "acme", "--primary"]);
        assert!(
            world
                .admin_as("zoe", &["tenant", "links"])
                .contains("\"primary\": true")
        );

        // Who has an account elsewhere joins with the keys that they have.
        let link = world.admin(&["admin", "invite", "eve@acme.example"]);
        let profile = world.folder.path().join("eve.json");
        let accepted = world.admin_as(
            "eve-at-vendor",
            &[
                "admin",
                "accept",
                link.trim(),
                "--as",
                profile.to_str().unwrap(),
            ],
        );
        let key = accepted.trim().rsplit(' ').next().unwrap().to_owned();
        world.admin(&["admin", "grant", "eve@acme.example", &key]);
        assert!(
            world
                .admin_as("eve-at-vendor", &["tenant", "list"])
                .contains("acme")
        );

        // Two admins at a time: each change is either made or refused, and none is lost.
        let changes = |who: &str| {
            let mut made = 0;
            for round in 0..3 {
                let allowed = if round % 2 == 0 { "true" } else { "false" };
                let output = world.run_as(who, &["kms", "leasing", &own, allowed]);
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(
                    output.status.success() || errors.contains("meanwhile"),
                    "{errors}"
                );
                made += u64::from(output.status.success());
            }
            made
        };
        let made = thread::scope(|scope| {
            let other = scope.spawn(|| changes("dan"));
            changes("eve") + other.join().unwrap()
        });
        let account = world.account(&[]);
        let snapshot = world.broker.snapshot(&account);
        assert_eq!(snapshot.kms_configs[0].revision, 1 + made);
        assert_eq!(
            serving(&world, &account, "acme"),
            [(number(&own), true, true, Ok(()))]
        );
        world.admin_as("zoe", &["audit", "verify"]);

        world.admin_as("dan", &["admin", "remove", "eve@acme.example"]);
        let refused = world.refused_as("eve", &["kms", "list"]);
        assert!(refused.contains("401"), "{refused}");
        world.admin_as("dan", &["segment", "rotate"]);
        world.admin_as("dan", &["kms", "leasing", &own, "true"]);
    });
}

#[test]
fn a_tenants_logging_configuration_is_the_tenants() {
    on_both(|world| {
        with_tenant(&world);
        let account = world.account(&[]);
        let opened = || {
            let snapshot = world.broker.snapshot(&account);
            let segment = snapshot.open(&account).unwrap();
            let config = snapshot.logging_configs.first()?;
            Some(segment.logging_config("acme", config).unwrap().to_vec())
        };
        let file = world.file("vendors.json", r#"{"type":"STDOUT"}"#);
        let wrong = world.file("wrong.json", r#"{"type":"SPLUNK","token":"CANARY"}"#);
        let refused = world.refused(&["logging", "set", "acme", "--file", &wrong]);
        assert!(refused.contains("missing member `hecUrl`"), "{refused}");
        world.admin(&["logging", "set", "acme", "--file", &file]);
        let own = world.file("own.json", r#"{"type":"SYSLOG","host":"own"}"#);
        world.admin_as("eve", &["logging", "set", "acme", "--file", &own]);
        assert_eq!(opened().unwrap(), br#"{"type":"SYSLOG","host":"own"}"#);
        for refused in [
            world.refused(&["logging", "set", "acme", "--file", &file]),
            world.refused(&["logging", "remove", "acme"]),
        ] {
            assert!(refused.contains("itself"), "{refused}");
        }
        world.admin(&["segment", "rotate"]);
        assert_eq!(opened().unwrap(), br#"{"type":"SYSLOG","host":"own"}"#);
        world.admin_as("eve", &["logging", "set", "acme", "--file", &own]);
        world.admin_as("eve", &["logging", "remove", "acme"]);
        assert_eq!(opened(), None);
        world.admin(&["logging", "set", "acme", "--file", &file]);
        assert_eq!(opened().unwrap(), br#"{"type":"STDOUT"}"#);
    });
}

#[test]
fn what_a_broker_makes_up_is_not_believed() {
    let world = World::new(Kind::Postgres);
    with_tenant(&world);
    world.admin(&["tenant", "create", "globex"]);
    let account = world.account(&[]);
    let own = own_config(&world, "eve");
    world.admin_as("eve", &["kms", "assign", &own, "acme", "--primary"]);
    let good = (number(&own), true, true, Ok(()));
    assert_eq!(serving(&world, &account, "acme"), [good]);
    let forged = (number(&own), true, true, Err(ConfigError::NotSigned));
    // The tenant's config for another tenant, and that one's organization.
    sql(
        &world,
        "UPDATE assignments SET tenant = (SELECT number FROM tenants WHERE id = 'globex'); \
         UPDATE tenants SET organization = a.organization, organization_signature = a.organization_signature, \
         invitation_key = a.invitation_key, invitation_signature = a.invitation_signature FROM tenants a \
         WHERE a.id = 'acme' AND tenants.id = 'globex'; \
         UPDATE vendors SET version = version + 1",
    );
    assert_eq!(serving(&world, &account, "globex"), [forged]);
    // The vendor's key in the place that the organization remembers.
    sql(
        &world,
        "UPDATE tenants SET link_signature = (SELECT link_signature FROM tenants WHERE id = 'acme')",
    );
    let refused = world.refused_as(
        "eve",
        &[
            "logging",
            "set",
            "globex",
            "--file",
            &world.file("l.json", r#"{"type":"STDOUT"}"#),
        ],
    );
    assert!(refused.contains("another vendor"), "{refused}");
}

#[test]
fn after_too_many_failures_an_admins_logins_are_refused_and_nobody_elses() {
    on_both(|world| {
        with_tenant(&world);
        let profile = std::fs::read(world.folder.path().join("eve.json")).unwrap();
        let profile: serde_json::Value = serde_json::from_slice(&profile).unwrap();
        world.admin_as("eve", &["kms", "list"]);
        for number in 0..20 {
            let login = serde_json::json!({
                "vendor": profile["vendor"], "email": "eve@acme.example", "at": crate::support::now_s(),
                "id": format!("{number}"), "signature": "AAAA",
            });
            let body = login.to_string();
            let answer = world
                .broker
                .send("POST", "/admin/1/login", "", body.as_bytes());
            assert_eq!(answer.unwrap().status, 401);
        }
        let refused = world.refused_as("eve", &["kms", "list"]);
        assert!(refused.contains("401"), "{refused}");
        assert!(
            world
                .broker
                .log()
                .contains(r#""reason":"too-many-failures""#)
        );
        world.admin(&["tenant", "list"]);
    });
}
