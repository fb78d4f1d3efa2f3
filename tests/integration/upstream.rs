//! Whom the proxy takes for a KMS (pins of keys, names that are not the URL's), where it does not go, and that it remembers
//! whom it met.

use std::net::Ipv4Addr;

use serde_json::Value;

use crate::support::{
    kmssim::{Provider, SampleShape, Simulator},
    metadata, on_both,
    proxy::{Ended, Io, Proxy, Setup},
};

/// A pin of no key that anybody has.
const OTHER_PIN: &str = "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Two tenants with keys at CipherTrust.
fn thales() -> SampleShape {
    SampleShape {
        tenants: 2,
        providers: vec![Provider::Thales],
        ..SampleShape::default()
    }
}

/// The configuration with `members` added to each KMS config in turn.
fn with_members(config: &str, members: &[&str]) -> String {
    let (mut members, mut text) = (members.iter(), String::new());
    for line in config.lines() {
        text.push_str(line);
        text.push('\n');
        if line == "type = \"THALES\"" {
            text.push_str(members.next().expect("one for each config"));
            text.push('\n');
        }
    }
    assert_eq!(members.next(), None, "one for each config");
    text
}

fn spki_pin(pin: &str) -> String {
    format!("spkiPin = \"{pin}\"")
}

fn server_name(name: &str) -> String {
    format!("serverName = \"{name}\"")
}

#[track_caller]
fn works(proxy: &Proxy, tenant: &str) {
    proxy.call("document/wrap", &metadata(tenant)).ok();
}

/// What a wrap is refused with as if the KMS were out of reach.
#[track_caller]
fn refusal(proxy: &Proxy, tenant: &str) -> String {
    proxy
        .call("document/wrap", &metadata(tenant))
        .refused(502, 208)
}

#[track_caller]
fn doctor(config: &str, tenant: &str) -> Ended {
    Setup::serve(Io::Epoll, config)
        .argument("doctor")
        .argument(tenant)
        .run_to_end()
}

on_both! {
    fn a_pin_is_checked_and_a_wrong_one_shows_the_right_one(io) {
        let simulator = Simulator::with(&thales());
        let [good, bad] = [0, 1].map(|index| simulator.clients[index].tenant.as_str());
        let members = [spki_pin(simulator.spki_pin()), spki_pin(OTHER_PIN)];
        let config = with_members(&simulator.config(), &members.each_ref().map(String::as_str));
        let proxy = Setup::serve(io, &config).start();
        // Same appliance, same user even: yet a connection that the first tenant trusts is none for the second.
        for _ in 0..4 {
            works(&proxy, good);
            let message = refusal(&proxy, bad);
            assert!(message.contains(simulator.spki_pin()), "{message}");
            assert!(!message.contains(OTHER_PIN), "{message}");
        }
        simulator.assert_refused_none();
    }

    fn a_pin_does_not_replace_the_authority(io) {
        let simulator = Simulator::with(&thales());
        let pin = spki_pin(simulator.spki_pin());
        let config = with_members(&simulator.config(), &[&pin, &pin]);
        let without_authority = config
            .lines()
            .filter(|line| !line.starts_with("ca_file"))
            .collect::<Vec<_>>()
            .join("\n");
        let proxy = Setup::serve(io, &without_authority).start();
        let message = refusal(&proxy, &simulator.clients[0].tenant);
        assert!(message.contains("certificate refused"), "{message}");
    }

    fn the_certificate_is_checked_for_the_server_name_and_not_for_the_host_of_the_url(io) {
        // No name in the certificate is this address.
        let simulator = Simulator::listening_on(Ipv4Addr::new(127, 0, 0, 2), &thales());
        let [first, second] = [0, 1].map(|index| simulator.clients[index].tenant.as_str());
        let config = simulator.config().replace("https://localhost", "https://127.0.0.2");
        let named = server_name("node-1.ciphertrust.example");
        let proxy = Setup::serve(io, &with_members(&config, &[&named, ""])).start();
        works(&proxy, first);
        let message = refusal(&proxy, second);
        assert!(message.contains("certificate refused"), "{message}");
    }

    fn a_certificate_for_the_host_of_the_url_is_not_one_for_the_server_name(io) {
        let simulator = Simulator::with(&thales());
        let named = server_name("appliance.example");
        let proxy = Setup::serve(io, &with_members(&simulator.config(), &[&named, ""])).start();
        let message = refusal(&proxy, &simulator.clients[0].tenant);
        assert!(message.contains("certificate refused"), "{message}");
        works(&proxy, &simulator.clients[1].tenant);
    }
}

/// A proxy that may only connect to `addresses`.
fn allowing(simulator: &Simulator, io: Io, addresses: &str) -> Setup {
    simulator
        .setup(io)
        .env("TSP_KMS_ALLOW_ADDRESSES", addresses)
}

on_both! {
    fn a_name_that_leads_to_a_forbidden_address_is_not_followed(io) {
        let simulator = Simulator::start();
        let proxy = allowing(&simulator, io, "public").start();
        for provider in Provider::ALL {
            let tenant = simulator.tenant(provider);
            let refused = proxy.call("document/wrap", &metadata(tenant)).refused(422, 207);
            assert!(refused.contains("loopback address"), "{refused}");
            assert!(!refused.contains("127.0.0.1"), "{refused}");
        }
        let warning = proxy.log.wait("warning with the address", |line| {
            line.contains("TSP_KMS_ALLOW_ADDRESSES").then(|| line.to_owned())
        });
        assert!(warning.contains("127.0.0.1") || warning.contains("::1"), "{warning}");
        assert_eq!(simulator.metrics()["connections"]["accepted"], 0);

        let proxy = allowing(&simulator, io, "10.0.0.0/8, 127.0.0.0/8, ::1").start();
        for provider in Provider::ALL {
            works(&proxy, simulator.tenant(provider));
        }
    }

    fn an_ipv4_address_in_ipv6_clothes_is_no_way_around(io) {
        let simulator = Simulator::with(&thales());
        let config = simulator.config().replace("https://localhost", "https://[::ffff:127.0.0.1]");
        let setup = Setup::serve(io, &config).env("TSP_KMS_ALLOW_ADDRESSES", "private");
        let tenant = &simulator.clients[0].tenant;
        let refused = setup.start().call("document/wrap", &metadata(tenant)).refused(422, 207);
        assert!(refused.contains("loopback address"), "{refused}");
    }
}

on_both! {
    fn new_connections_resume_the_sessions_of_earlier_ones(io) {
        let simulator = Simulator::with(&thales());
        // One shard, since each has sessions of its own.
        let proxy = simulator.setup(io).env("TSP_SHARDS", "1").start();
        let tenant = &simulator.clients[0].tenant;
        for _ in 0..4 {
            works(&proxy, tenant);
            simulator.order("POST", "/connections/close", &Value::Null);
        }
        let handshakes = |kind| {
            let family = "tsp_kms_tls_handshakes_total";
            proxy.metrics().count(family, &[("handshake", kind)])
        };
        // The KMS counts the same, so it is no wish of the client's.
        let seen = &simulator.metrics()["connections"];
        assert_eq!(handshakes("full"), 1.0, "{seen}");
        assert_eq!(handshakes("resumed"), 3.0, "{seen}");
        assert_eq!((seen["handshakes"].as_u64(), seen["resumed"].as_u64()), (Some(4), Some(3)));
    }
}

#[test]
fn the_doctor_does_not_go_where_the_proxy_would_not() {
    let simulator = Simulator::with(&thales());
    let examined = allowing(&simulator, Io::Epoll, "public")
        .argument("doctor")
        .argument(&simulator.clients[0].tenant)
        .argument("--json")
        .run_to_end();
    assert_eq!(examined.code, Some(69), "{}", examined.output);
    for text in [
        "\"address_not_allowed\"",
        "(127.0.0.1)",
        "TSP_KMS_ALLOW_ADDRESSES",
    ] {
        assert!(
            examined.output.contains(text),
            "no {text}: {}",
            examined.output
        );
    }
    let malformed = allowing(&simulator, Io::Epoll, "everything")
        .argument("doctor")
        .run_to_end();
    assert_eq!(malformed.code, Some(64), "{}", malformed.output);
    assert_eq!(simulator.metrics()["connections"]["accepted"], 0);
}

#[test]
fn the_doctor_shows_the_pin_that_was_met() {
    let simulator = Simulator::with(&thales());
    let members = [spki_pin(simulator.spki_pin()), spki_pin(OTHER_PIN)];
    let config = with_members(&simulator.config(), &members.each_ref().map(String::as_str));
    let well = doctor(&config, &simulator.clients[0].tenant);
    assert_eq!(well.code, Some(0), "{}", well.output);
    let ill = doctor(&config, &simulator.clients[1].tenant);
    assert_eq!(ill.code, Some(69), "{}", ill.output);
    for text in ["tls failed", simulator.spki_pin(), "spkiPin"] {
        assert!(ill.output.contains(text), "no {text}: {}", ill.output);
    }
}
