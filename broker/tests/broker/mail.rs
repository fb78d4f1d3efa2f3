//! Invitations and notifications by mail, with a small mail server of the tests.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use crate::support::{Kind, PATIENCE, World};

/// A mail as the server got it.
struct Mail {
    to: String,
    text: String,
}

/// Takes mails as RFC 5321 has it, one connection after the other, until the test ends.
fn mail_server() -> (String, mpsc::Receiver<Mail>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("smtp://{}", listener.local_addr().unwrap());
    let (told, mails) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if let Some(mail) = take(stream)
                && told.send(mail).is_err()
            {
                return;
            }
        }
    });
    (url, mails)
}

fn take(stream: TcpStream) -> Option<Mail> {
    let mut answers = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let mut say = |text: &str| answers.write_all(format!("{text}\r\n").as_bytes()).ok();
    say("220 mail.example")?;
    let mut mail = Mail {
        to: String::new(),
        text: String::new(),
    };
    while let Some(line) = lines.next() {
        let command = line.to_ascii_uppercase();
        if let Some(to) = command.strip_prefix("RCPT TO:") {
            to.trim_matches(['<', '>']).clone_into(&mut mail.to);
        }
        if command == "DATA" {
            say("354 go on")?;
            for line in lines.by_ref().take_while(|line| line != ".") {
                mail.text.push_str(&line);
                mail.text.push('\n');
            }
        }
        if command == "QUIT" {
            say("221 bye")?;
            break;
        }
        say("250 ok")?;
    }
    (!mail.text.is_empty()).then_some(mail)
}

fn world(kind: Kind, smtp_url: &str) -> World {
    let variables = [
        ("BROKER_SMTP_URL", smtp_url.to_owned()),
        (
            "BROKER_MAIL_FROM",
            "Broker <broker@vendor.example>".to_owned(),
        ),
        ("BROKER_PUBLIC_URL", "https://broker.example/".to_owned()),
    ];
    World::with(kind, &variables)
}

/// The text without the line breaks of its transfer encoding.
fn unfolded(text: &str) -> String {
    text.replace("=\n", "").replace("=3D", "=")
}

#[test]
fn invitations_and_changes_are_mailed_to_who_asked_for_it() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let (url, mails) = mail_server();
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
