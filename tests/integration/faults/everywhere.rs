//! Faults that every KMS can have: the way there, and what comes back from it.

use super::table::{Broken::*, Fault, Made::*, *};

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const LOGIN_PAGE: &str =
    "<!DOCTYPE html><html><body><form action=\"/login\">Log in to the network</form></body></html>";
const BLOCK_PAGE: &str =
    "<html><body><h1>403 Forbidden</h1>This site is blocked by policy.</body></html>";

#[rustfmt::skip]
pub(super) static FAULTS: &[Fault] = &[
    // The way there.
    fault("the host has no address", Endpoint(NoName), 208, &["name|address|resolve", "network|endpoint"], NO_SUCH_NAME),
    fault("nobody listens at the endpoint", Endpoint(Refuses), 208, &["refused", "network|endpoint"], CONNECTION_REFUSED),
    fault("packets to the endpoint vanish", Endpoint(Vanishes), 208, &["timed out|in time", "network|firewall"], TIMED_OUT),
    fault("the endpoint takes connections and stays silent", Endpoint(IsSilent), 208, &["timed out|in time", "network|firewall"], TIMED_OUT),
    fault("the endpoint cuts connections at once", Endpoint(Cuts), 208, &["cut|closed|broke", "network|firewall"], CONNECTION_CUT),
    fault("the endpoint answers the TLS handshake with noise", Endpoint(Babbles), 208, &["tls", "network|endpoint"], TLS_FAILED),
    fault("the endpoint speaks HTTP without TLS", Endpoint(IsPlain), 208, &["tls", "network|endpoint"], TLS_FAILED),
    fault("the certificate is a stranger's", Endpoint(IsAStranger), 208, &["certificate", "ca_file|authority"], CERTIFICATE_REFUSED),
    fault("the certificate is for another host name", Endpoint(HasAnotherName), 208, &["certificate", "name"], CERTIFICATE_NAME),
    fault("the certificate has expired", Endpoint(IsExpired), 208, &["certificate", "expired"], CERTIFICATE_EXPIRED),
    // What comes back.
    fault("the KMS never answers", Does("wrap", "hang"), 208, &["in time"], NO_ANSWER),
    fault("the answer comes a byte at a time", Does("wrap", "drip"), 208, &["in time"], NO_ANSWER),
    fault("the answer never ends", Does("wrap", "endless"), 208, &["in time"], NO_ANSWER),
    fault("the connection is reset instead of an answer", Does("wrap", "reset_before_head"), 208, &["broke|cut|reset|closed", "network|firewall"], CONNECTION_CUT),
    fault("the connection is reset in the middle of the answer", Does("wrap", "reset_after_head"), 208, &["broke|cut|reset|closed", "network|firewall"], CONNECTION_CUT),
    fault("the answer is cut off", Does("wrap", "truncate"), 208, &["broke|cut|reset|closed", "network|firewall"], CONNECTION_CUT),
    fault("garbage instead of HTTP", Does("wrap", "garbage"), 208, &["not http", "endpoint"], NOT_A_KMS),
    fault("headers without end", Does("wrap", "header_flood"), 208, &["http|head|long", "endpoint"], NOT_A_KMS),
    fault("an answer of a gigabyte", Does("wrap", "huge"), 204, &["too long", "endpoint"], NOT_A_KMS),
    fault("200 with an empty body", Answers("wrap", 200, JSON, ""), 204, &["endpoint"], NOT_A_KMS),
    fault("200 with a page to log in to the network", Answers("wrap", 200, HTML, LOGIN_PAGE), 204, &["endpoint"], NOT_A_KMS),
    fault("a redirect", Answers("wrap", 302, HTML, LOGIN_PAGE), 207, &["302", "endpoint"], NOT_A_KMS),
    fault("a page that says 403, of something on the way", Answers("wrap", 403, HTML, BLOCK_PAGE), 207, &["403"], NOT_A_KMS),
    fault("a page that says 404", Answers("wrap", 404, HTML, "<html><title>404</title></html>"), 207, &["404", "endpoint"], NOT_A_KMS),
    fault("a page that says 502, of a load balancer", Does("wrap", "html"), 208, &["502"], KMS_IN_TROUBLE),
    fault("503 without a body", Answers("wrap", 503, JSON, ""), 208, &["503"], KMS_IN_TROUBLE),
    // Rates.
    fault("throttled, without a word when to come back", Throttles("wrap", None), 209, &["rate|quota|limit"], THROTTLED),
    fault("throttled for an hour", Throttles("wrap", Some(3600)), 209, &["rate|quota|limit"], THROTTLED),
    // What a second try heals.
    healed("throttled once", Throttles("wrap", None), WELL).once(),
    healed("500 once", Answers("wrap", 500, JSON, ""), WELL).once(),
    healed("a reset once", Does("wrap", "reset_before_head"), WELL).once(),
    healed("an answer cut off once", Does("wrap", "truncate"), WELL).once(),
    // Time. Within a day the proxy goes by the KMS's own.
    healed("this machine's clock is 10 minutes slow", Ahead(600), CLOCK_WRONG),
    healed("this machine's clock is 10 minutes fast", Ahead(-600), CLOCK_WRONG),
];
