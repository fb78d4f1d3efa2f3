//! What `tsp dev` prints for the person in front of it.

use std::{fmt::Write as _, io, path::PathBuf};

use crate::{Listening, dev_broker, health::reachable, source::dev};

/// Where the made-up tenants' keys are.
pub(crate) enum Keys {
    InMemory,
    In(PathBuf),
    /// At a broker that was started for it.
    AtBroker {
        url: String,
        program: PathBuf,
        /// What its admin's shell sets.
        variables: [(&'static str, String); 2],
        /// Where the logdriver writes what it gets; `None` if there are no events.
        logdriver: Option<io::Result<PathBuf>>,
    },
}

/// What `tsp dev` prints, on standard error: standard output is the log, and the log never holds an API key.
pub(crate) fn greet(listening: &Listening, key: &str, keys: &Keys) {
    let http = reachable(listening.http);
    let health = reachable(listening.health);
    let tenants: Vec<_> = match keys {
        Keys::InMemory | Keys::In(_) => dev::tenant_ids().collect(),
        Keys::AtBroker { .. } => dev_broker::tenant_ids(),
    };
    // As a shell's word.
    let quoted_key = key.replace('\'', r"'\''");
    let mut text =
        String::from("\ntsp dev: made-up tenants, for trying out. Not for real data.\n\n");
    // Writing to a string cannot fail.
    let _ = match keys {
        Keys::InMemory => writeln!(
            text,
            "  ***  THE KEYS LIVE IN MEMORY ONLY. When this process ends, whatever was encrypted  ***\n  \
               ***  under them can never be decrypted again. Keep them with --state FILE.         ***\n"
        ),
        Keys::In(path) => writeln!(
            text,
            "  The keys are kept in {}. Whoever has it can decrypt.\n",
            path.display()
        ),
        Keys::AtBroker { .. } => writeln!(
            text,
            "  ***  THE BROKER AND ALL KEYS GO WITH THIS PROCESS, and with them whatever was encrypted under them.  ***\n"
        ),
    };
    let _ = writeln!(text, "  base URL  http://{http}");
    let _ = writeln!(text, "  API key   {key}");
    let _ = writeln!(text, "  tenants   {}", tenants.join(", "));
    let _ = writeln!(text, "  health    http://{health}/ready");
    let _ = writeln!(text, "  metrics   http://{health}/metrics");
    if let Keys::AtBroker { url, .. } = keys {
        let _ = writeln!(text, "  broker    {url}");
    }
    if let Some(event) = listening.event {
        let _ = writeln!(text, "  events    tcp://{}", reachable(event));
    }
    if let Keys::AtBroker {
        logdriver: Some(logdriver),
        ..
    } = keys
    {
        let _ = match logdriver {
            Ok(path) => writeln!(text, "  logdriver {}", path.display()),
            Err(why) => writeln!(text, "  logdriver could not be started: {why}"),
        };
    }
    let _ = writeln!(
        text,
        "\nTry:\n\n  curl -sS http://{http}/api/1/document/wrap -H 'Authorization: cmk {quoted_key}' \
         -H 'Content-Type: application/json' \
         -d '{{\"tenantId\":\"tenant-a\",\"iclFields\":{{\"requestingId\":\"me\"}},\"customFields\":{{}}}}'\n"
    );
    if let Keys::AtBroker {
        program, variables, ..
    } = keys
    {
        let variables = variables.each_ref();
        let set = variables.map(|(name, value)| format!("{name}='{value}'"));
        let _ = writeln!(
            text,
            "Act as the vendor's admin; the proxy sees it within some seconds, or at once after SIGHUP:\n\n  \
             export {}\n  {} tenant create acme\n",
            set.join(" "),
            program.display()
        );
    }
    eprint!("{text}");
}
