//! What can be wrong at AWS KMS and STS.
//!
//! Codes: the KMS and STS API references, "Errors" of Encrypt, Decrypt and AssumeRole, and "Common Errors".

use super::{
    table::{Broken::*, Fault, Made::*, *},
    worlds::{add_other_key, aws_access_key, aws_key, aws_role},
};
use tsp_loadtest::kmssim::AwsKeyState;

const SCOPE: &str = "Credential should be scoped to a valid region.";

#[rustfmt::skip]
pub(super) static FAULTS: &[Fault] = &[
    // The credential: an access key.
    fault("the secret is not the access key's", Config(&[("credentials.secretAccessKey", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")]), 206, &["InvalidSignatureException", "credential"], WRONG_SECRET),
    fault("no such access key", Config(&[("credentials.accessKeyId", "AKIANOSUCHKEYATALL00")]), 206, &["UnrecognizedClientException", "credential"], UNKNOWN_CREDENTIAL),
    fault("the access key was deactivated", Credential("disable"), 206, &["UnrecognizedClientException", "credential"], UNKNOWN_CREDENTIAL),
    fault("the access key was deleted between wrap and unwrap", Credential("revoke"), 206, &["UnrecognizedClientException", "credential"], UNKNOWN_CREDENTIAL).on_unwrap(),
    fault("the session token has expired", Both(&[World(|world, key| { let doc = aws_access_key(world, key); doc.session_token = Some("FwoGZXIvYXdzEXPIRED".into()); doc.expires_unix_s = Some(1); }), Config(&[("credentials.sessionToken", "FwoGZXIvYXdzEXPIRED")])]), 206, &["ExpiredTokenException", "credential"], EXPIRED_CREDENTIAL),
    fault("the session token is missing", World(|world, key| aws_access_key(world, key).session_token = Some("FwoGZXIvYXdzNEEDED".into())), 206, &["UnrecognizedClientException", "credential"], UNKNOWN_CREDENTIAL),
    fault("the endpoint is of another region", Says("wrap", "InvalidSignatureException", SCOPE), 206, &["InvalidSignatureException", "region"], WRONG_REGION),
    fault("the request is not signed, because something on the way takes headers out", Says("wrap", "MissingAuthenticationTokenException", "Request is missing Authentication Token"), 206, &["MissingAuthenticationTokenException"], CREDENTIAL_REFUSED),
    // The credential: a role.
    fault("the secret is not the access key's (STS)", Config(&[("credentials.secretAccessKey", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")]), 206, &["SignatureDoesNotMatch", "credential"], WRONG_SECRET).other_proof(),
    fault("no such access key (STS)", Config(&[("credentials.accessKeyId", "AKIANOSUCHKEYATALL00")]), 206, &["InvalidClientTokenId", "credential"], UNKNOWN_CREDENTIAL).other_proof(),
    fault("the role does not exist", Config(&[("credentials.roleArn", "arn:aws:iam::444455556666:role/nobody")]), 207, &["AccessDenied", "role"], CREDENTIAL_NOT_ALLOWED).other_proof(),
    fault("the role does not trust the proxy", World(|world, key| aws_role(world, key).trusts.clear()), 207, &["AccessDenied", "role"], CREDENTIAL_NOT_ALLOWED).other_proof(),
    fault("the external id is not the role's", Config(&[("credentials.externalId", "somebody-else")]), 207, &["AccessDenied", "role"], CREDENTIAL_NOT_ALLOWED).other_proof(),
    fault("the role's sessions are shorter than asked for", Config(&[("credentials.durationS", "43200")]), 207, &["ValidationError", "DurationSeconds"], CREDENTIAL_REFUSED).other_proof(),
    fault("STS is not switched on in the region", Says("token", "RegionDisabledException", "STS is not activated in this region for account:111122223333."), 207, &["RegionDisabledException", "region"], WRONG_REGION).other_proof(),
    fault("the role was taken away between wrap and unwrap", Both(&[Credential("disable"), Credential("revoke_tokens")]), 207, &["AccessDenied", "role"], CREDENTIAL_NOT_ALLOWED).other_proof().on_unwrap(),
    fault("the role may not use the key", Key("deny"), 207, &["AccessDeniedException", "permission"], NO_PERMISSION).other_proof(),
    healed("the sessions were revoked between wrap and unwrap", Credential("revoke_tokens"), WELL).other_proof().on_unwrap(),
    fault("STS limits the rate", Throttles("token", None), 209, &["Throttling", "rate|quota|limit"], THROTTLED).other_proof(),
    fault("STS says 503", Says("token", "ServiceUnavailable", "The request has failed due to a temporary failure of the server."), 208, &["STS", "ServiceUnavailable"], KMS_IN_TROUBLE).other_proof(),
    fault("STS never answers", Does("token", "hang"), 208, &["STS", "in time"], NO_ANSWER).other_proof(),
    fault("STS answers with something else", Answers("token", 200, "text/html", "<html>hello</html>"), 208, &["STS", "endpoint"], NOT_A_KMS).other_proof(),
    fault("nobody listens where STS should be", TokenEndpoint(Refuses), 208, &["STS", "refused"], CONNECTION_REFUSED).other_proof(),
    fault("the certificate of STS is a stranger's", TokenEndpoint(IsAStranger), 208, &["STS", "certificate"], CERTIFICATE_REFUSED).other_proof(),
    healed("this machine's clock is 10 minutes slow (STS)", Ahead(600), CLOCK_WRONG).other_proof(),
    // The key.
    fault("no such key", Config(&[("key_path.keyID", "00000000-0000-4000-8000-000000000000")]), 207, &["NotFoundException", "key"], NO_SUCH_KEY),
    fault("no such alias", Config(&[("key_path.keyID", "alias/no-such-alias")]), 207, &["NotFoundException", "key"], NO_SUCH_KEY),
    fault("the key is in another region", Config(&[("key_path.region", "eu-west-1")]), 207, &["region"], NO_SUCH_KEY),
    fault("the key was deleted", Key("delete"), 207, &["NotFoundException", "key"], NO_SUCH_KEY),
    fault("the key is disabled", Key("disable"), 207, &["DisabledException", "key"], KEY_DISABLED),
    fault("the key was disabled between wrap and unwrap", Key("disable"), 207, &["DisabledException", "key"], KEY_DISABLED).on_unwrap(),
    fault("the key waits for its deletion", Key("schedule_deletion"), 207, &["KMSInvalidStateException", "deletion"], KEY_DISABLED),
    fault("the key's imported material has expired", Key("expire"), 207, &["KMSInvalidStateException", "import"], KEY_DISABLED),
    fault("the key's custom key store is away", World(|world, key| aws_key(world, key).state = AwsKeyState::Unavailable), 207, &["KMSInvalidStateException", "unavailable"], KEY_DISABLED),
    fault("the key is for message authentication", World(|world, key| aws_key(world, key).usage = "GENERATE_VERIFY_MAC".into()), 207, &["InvalidKeyUsageException", "key"], KEY_UNUSABLE),
    fault("no permission to encrypt and decrypt", Key("deny"), 207, &["AccessDeniedException", "permission"], NO_PERMISSION),
    fault("no permission to decrypt", KeyFor("deny", "unwrap"), 207, &["AccessDeniedException", "permission"], NO_PERMISSION).on_unwrap(),
    fault("the config names another key than when it was wrapped", Both(&[World(add_other_key), Config(&[("key_path.keyID", "99999999-9999-4999-8999-999999999999")])]), 205, &["IncorrectKeyException", "edek"], WELL).on_unwrap(),
    fault("the ciphertext is damaged", Damaged, 205, &["InvalidCiphertextException", "edek"], WELL).on_unwrap(),
    // The KMS.
    fault("the account is closed", Account("close"), 210, &["SubscriptionRequiredException", "account"], ACCOUNT),
    fault("the account is not signed up for KMS", Says("wrap", "OptInRequired", "The AWS Access Key Id needs a subscription for the service"), 210, &["OptInRequired", "account"], ACCOUNT),
    fault("the quota of the account is used up", Says("wrap", "LimitExceededException", "The request was rejected because a quota was exceeded."), 209, &["LimitExceededException", "rate|quota|limit"], THROTTLED),
    fault("500 of KMS itself", Says("wrap", "KMSInternalException", "The request was rejected because an internal exception occurred."), 208, &["KMSInternalException"], KMS_IN_TROUBLE),
    fault("KMS waited in vain for something behind it", Says("wrap", "DependencyTimeoutException", "The system timed out while trying to fulfill the request."), 208, &["DependencyTimeoutException"], KMS_IN_TROUBLE),
    fault("the key is not available for the moment", Says("wrap", "KeyUnavailableException", "The request was rejected because the specified KMS key was not available."), 208, &["KeyUnavailableException"], KMS_IN_TROUBLE),
    fault("200 with the body of an error", SaysOk("wrap", "ThrottlingException", "Rate exceeded"), 204, &["endpoint"], NOT_A_KMS),
    fault("the answer lacks the ciphertext", Changes("wrap", r#"{"CiphertextBlob":null}"#), 204, &["endpoint"], NOT_A_KMS),
    healed("500 of KMS itself, once", Says("wrap", "KMSInternalException", "An internal exception occurred."), WELL).once(),
    fault("this machine's clock is 2 days slow", Ahead(172_800), 206, &["InvalidSignatureException", "clock"], CLOCK_WRONG),
];
