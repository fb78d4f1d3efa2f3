//! One whole shard on the simulated network, a client on one kept connection, and an AWS KMS that always says the same.
//!
//! Client and KMS write fixed bytes and read up to the end of a body: all that is not fixed is the shard's.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tsp_bench::{BATCH_ITEMS, body_of, dek, local_kms_key};
use tsp_kms::LocalKms;
use tsp_rt::{
    Listener as _, Rt as _,
    sim::{Sim, SimRt, SimStream},
    tls::{self, ServerTls},
};
use tsp_shards::{
    ApiKeys, Destinations, Entrance, Limits, Shard, ShardControl, ShardParts, Snapshot, Way,
};
use tsp_wire::{
    ApiKey, KmsConfigId, Secret, SnapshotVersion,
    derive::{RotationStatus, SecretType},
    edek,
    snapshot::{AssignmentDoc, KmsConfigDoc, KmsKeyDoc, SnapshotDoc, TenantDoc, TenantSecretDoc},
};

use crate::metered::{Metered, MeteredListener};

const API_KEY: &str = "0123456789abcdef";
const SHARD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 7777);
const KMS_HOST: &str = "kms.test";
const KMS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1));
const PLAIN_PORT: u16 = 80;
const TLS_PORT: u16 = 443;

/// More than the longest message of a far end: a batch of EDEKs has some 30 KB.
const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// Longest connecting, in virtual time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The tenants, each with one KMS config, whose number is its place from 1.
const TENANTS: [&str; 4] = [LOCAL, LEASED, PLAIN, OVER_TLS];
const LOCAL: &str = "tenant-local";
const LEASED: &str = "tenant-leased";
const PLAIN: &str = "tenant-plain";
const OVER_TLS: &str = "tenant-tls";

/// Something that a client asks for.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Keys that one request is about.
    pub(crate) items: u32,
    request: Vec<u8>,
    status: &'static [u8],
}

/// A running shard, with the client's connection to it.
pub(crate) struct Stand {
    client: Peer<SimStream>,
    // The shard ends without it.
    _control: ShardControl,
}

/// Makes a stand, does `work` with it, and takes it down.
pub(crate) fn with_stand<T>(work: impl AsyncFnOnce(Stand) -> T) -> T {
    let sim = Sim::new(1).whole_transfers().steps_max(u64::MAX);
    sim.run(async |rt| work(Stand::start(&rt).await).await)
}

impl Stand {
    async fn start(rt: &SimRt) -> Self {
        let made = rcgen::generate_simple_self_signed([KMS_HOST.to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let tls = Rc::new(ServerTls::from_pem(&certificate, &key).unwrap());
        rt.net().set_name(KMS_HOST, &[KMS]);
        serve_kms(rt, PLAIN_PORT, None);
        serve_kms(rt, TLS_PORT, Some(tls));

        let (scrape, _) = crossbeam_channel::bounded(1);
        let (secrets, _) = crossbeam_channel::bounded(1);
        let key = ApiKey::new(API_KEY.to_owned()).unwrap();
        let parts = ShardParts {
            api_keys: Arc::new(ApiKeys::new(key, None)),
            limits: Limits::default(),
            destinations: Arc::new(Destinations::of_the_operators_endpoints()),
            events: None,
            scrape,
            secrets,
            tls: None,
            balanced: true,
            traces: None,
            instance: 1,
        };
        let (shard, mut control) = Shard::all(vec![parts]).pop().unwrap();
        let core = Metered(rt.on_host(SHARD.ip()));
        let listener = MeteredListener(core.0.bind(SHARD).unwrap());
        let way = Way::Tcp;
        let entrances = vec![Entrance { listener, way }];
        core.clone().spawn(shard.run(core, entrances));

        let (snapshot, rejected) = Snapshot::from_doc(configuration(certificate), true);
        assert!(rejected.is_empty(), "{rejected:?}");
        control.publish(&Arc::new(snapshot));
        while control.snapshot_version().is_none() {
            rt.sleep(Duration::from_millis(1)).await;
        }
        let stream = rt.connect(SHARD, CONNECT_TIMEOUT).await.unwrap();
        Self {
            client: Peer::new(stream),
            _control: control,
        }
    }

    /// Sends the operation's request so often, each after the answer to the one before.
    pub(crate) async fn perform(&mut self, operation: &Operation, times: u32) {
        for _ in 0..times {
            let answer = self.client.ask(&operation.request).await;
            assert!(answer.starts_with(operation.status), "{}", text(answer));
        }
    }

    async fn answer(&mut self, request: &[u8]) -> Value {
        let answer = self.client.ask(request).await;
        let (head, body) = text(answer).split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        serde_json::from_str(body).unwrap()
    }

    /// All operations, each tried once and found to give what it must.
    pub(crate) async fn operations(&mut self) -> Vec<Operation> {
        let mut all = Vec::new();
        for (tenant, wrap, unwrap) in [
            (LEASED, "leased wrap", "leased unwrap"),
            (LOCAL, "local wrap", "local unwrap"),
            (PLAIN, "KMS wrap, plain", "KMS unwrap, plain"),
            (OVER_TLS, "KMS wrap, TLS", "KMS unwrap, TLS"),
        ] {
            let asks = post("document/wrap", &body_of(tenant, ""));
            let wrapped = self.answer(&asks).await;
            all.push(Operation::new(wrap, asks));
            let member = format!("\"encryptedDocumentKey\":{}", wrapped["edek"]);
            let asks = post("document/unwrap", &body_of(tenant, &member));
            let unwrapped = self.answer(&asks).await;
            // The KMS here always has the same key to give.
            let expected = match tenant {
                PLAIN | OVER_TLS => PLAINTEXT,
                _ => wrapped["dek"].as_str().unwrap(),
            };
            assert_eq!(unwrapped["dek"], expected);
            all.push(Operation::new(unwrap, asks));
        }
        self.batches(&mut all).await;
        let member = r#""paths":{"customers":["ssn"]},"derivationType":"sha512","secretType":"deterministic""#;
        let asks = post("key/derive-with-secret-path", &body_of(LEASED, member));
        let derived = self.answer(&asks).await;
        assert!(derived["derivedKeys"]["customers"]["ssn"].is_array());
        all.push(Operation::new("derive, secret held", asks));
        let asks = post("document/wrap", &body_of(LEASED, ""));
        let asks = text(&asks).replace(API_KEY, "0123456789abcdeg");
        let mut refused = Operation::new("refused key", asks.into_bytes());
        refused.status = b"HTTP/1.1 401";
        self.perform(&refused, 1).await;
        all.push(refused);
        all
    }

    async fn batches(&mut self, all: &mut Vec<Operation>) {
        let ids: Vec<_> = (0..BATCH_ITEMS)
            .map(|item| format!("\"document-{item:04}\""))
            .collect();
        let member = format!("\"documentIds\":[{}]", ids.join(","));
        let asks = post("document/batch-wrap", &body_of(LEASED, &member));
        let wrapped = self.answer(&asks).await;
        all.push(Operation::batch("batch of 100 leased wraps", asks));
        let edeks: Vec<_> = ids
            .iter()
            .map(|id| format!("{id}:{}", wrapped["keys"][id.trim_matches('"')]["edek"]))
            .collect();
        let member = format!("\"edeks\":{{{}}}", edeks.join(","));
        let asks = post("document/batch-unwrap", &body_of(LEASED, &member));
        let unwrapped = self.answer(&asks).await;
        for id in &ids {
            let key = |batch: &Value| batch["keys"][id.trim_matches('"')]["dek"].clone();
            assert!(key(&wrapped).is_string());
            assert_eq!(key(&unwrapped), key(&wrapped));
        }
        all.push(Operation::batch("batch of 100 leased unwraps", asks));
    }
}

impl Operation {
    fn new(name: &'static str, request: Vec<u8>) -> Self {
        Self {
            name,
            items: 1,
            request,
            status: b"HTTP/1.1 200",
        }
    }

    fn batch(name: &'static str, request: Vec<u8>) -> Self {
        Self {
            items: BATCH_ITEMS as u32,
            ..Self::new(name, request)
        }
    }
}

/// The four tenants, and a secret of the leased one's.
fn configuration(ca_pem: String) -> SnapshotDoc {
    let local = |id, leasing_allowed| KmsConfigDoc {
        id,
        leasing_allowed,
        key: KmsKeyDoc::Local {
            key: local_kms_key(),
        },
        endpoint: None,
        allow_insecure: false,
        ca_pem: None,
    };
    let aws = |id, scheme: &str, ca_pem| KmsConfigDoc {
        id,
        leasing_allowed: false,
        key: KmsKeyDoc::Aws {
            key_id: KEY_ARN.to_owned(),
            region: "eu-west-1".to_owned(),
            access_key_id: tsp_bench::AWS_CREDENTIALS.0.to_owned(),
            secret_access_key: Secret::new(tsp_bench::AWS_CREDENTIALS.1.to_owned()),
            session_token: None,
            assume_role: None,
            sts_endpoint: None,
        },
        endpoint: Some(format!("{scheme}://{KMS_HOST}")),
        allow_insecure: true,
        ca_pem,
    };
    let secret = LocalKms::new(&local_kms_key()).wrap(LEASED, &dek(), [3; 12]);
    SnapshotDoc {
        version: SnapshotVersion(1),
        kms: vec![
            local(1, false),
            local(2, true),
            aws(3, "http", None),
            aws(4, "https", Some(ca_pem)),
        ],
        unusable: Vec::new(),
        tenants: (1..)
            .zip(TENANTS)
            .map(|(kms, tenant)| TenantDoc {
                id: tenant.to_owned(),
                assignments: vec![AssignmentDoc {
                    kms,
                    active: true,
                    primary: true,
                }],
            })
            .collect(),
        secrets: vec![TenantSecretDoc {
            id: 9_001,
            tenant: LEASED.to_owned(),
            secret_type: SecretType::Deterministic,
            path: "customers".to_owned(),
            status: RotationStatus::Current,
            edek: edek::encode_unleased(KmsConfigId::new(2).unwrap(), &secret),
        }],
    }
}

fn post(endpoint: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /api/1/{endpoint} HTTP/1.1\r\nhost: tsp.internal:7777\r\nauthorization: cmk {API_KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

const KEY_ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

/// What the KMS unwraps everything to: 32 bytes of 0x5a, as [`dek`] has them.
const PLAINTEXT: &str = "WlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlo=";

fn kms_answer(member: &str) -> Vec<u8> {
    let body =
        format!(r#"{{{member},"EncryptionAlgorithm":"SYMMETRIC_DEFAULT","KeyId":"{KEY_ARN}"}}"#);
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.1\r\n\
         x-amzn-requestid: 5e1a6a3c-5f57-4a5c-9f0f-2d7d0d6f3a11\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn serve_kms(rt: &SimRt, port: u16, tls: Option<Rc<ServerTls>>) {
    let rt = rt.on_host(KMS);
    let mut listener = rt.bind(SocketAddr::new(KMS, port)).unwrap();
    let spawner = rt.clone();
    rt.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            spawner.spawn(async move {
                match tls {
                    None => answer_as_kms(Peer::new(stream)).await,
                    Some(tls) => {
                        let stream = tls::accept(stream, &tls).await.unwrap();
                        answer_as_kms(Peer::new(stream)).await;
                    }
                }
            });
        }
    });
}

async fn answer_as_kms<S: AsyncRead + AsyncWrite + Unpin>(mut peer: Peer<S>) {
    // 184 bytes, as long as AWS's for a key of 32.
    let wrapped = kms_answer(&format!(
        "\"CiphertextBlob\":\"{}==\"",
        "TExM".repeat(61) + "TA"
    ));
    let unwrapped = kms_answer(&format!("\"Plaintext\":\"{PLAINTEXT}\""));
    while let Some(request) = peer.read().await {
        let wraps = text(request).contains("TrentService.Encrypt");
        peer.write(if wraps { &wrapped } else { &unwrapped }).await;
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// One end of an HTTP connection, of messages with a length.
struct Peer<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(MESSAGE_BYTES_MAX),
        }
    }

    async fn ask(&mut self, request: &[u8]) -> &[u8] {
        self.write(request).await;
        self.read().await.expect("one answer per request")
    }

    async fn write(&mut self, message: &[u8]) {
        self.stream.write_all(message).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next message, or `None` if the far end has closed.
    async fn read(&mut self) -> Option<&[u8]> {
        self.buffer.clear();
        while self.missing() > 0 {
            if self.stream.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
        Some(&self.buffer)
    }

    /// Bytes that the message needs to be whole; at least one as long as its head is not.
    fn missing(&self) -> usize {
        let so_far = String::from_utf8_lossy(&self.buffer);
        let Some((head, body)) = so_far.split_once("\r\n\r\n") else {
            return 1;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())?
        });
        length.unwrap_or(0_usize).saturating_sub(body.len())
    }
}
