//! Syslog over TLS: rsyslog, as Debian has it, and a server that looks at every octet.

use std::{fs, path::Path, process::Stdio, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, net::TcpListener};
use tokio_rustls::TlsAcceptor;
use tsp_logdriver::sink::Failure;

use crate::{Ended, child_command, events, json_of, sink, sink_at, text_of, word};

/// Between two looks at what another process does in its own time.
const POLL: Duration = Duration::from_millis(20);

/// A CA, and a certificate of its for this machine, in PEM.
pub(crate) struct Certificates {
    ca: String,
    own: String,
    key: String,
}

pub(crate) fn certificates() -> Certificates {
    let mut params = CertificateParams::new(vec!["test ca".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(params, ca_key);
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    Certificates {
        ca,
        own: own.pem(),
        key: key.serialize_pem(),
    }
}

/// A collector that reads one connection to its end.
async fn collector(
    made: &Certificates,
    wants_client: bool,
) -> (u16, tokio::task::JoinHandle<std::io::Result<Vec<u8>>>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let der =
        |pem: &str| rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if wants_client {
        let mut roots = RootCertStore::empty();
        roots.add(der(&made.ca)).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
    let config = builder.with_single_cert(vec![der(&made.own)], key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        Ok(all)
    });
    (port, task)
}

pub(crate) fn config(port: u16, made: &Certificates) -> Value {
    json!({"type": "SYSLOG", "host": "localhost", "port": port, "caPem": made.ca})
}

#[tokio::test]
async fn messages_are_counted_octet_by_octet() {
    let made = certificates();
    let (port, task) = collector(&made, false).await;
    let events = events(2);
    sink(&config(port, &made)).deliver(&events).await.unwrap();
    let message = |n: usize, time: &str| {
        format!(
            "<109>1 {time} - tsp - DATA_ENCRYPT [tsp@32473 id=\"{}\" sequence=\"{}\"] {}",
            events[n].id,
            events[n].sequence,
            text_of(&events[n])
        )
    };
    let messages = [
        message(0, "2023-11-14T22:13:20.123Z"),
        message(1, "2023-11-14T22:13:21.123Z"),
    ];
    // The events have letters of two octets.
    assert!(messages[0].contains('é'));
    let expected: String = messages
        .iter()
        .map(|message| format!("{} {message}", message.len()))
        .collect();
    assert_eq!(
        String::from_utf8(task.await.unwrap().unwrap()).unwrap(),
        expected
    );
}

#[tokio::test]
async fn a_collector_may_want_a_certificate() {
    let made = certificates();
    let (port, task) = collector(&made, true).await;
    let mut config = config(port, &made);
    config["clientCertificate"] = json!(format!("{}{}", made.own, made.key));
    sink(&config).deliver(&events(1)).await.unwrap();
    assert!(!task.await.unwrap().unwrap().is_empty());
    let (port, task) = collector(&made, true).await;
    config["port"] = json!(port);
    config.as_object_mut().unwrap().remove("clientCertificate");
    let outcome = sink(&config).deliver(&events(1)).await;
    assert_eq!(word(&outcome), "later", "{outcome:?}");
    task.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_strangers_certificate_and_a_private_address_are_refused() {
    let (made, other) = (certificates(), certificates());
    let (port, task) = collector(&made, false).await;
    let outcome = sink(&config(port, &other)).deliver(&events(1)).await;
    let Err(Failure::Later { why, .. }) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(why.contains("certificate"), "{why}");
    task.await.unwrap().unwrap_err();
    let outcome = sink_at(&config(port, &made), "").deliver(&events(1)).await;
    assert_eq!(word(&outcome), "credentials", "{outcome:?}");
}

/// An rsyslog with TLS on a free port, which writes what it understood of each message.
pub(crate) fn rsyslog(folder: &Path, made: &Certificates) -> (Ended, u16) {
    let path = |name: &str| folder.join(name).display().to_string();
    for (name, content) in [
        ("ca.pem", &made.ca),
        ("own.pem", &made.own),
        ("key.pem", &made.key),
    ] {
        fs::write(folder.join(name), content).unwrap();
    }
    let config = format!(
        r#"global(workDirectory="{}" maxMessageSize="64k" defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{}"
  defaultNetstreamDriverCertFile="{}" defaultNetstreamDriverKeyFile="{}")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="anon")
template(name="understood" type="list" option.jsonf="on") {{
  property(outname="priority" name="pri" format="jsonf")
  property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf")
  property(outname="app" name="app-name" format="jsonf")
  property(outname="msgid" name="msgid" format="jsonf")
  property(outname="structured" name="structured-data" format="jsonf")
  property(outname="msg" name="msg" format="jsonf")
}}
input(type="imtcp" address="127.0.0.1" port="0" listenPortFileName="{}")
action(type="omfile" file="{}" template="understood")
"#,
        folder.display(),
        path("ca.pem"),
        path("own.pem"),
        path("key.pem"),
        path("port"),
        path("out"),
    );
    fs::write(folder.join("conf"), config).unwrap();
    let path_variable = std::env::var("PATH").unwrap_or_default();
    let mut command = child_command("rsyslogd");
    // Where Debian has it, which is no place for everybody's PATH.
    command.env("PATH", format!("{path_variable}:/usr/sbin"));
    command
        .args(["-n", "-f", &path("conf"), "-i", &path("pid")])
        .stdin(Stdio::null());
    let child = command
        .spawn()
        .expect("rsyslogd is installed: run ./x setup");
    let mut ended = Ended(child);
    loop {
        let port = fs::read_to_string(folder.join("port"))
            .ok()
            .and_then(|text| text.trim().parse().ok());
        if let Some(port) = port {
            return (ended, port);
        }
        assert!(
            ended.0.try_wait().unwrap().is_none(),
            "rsyslogd ended: run ./x setup if it is missing"
        );
        std::thread::park_timeout(POLL);
    }
}

#[tokio::test]
async fn rsyslog_understands_every_event() {
    let (made, folder) = (certificates(), tempfile::tempdir().unwrap());
    let (collector, port) = rsyslog(folder.path(), &made);
    let mut config = config(port, &made);
    config["messageBytesMax"] = json!(65_536);
    let events = events(1000);
    let sink = sink(&config);
    sink.deliver(&events).await.unwrap();
    // It writes when it likes.
    let lines = loop {
        let out = fs::read_to_string(folder.path().join("out")).unwrap_or_default();
        let lines: Vec<Value> = out
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        if lines.len() >= events.len() {
            break lines;
        }
        tokio::time::sleep(POLL).await;
    };
    assert_eq!(lines.len(), events.len());
    for (line, event) in lines.iter().zip(&events) {
        let message = line["msg"].as_str().unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(message).unwrap(),
            json_of(event)
        );
        assert_eq!(
            (&line["priority"], &line["app"], &line["msgid"]),
            (&json!("109"), &json!("tsp"), &json!("DATA_ENCRYPT"))
        );
        let structured = format!(
            "[tsp@32473 id=\"{}\" sequence=\"{}\"]",
            event.id, event.sequence
        );
        assert_eq!(line["structured"], json!(structured));
    }
    assert_eq!(lines[0]["time"], json!("2023-11-14T22:13:20.123Z"));
    drop(collector);
    let outcome = sink.deliver(&events).await;
    assert_eq!(word(&outcome), "later", "{outcome:?}");
}
