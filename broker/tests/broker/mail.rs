//! Invitations and notifications by mail, with a small mail server of the tests.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::support::{Kind, PATIENCE, World};

/// A mail as the server got it.
struct Mail {
    to: String,
    text: String,
}

/// How a mail server speaks TLS, if it does.
#[derive(Clone)]
enum Security {
    Plain,
    /// From the first byte.
    Tls(Arc<ServerConfig>),
    /// After STARTTLS (RFC 3207), and nothing but that before it.
    StartTls(Arc<ServerConfig>),
}

/// A certificate for 127.0.0.1, in PEM, and a server's configuration with it.
fn certificate() -> (String, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.pem(), Arc::new(config))
}

/// A mail server that runs until the test ends.
struct MailServer {
    url: String,
    mails: mpsc::Receiver<Mail>,
    /// Connections by which no mail came.
    fruitless: mpsc::Receiver<()>,
}

/// Takes mails as RFC 5321 has it, one connection after the other.
fn mail_server(security: Security) -> MailServer {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (scheme, wish) = match security {
        Security::Plain => ("smtp", ""),
        Security::Tls(_) => ("smtps", ""),
        Security::StartTls(_) => ("smtp", "?tls=required"),
    };
    let url = format!("{scheme}://{}{wish}", listener.local_addr().unwrap());
    let (told, mails) = mpsc::channel();
    let (failed, fruitless) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            match take_securely(stream, &security) {
                Some(mail) => drop(told.send(mail)),
                None => drop(failed.send(())),
            }
        }
    });
    MailServer {
        url,
        mails,
        fruitless,
    }
}

fn take_securely(mut stream: TcpStream, security: &Security) -> Option<Mail> {
    let encrypted = |stream: TcpStream, config: &Arc<ServerConfig>| {
        let connection = ServerConnection::new(Arc::clone(config)).ok()?;
        Some(StreamOwned::new(connection, stream))
    };
    match security {
        Security::Plain => take(stream, true),
        Security::Tls(config) => take(encrypted(stream, config)?, true),
        Security::StartTls(config) => {
            say(&mut stream, "220 mail.example")?;
            while let Some(command) = line(&mut stream) {
                match &*command.to_ascii_uppercase() {
                    "STARTTLS" => {
                        say(&mut stream, "220 go on")?;
                        return take(encrypted(stream, config)?, false);
                    }
                    hello if hello.starts_with("EHLO") => {
                        say(&mut stream, "250-mail.example\r\n250 STARTTLS")?;
                    }
                    _ => say(&mut stream, "530 Must issue a STARTTLS command first")?,
                }
            }
            None
        }
    }
}

fn say(stream: &mut impl Write, text: &str) -> Option<()> {
    stream.write_all(format!("{text}\r\n").as_bytes()).ok()?;
    stream.flush().ok()
}

/// The next line, byte by byte, so that nothing is read that belongs to what comes after it.
fn line(stream: &mut impl Read) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        match byte {
            [b'\n'] => break,
            [byte] => bytes.push(byte),
        }
    }
    Some(
        String::from_utf8_lossy(&bytes)
            .trim_end_matches('\r')
            .to_owned(),
    )
}

fn take(mut stream: impl Read + Write, greets: bool) -> Option<Mail> {
    if greets {
        say(&mut stream, "220 mail.example")?;
    }
    let mut mail = Mail {
        to: String::new(),
        text: String::new(),
    };
    while let Some(command) = line(&mut stream) {
        let command = command.to_ascii_uppercase();
        if let Some(to) = command.strip_prefix("RCPT TO:") {
            to.trim_matches(['<', '>']).clone_into(&mut mail.to);
        }
        if command == "DATA" {
            say(&mut stream, "354 go on")?;
            loop {
                match &*line(&mut stream)? {
                    "." => break,
                    line => {
                        mail.text.push_str(line);
                        mail.text.push('\n');
                    }
                }
            }
        }
        if command == "QUIT" {
            say(&mut stream, "221 bye")?;
            break;
        }
        say(&mut stream, "250 ok")?;
    }
    (!mail.text.is_empty()).then_some(mail)
}

fn world(kind: Kind, smtp_url: &str) -> World {
    world_with(kind, smtp_url, &[])
}

fn world_with(kind: Kind, smtp_url: &str, more: &[(&str, String)]) -> World {
    let mut variables = vec![
        ("BROKER_SMTP_URL", smtp_url.to_owned()),
        (
            "BROKER_MAIL_FROM",
            "Broker <broker@vendor.example>".to_owned(),
        ),
        ("BROKER_PUBLIC_URL", "https://broker.example/".to_owned()),
    ];
    variables.extend(more.iter().cloned());
    World::with(kind, &variables)
}

/// The text without the line breaks of its transfer encoding.
fn unfolded(text: &str) -> String {
    text.replace("=\n", "").replace("=3D", "=")
}

#[test]
fn invitations_and_changes_are_mailed_to_who_asked_for_it() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let MailServer { url, mails, .. } = mail_server(Security::Plain);
        let world = world(kind, &url);
        world.admin(&["tenant", "create", "acme"]);
        let shown = world.admin(&["tenant", "invite", "acme", "eve@acme.example"]);
        let mail = mails.recv_timeout(PATIENCE).unwrap();
        let text = unfolded(&mail.text);
        assert_eq!(mail.to, "EVE@ACME.EXAMPLE");
        assert!(text.contains("Subject: Invitation by Vendor"), "{text}");
        assert!(text.contains("text/plain"), "{text}");
        let (_, rest) = shown.trim().split_once('#').unwrap();
        let (mailed, key) = rest.rsplit_once('.').unwrap();
        assert!(
            text.contains(&format!("'https://broker.example/invitation#{mailed}'")),
            "{text}"
        );
        assert!(!text.contains(key), "the broker never had the key");

        // Nobody has asked yet; now one does, and hears what is done from then on, and by whom.
        world.admin(&["admin", "notify", "true"]);
        assert!(world.admin(&["admin", "list"]).contains("\"notify\": true"));
        world.admin(&["tenant", "create", "globex"]);
        loop {
            let mail = mails.recv_timeout(PATIENCE).unwrap();
            let text = unfolded(&mail.text);
            assert_eq!(mail.to, "ADA@VENDOR.EXAMPLE");
            if text.contains("admin ada@vendor.example create tenant globex") {
                break;
            }
        }
        world.admin(&["admin", "invite", "bob@vendor.example", "--auditor"]);
        loop {
            let mail = mails.recv_timeout(PATIENCE).unwrap();
            if mail.to == "BOB@VENDOR.EXAMPLE" {
                assert!(unfolded(&mail.text).contains("tsp-broker admin accept '"));
                break;
            }
        }
        let listed = world.admin(&["audit", "list", "--after", "1"]);
        assert!(listed.starts_with(r#"{"number":2,"#), "{listed}");
        assert!(!world.broker.log().contains("cannot be sent"));
    }
}

#[test]
fn mail_goes_by_tls_to_the_server_that_is_trusted_and_to_no_other() {
    let (pem, config) = certificate();
    let (other_pem, _) = certificate();
    let folder = tempfile::tempdir().unwrap();
    let trusting = |pem: &str, name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        ("BROKER_SMTP_CA", path.display().to_string())
    };
    for security in [
        Security::Tls(Arc::clone(&config)),
        Security::StartTls(config),
    ] {
        let MailServer {
            url,
            mails,
            fruitless,
        } = mail_server(security);
        let invite = |more: &[(&'static str, String)]| {
            let world = world_with(Kind::Sqlite, &url, more);
            world.admin(&["tenant", "create", "acme"]);
            world.admin(&["tenant", "invite", "acme", "eve@acme.example"]);
            world
        };
        // Neither one of the public authorities', nor of another one's.
        for more in [&[][..], &[trusting(&other_pem, "other.pem")]] {
            let _world = invite(more);
            fruitless.recv_timeout(PATIENCE).unwrap();
            assert!(mails.try_recv().is_err());
        }
        let world = invite(&[trusting(&pem, "ca.pem")]);
        let mail = mails.recv_timeout(PATIENCE).unwrap();
        assert_eq!(mail.to, "EVE@ACME.EXAMPLE");
        assert!(!world.broker.log().contains("cannot be sent"));
    }
}

#[test]
fn no_request_waits_for_a_mail_server_that_is_dead() {
    // One that takes connections and says nothing, and one that is not there.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = (
        format!("smtp://{}", silent.local_addr().unwrap()),
        Some(silent),
    );
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = (format!("smtp://{}", gone.local_addr().unwrap()), None);
    for (url, _held) in [silent, gone] {
        let world = world(Kind::Sqlite, &url);
        world.admin(&["tenant", "create", "acme"]);
        for _ in 0..3 {
            let link = world.admin(&["tenant", "invite", "acme", "eve@acme.example"]);
            assert!(link.contains("/invitation#"), "{link}");
        }
    }
}

#[test]
fn a_mail_servers_url_is_looked_at_before_anything_starts() {
    let world = World::new(Kind::Sqlite);
    let serve = |arguments: &[&str]| {
        let mut all = vec!["serve", "--listen", "127.0.0.1:0"];
        all.extend(arguments);
        world.refused(&all)
    };
    let alone = serve(&["--smtp-url", "smtps://mail.example"]);
    assert!(alone.contains("--mail-from"), "{alone}");
    let others = [
        "--mail-from",
        "b@vendor.example",
        "--public-url",
        "https://broker.example",
    ];
    let plain = serve(&[&["--smtp-url", "smtp://u:CANARY@mail.example"], &others[..]].concat());
    assert!(
        plain.contains("for this machine alone") && !plain.contains("CANARY"),
        "{plain}"
    );
}
