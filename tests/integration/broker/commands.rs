//! `tsp doctor` and `tsp recover` where the configurations come from a broker, and where it is away.

use super::*;

const EXIT_UNHEALTHY: i32 = 69;

/// A command with the account's variables and nothing else of a proxy's.
fn command(account: &Account, arguments: &[&str], copy: Option<&std::path::Path>) -> Setup {
    let setup = Setup::bare();
    let setup = account.0.iter().fold(setup, |setup, (name, value)| {
        if name == "API_KEY" {
            setup
        } else {
            setup.env(name, value)
        }
    });
    let setup = match copy {
        Some(copy) => setup.env("TSP_SNAPSHOT_CACHE", copy.to_str().unwrap()),
        None => setup,
    };
    arguments
        .iter()
        .fold(setup, |setup, argument| setup.argument(argument))
}

#[test]
fn the_doctor_examines_what_a_broker_has_and_the_copy_while_it_is_away() {
    let simulator = Simulator::start();
    let mut vendor = Vendor::new();
    let client = simulator.client(Provider::Aws);
    vendor.tenant(&client.tenant, &content_of(&simulator, client), &[]);
    vendor.tenant("acme", &local_content(1), &[]);
    let account = vendor.account();
    let doctor = |arguments: &[&str], copy: Option<&std::path::Path>| {
        let all = [&["doctor"], arguments].concat();
        // The simulated KMS is on this machine.
        command(&account, &all, copy)
            .env("TSP_KMS_ALLOW_ADDRESSES", "loopback")
            .run_to_end()
    };
    let well = doctor(&[], None);
    assert_eq!(well.code, Some(0), "{}", well.output);
    assert!(
        well.output.contains("AWS") && well.output.contains("LOCAL"),
        "{}",
        well.output
    );
    let nobody = doctor(&["nobody"], None);
    assert_eq!(nobody.code, Some(EXIT_BAD_CONFIGURATION));
    assert!(
        nobody
            .output
            .contains("no such tenant in the configuration")
    );

    // A proxy leaves a copy; the command reads it, of whatever age, and leaves it as it is.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let proxy = local(Io::Epoll, &account)
        .env("TSP_SNAPSHOT_CACHE", copy.to_str().unwrap())
        .start();
    proxy.wait_for_ready(200);
    drop(proxy);
    let before = fs::read(&copy).unwrap();
    vendor.kill_broker();
    let away = doctor(&["acme"], None);
    assert_eq!(away.code, Some(EXIT_BAD_CONFIGURATION));
    assert!(away.output.contains("cannot be reached"), "{}", away.output);
    let from_copy = doctor(&["acme"], Some(&copy));
    assert_eq!(
        from_copy.code,
        Some(EXIT_BAD_CONFIGURATION),
        "the broker is not well"
    );
    for told in [
        "LOCAL",
        "cannot be reached",
        "copy on disk, which is 0 hours old",
    ] {
        assert!(
            from_copy.output.contains(told),
            "{told}: {}",
            from_copy.output
        );
    }
    assert_eq!(fs::read(&copy).unwrap(), before);
    // A KMS that is not well is found by way of the copy, too.
    drop(simulator);
    let ill = doctor(&["--json"], Some(&copy));
    assert!(matches!(
        ill.code,
        Some(EXIT_BAD_CONFIGURATION | EXIT_UNHEALTHY)
    ));
    assert!(ill.output.contains("\"failed\""), "{}", ill.output);
}

#[test]
fn the_account_may_be_in_a_file_as_the_proxys() {
    let (vendor, account) = vendor_of_acme();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tsp.env");
    let run = |lines: &str, arguments: &[&str]| {
        fs::write(&file, lines).unwrap();
        let setup = Setup::bare().env("TSP_SERVICE_ACCOUNT_FILE", file.to_str().unwrap());
        let setup = arguments
            .iter()
            .fold(setup, |setup, argument| setup.argument(argument));
        setup.run_to_end()
    };
    let lines: String = account
        .0
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    let examined = run(&lines, &["doctor"]);
    assert_eq!(examined.code, Some(0), "{}", examined.output);
    assert!(examined.output.contains("LOCAL"), "{}", examined.output);

    let proxy = local(Io::Epoll, &account).start();
    proxy.wait_for_ready(200);
    let wrapped = proxy.call("document/wrap", &metadata("acme")).ok();
    let input = folder.path().join("edeks");
    fs::write(&input, text(&wrapped, "edek")).unwrap();
    let recover = ["recover", input.to_str().unwrap(), "--tenant", "acme"];
    let recovered = run(&lines, &recover);
    assert_eq!(recovered.code, Some(0), "{}", recovered.output);
    assert!(recovered.output.contains(text(&wrapped, "dek")));

    for command in [&["doctor"][..], &recover] {
        let wrong = run("SERVICE_CONFIG_ID=x\n", command);
        assert_eq!(wrong.code, Some(EXIT_BAD_CONFIGURATION), "{}", wrong.output);
        let place = format!("{}: SERVICE_CONFIG_ID", file.display());
        assert!(wrong.output.contains(&place), "{}", wrong.output);
    }
    drop(vendor);
}

#[test]
fn keys_are_recovered_with_what_a_broker_has_and_with_the_copy_alone() {
    let (mut vendor, account) = vendor_of_acme();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let proxy = local(Io::Epoll, &account)
        .env("TSP_SNAPSHOT_CACHE", copy.to_str().unwrap())
        .start();
    proxy.wait_for_ready(200);
    let wrapped = proxy.call("document/wrap", &metadata("acme")).ok();
    drop(proxy);
    let input = folder.path().join("edeks");
    fs::write(&input, text(&wrapped, "edek")).unwrap();
    let recover = |copy: Option<&std::path::Path>| {
        let arguments = ["recover", input.to_str().unwrap(), "--tenant", "acme"];
        command(&account, &arguments, copy).run_to_end()
    };
    let by_broker = recover(None);
    assert_eq!(by_broker.code, Some(0), "{}", by_broker.output);
    assert!(by_broker.output.contains(text(&wrapped, "dek")));
    vendor.kill_broker();
    assert_eq!(recover(None).code, Some(EXIT_BAD_CONFIGURATION));
    let by_copy = recover(Some(&copy));
    assert_eq!(by_copy.code, Some(0), "{}", by_copy.output);
    assert!(by_copy.output.contains(text(&wrapped, "dek")));
    assert!(
        by_copy.output.contains("copy on disk"),
        "{}",
        by_copy.output
    );
}
