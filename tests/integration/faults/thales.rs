//! What can be wrong at Thales CipherTrust Manager.
//!
//! Codes: those of the appliance's own answers as its public clients know them; no list of them is published.

use super::{
    table::{Fault, Made::*, *},
    worlds::{add_other_key, thales_key},
};
use tsp_loadtest::kmssim::ThalesKeyState;

const NOT_ITS_TOKEN: &str = r#"{"code":5,"codeDesc":"NCERRUnauthorizedAccess: Unauthorized Access","message":"Bearer token malformed: Token is expired by 1h"}"#;

#[rustfmt::skip]
pub(super) static FAULTS: &[Fault] = &[
    // The credential. The appliance says the same of all that is wrong with one.
    fault("the password is wrong", Config(&[("credentials.password", "not-the-password")]), 206, &["NCERRUnauthorizedAccess", "password"], CREDENTIAL_REFUSED),
    fault("no such user", Config(&[("credentials.username", "nobody")]), 206, &["NCERRUnauthorizedAccess", "username"], CREDENTIAL_REFUSED),
    fault("the user is of another domain", Config(&[("credentials.authDomain", "elsewhere")]), 206, &["NCERRUnauthorizedAccess", "username"], CREDENTIAL_REFUSED),
    fault("the user is of another connection", Config(&[("credentials.connection", "ldap")]), 206, &["NCERRUnauthorizedAccess", "username"], CREDENTIAL_REFUSED),
    fault("the user is locked", Credential("disable"), 206, &["NCERRUnauthorizedAccess", "locked"], CREDENTIAL_REFUSED),
    fault("the user was deleted between wrap and unwrap", Both(&[Credential("revoke"), Credential("revoke_tokens")]), 206, &["NCERRUnauthorizedAccess", "username"], CREDENTIAL_REFUSED).on_unwrap(),
    fault("the user may not act in the domain", Says("token", "NCERRInsufficientPermissions", "The user may not act in domain acme."), 207, &["NCERRInsufficientPermissions", "domain"], CREDENTIAL_NOT_ALLOWED),
    fault("the appliance does not take its own token", Answers("wrap", 401, "application/json", NOT_ITS_TOKEN), 206, &["NCERRUnauthorizedAccess", "token"], CREDENTIAL_REFUSED),
    healed("the token was revoked between wrap and unwrap", Credential("revoke_tokens"), WELL).on_unwrap(),
    // Log-ins.
    fault("log-ins are throttled", Throttles("token", None), 209, &["rate|quota|limit"], THROTTLED),
    fault("log-ins get 503: the appliance is starting", Answers("token", 503, "text/html", "<html>Starting</html>"), 208, &["503"], KMS_IN_TROUBLE),
    fault("log-ins get 500 of the appliance itself", Says("token", "NCERRInternalServerError", "Internal server error"), 208, &["NCERRInternalServerError"], KMS_IN_TROUBLE),
    fault("log-ins are never answered", Does("token", "hang"), 208, &["in time"], NO_ANSWER),
    fault("log-ins are answered with something else", Answers("token", 200, "text/html", "<html>hello</html>"), 208, &["endpoint|serviceurl"], NOT_A_KMS),
    fault("log-ins are answered without a token", Changes("token", r#"{"jwt":null}"#), 208, &["endpoint|serviceurl"], NOT_A_KMS),
    fault("something else than the appliance is there", Answers("token", 404, "text/html", "<html><title>404</title></html>"), 207, &["404", "endpoint|serviceurl"], NOT_A_KMS),
    fault("the public key in the certificate is not the pinned one", Config(&[("spkiPin", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")]), 208, &["pin"], KEY_NOT_PINNED),
    // The key.
    fault("no such key", Config(&[("key_path.keyId", "no-such-key")]), 207, &["NCERRResourceNotFound", "key"], NO_SUCH_KEY),
    fault("the user may not see the key", World(|world, key| thales_key(world, key).allows = vec!["somebody-else".into()]), 207, &["NCERRResourceNotFound", "key"], NO_SUCH_KEY),
    fault("the key is in another domain", World(|world, key| thales_key(world, key).domain = "elsewhere".into()), 207, &["NCERRResourceNotFound", "key"], NO_SUCH_KEY),
    fault("the key is deactivated", Key("disable"), 207, &["NCERRConflict", "deactivated"], KEY_DISABLED),
    fault("the key was deactivated between wrap and unwrap", Key("disable"), 207, &["NCERRConflict", "deactivated"], KEY_DISABLED).on_unwrap(),
    fault("the key is compromised", Key("schedule_deletion"), 207, &["NCERRConflict", "compromised"], KEY_DISABLED),
    fault("the key is not active yet", World(|world, key| thales_key(world, key).versions[0].state = ThalesKeyState::PreActive), 207, &["NCERRConflict", "pre-active"], KEY_DISABLED),
    fault("the key was destroyed", Key("delete"), 207, &["NCERRConflict", "destroyed"], KEY_DISABLED),
    fault("the key may decrypt only", World(|world, key| thales_key(world, key).usage_mask = 8), 207, &["NCERRConflict", "usage"], KEY_UNUSABLE),
    fault("the key is not AES", Says("wrap", "NCERRInvalidParamValue", "Invalid mode gcm for the key's algorithm RSA."), 207, &["NCERRInvalidParamValue", "key"], KEY_UNUSABLE),
    fault("the answer lacks the tag of AES-GCM", Changes("wrap", r#"{"tag":null}"#), 204, &["gcm|key"], KEY_UNUSABLE),
    fault("no permission to encrypt and decrypt", Key("deny"), 207, &["NCERRInsufficientPermissions", "permission"], NO_PERMISSION),
    fault("no permission to decrypt", KeyFor("deny", "unwrap"), 207, &["NCERRInsufficientPermissions", "permission"], NO_PERMISSION).on_unwrap(),
    fault("the config names another key than when it was wrapped", Both(&[World(add_other_key), Config(&[("key_path.keyId", "other")])]), 205, &["NCERRCryptoOperationFailed", "edek"], WELL).on_unwrap(),
    fault("the ciphertext is damaged", Damaged, 205, &["NCERRCryptoOperationFailed", "edek"], WELL).on_unwrap(),
    fault("the version that wrapped is gone", Says("unwrap", "NCERRResourceNotFound", "Resource not found"), 207, &["NCERRResourceNotFound", "key"], NO_SUCH_KEY).on_unwrap(),
    // The appliance.
    fault("the licence lacks the feature", Says("wrap", "NCERRInsufficientPermissions", "License not installed for this feature."), 210, &["License not installed", "account|licence"], ACCOUNT),
    fault("500 of the appliance itself", Says("wrap", "NCERRInternalServerError", "Internal server error"), 208, &["NCERRInternalServerError"], KMS_IN_TROUBLE),
    fault("something on the way changes the request", Says("wrap", "NCERRBadRequest", "Accept header is invalid."), 204, &["NCERRBadRequest"], OPERATION_FAILED),
    fault("200 with the body of an error", SaysOk("wrap", "NCERRInternalServerError", "Internal server error"), 204, &["endpoint|serviceurl"], NOT_A_KMS),
    healed("500 of the appliance itself, once", Says("wrap", "NCERRInternalServerError", "Internal server error"), WELL).once(),
    healed("this machine's clock is 2 days slow", Ahead(172_800), CLOCK_WRONG),
];
