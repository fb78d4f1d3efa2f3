//! A shard, a KMS that misbehaves on request, and clients, all in one simulated network.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tsp_rt::{
    Listener as _, Rt,
    sim::{SimRt, SimStream},
    tls::{self, MaybeTls, ServerTls},
};
use tsp_shards::{
    ApiKeys, Destinations, Entrance, EventReceiver, EventsConfig, Forgetter, Limits, Shard,
    ShardControl, ShardParts, Snapshot, Way, event_queue,
};
use tsp_wire::{
    ApiKey, Secret, SnapshotVersion, TenantId,
    snapshot::{AssignmentDoc, AssumeRoleDoc, KmsConfigDoc, KmsKeyDoc, SnapshotDoc, TenantDoc},
};

use crate::secrets::Keeper;

pub(crate) const API_KEY: &str = "0123456789abcdef";
/// Where each shard listens. In the simulation they cannot share an address as they do in life.
pub(crate) fn shard_address(index: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + index as u8], 7777))
}

/// Where the KMS listens.
pub(crate) const KMS_ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 1, 1), 4566);

/// The KMS's one DNS name.
pub(crate) const KMS_HOST: &str = "kms.test";

/// What the KMS does to a call with some key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Answers as AWS KMS does, after so long.
    Serves(Duration),
    /// Takes the request and never answers.
    Hangs,
    /// Answers so many calls with this status and code, then serves.
    Fails(u16, &'static str, u32),
    /// Cuts the connection, before any byte of an answer, of so many calls; then serves.
    Cuts(u32),
}

/// What the token endpoint does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tokens {
    /// Gives a session that lasts an hour, after so long.
    Gives(Duration),
    /// Refuses the credential.
    Refuses,
}

/// The simulated AWS KMS and STS.
pub(crate) struct Kms {
    rt: SimRt,
    behaviour: RefCell<HashMap<String, Behaviour>>,
    pub(crate) calls: Cell<u32>,
    /// The same by key.
    key_calls: RefCell<HashMap<String, u32>>,
    pub(crate) connections: Cell<u32>,
    /// Calls to its token endpoint, and what that does.
    pub(crate) token_calls: Cell<u32>,
    pub(crate) tokens: Cell<Tokens>,
    /// Serves TLS with this, or without.
    tls: Option<ServerTls>,
    /// Connections on which it resumed an earlier TLS session.
    pub(crate) resumed: Cell<u32>,
    /// Closes every connection this long after an answer.
    pub(crate) closes_idle_after: Cell<Option<Duration>>,
}

impl Kms {
    pub(crate) fn set(&self, key: &str, behaviour: Behaviour) {
        self.behaviour
            .borrow_mut()
            .insert(key.to_owned(), behaviour);
    }

    /// Calls with `key`.
    pub(crate) fn calls_with(&self, key: &str) -> u32 {
        let calls = self.key_calls.borrow();
        calls.get(key).copied().unwrap_or_default()
    }

    fn behaviour(&self, key: &str) -> Behaviour {
        let mut all = self.behaviour.borrow_mut();
        let behaviour = all
            .entry(key.to_owned())
            .or_insert(Behaviour::Serves(Duration::ZERO));
        let now = *behaviour;
        match behaviour {
            Behaviour::Fails(_, _, left) | Behaviour::Cuts(left) => match left.checked_sub(1) {
                Some(less) => *left = less,
                None => {
                    *behaviour = Behaviour::Serves(Duration::ZERO);
                    return *behaviour;
                }
            },
            Behaviour::Serves(_) | Behaviour::Hangs => {}
        }
        now
    }

    async fn run(self: Rc<Self>) {
        let mut listener = self.rt.bind(SocketAddr::from(KMS_ADDRESS)).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            self.connections.set(self.connections.get() + 1);
            let kms = Rc::clone(&self);
            self.rt.spawn(async move {
                let Some(stream) = kms.shake_hands(stream).await else {
                    return;
                };
                let idle_since = Rc::new(Cell::new(None));
                let (serving, idle) = (Rc::clone(&kms), Rc::clone(&idle_since));
                let connection = server::conn::http1::Builder::new()
                    .header_read_timeout(None)
                    // The machine's date is not the simulation's.
                    .auto_date_header(false)
                    .serve_connection(
                        TokioIo::new(stream),
                        service_fn(move |request| {
                            let (kms, idle) = (Rc::clone(&serving), Rc::clone(&idle));
                            async move {
                                idle.set(None);
                                let answer = kms.answer(request).await;
                                idle.set(Some(kms.rt.now()));
                                answer
                            }
                        }),
                    );
                let closes = async {
                    loop {
                        // Most worlds never ask for it, and live for hours.
                        let asked = kms.closes_idle_after.get().is_some();
                        let pause = if asked { 50 } else { 1_000 };
                        kms.rt.sleep(Duration::from_millis(pause)).await;
                        if let (Some(after), Some(since)) =
                            (kms.closes_idle_after.get(), idle_since.get())
                            && kms.rt.now() - since >= after
                        {
                            return;
                        }
                    }
                };
                first(connection, closes).await;
            });
        }
    }

    async fn shake_hands(&self, stream: SimStream) -> Option<MaybeTls<SimStream>> {
        let Some(tls) = &self.tls else {
            return Some(MaybeTls::Plain(stream));
        };
        let stream = tls::accept(stream, tls).await.ok()?;
        let resumed = u32::from(stream.is_resumed());
        self.resumed.set(self.resumed.get() + resumed);
        Some(stream.into())
    }

    /// An error cuts the connection.
    async fn token(&self) -> Response<Full<Bytes>> {
        self.token_calls.set(self.token_calls.get() + 1);
        match self.tokens.get() {
            Tokens::Gives(after) => {
                self.rt.sleep(after).await;
                let end = self.rt.elapsed().as_secs() + 3600;
                let (h, m, s) = (end / 3600, end / 60 % 60, end % 60);
                Response::new(Full::from(format!(
                    "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
                     <AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>canary-session</SecretAccessKey>\
                     <SessionToken>canary-token</SessionToken><Expiration>2026-01-01T{h:02}:{m:02}:{s:02}Z</Expiration>\
                     </Credentials></AssumeRoleResult></AssumeRoleResponse>"
                )))
            }
            Tokens::Refuses => {
                let mut refusal = Response::new(Full::from(
                    "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidClientTokenId</Code>\
                     <Message>no</Message></Error></ErrorResponse>",
                ));
                *refusal.status_mut() = StatusCode::FORBIDDEN;
                refusal
            }
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, &'static str> {
        if !request.headers().contains_key("x-amz-target") {
            return Ok(self.token().await);
        }
        self.calls.set(self.calls.get() + 1);
        assert!(
            request.headers().contains_key("authorization"),
            "every call is signed"
        );
        let wraps = request.headers()["x-amz-target"]
            .to_str()
            .unwrap()
            .ends_with("Encrypt");
        let body = request
            .into_body()
            .collect()
            .await
            .map_err(|_| "cut off")?
            .to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        // The "ciphertext" is the key's name and the plaintext: the test's KMS hides nothing.
        let blob = || {
            BASE64
                .decode(body["CiphertextBlob"].as_str().unwrap())
                .unwrap()
        };
        let (key, answer) = if wraps {
            let key = body["KeyId"].as_str().unwrap().to_owned();
            let plaintext = BASE64.decode(body["Plaintext"].as_str().unwrap()).unwrap();
            let blob = [&[key.len() as u8], key.as_bytes(), &plaintext].concat();
            let arn = format!("arn:aws:kms:eu-west-1:111122223333:key/{key}");
            (
                key,
                json!({"CiphertextBlob": BASE64.encode(blob), "KeyId": arn}),
            )
        } else {
            let blob = blob();
            let (key, plaintext) = blob[1..].split_at(usize::from(blob[0]));
            let key = String::from_utf8(key.to_vec()).unwrap();
            let arn = format!("arn:aws:kms:eu-west-1:111122223333:key/{key}");
            (
                key,
                json!({"Plaintext": BASE64.encode(plaintext), "KeyId": arn}),
            )
        };
        *self.key_calls.borrow_mut().entry(key.clone()).or_default() += 1;
        let (status, body) = match self.behaviour(&key) {
            Behaviour::Serves(after) => {
                self.rt.sleep(after).await;
                (200, answer)
            }
            Behaviour::Hangs => std::future::pending().await,
            Behaviour::Fails(status, code, _) => (status, json!({"__type": code, "message": "no"})),
            Behaviour::Cuts(_) => return Err("cut"),
        };
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Ok(response)
    }
}

/// Waits for both.
pub(crate) async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    futures_util::future::join(a, b).await
}

async fn first(a: impl Future, b: impl Future) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    std::future::poll_fn(|cx| match a.as_mut().poll(cx) {
        std::task::Poll::Ready(_) => std::task::Poll::Ready(()),
        std::task::Poll::Pending => b.as_mut().poll(cx).map(|_| ()),
    })
    .await;
}

/// An answer of the shard's.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    /// Virtual time that it took.
    pub(crate) took: Duration,
}

impl Answer {
    pub(crate) fn code(&self) -> Option<u64> {
        self.body["code"].as_u64()
    }
}

pub(crate) struct World {
    pub(crate) rt: SimRt,
    pub(crate) kms: Rc<Kms>,
    pub(crate) controls: RefCell<Vec<ShardControl>>,
    assume_role: bool,
    pub(crate) leasing: Cell<bool>,
    ca_pem: Option<String>,
    pub(crate) events: RefCell<EventReceiver>,
    pub(crate) ended: Rc<Cell<bool>>,
    /// Keeps the tenant secrets, as the control plane does.
    pub(crate) keeper: Keeper,
    version: Cell<u64>,
    published: RefCell<Option<Arc<Snapshot>>>,
    forgetter: Forgetter,
}

/// How a world differs from the usual.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) destinations: Destinations,
    pub(crate) event_queue: usize,
    pub(crate) events_required: bool,
    pub(crate) shards: usize,
    /// Places in the queue to whoever keeps the tenant secrets.
    pub(crate) secret_queue: usize,
    /// Whether the KMS configs assume a role, and so need a token.
    pub(crate) assume_role: bool,
    /// Whether keys may be leased.
    pub(crate) leasing: bool,
    /// Whether the KMS speaks TLS.
    pub(crate) tls: bool,
    /// Whether shards hand fresh connections over. Most tests name the shard that serves.
    pub(crate) balanced: bool,
}

/// A certificate for the KMS and its private key, in PEM. It is its own authority.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed([KMS_HOST.to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            destinations: Destinations::of_the_operators_endpoints(),
            event_queue: 100_000,
            events_required: false,
            shards: 1,
            secret_queue: 100,
            assume_role: false,
            leasing: false,
            tls: false,
            balanced: false,
        }
    }
}

/// How the tenants' configs are assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    Primary,
    Active,
    Disabled,
}

/// A tenant's name, and the key of its primary config: config 1 for the first tenant, 2 for the second, and so on.
pub(crate) type TenantKeys<'a> = &'a [(&'a str, &'a str)];

impl World {
    /// Takes up to `events_max` events from the queue.
    pub(crate) fn take_events(&self, events_max: usize) -> Vec<Value> {
        let mut batches = VecDeque::new();
        self.events.borrow_mut().take(events_max, &mut batches);
        let lines = batches.iter().flat_map(|batch| {
            assert_eq!(batch.bytes()[0], 1, "the format's version");
            batch.lines().split(|byte| *byte == b'\n')
        });
        lines
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    pub(crate) fn start(rt: &SimRt, setup: Setup, tenants: TenantKeys<'_>) -> Rc<Self> {
        rt.net().set_name(KMS_HOST, &[IpAddr::V4(KMS_ADDRESS.0)]);
        let certificate = setup.tls.then(certificate);
        let tls = certificate
            .as_ref()
            .map(|(certificate, key)| ServerTls::from_pem(certificate, key).unwrap());
        let kms = Rc::new(Kms {
            tls,
            resumed: Cell::new(0),
            rt: rt.on_host(KMS_ADDRESS.0.into()),
            behaviour: RefCell::default(),
            calls: Cell::new(0),
            key_calls: RefCell::default(),
            connections: Cell::new(0),
            token_calls: Cell::new(0),
            tokens: Cell::new(Tokens::Gives(Duration::ZERO)),
            closes_idle_after: Cell::new(None),
        });
        rt.spawn(Rc::clone(&kms).run());
        let (queue, events) = event_queue(setup.event_queue);
        let (scrape, _) = crossbeam_channel::bounded(1);
        let (secrets, offers) = crossbeam_channel::bounded(setup.secret_queue);
        let key = ApiKey::new(API_KEY.to_owned()).unwrap();
        let api_keys = Arc::new(ApiKeys::new(key, None));
        let parts = (0..setup.shards).map(|_| ShardParts {
            api_keys: Arc::clone(&api_keys),
            limits: setup.limits.clone(),
            destinations: Arc::new(setup.destinations.clone()),
            events: Some(EventsConfig {
                queue: queue.clone(),
                send_timeout: Duration::from_millis(25),
                required: setup.events_required,
            }),
            scrape: scrape.clone(),
            secrets: secrets.clone(),
            tls: None,
            balanced: setup.balanced,
            traces: None,
            instance: 1,
        });
        let ended = Rc::new(Cell::new(false));
        let mut controls = Vec::new();
        for (index, (shard, control)) in Shard::all(parts.collect()).into_iter().enumerate() {
            let shard_rt = rt.on_host(shard_address(index).ip());
            let listener = shard_rt.bind(shard_address(index)).unwrap();
            let end = Rc::clone(&ended);
            rt.spawn(async move {
                let way = Way::Tcp;
                shard.run(shard_rt, vec![Entrance { listener, way }]).await;
                end.set(true);
            });
            controls.push(control);
        }
        let forgetter = Forgetter::of(&controls);
        let world = Rc::new(Self {
            rt: rt.on_host(IpAddr::from([10, 0, 2, 1])),
            kms,
            controls: RefCell::new(controls),
            assume_role: setup.assume_role,
            leasing: Cell::new(setup.leasing),
            ca_pem: certificate.map(|(certificate, _)| certificate),
            events: RefCell::new(events),
            ended,
            keeper: Keeper::default(),
            version: Cell::new(0),
            published: RefCell::default(),
            forgetter,
        });
        world.publish(tenants);
        let keeping = Rc::clone(&world);
        rt.spawn(async move { keeping.keep(offers).await });
        world
    }

    /// Publishes the next snapshot.
    pub(crate) fn publish(&self, tenants: TenantKeys<'_>) {
        self.publish_assigned(tenants, As::Primary);
    }

    /// Likewise, with every tenant's config assigned so.
    pub(crate) fn publish_assigned(&self, tenants: TenantKeys<'_>, how: As) {
        let scheme = self.ca_pem.as_ref().map_or("http", |_| "https");
        let endpoint = format!("{scheme}://{KMS_HOST}:{}", KMS_ADDRESS.1);
        let config = |id, key: &str| KmsConfigDoc {
            id,
            leasing_allowed: self.leasing.get(),
            key: KmsKeyDoc::Aws {
                key_id: key.to_owned(),
                region: "eu-west-1".to_owned(),
                access_key_id: "AKIDEXAMPLE".to_owned(),
                secret_access_key: Secret::new("canary-secret".to_owned()),
                session_token: None,
                assume_role: self.assume_role.then(|| AssumeRoleDoc {
                    role_arn: "arn:aws:iam::111122223333:role/tsp".to_owned(),
                    external_id: None,
                    session_name: None,
                    duration_s: None,
                }),
                sts_endpoint: self.assume_role.then(|| endpoint.clone()),
            },
            endpoint: Some(endpoint.clone()),
            allow_insecure: true,
            ca_pem: self.ca_pem.clone(),
        };
        // One that nothing was ever encrypted with, so that a tenant never is without.
        const SPARE: i64 = 99;
        let assigned = |kms| {
            let assignment = |kms, active, primary| AssignmentDoc {
                kms,
                active,
                primary,
            };
            vec![
                assignment(kms, how != As::Disabled, how == As::Primary),
                assignment(SPARE, true, how == As::Disabled),
            ]
        };
        let doc = SnapshotDoc {
            version: self.next_version(),
            kms: (1..)
                .zip(tenants)
                .map(|(id, (_, key))| config(id, key))
                .chain([config(SPARE, "spare")])
                .collect(),
            unusable: Vec::new(),
            tenants: (1..)
                .zip(tenants)
                .map(|(id, (name, _))| TenantDoc {
                    id: (*name).to_owned(),
                    assignments: assigned(id),
                })
                .collect(),
            secrets: self.keeper.secrets(),
        };
        let (snapshot, rejected) = Snapshot::from_doc(doc, false);
        assert!(rejected.is_empty(), "{rejected:?}");
        self.publish_snapshot(snapshot);
    }

    /// Publishes the same tenants with the secrets that are kept now.
    pub(crate) fn publish_secrets(&self) {
        let published = self.published.borrow().clone().expect("one was published");
        let version = self.next_version();
        let (snapshot, rejected) = published.with_secrets(version, &self.keeper.secrets());
        assert!(rejected.is_empty(), "{rejected:?}");
        self.publish_snapshot(snapshot);
    }

    fn next_version(&self) -> SnapshotVersion {
        self.version.set(self.version.get() + 1);
        SnapshotVersion(self.version.get())
    }

    fn publish_snapshot(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        self.controls
            .borrow_mut()
            .iter_mut()
            .for_each(|control| control.publish(&snapshot));
        self.published.replace(Some(snapshot));
    }

    /// The oldest snapshot that a shard works with.
    pub(crate) fn snapshot_version(&self) -> Option<SnapshotVersion> {
        self.controls
            .borrow()
            .iter()
            .map(ShardControl::snapshot_version)
            .min()
            .flatten()
    }

    /// Waits until the shard works with what was published last.
    pub(crate) async fn settled(&self) {
        let newest = Some(SnapshotVersion(self.version.get()));
        while self.snapshot_version() != newest {
            self.rt.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends one request on a connection of its own. Every request gets exactly one answer: no answer is a failure.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_to(0, path, body).await
    }

    /// Like [`World::post`], to one of several shards.
    pub(crate) async fn post_to(&self, shard: usize, path: &str, body: Value) -> Answer {
        let began = self.rt.now();
        let mut sender = self.open(shard).await;
        let response = sender
            .send_request(request(path, &body))
            .await
            .expect("one answer per request");
        let status = response.status().as_u16();
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a whole answer")
            .to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(!text.contains("canary"), "a secret came out: {text}");
        let body = serde_json::from_str(&text).expect("answers are JSON");
        Answer {
            status,
            body,
            took: self.rt.now() - began,
        }
    }

    /// Opens a connection to a shard, to send requests over.
    pub(crate) async fn open(&self, shard: usize) -> client::conn::http1::SendRequest<Full<Bytes>> {
        let opened = self.try_open(shard).await;
        opened.expect("the shard takes connections")
    }

    /// Likewise, if the shard takes connections.
    pub(crate) async fn try_open(
        &self,
        shard: usize,
    ) -> Option<client::conn::http1::SendRequest<Full<Bytes>>> {
        let address = shard_address(shard);
        let stream = self
            .rt
            .connect(address, Duration::from_secs(1))
            .await
            .ok()?;
        let (sender, connection) = client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        self.rt.spawn(async move { drop(connection.await) });
        Some(sender)
    }

    /// Sends a request and goes away after `patience`.
    pub(crate) async fn post_and_leave(&self, path: &str, body: Value, patience: Duration) {
        let stream = self
            .rt
            .connect(shard_address(0), Duration::from_secs(1))
            .await
            .unwrap();
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        first(
            async {
                drop(sender.send_request(request(path, &body)).await);
            },
            first(connection, self.rt.sleep(patience)),
        )
        .await;
    }

    /// Whether the shard takes connections.
    pub(crate) async fn connects(&self) -> bool {
        self.rt
            .connect(shard_address(0), Duration::from_secs(1))
            .await
            .is_ok()
    }

    /// Has every shard forget the tenant's keys.
    pub(crate) async fn forget(&self, tenant: &str) {
        let tenant = TenantId::new(tenant).unwrap();
        let shards = self.forgetter.forget(&tenant).await;
        assert_eq!(shards, Ok(self.controls.borrow().len()));
    }

    pub(crate) async fn wrap(&self, tenant: &str) -> Answer {
        self.post("document/wrap", metadata(tenant)).await
    }

    pub(crate) async fn unwrap(&self, tenant: &str, edek: &str) -> Answer {
        let mut body = metadata(tenant);
        body["encryptedDocumentKey"] = edek.into();
        self.post("document/unwrap", body).await
    }

    /// Does all of `work` at the same time and gives the results in its order.
    pub(crate) async fn all<T: 'static>(
        &self,
        work: impl IntoIterator<Item = impl Future<Output = T> + 'static>,
    ) -> Vec<T> {
        let work = work.into_iter().map(|work| {
            let (give, result) = tokio::sync::oneshot::channel();
            self.rt.spawn(async move { drop(give.send(work.await)) });
            result
        });
        let mut results = Vec::new();
        for result in work.collect::<Vec<_>>() {
            results.push(result.await.expect("the task ends with a result"));
        }
        results
    }
}

/// A request body with metadata only.
pub(crate) fn metadata(tenant: &str) -> Value {
    json!({"tenantId": tenant, "iclFields": {"requestingId": "test"}, "customFields": {}})
}

pub(crate) fn request(path: &str, body: &Value) -> Request<Full<Bytes>> {
    Request::post(format!("/api/1/{path}"))
        .header("authorization", format!("cmk {API_KEY}"))
        .header("host", "tsp")
        .body(Full::from(body.to_string()))
        .unwrap()
}
