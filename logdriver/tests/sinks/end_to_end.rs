//! Applications, proxy, logdriver and log systems, whole: what the published SDKs and curl do at a proxy arrives at every kind of
//! log system, each read in its own way.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    Ended, child_command, clouds, peers,
    peers::{root, target},
    sim::{Reply, Seen, Sim},
    syslog,
};

const API_KEY: &str = "dGVzdC1hcGkta2V5";

/// The applications; each does the same for each tenant.
const CALLERS: [&str; 3] = ["node", "python", "curl"];

/// Between two looks at what other processes do in their own time, and how often it is looked.
const POLL: Duration = Duration::from_millis(50);
const POLLS_MAX: usize = 1_800;

/// Reads the lines of a process's output until it ends.
fn lines(ended: &mut Ended) -> Arc<Mutex<Vec<Value>>> {
    let lines = Arc::<Mutex<Vec<Value>>>::default();
    let (all, out) = (Arc::clone(&lines), ended.0.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            all.lock()
                .unwrap()
                .extend(serde_json::from_str::<Value>(&line));
        }
    });
    lines
}

/// Asks until there is an answer.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let mut polls = 0;
    loop {
        if let Some(found) = look() {
            return found;
        }
        polls += 1;
        assert!(polls < POLLS_MAX, "never happened: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A program of this project: where this test's own lies, one folder up.
fn program(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_BIN_EXE_tsp-logdriver")).with_file_name(name)
}

fn start(name: &str, variables: &[(&str, &str)]) -> (Ended, Arc<Mutex<Vec<Value>>>) {
    let mut command = child_command(program(name));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(variables.iter().copied())
        .stdout(Stdio::piped());
    let mut child = Ended(command.spawn().unwrap());
    let lines = lines(&mut child);
    (child, lines)
}

/// Everything that the applications do. Each has its own way to say it.
fn applications(base_url: &str, timestamp_ms: i64, tenants: &[&str]) {
    let timestamp = timestamp_ms.to_string();
    let node = target().join("sdk/node");
    let mut by_node = child_command(node.join("node"));
    by_node
        .env("NODE_PATH", node.join("node_modules"))
        .arg(root().join("tests/sdk/node/events.cjs"));
    let mut by_python = child_command(target().join("sdk/python/bin/python"));
    by_python
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(root().join("tests/sdk/python/events.py"));
    for mut command in [by_node, by_python] {
        command.args([base_url, API_KEY, &timestamp]).args(tenants);
        let status = command.stdin(Stdio::null()).status().unwrap();
        assert!(
            status.success(),
            "{command:?}: run ./x setup if packages are missing"
        );
    }
    for tenant in tenants {
        let about = json!({"requestingId": "curl", "dataLabel": "label", "sourceIp": "192.0.2.1", "objectId": "object", "requestId": "request-7"});
        let mut posted = about.clone();
        posted["event"] = "USER_LOGIN".into();
        let custom = json!({"origin": "test/ü"});
        for (endpoint, body) in [
            (
                "document/wrap",
                json!({"tenantId": tenant, "iclFields": about, "customFields": custom}),
            ),
            (
                "event/security-event",
                json!({"tenantId": tenant, "timestampMillis": timestamp_ms, "iclFields": posted, "customFields": custom}),
            ),
        ] {
            let authorization = format!("Authorization: cmk {API_KEY}");
            let output = child_command("curl")
                .args([
                    "-sS",
                    "--fail",
                    "-H",
                    &authorization,
                    "-H",
                    "Content-Type: application/json",
                ])
                .args([
                    "-d",
                    &body.to_string(),
                    &format!("{base_url}/api/1/{endpoint}"),
                ])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    }
}

/// What was posted, in the order of the calls.
fn bodies<'a>(sim: &Sim, path: &'a str) -> impl Iterator<Item = Seen> + use<'a> {
    let seen = sim.seen().into_iter();
    seen.filter(move |seen| seen.path.starts_with(path))
}

fn members(values: &Value, name: &str) -> Vec<Value> {
    let all = values.as_array().into_iter().flatten();
    all.map(|one| one[name].clone()).collect()
}

/// Events that travel as text.
fn parsed(texts: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let texts = texts.into_iter();
    texts
        .map(|text| serde_json::from_str(text.as_str().unwrap()).unwrap())
        .collect()
}

/// Takes out of an event what differs from time to time, and looks whether it has its form.
fn constant(mut event: Value, timestamp: &str) -> Value {
    let text = |value: Option<Value>| value.unwrap().as_str().unwrap().to_owned();
    let of = |event: &mut Value, name: &str| event.as_object_mut().unwrap().remove(name);
    let fields = event["iclFields"].as_object_mut().unwrap();
    let rays = ["tspRayId", "logdriverRayId"].map(|name| text(fields.remove(name)));
    assert!(rays.iter().all(|ray| ray.len() == 16), "{rays:?}");
    let own_time = fields["source"] == "tsp";
    let time = text(of(&mut event, "timestamp"));
    if own_time {
        OffsetDateTime::parse(&time, &Rfc3339).unwrap();
        assert!(
            time.len() == timestamp.len() && time.ends_with('Z'),
            "{time}"
        );
    } else {
        assert_eq!(time, timestamp);
    }
    let names = |value: Option<Value>| -> Vec<String> {
        let object = value.unwrap();
        object.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(
        names(of(&mut event, "sequence")),
        ["instance", "number", "shard"]
    );
    let chain = names(of(&mut event, "chain"));
    assert_eq!(chain, ["hash", "logdriver", "previous", "sequence"]);
    event
}

/// The events of a tenant, without what differs.
fn expected(tenant: &str) -> Vec<Value> {
    let event = |caller: &str, event: &str, source: &str| {
        json!({
            "tenantId": tenant,
            "iclFields": {"event": event, "requestingId": caller, "dataLabel": "label", "sourceIp": "192.0.2.1",
                "objectId": "object", "requestId": "request-7", "source": source},
            "customFields": {"origin": "test/ü"},
        })
    };
    CALLERS
        .iter()
        .flat_map(|caller| {
            [
                event(caller, "DATA_ENCRYPT", "tsp"),
                event(caller, "USER_LOGIN", "app"),
            ]
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_sdks_and_curl_do_arrives_at_every_log_system() {
    let folder = tempfile::tempdir().unwrap();
    let moto = peers::moto();
    let stream = format!("end-to-end-{}", std::process::id());
    let splunk = Sim::start(|seen, _| {
        let known = seen.header("authorization") == "Splunk t-0123";
        Reply::json(
            if known { 200 } else { 401 },
            &json!({"text": "Success", "code": 0}),
        )
    })
    .await;
    let google = clouds::google(|_, _| Reply::json(200, &json!({}))).await;
    let microsoft = clouds::microsoft().await;
    let datadog = Sim::start(|seen, _| {
        let known = seen.header("dd-api-key") == "k-0123";
        Reply::json(if known { 202 } else { 403 }, &json!({}))
    })
    .await;
    let sumo = Sim::start(|_, _| Reply::new(200, "")).await;
    let webhook = Sim::start(|_, _| Reply::new(204, "")).await;
    let otlp = Sim::start(|_, _| Reply::new(200, "")).await;
    let made = syslog::certificates();
    let (_rsyslog, syslog_port) = syslog::rsyslog(folder.path(), &made);
    let mut by_syslog = syslog::config(syslog_port, &made);
    by_syslog["messageBytesMax"] = json!(65_536);

    let log_systems = [
        ("at-stdout", json!({"type": "STDOUT"})),
        (
            "at-splunk",
            json!({"type": "SPLUNK", "hecUrl": splunk.url, "token": "t-0123"}),
        ),
        ("at-google", clouds::gcp(&google.url)),
        ("at-azure", clouds::azure(&microsoft.url, "right")),
        (
            "at-datadog",
            json!({"type": "DATADOG", "site": "datadoghq.eu", "apiKey": "k-0123", "endpoint": datadog.url}),
        ),
        (
            "at-sumo",
            json!({"type": "SUMO_LOGIC", "collectorUrl": sumo.url}),
        ),
        (
            "at-webhook",
            json!({"type": "WEBHOOK", "url": webhook.url, "hmacSecret": "0123456789abcdef0123456789abcdef"}),
        ),
        ("at-otlp", json!({"type": "OTLP", "url": otlp.url})),
        ("at-syslog", by_syslog),
        (
            "at-cloudwatch",
            crate::cloudwatch::config(moto, "writer", &stream),
        ),
    ];
    let kms = json!({"id": 1, "type": "LOCAL", "credentials": {"key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}});
    let tenants: Vec<_> = log_systems
        .iter()
        .map(|(id, logging)| json!({"id": id, "assignments": [{"kms": 1, "primary": true}], "logging": logging}))
        .collect();
    let file = folder.path().join("tenants.toml");
    let text = toml::to_string(&json!({"version": 1, "kms": [kms], "tenant": tenants})).unwrap();
    fs::write(&file, text).unwrap();
    let (file, store) = (file.to_str().unwrap(), folder.path().join("store"));

    let any = "127.0.0.1:0";
    let (_proxy, proxy_log) = start(
        "tsp",
        &[
            ("TSP_CONFIG_FILE", file),
            ("API_KEY", API_KEY),
            ("TSP_SHARDS", "1"),
            ("TSP_HTTP_BIND_ADDRESS", any),
            ("TSP_HEALTH_BIND_ADDRESS", any),
            ("TSP_EVENT_BIND_ADDRESS", any),
        ],
    );
    let [http, events] = until("the proxy serves", || {
        let log = proxy_log.lock().unwrap();
        let addresses = |line: &Value| {
            Some(["http", "event"].map(|name| line[name].as_str().map(str::to_owned)))
        };
        let found = log.iter().filter_map(addresses);
        found
            .filter_map(|[http, event]| Some([http?, event?]))
            .next()
    })
    .await;
    let (_logdriver, delivered) = start(
        "tsp-logdriver",
        &[
            ("TSP_CONFIG_FILE", file),
            ("LOGDRIVER_EVENT_PRODUCER_URL", &format!("tcp://{events}")),
            ("LOGDRIVER_STORE", store.to_str().unwrap()),
            ("LOGDRIVER_STORE_FREE_MIN", "0"),
            ("LOGDRIVER_BUFFER_POLL_INTERVAL", "20"),
            ("LOGDRIVER_HEALTH_BIND_ADDRESS", any),
            ("LOGDRIVER_ALLOW_ADDRESSES", "loopback"),
        ],
    );
    // Of milliseconds, as events have them, and a moment ago.
    let timestamp_ms = peers::now_ms() / 1000 * 1000 - 877;
    let tenants: Vec<_> = log_systems.iter().map(|(id, _)| *id).collect();
    tokio::task::block_in_place(|| applications(&format!("http://{http}"), timestamp_ms, &tenants));
    let timestamp =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(timestamp_ms) * 1_000_000).unwrap();
    let timestamp = timestamp.format(&Rfc3339).unwrap();

    // Each log system's own form, undone by hand.
    let read = || -> Vec<(&str, Vec<Value>)> {
        let concatenated = |seen: &Seen| -> Vec<Value> {
            let all = serde_json::Deserializer::from_slice(&seen.body).into_iter();
            all.collect::<Result<_, _>>().unwrap()
        };
        let otlp_records = |seen: Seen| {
            let read = peers::otlp_as_json(&seen.body);
            let records = &read["resourceLogs"][0]["scopeLogs"][0]["logRecords"];
            members(&Value::from(members(records, "body")), "stringValue")
        };
        let out = fs::read_to_string(folder.path().join("out")).unwrap_or_default();
        let syslog_lines = out
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        vec![
            ("at-stdout", delivered.lock().unwrap().clone()),
            (
                "at-splunk",
                bodies(&splunk, "/services")
                    .flat_map(|seen| members(&Value::from(concatenated(&seen)), "event"))
                    .collect(),
            ),
            (
                "at-google",
                bodies(&google, "/v2")
                    .flat_map(|seen| members(&seen.json()["entries"], "jsonPayload"))
                    .collect(),
            ),
            (
                "at-azure",
                bodies(&microsoft, "/dataCollectionRules")
                    .flat_map(|seen| members(&seen.json(), "Event"))
                    .collect(),
            ),
            (
                "at-datadog",
                parsed(bodies(&datadog, "/api").flat_map(|seen| members(&seen.json(), "message"))),
            ),
            (
                "at-sumo",
                bodies(&sumo, "/")
                    .flat_map(|seen| concatenated(&seen))
                    .collect(),
            ),
            (
                "at-webhook",
                bodies(&webhook, "/")
                    .flat_map(|seen| concatenated(&seen))
                    .flat_map(|all| all.as_array().unwrap().clone())
                    .collect(),
            ),
            ("at-otlp", parsed(bodies(&otlp, "/").flat_map(otlp_records))),
            (
                "at-syslog",
                parsed(syslog_lines.map(|line| line["msg"].clone())),
            ),
            (
                "at-cloudwatch",
                parsed(members(&moto.events_of(&stream), "message")),
            ),
        ]
    };
    // A tenant's own, once each; checkpoints are events of the logdriver's.
    let of_tenant = |tenant: &str, events: Vec<Value>| -> BTreeMap<String, Value> {
        let own = events
            .into_iter()
            .filter(|event| event["tenantId"] == tenant);
        let own = own.filter(|event| event["iclFields"]["event"] != "LOGDRIVER_CHECKPOINT");
        own.map(|event| (event["iclFields"]["logdriverRayId"].to_string(), event))
            .collect()
    };
    let all = until("all events are at every log system", || {
        let read = tokio::task::block_in_place(read).into_iter();
        let all: Vec<_> = read
            .map(|(tenant, events)| (tenant, of_tenant(tenant, events)))
            .collect();
        let whole = all
            .iter()
            .all(|(tenant, events)| events.len() >= expected(tenant).len());
        whole.then_some(all)
    })
    .await;
    for (tenant, events) in all {
        let sequence = |event: &Value| event["chain"]["sequence"].as_u64();
        let mut events: Vec<_> = events.into_values().collect();
        events.sort_by_key(sequence);
        let events: Vec<_> = events
            .into_iter()
            .map(|event| constant(event, &timestamp))
            .collect();
        assert_eq!(events, expected(tenant), "{tenant}");
    }
}
