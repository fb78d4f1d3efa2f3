//! A shard, a KMS that misbehaves on request, and clients, all in one simulated network.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
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
use tsp_rt::{Listener as _, Rt, sim::SimRt};
use tsp_shards::{ApiKeys, EventsConfig, Limits, Shard, ShardControl, ShardParts, Snapshot};
use tsp_wire::{
    ApiKey, Secret, SnapshotVersion,
    snapshot::{AssignmentDoc, KmsConfigDoc, KmsKeyDoc, SnapshotDoc, TenantDoc},
};

const API_KEY: &str = "0123456789abcdef";
const SHARD: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 1), 7777);
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

/// The simulated AWS KMS.
pub(crate) struct Kms {
    rt: SimRt,
    behaviour: RefCell<HashMap<String, Behaviour>>,
    pub(crate) calls: Cell<u32>,
    pub(crate) connections: Cell<u32>,
    /// Closes every connection this long after an answer.
    pub(crate) closes_idle_after: Cell<Option<Duration>>,
}

impl Kms {
    pub(crate) fn set(&self, key: &str, behaviour: Behaviour) {
        self.behaviour
            .borrow_mut()
            .insert(key.to_owned(), behaviour);
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
                let idle_since = Rc::new(Cell::new(None));
                let (serving, idle) = (Rc::clone(&kms), Rc::clone(&idle_since));
                let connection = server::conn::http1::Builder::new()
                    .header_read_timeout(None)
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
                        kms.rt.sleep(Duration::from_millis(50)).await;
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

    /// An error cuts the connection.
    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, &'static str> {
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
    pub(crate) control: RefCell<ShardControl>,
    pub(crate) events: crossbeam_channel::Receiver<Vec<u8>>,
    pub(crate) ended: Rc<Cell<bool>>,
    version: Cell<u64>,
}

/// How a world differs from the usual.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) event_queue: usize,
    pub(crate) events_required: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            event_queue: 100_000,
            events_required: false,
        }
    }
}

/// A tenant's name, and the key of its primary config: config 1 for the first tenant, 2 for the second, and so on.
pub(crate) type Tenants<'a> = &'a [(&'a str, &'a str)];

impl World {
    pub(crate) fn start(rt: &SimRt, setup: Setup, tenants: Tenants<'_>) -> Rc<Self> {
        rt.net().set_name(KMS_HOST, &[IpAddr::V4(KMS_ADDRESS.0)]);
        let kms = Rc::new(Kms {
            rt: rt.on_host(KMS_ADDRESS.0.into()),
            behaviour: RefCell::default(),
            calls: Cell::new(0),
            connections: Cell::new(0),
            closes_idle_after: Cell::new(None),
        });
        rt.spawn(Rc::clone(&kms).run());
        let (queue, events) = crossbeam_channel::bounded(setup.event_queue);
        let (scrape, _) = crossbeam_channel::bounded(1);
        let key = ApiKey::new(API_KEY.to_owned()).unwrap();
        let (shard, control) = Shard::new(
            0,
            ShardParts {
                api_keys: Arc::new(ApiKeys::new(key, None)),
                limits: setup.limits,
                events: Some(EventsConfig {
                    queue,
                    send_timeout: Duration::from_millis(25),
                    required: setup.events_required,
                }),
                scrape,
                instance: 1,
            },
        );
        let shard_rt = rt.on_host(SHARD.0.into());
        let listener = shard_rt.bind(SocketAddr::from(SHARD)).unwrap();
        let ended = Rc::new(Cell::new(false));
        let end = Rc::clone(&ended);
        rt.spawn(async move {
            shard.run(shard_rt, listener).await;
            end.set(true);
        });
        let (rt, control) = (
            rt.on_host(IpAddr::from([10, 0, 2, 1])),
            RefCell::new(control),
        );
        let world = Rc::new(Self {
            rt,
            kms,
            control,
            events,
            ended,
            version: Cell::new(0),
        });
        world.publish(tenants);
        world
    }

    /// Publishes the next snapshot.
    pub(crate) fn publish(&self, tenants: Tenants<'_>) {
        self.version.set(self.version.get() + 1);
        let config = |id, key: &str| KmsConfigDoc {
            id,
            leasing_allowed: false,
            key: KmsKeyDoc::Aws {
                key_id: key.to_owned(),
                region: "eu-west-1".to_owned(),
                access_key_id: "AKIDEXAMPLE".to_owned(),
                secret_access_key: Secret::new("canary-secret".to_owned()),
                session_token: None,
                assume_role: None,
                sts_endpoint: None,
            },
            endpoint: Some(format!("http://{KMS_HOST}:{}", KMS_ADDRESS.1)),
            allow_insecure: true,
            ca_pem: None,
        };
        let assigned = |kms| {
            vec![AssignmentDoc {
                kms,
                active: true,
                primary: true,
            }]
        };
        let doc = SnapshotDoc {
            version: SnapshotVersion(self.version.get()),
            kms: (1..)
                .zip(tenants)
                .map(|(id, (_, key))| config(id, key))
                .collect(),
            tenants: (1..)
                .zip(tenants)
                .map(|(id, (name, _))| TenantDoc {
                    id: (*name).to_owned(),
                    assignments: assigned(id),
                })
                .collect(),
        };
        let (snapshot, rejected) = Snapshot::from_doc(doc, false);
        assert!(rejected.is_empty(), "{rejected:?}");
        self.control.borrow_mut().publish(&Arc::new(snapshot));
    }

    /// Waits until the shard works with what was published last.
    pub(crate) async fn settled(&self) {
        let newest = Some(SnapshotVersion(self.version.get()));
        while self.control.borrow().snapshot_version() != newest {
            self.rt.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends one request on a connection of its own. Every request gets exactly one answer: no answer is a failure.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        let began = self.rt.now();
        let address = SocketAddr::from(SHARD);
        let stream = self
            .rt
            .connect(address, Duration::from_secs(1))
            .await
            .expect("the shard takes connections");
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        self.rt.spawn(async move { drop(connection.await) });
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

    /// Sends a request and goes away after `patience`.
    pub(crate) async fn post_and_leave(&self, path: &str, body: Value, patience: Duration) {
        let stream = self
            .rt
            .connect(SocketAddr::from(SHARD), Duration::from_secs(1))
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
            .connect(SocketAddr::from(SHARD), Duration::from_secs(1))
            .await
            .is_ok()
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

fn request(path: &str, body: &Value) -> Request<Full<Bytes>> {
    Request::post(format!("/api/1/{path}"))
        .header("authorization", format!("cmk {API_KEY}"))
        .header("host", "tsp")
        .body(Full::from(body.to_string()))
        .unwrap()
}
