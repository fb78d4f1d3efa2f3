//! What whoever runs the service uses beside it: the health command, the metrics, and the vendor for trying out.

use std::fs;

use crate::support::{account_of, on_both};

#[test]
fn the_health_command_and_the_metrics_tell_how_the_service_is() {
    on_both(|mut world| {
        let address = world.broker.url().replace("http://", "");
        let health = || world.run_as("nobody", &["health", &address]).status;
        assert!(health().success());

        world.admin(&["tenant", "create", "acme"]);
        world.broker.send("GET", "/no/such/path", "", b"").unwrap();
        let scrape = world.broker.send("GET", "/metrics", "", b"").unwrap();
        let text = String::from_utf8(scrape.body).unwrap();
        for line in [
            r#"broker_request_duration_seconds_count{http_code="200",method="GET",route="/health"} 1"#,
            r#"broker_request_duration_seconds_count{http_code="404",method="none",route="none"} 1"#,
            r#"method="POST",route="/admin/1/tenants"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }

        world.stop();
        let gone = world.run_as("nobody", &["health", &address]);
        assert_eq!(gone.status.code(), Some(1));
    });
}

#[test]
fn a_vendor_for_trying_out_is_made_once_and_serves_a_proxy() {
    on_both(|world| {
        let folder = world.folder.path().join("made-up");
        fs::create_dir(&folder).unwrap();
        let url = world.broker.url();
        let folder_name = folder.to_str().unwrap();
        let command = ["try-out", "--folder", folder_name, "--broker", &url];
        let mut seen = Vec::new();
        for _ in 0..2 {
            let done = world.run_as("nobody", &command);
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{said}");
            seen.push(fs::read_to_string(folder.join("proxy.env")).unwrap());
        }
        assert_eq!(seen[0], seen[1], "a second run changes nothing");
        for file in ["proxy.env", "logdriver.env"] {
            let account = account_of(&fs::read_to_string(folder.join(file)).unwrap());
            let snapshot = world.broker.snapshot(&account);
            assert_eq!(snapshot.tenants.len(), 3, "{file}");
        }
    });
}
