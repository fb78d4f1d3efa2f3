//! The rules that admins run into.

use std::collections::HashMap;

use tsp_wire::account::{Memory, SecretOutcome};

use crate::support::{Kind, World, on_both, sql};

fn assignments(world: &World, tenant: &str) -> Vec<(i64, bool, bool)> {
    let configs: serde_json::Value = serde_json::from_str(&world.admin(&["kms", "list"])).unwrap();
    let configs = configs.as_array().unwrap().iter();
    configs
        .filter_map(|config| {
            let state = config["tenants"].get(tenant)?;
            let flag = |name: &str| state[name].as_bool().unwrap();
            Some((
                config["id"].as_i64().unwrap(),
                flag("active"),
                flag("primary"),
            ))
        })
        .collect()
}

#[test]
fn a_tenant_has_one_primary_config_and_what_is_in_use_stays() {
    on_both(|world| {
        world.admin(&["tenant", "create", "acme"]);
        let refused = world.refused(&["tenant", "create", "acme"]);
        assert!(
            refused.contains("there is a tenant with this id"),
            "{refused}"
        );
        let first = world.local_kms("acme");
        let second = world.local_kms("acme");
        let number = |id: &str| id.parse::<i64>().unwrap();
        let both = |first_primary, second_primary| {
            vec![
                (number(&first), true, first_primary),
                (number(&second), true, second_primary),
            ]
        };
        assert_eq!(assignments(&world, "acme"), both(false, true));
        world.admin(&["kms", "primary", &first, "acme"]);
        assert_eq!(assignments(&world, "acme"), both(true, false));

        let refused = world.refused(&["kms", "delete", &second]);
        assert!(refused.contains("still assigned"), "{refused}");
        let refused = world.refused(&["tenant", "delete", "acme"]);
        assert!(refused.contains("still has KMS configs"), "{refused}");
        world.admin(&["kms", "unassign", &first, "acme"]);
        world.admin(&["kms", "unassign", &second, "acme"]);
        world.admin(&["kms", "delete", &second]);
        let refused = world.refused(&["tenant", "delete", "acme"]);
        assert!(refused.contains("36 hours"), "{refused}");
        world.admin(&["tenant", "create", "globex"]);
        world.admin(&["tenant", "delete", "globex"]);

        let account = world.account(&[]);
        assert_eq!(world.broker.snapshot(&account).tenants.len(), 1);
        world.admin(&["tenant", "archive", "acme"]);
        assert_eq!(world.broker.snapshot(&account).tenants.len(), 0);
        world.admin(&["audit", "verify"]);
    });
}

#[test]
fn a_tenant_is_deleted_36_hours_after_its_last_config() {
    let world = World::new(Kind::Postgres);
    world.admin(&["tenant", "create", "acme"]);
    let kms = world.local_kms("acme");
    world.admin(&["kms", "unassign", &kms, "acme"]);
    let goes_by = |hours: u32| {
        let statement =
            format!("UPDATE tenants SET config_deleted = config_deleted - {hours} * 60 * 60");
        sql(&world, &statement);
    };
    goes_by(35);
    let refused = world.refused(&["tenant", "delete", "acme"]);
    assert!(refused.contains("36 hours"), "{refused}");
    goes_by(1);
    world.admin(&["tenant", "delete", "acme"]);
}

#[test]
fn a_login_needs_passphrase_and_secret_key() {
    on_both(|world| {
        let link = {
            world.admin(&["tenant", "create", "acme/ü"]);
            world.admin(&["tenant", "invite", "acme/ü", "eve@acme.example"])
        };
        assert!(link.contains("/invitation#"), "{link}");
        let profile = world.folder.path().join("admin.json");
        let good = std::fs::read_to_string(&profile).unwrap();
        let mut other: serde_json::Value = serde_json::from_str(&good).unwrap();
        other["secretKey"] = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".into();
        std::fs::write(&profile, other.to_string()).unwrap();
        let refused = world.refused(&["tenant", "list"]);
        assert!(refused.contains("401"), "{refused}");
        assert!(world.broker.log().contains(r#""reason":"signature""#));
        std::fs::write(&profile, good).unwrap();
        assert!(world.admin(&["tenant", "list"]).contains("acme/ü"));
        let again = world.refused(&[
            "init",
            "--broker",
            &world.broker.url(),
            "--name",
            "V",
            "--email",
            "a@b",
        ]);
        assert!(again.contains("is there already"), "{again}");
    });
}

#[test]
fn a_config_that_is_not_well_formed_is_refused_before_it_is_sealed() {
    on_both(|world| {
        let file = world.file(
            "bad.json",
            r#"{"type":"AWS","key_path":{},"credentials":{"CANARY":1}}"#,
        );
        let refused = world.refused(&["kms", "create", "--file", &file]);
        assert!(
            refused.contains("missing member `keyID`") && !refused.contains("CANARY"),
            "{refused}"
        );
    });
}

#[test]
fn a_tenant_secret_is_rotated_and_leasing_can_be_required() {
    on_both(|world| {
        world.admin(&["tenant", "create", "acme"]);
        let kms = world.local_kms("acme");
        let account = world.account(&[]);
        let rotate = ["secrets", "rotate", "begin", "acme", "deterministic", "p"];
        let commit = ["secrets", "rotate", "commit", "acme", "deterministic", "p"];
        assert!(world.refused(&rotate).contains("nothing to rotate"));
        let offer = |blob: &[u8]| {
            world
                .broker
                .offer(&account, "acme", "p", &kms, blob)
                .unwrap()
        };
        let SecretOutcome::Created(first) = offer(b"first") else {
            panic!("the first is taken")
        };
        world.admin(&rotate);
        assert!(world.refused(&rotate).contains("under way already"));
        assert!(world.refused(&commit).contains("no new current secret"));
        let SecretOutcome::Created(second) = offer(b"second") else {
            panic!("the place is free again")
        };
        world.admin(&commit);
        let statuses: HashMap<u64, &str> = world
            .broker
            .snapshot(&account)
            .secrets
            .iter()
            .map(|secret| (secret.id, secret.status.as_str()))
            .collect();
        assert_eq!(
            statuses,
            HashMap::from([(first.id, "archived"), (second.id, "current")])
        );

        let refused = world.refused(&["tenant", "set", "acme", "--leasing-required", "true"]);
        assert!(refused.contains("does not allow leasing"), "{refused}");
        world.admin(&[
            "tenant",
            "set",
            "acme",
            "--remove-tag",
            "default",
            "--add-tag",
            "eu",
        ]);
        assert_eq!(world.broker.snapshot(&account).tenants.len(), 0);
        world.admin(&["tenant", "create", "globex"]);
        world.admin(&["tenant", "set", "globex", "--leasing-required", "true"]);
        assert!(world.broker.snapshot(&account).tenants[0].leasing_required);
        let refused = world.refused(&["kms", "assign", &kms, "globex"]);
        assert!(refused.contains("requires leasing"), "{refused}");
    });
}

#[test]
fn a_second_admin_gets_the_keys_from_the_first_and_an_auditor_only_looks() {
    on_both(|world| {
        let account = world.account(&[]);
        let link = world.admin(&["admin", "invite", "bob@vendor.example"]);
        let accepted = world.admin_as("bob", &["admin", "accept", link.trim()]);
        let key = accepted.trim().rsplit(' ').next().unwrap().to_owned();
        let again = world.refused_as("eve", &["admin", "accept", link.trim()]);
        assert!(again.contains("was answered"), "{again}");
        let early = world.refused_as("bob", &["tenant", "list"]);
        assert!(early.contains("no admin has granted"), "{early}");
        let wrong = world.refused(&["admin", "grant", "bob@vendor.example", &"0".repeat(32)]);
        assert!(wrong.contains("another key"), "{wrong}");
        let alone = world.refused(&["admin", "remove", "ada@vendor.example"]);
        assert!(alone.contains("nobody else"), "{alone}");
        world.admin(&["admin", "grant", "bob@vendor.example", &key]);
        // All admins are equal: the second makes a new key for everybody, also for the first.
        world.admin_as("bob", &["segment", "rotate"]);
        world.admin(&["tenant", "create", "acme"]);
        world.local_kms("acme");
        let snapshot = world.broker.snapshot(&account);
        let configs = snapshot
            .open(&account)
            .unwrap()
            .configs(&snapshot, &mut Memory::default());
        assert_eq!((configs.kms.len(), configs.left_out), (1, Vec::new()));

        let link = world.admin(&["admin", "invite", "eve@vendor.example", "--auditor"]);
        world.admin_as("eve", &["admin", "accept", link.trim()]);
        assert!(world.admin_as("eve", &["tenant", "list"]).contains("acme"));
        let refused = world.refused_as("eve", &["tenant", "create", "globex"]);
        assert!(refused.contains("an auditor changes nothing"), "{refused}");
        let refused = world.refused_as("eve", &["segment", "rotate"]);
        assert!(refused.contains("an auditor has no keys"), "{refused}");
        world.admin_as("eve", &["audit", "verify"]);

        world.admin_as("bob", &["admin", "remove", "ada@vendor.example"]);
        assert!(world.refused(&["tenant", "list"]).contains("401"));
    });
}
