//! Tenant secrets: created once however many shards ask, while the place where they are kept is slow, fails, is full,
//! and while snapshots change.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use serde_json::{Value, json};
use tsp_rt::Rt as _;
use tsp_shards::{Limits, SecretNotStored, SecretOffer};
use tsp_wire::{derive::RotationStatus, snapshot::TenantSecretDoc};

use crate::{
    A, B, BOTH, KEY_A, in_world, ms,
    world::{Answer, As, Behaviour, Setup, World, metadata},
};

/// What the place where secrets are kept does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// Stores what is offered, after so long.
    After(Duration),
    /// Refuses, after so long.
    Refuses(Duration),
    /// Takes nothing out of the queue.
    Hangs,
}

/// The control plane's part: stores a secret unless its path has a current one.
pub(crate) struct Keeper {
    secrets: RefCell<Vec<TenantSecretDoc>>,
    pub(crate) keeps: Cell<Keeps>,
    /// Whether a snapshot follows what was stored.
    pub(crate) publishes: Cell<bool>,
    pub(crate) offers: Cell<usize>,
}

impl Default for Keeper {
    fn default() -> Self {
        Self {
            secrets: RefCell::default(),
            keeps: Cell::new(Keeps::After(Duration::ZERO)),
            publishes: Cell::new(true),
            offers: Cell::new(0),
        }
    }
}

impl Keeper {
    pub(crate) fn secrets(&self) -> Vec<TenantSecretDoc> {
        self.secrets.borrow().clone()
    }

    fn current(&self) -> Vec<u64> {
        let secrets = self.secrets.borrow();
        let current = secrets
            .iter()
            .filter(|secret| secret.status == RotationStatus::Current);
        current.map(|secret| secret.id).collect()
    }

    /// Moves every secret of a status on to the next.
    fn rotate(&self, from: RotationStatus, to: RotationStatus) {
        for secret in self.secrets.borrow_mut().iter_mut() {
            if secret.status == from {
                secret.status = to;
            }
        }
    }

    /// Create if absent.
    fn store(&self, offer: &SecretOffer) -> TenantSecretDoc {
        let mut secrets = self.secrets.borrow_mut();
        let there = secrets.iter().find(|secret| {
            secret.tenant == offer.tenant.as_str()
                && secret.secret_type == offer.secret_type
                && *secret.path == *offer.path
                && secret.status == RotationStatus::Current
        });
        if let Some(there) = there {
            return there.clone();
        }
        let new = TenantSecretDoc {
            id: 9_001 + secrets.len() as u64,
            tenant: offer.tenant.as_str().to_owned(),
            secret_type: offer.secret_type,
            path: offer.path.to_string(),
            status: RotationStatus::Current,
            edek: offer.edek.clone(),
        };
        secrets.push(new.clone());
        new
    }
}

impl World {
    pub(crate) async fn keep(&self, offers: crossbeam_channel::Receiver<SecretOffer>) {
        loop {
            // Often while a test of these goes on, seldom in those that let hours go by.
            let young = self.rt.elapsed() < Duration::from_secs(60);
            self.rt.sleep(ms(if young { 1 } else { 500 })).await;
            if self.keeper.keeps.get() == Keeps::Hangs {
                continue;
            }
            while let Ok(offer) = offers.try_recv() {
                self.keeper.offers.set(self.keeper.offers.get() + 1);
                let stored = match self.keeper.keeps.get() {
                    Keeps::After(after) => {
                        self.rt.sleep(after).await;
                        Ok(self.keeper.store(&offer))
                    }
                    Keeps::Refuses(after) => {
                        self.rt.sleep(after).await;
                        Err(SecretNotStored)
                    }
                    Keeps::Hangs => break,
                };
                if stored.is_ok() && self.keeper.publishes.get() {
                    self.publish_secrets();
                }
                drop(offer.reply.send(stored));
            }
        }
    }

    async fn derive(&self, shard: usize, tenant: &str, paths: Value) -> Answer {
        let mut body = metadata(tenant);
        body["paths"] = paths;
        body["derivationType"] = "sha512".into();
        body["secretType"] = "deterministic".into();
        self.post_to(shard, "key/derive-with-secret-path", body)
            .await
    }
}

fn three_shards() -> Setup {
    Setup {
        shards: 3,
        ..Setup::default()
    }
}

/// The secrets' numbers and whether they are current, of one pair.
fn ids(answer: &Answer, secret_path: &str, derivation_path: &str) -> Vec<(u64, bool)> {
    let list = &answer.body["derivedKeys"][secret_path][derivation_path];
    let list = list.as_array().unwrap_or_else(|| panic!("{answer:?}"));
    let id = |one: &Value| {
        assert_eq!(one["derivedKey"].as_str().unwrap().len(), 88);
        let number = one["tenantSecretId"].as_u64().unwrap();
        (number, one["current"].as_bool().unwrap())
    };
    list.iter().map(id).collect()
}

#[test]
fn racing_shards_create_one_secret_and_all_derive_from_it() {
    in_world(three_shards, async |world| {
        world.keeper.keeps.set(Keeps::After(ms(20)));
        world.kms.set(KEY_A, Behaviour::Serves(ms(5)));
        let racers = (0..30).map(|racer| {
            let world = Rc::clone(&world);
            async move {
                world
                    .derive(racer % 3, A, json!({"p": ["x", "x", ""]}))
                    .await
            }
        });
        let answers = world.all(racers).await;
        for answer in &answers {
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.body, answers[0].body);
        }
        assert_eq!(ids(&answers[0], "p", "x"), [(9_001, true)]);
        assert_eq!(answers[0].body["hasPrimaryConfig"], true);
        assert_eq!(world.keeper.offers.get(), 1);
        assert_eq!(world.keeper.current(), [9_001]);

        world.settled().await;
        let later = world.derive(1, A, json!({"p": ["x", ""]})).await;
        assert_eq!(later.body, answers[0].body);
        assert_eq!(world.keeper.offers.get(), 1);
        // Another tenant's, type's and path's are others.
        let other = world.derive(1, B, json!({"p": ["x"]})).await;
        assert_ne!(other.body["derivedKeys"], later.body["derivedKeys"]);
        let two = world.derive(0, A, json!({"p": ["x"], "": ["x"]})).await;
        assert_eq!(ids(&two, "p", "x"), [(9_001, true)]);
        assert_eq!(ids(&two, "", "x"), [(9_003, true)]);
    });
}

#[test]
fn a_secret_is_usable_before_any_snapshot_brings_it() {
    in_world(three_shards, async |world| {
        world.keeper.publishes.set(false);
        let first = world.derive(0, A, json!({"p": ["x"]})).await;
        for shard in 0..3 {
            let again = world.derive(shard, A, json!({"p": ["x"]})).await;
            assert_eq!(again.body, first.body);
        }
        assert_eq!(
            world.keeper.offers.get(),
            1,
            "the tenant's home remembers it"
        );
        // For a minute; then the control plane is asked again, and says the same.
        world.rt.sleep(Duration::from_secs(61)).await;
        let again = world.derive(1, A, json!({"p": ["x"]})).await;
        assert_eq!(again.body, first.body);
        assert_eq!(world.keeper.offers.get(), 2);
        assert_eq!(world.keeper.current(), [9_001]);
    });
}

#[test]
fn another_proxys_secret_wins_if_it_was_stored_first() {
    in_world(three_shards, async |world| {
        world.keeper.publishes.set(false);
        world.derive(0, A, json!({"p": ["x"]})).await;
        // Shards that have forgotten it are as another proxy's.
        world.rt.sleep(Duration::from_secs(61)).await;
        world.keeper.keeps.set(Keeps::After(ms(50)));
        let racers = (0..9).map(|racer| {
            let world = Rc::clone(&world);
            async move { world.derive(racer % 3, A, json!({"p": ["x"]})).await }
        });
        for answer in world.all(racers).await {
            assert_eq!(ids(&answer, "p", "x"), [(9_001, true)]);
        }
    });
}

#[test]
fn what_cannot_be_stored_is_401_for_the_whole_request() {
    in_world(three_shards, async |world| {
        let known = world.derive(0, A, json!({"known": ["x"]})).await;
        world.keeper.keeps.set(Keeps::Refuses(ms(3)));
        let refused = world
            .derive(1, A, json!({"known": ["x"], "new": ["x"]}))
            .await;
        assert_eq!((refused.status, refused.code()), (500, Some(401)));
        assert!(refused.body.get("derivedKeys").is_none());
        let again = world.derive(2, A, json!({"known": ["x"]})).await;
        assert_eq!(
            again.body, known.body,
            "what is there needs nobody to store it"
        );

        world.keeper.keeps.set(Keeps::After(ms(1)));
        let both = world
            .derive(1, A, json!({"known": ["x"], "new": ["x"]}))
            .await;
        assert_eq!(both.status, 200, "{both:?}");
        assert_eq!(world.keeper.current().len(), 2);
    });
}

#[test]
fn what_the_kms_does_not_wrap_is_401_and_what_it_does_not_unwrap_has_its_own_code() {
    in_world(Setup::default, async |world| {
        let refuses = Behaviour::Fails(400, "AccessDeniedException", 1);
        world.kms.set(KEY_A, refuses);
        let refused = world.derive(0, A, json!({"p": ["x"]})).await;
        assert_eq!((refused.status, refused.code()), (500, Some(401)));
        assert!(
            refused.body["message"]
                .as_str()
                .unwrap()
                .contains("AWS KMS"),
            "{refused:?}"
        );
        assert_eq!(world.keeper.offers.get(), 0);
        assert_eq!(world.derive(0, A, json!({"p": ["x"]})).await.status, 200);

        world.kms.set(KEY_A, refuses);
        let known = world.derive(0, A, json!({"p": ["x"]})).await;
        assert_eq!(known.status, 200, "it is in memory: {known:?}");
        world.forget(A).await;
        let refused = world.derive(0, A, json!({"p": ["x"]})).await;
        assert_eq!(refused.code(), Some(207));
    });
}

#[test]
fn a_full_queue_and_a_hanging_store_cost_creations_only_and_only_their_time() {
    let setup = || Setup {
        secret_queue: 1,
        ..Setup::default()
    };
    in_world(setup, async |world| {
        world.keeper.keeps.set(Keeps::Hangs);
        let derives = (0..4).map(|path| {
            let world = Rc::clone(&world);
            async move {
                let mut paths = json!({});
                paths[format!("p{path}")] = json!(["x"]);
                world.derive(0, A, paths).await
            }
        });
        let other = Rc::clone(&world);
        let wraps = (0..4).map(move |_| {
            let world = Rc::clone(&other);
            async move { world.wrap(B).await }
        });
        let (derived, wrapped) = crate::world::both(world.all(derives), world.all(wraps)).await;
        assert!(wrapped.iter().all(|answer| answer.status == 200));
        let at_once = derived.iter().filter(|answer| answer.took < ms(1_000));
        assert_eq!(at_once.count(), 3, "the queue has one place: {derived:?}");
        for answer in &derived {
            assert_eq!(answer.code(), Some(401));
            assert!(answer.took < Duration::from_secs(6), "{answer:?}");
        }

        // What still waits in the queue is stored when it can be, and is the path's secret from then on.
        world.keeper.keeps.set(Keeps::After(ms(1)));
        world.rt.sleep(ms(100)).await;
        assert_eq!(world.keeper.current().len(), 1);
        for path in ["p0", "p1", "p2", "p3"] {
            let mut paths = json!({});
            paths[path] = json!(["x"]);
            assert_eq!(world.derive(0, A, paths).await.status, 200);
        }
        assert_eq!(world.keeper.current().len(), 4);
    });
}

#[test]
fn a_rotation_hands_out_both_the_current_one_first() {
    in_world(three_shards, async |world| {
        use RotationStatus::{Archived, Current, InRotation};
        let old = world.derive(0, A, json!({"p": ["x"]})).await;
        world.keeper.rotate(Current, InRotation);
        world.publish_secrets();
        world.settled().await;
        let racers = (0..9).map(|racer| {
            let world = Rc::clone(&world);
            async move { world.derive(racer % 3, A, json!({"p": ["x"]})).await }
        });
        let answers = world.all(racers).await;
        for answer in &answers {
            assert_eq!(ids(answer, "p", "x"), [(9_002, true), (9_001, false)]);
            assert_eq!(answer.body, answers[0].body);
        }
        let key = |answer: &Answer, at: usize| {
            answer.body["derivedKeys"]["p"]["x"][at]["derivedKey"].clone()
        };
        assert_eq!(key(&answers[0], 1), key(&old, 0));

        world.keeper.rotate(InRotation, Archived);
        world.publish_secrets();
        world.settled().await;
        let new = world.derive(2, A, json!({"p": ["x"]})).await;
        assert_eq!(ids(&new, "p", "x"), [(9_002, true)]);
        assert_eq!(key(&new, 0), key(&answers[0], 0));
    });
}

#[test]
fn without_a_primary_config_what_there_is_is_handed_out_and_nothing_is_created() {
    in_world(three_shards, async |world| {
        let before = world.derive(0, A, json!({"p": ["x"]})).await;
        world.publish_assigned(BOTH, As::Active);
        world.settled().await;
        let after = world
            .derive(1, A, json!({"p": ["x"], "new": ["x", "y"]}))
            .await;
        assert_eq!(after.body["hasPrimaryConfig"], false);
        assert_eq!(
            after.body["derivedKeys"]["p"],
            before.body["derivedKeys"]["p"]
        );
        assert_eq!(after.body["derivedKeys"]["new"], json!({"x": [], "y": []}));
        assert_eq!(world.keeper.current().len(), 1);
    });
}

#[test]
fn a_secret_of_a_disabled_config_is_202_for_the_whole_request_and_nothing_is_created() {
    in_world(three_shards, async |world| {
        world.derive(0, A, json!({"p": ["x"]})).await;
        world.publish_assigned(BOTH, As::Disabled);
        world.settled().await;
        let calls = world.kms.calls.get();
        let refused = world.derive(1, A, json!({"new": ["x"], "p": ["x"]})).await;
        assert_eq!((refused.status, refused.code()), (422, Some(202)));
        assert_eq!(world.kms.calls.get(), calls);
        assert_eq!(world.keeper.current().len(), 1);
        // The spare config encrypts now.
        let other = world.derive(1, A, json!({"new": ["x"]})).await;
        assert_eq!(ids(&other, "new", "x"), [(9_002, true)]);
        let unknown = world.derive(0, "nobody", json!({"p": ["x"]})).await;
        assert_eq!((unknown.status, unknown.code()), (422, Some(201)));
    });
}

#[test]
fn a_request_is_bounded_and_asks_for_nothing_it_does_not_need() {
    let setup = || Setup {
        limits: Limits {
            secret_paths_max: 2,
            batch_items_max: 3,
            ..Limits::default()
        },
        ..Setup::default()
    };
    in_world(setup, async |world| {
        for paths in [
            json!({"a": ["1", "2"], "b": ["1", "2"]}),
            json!({"a": [], "b": [], "c": []}),
        ] {
            let refused = world.derive(0, A, paths).await;
            assert_eq!((refused.status, refused.code()), (413, Some(102)));
        }
        let nothing = world.derive(0, A, json!({"a": []})).await;
        let empty = json!({"hasPrimaryConfig": true, "derivedKeys": {"a": {}}});
        assert_eq!(nothing.body, empty);
        assert_eq!((world.kms.calls.get(), world.keeper.offers.get()), (0, 0));
    });
}

#[test]
fn every_derivation_is_reported_with_its_count() {
    in_world(Setup::default, async |world| {
        world
            .derive(0, A, json!({"p": ["x", "y", "x"], "q": ["x"], "none": []}))
            .await;
        let events = world.take_events(usize::MAX);
        let told: Vec<_> = events
            .iter()
            .map(|event| {
                let fields = &event["iclFields"];
                assert_eq!(
                    (&event["tenantId"], &fields["source"]),
                    (&json!(A), &json!("tsp"))
                );
                (fields["event"].as_str().unwrap(), fields["count"].as_u64())
            })
            .collect();
        assert_eq!(told, [("DATA_DERIVE", Some(2)), ("DATA_DERIVE", None)]);
    });
}

#[test]
fn snapshots_that_change_in_the_middle_never_make_a_second_current_secret() {
    in_world(three_shards, async |world| {
        world.keeper.keeps.set(Keeps::After(ms(7)));
        world.kms.set(KEY_A, Behaviour::Serves(ms(3)));
        let racers = (0..60_u64).map(|racer| {
            let world = Rc::clone(&world);
            async move {
                let mut random = [0];
                world.rt.random(&mut random);
                world.rt.sleep(ms(u64::from(random[0]) % 60)).await;
                let path = format!("p{}", racer % 3);
                let mut paths = json!({});
                paths[&path] = json!(["x"]);
                // So that several shards ask for one path, also while its home does not know the tenant.
                let shard = racer as usize / 3 % 3;
                (path, world.derive(shard, A, paths).await)
            }
        });
        let changing = Rc::clone(&world);
        let changes = async {
            for round in 0..20 {
                changing.rt.sleep(ms(3)).await;
                match round % 4 {
                    0 => changing.publish_assigned(BOTH, As::Active),
                    1 => changing.publish(&[]),
                    _ => changing.publish(BOTH),
                }
            }
        };
        let (answers, ()) = crate::world::both(world.all(racers), changes).await;
        for (path, answer) in &answers {
            // Without a primary one: nothing. Without the tenant, at the asker or at its home: 201 or 401.
            match (answer.status, answer.code()) {
                (200, None) => assert!(ids(answer, path, "x").len() <= 1, "{answer:?}"),
                (422, Some(201)) | (500, Some(401)) => {}
                other => panic!("{other:?}: {answer:?}"),
            }
        }
        world.settled().await;
        for path in ["p0", "p1", "p2"] {
            let mut paths = json!({});
            paths[path] = json!(["x"]);
            let mut seen = Vec::new();
            for shard in 0..3 {
                let answer = world.derive(shard, A, paths.clone()).await;
                seen.push(ids(&answer, path, "x"));
            }
            seen.dedup();
            let [one] = seen.as_slice() else {
                panic!("{seen:?}")
            };
            for (of, answer) in &answers {
                if of == path && answer.status == 200 {
                    let ids = ids(answer, path, "x");
                    assert!(ids.is_empty() || ids == *one, "{ids:?} {one:?}");
                }
            }
        }
        assert_eq!(world.keeper.current().len(), 3);
    });
}
