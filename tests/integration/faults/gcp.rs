//! What can be wrong at Google Cloud KMS and at Google's token endpoint.
//!
//! Codes: `google.rpc.Code`, `google/api/error_reason.proto`, RFC 6749 section 5.2, and what Google's front ends are seen
//! to say.

use super::{
    table::{Broken::*, Fault, Made::*, *},
    worlds::{STRANGERS_KEY, add_other_key, gcp_key},
};

#[rustfmt::skip]
pub(super) static FAULTS: &[Fault] = &[
    // The credential: a service account that signs its own tokens. Cloud KMS does not tell what is wrong with one.
    fault("the private key is not the account's", Config(&[("credentials.private_key", STRANGERS_KEY)]), 206, &["JWT_TOKEN_INVALID", "credential"], CREDENTIAL_REFUSED),
    fault("the private key was deleted", Config(&[("credentials.private_key_id", "ffffffffffffffffffffffffffffffffffffffff")]), 206, &["JWT_TOKEN_INVALID", "credential"], CREDENTIAL_REFUSED),
    fault("no such service account", Config(&[("credentials.client_email", "nobody@no-such.iam.gserviceaccount.com")]), 206, &["JWT_TOKEN_INVALID", "credential"], CREDENTIAL_REFUSED),
    fault("the service account is disabled", Credential("disable"), 206, &["ACCOUNT_STATE_INVALID", "account"], CREDENTIAL_NOT_ALLOWED),
    fault("the service account was deleted between wrap and unwrap", Credential("revoke"), 206, &["ACCOUNT_STATE_INVALID", "account"], CREDENTIAL_NOT_ALLOWED).on_unwrap(),
    // The credential: tokens from the token endpoint.
    fault("the private key is not the account's (token endpoint)", Config(&[("credentials.private_key", STRANGERS_KEY)]), 206, &["invalid_grant", "Invalid JWT Signature", "credential"], WRONG_SECRET).other_proof(),
    fault("no such service account (token endpoint)", Config(&[("credentials.client_email", "nobody@no-such.iam.gserviceaccount.com")]), 206, &["invalid_grant", "account not found"], UNKNOWN_CREDENTIAL).other_proof(),
    fault("the service account is disabled (token endpoint)", Credential("disable"), 206, &["disabled_client", "credential"], CREDENTIAL_NOT_ALLOWED).other_proof(),
    fault("the service account may not ask for tokens", Says("token", "unauthorized_client", "Client is unauthorized to retrieve access tokens using this method."), 206, &["unauthorized_client", "credential"], CREDENTIAL_NOT_ALLOWED).other_proof(),
    healed("the token was revoked between wrap and unwrap", Credential("revoke_tokens"), WELL).other_proof().on_unwrap(),
    fault("the token endpoint limits the rate", Throttles("token", None), 209, &["rate|quota|limit"], THROTTLED).other_proof(),
    fault("the token endpoint says 503", Answers("token", 503, "text/html", ""), 208, &["token", "503"], KMS_IN_TROUBLE).other_proof(),
    fault("the token endpoint is in trouble and says so", Says("token", "internal_failure", "Backend error"), 208, &["token", "internal_failure"], KMS_IN_TROUBLE).other_proof(),
    fault("the token endpoint never answers", Does("token", "hang"), 208, &["token", "in time"], NO_ANSWER).other_proof(),
    fault("the token endpoint answers with something else", Answers("token", 200, "text/html", "<html>hello</html>"), 208, &["token", "endpoint"], NOT_A_KMS).other_proof(),
    fault("the token endpoint answers without a token", Changes("token", r#"{"access_token":null}"#), 208, &["token", "endpoint"], NOT_A_KMS).other_proof(),
    fault("nobody listens where the token endpoint should be", TokenEndpoint(Refuses), 208, &["token", "refused"], CONNECTION_REFUSED).other_proof(),
    fault("the host of the token endpoint has no address", TokenEndpoint(NoName), 208, &["token", "name|address|resolve"], NO_SUCH_NAME).other_proof(),
    healed("this machine's clock is 10 minutes slow (token endpoint)", Ahead(600), CLOCK_WRONG).other_proof(),
    healed("this machine's clock is 10 minutes fast (token endpoint)", Ahead(-600), CLOCK_WRONG).other_proof(),
    // The key.
    fault("no such key", Config(&[("key_path.cryptoKeyId", "no-such-key")]), 207, &["NOT_FOUND", "key"], NO_SUCH_KEY),
    fault("no such key ring", Config(&[("key_path.keyRingId", "no-such-ring")]), 207, &["NOT_FOUND", "key"], NO_SUCH_KEY),
    fault("the key is in another location", Config(&[("key_path.locationId", "us-east1")]), 207, &["NOT_FOUND", "key"], NO_SUCH_KEY),
    fault("the key is in another project, or there is no such project", Config(&[("key_path.projectId", "no-such-project")]), 207, &["IAM_PERMISSION_DENIED", "permission"], NO_PERMISSION),
    fault("the key's version is disabled", Key("disable"), 207, &["FAILED_PRECONDITION|KEY_DISABLED", "disabled"], KEY_DISABLED),
    fault("the key's version was disabled between wrap and unwrap", Key("disable"), 207, &["FAILED_PRECONDITION|KEY_DISABLED", "disabled"], KEY_DISABLED).on_unwrap(),
    fault("the key's version waits for its destruction", Key("schedule_deletion"), 207, &["DESTROY_SCHEDULED"], KEY_DISABLED),
    fault("the key's version was destroyed", Key("delete"), 207, &["DESTROYED"], KEY_DISABLED),
    fault("the key is for signing", World(|world, key| gcp_key(world, key).purpose = "ASYMMETRIC_SIGN".into()), 207, &["FAILED_PRECONDITION", "purpose"], KEY_UNUSABLE),
    fault("the key has no primary version", World(|world, key| gcp_key(world, key).primary = 0), 207, &["FAILED_PRECONDITION", "primary"], KEY_UNUSABLE),
    fault("the external key manager behind the key is away", Says("wrap", "FAILED_PRECONDITION", "External key error: the EKM could not be reached."), 207, &["FAILED_PRECONDITION", "key"], KEY_UNUSABLE),
    fault("no permission to encrypt and decrypt", Key("deny"), 207, &["IAM_PERMISSION_DENIED", "permission"], NO_PERMISSION),
    fault("no permission to decrypt", KeyFor("deny", "unwrap"), 207, &["IAM_PERMISSION_DENIED", "permission"], NO_PERMISSION).on_unwrap(),
    fault("VPC Service Controls keep the proxy out", Says("wrap", "SECURITY_POLICY_VIOLATED", "Request is prohibited by organization's policy."), 207, &["SECURITY_POLICY_VIOLATED", "policy|perimeter"], KEPT_OUT),
    fault("the organisation allows other locations only", Says("wrap", "LOCATION_POLICY_VIOLATED", "Location policy violated."), 207, &["LOCATION_POLICY_VIOLATED", "policy"], KEPT_OUT),
    fault("the config names another key than when it was wrapped", Both(&[World(add_other_key), Config(&[("key_path.cryptoKeyId", "other")])]), 205, &["INVALID_ARGUMENT", "edek"], WELL).on_unwrap(),
    fault("the ciphertext is damaged", Damaged, 205, &["INVALID_ARGUMENT", "edek"], WELL).on_unwrap(),
    // The KMS.
    fault("billing is off", Account("close"), 210, &["BILLING_DISABLED", "account|billing"], ACCOUNT),
    fault("the project is suspended", Account("suspend"), 210, &["CONSUMER_SUSPENDED", "account|project"], ACCOUNT),
    fault("the Cloud KMS API is not enabled", Account("disable_service"), 207, &["SERVICE_DISABLED", "api"], API_NOT_ENABLED),
    fault("the rate of the project is used up, said with 403", Says("wrap", "RATE_LIMIT_EXCEEDED", "Quota exceeded for quota metric 'Cryptographic requests'."), 209, &["RATE_LIMIT_EXCEEDED", "rate|quota|limit"], THROTTLED),
    fault("the quota of the project is used up", Says("wrap", "RESOURCE_QUOTA_EXCEEDED", "Quota exceeded."), 209, &["RESOURCE_QUOTA_EXCEEDED", "rate|quota|limit"], THROTTLED),
    fault("500 of Cloud KMS itself", Says("wrap", "INTERNAL", "Internal error encountered."), 208, &["INTERNAL"], KMS_IN_TROUBLE),
    fault("503 of Cloud KMS itself", Says("wrap", "UNAVAILABLE", "The service is currently unavailable."), 208, &["UNAVAILABLE"], KMS_IN_TROUBLE),
    fault("504 of Cloud KMS itself", Says("wrap", "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."), 208, &["DEADLINE_EXCEEDED"], KMS_IN_TROUBLE),
    fault("200 with the body of an error", SaysOk("wrap", "RESOURCE_EXHAUSTED", "Quota exceeded."), 204, &["endpoint"], NOT_A_KMS),
    fault("the ciphertext does not match its checksum", Changes("wrap", r#"{"ciphertextCrc32c":"1"}"#), 204, &["checksum"], DATA_ALTERED),
    fault("the plaintext did not arrive whole", Changes("wrap", r#"{"verifiedPlaintextCrc32c":null}"#), 204, &["checksum"], DATA_ALTERED),
    fault("the plaintext does not match its checksum", Changes("unwrap", r#"{"plaintextCrc32c":"1"}"#), 205, &["checksum"], DATA_ALTERED).on_unwrap(),
    fault("the answer is of another key", Changes("wrap", r#"{"name":"projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"}"#), 204, &["another key", "endpoint"], NOT_A_KMS),
    healed("a checksum that does not match, once", Changes("wrap", r#"{"ciphertextCrc32c":"1"}"#), WELL).once(),
    healed("503 of Cloud KMS itself, once", Says("wrap", "UNAVAILABLE", "The service is currently unavailable."), WELL).once(),
    fault("this machine's clock is 2 days slow", Ahead(172_800), 206, &["clock"], CLOCK_WRONG),
];
