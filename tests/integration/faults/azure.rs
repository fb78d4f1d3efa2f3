//! What can be wrong at Azure Key Vault and Entra.
//!
//! Codes: the Key Vault REST API reference, "REST API error codes" of its guide, and the list of AADSTS error codes.

use super::{
    table::{Broken::*, Fault, Made::*, *},
    worlds::{add_other_key, azure_app, azure_key, azure_vault},
};

const AUDIENCE: &str = r#"{"error":{"code":"Unauthorized","message":"AKV10022: Invalid audience. Expected https://vault.azure.net, found: https://vault.azure.cn.","innererror":{"code":"AKV10022"}}}"#;
const OTHER_DIRECTORY: &str = "00000000-1111-4222-8333-444444444444";

#[rustfmt::skip]
pub(super) static FAULTS: &[Fault] = &[
    // The credential: a client secret.
    fault("the secret is not the application's", Config(&[("credentials.clientSecret", "not~the~secret")]), 206, &["AADSTS7000215", "credential|secret"], WRONG_SECRET),
    fault("the secret has expired", World(|world, key| azure_app(world, key).secrets[0].expires_unix_s = Some(1)), 206, &["AADSTS7000222", "expired"], EXPIRED_CREDENTIAL),
    fault("no such application in the directory", Config(&[("credentials.clientId", "99999999-9999-4999-8999-999999999999")]), 207, &["AADSTS700016", "application"], UNKNOWN_CREDENTIAL),
    fault("no such directory", Config(&[("credentials.tenantGuid", OTHER_DIRECTORY)]), 207, &["AADSTS90002", "tenant|directory"], UNKNOWN_CREDENTIAL),
    fault("the application is disabled", Credential("disable"), 206, &["AADSTS7000112", "disabled"], CREDENTIAL_NOT_ALLOWED),
    fault("the application was deleted between wrap and unwrap", Both(&[Credential("revoke"), Credential("revoke_tokens")]), 207, &["AADSTS700016", "application"], UNKNOWN_CREDENTIAL).on_unwrap(),
    fault("conditional access keeps the application out", Says("token", "AADSTS53003", "Access has been blocked by Conditional Access policies."), 206, &["AADSTS53003", "blocked"], CREDENTIAL_NOT_ALLOWED),
    fault("the application is not assigned to a role", Says("token", "AADSTS50105", "The application is not assigned to a role for the resource."), 206, &["AADSTS50105", "assigned"], CREDENTIAL_NOT_ALLOWED),
    fault("the vault belongs to another directory", World(|world, key| azure_vault(world, key).tenant = OTHER_DIRECTORY.into()), 207, &["AKV10032|directory|tenant", "tenantguid"], WRONG_DIRECTORY),
    fault("the vault does not take the token", Answers("wrap", 401, "application/json", AUDIENCE), 206, &["AKV10022", "credential"], CREDENTIAL_REFUSED),
    healed("the token was revoked between wrap and unwrap", Credential("revoke_tokens"), WELL).on_unwrap(),
    // The credential: a certificate.
    fault("the certificate is not registered with the application", World(|world, key| azure_app(world, key).certificates.clear()), 206, &["AADSTS700027", "certificate"], WRONG_SECRET).other_proof(),
    healed("this machine's clock is 10 minutes slow (certificate)", Ahead(600), CLOCK_WRONG).other_proof(),
    healed("this machine's clock is 10 minutes fast (certificate)", Ahead(-600), CLOCK_WRONG).other_proof(),
    fault("this machine's clock is 2 days slow (certificate)", Ahead(172_800), 206, &["AADSTS700024", "clock"], CLOCK_WRONG).other_proof(),
    // The token endpoint.
    fault("Entra limits the rate", Throttles("token", None), 209, &["AADSTS90055", "rate|quota|limit"], THROTTLED),
    fault("Entra is in trouble and says so", Says("token", "AADSTS90033", "A transient error has occurred. Please try again."), 208, &["AADSTS90033"], KMS_IN_TROUBLE),
    fault("Entra says 502", Does("token", "html"), 208, &["Entra|token", "502"], KMS_IN_TROUBLE),
    fault("Entra never answers", Does("token", "hang"), 208, &["Entra|token", "in time"], NO_ANSWER),
    fault("Entra answers with something else", Answers("token", 200, "text/html", "<html>hello</html>"), 208, &["Entra|token", "endpoint|authority"], NOT_A_KMS),
    fault("nobody listens where Entra should be", TokenEndpoint(Refuses), 208, &["Entra|token", "refused"], CONNECTION_REFUSED),
    fault("the host of Entra has no address", TokenEndpoint(NoName), 208, &["Entra|token", "name|address|resolve"], NO_SUCH_NAME),
    fault("the certificate of Entra is a stranger's", TokenEndpoint(IsAStranger), 208, &["Entra|token", "certificate"], CERTIFICATE_REFUSED),
    // The key.
    fault("no such key", Says("wrap", "KeyNotFound", "A key with (name/id) no-such-key was not found in this key vault."), 207, &["KeyNotFound", "key"], NO_SUCH_KEY),
    fault("no such vault", Says("wrap", "VaultNotFound", "The vault was not found."), 207, &["VaultNotFound", "vault"], NO_SUCH_KEY),
    fault("the vault was deleted", Account("delete"), 207, &["VaultNotFound", "vault"], NO_SUCH_KEY),
    fault("the key was deleted", Key("delete"), 207, &["KeyNotFound", "key"], NO_SUCH_KEY),
    fault("the key was deleted between wrap and unwrap", Key("delete"), 207, &["KeyNotFound", "key"], NO_SUCH_KEY).on_unwrap(),
    fault("the key is just being recovered", Key("schedule_deletion"), 207, &["Conflict|ObjectIsBeingRecovered", "key"], KEY_UNUSABLE),
    fault("the key is disabled", Key("disable"), 207, &["KeyDisabled", "disabled"], KEY_DISABLED),
    fault("the key was disabled between wrap and unwrap", Key("disable"), 207, &["KeyDisabled", "disabled"], KEY_DISABLED).on_unwrap(),
    fault("the key has expired", Key("expire"), 207, &["expired"], KEY_DISABLED),
    fault("the key is not valid yet", World(|world, key| azure_key(world, key).versions[0].not_before_unix_s = Some(4_000_000_000)), 207, &["not yet valid|activated"], KEY_DISABLED),
    fault("the key may not wrap", World(|world, key| azure_key(world, key).operations = vec!["sign".into(), "verify".into()]), 207, &["operation"], KEY_UNUSABLE),
    fault("the key is not RSA", Says("wrap", "BadParameter", "Key and signing algorithm are incompatible. Key type EC, algorithm RSA-OAEP-256."), 207, &["BadParameter", "key"], KEY_UNUSABLE),
    fault("no permission to wrap and unwrap (access policy)", Key("deny"), 207, &["ForbiddenByPolicy", "permission"], NO_PERMISSION),
    fault("no permission to unwrap (access policy)", KeyFor("deny", "unwrap"), 207, &["ForbiddenByPolicy", "permission"], NO_PERMISSION).on_unwrap(),
    fault("no permission to wrap (role assignment)", Says("wrap", "ForbiddenByRbac", "Caller is not authorized to perform action on resource. If role assignments were changed recently, please observe propagation time."), 207, &["ForbiddenByRbac", "permission|role"], NO_PERMISSION),
    fault("the vault's firewall keeps the proxy out", Account("firewall"), 207, &["ForbiddenByFirewall", "address|firewall"], KEPT_OUT),
    fault("the vault takes private connections only", Says("wrap", "ForbiddenByConnection", "Public network access is disabled and request is not from a trusted service nor via an approved private link."), 207, &["ForbiddenByConnection", "private|network"], KEPT_OUT),
    fault("the config names another key than when it was wrapped", Both(&[World(add_other_key), Config(&[("key_path.keyName", "other")])]), 207, &["KeyNotFound", "version|edek"], WELL).on_unwrap(),
    fault("the ciphertext is damaged", Damaged, 205, &["BadParameter", "edek"], WELL).on_unwrap(),
    // The KMS.
    fault("the subscription is disabled", Account("close"), 210, &["ReadOnlyDisabledSubscription", "subscription"], ACCOUNT),
    fault("the subscription is gone", Says("wrap", "SubscriptionNotFound", "The subscription was not found."), 210, &["SubscriptionNotFound", "subscription"], ACCOUNT),
    fault("500 of Key Vault itself", Says("wrap", "InternalServerError", "An unexpected error occurred."), 208, &["InternalServerError"], KMS_IN_TROUBLE),
    fault("503 of Key Vault itself", Says("wrap", "ServiceUnavailable", "The service is temporarily unavailable."), 208, &["ServiceUnavailable"], KMS_IN_TROUBLE),
    fault("200 with the body of an error", SaysOk("wrap", "Throttled", "Too many requests"), 204, &["endpoint"], NOT_A_KMS),
    fault("the answer is of another vault", Changes("wrap", r#"{"kid":"https://somebody-else.vault.azure.net/keys/other/0123456789abcdef0123456789abcdef"}"#), 204, &["another|vault", "endpoint"], NOT_A_KMS),
    fault("the answer names no version of the key", Changes("wrap", r#"{"kid":"https://tsp.vault.azure.net/keys/other"}"#), 204, &["endpoint"], NOT_A_KMS),
    healed("503 of Key Vault itself, once", Says("wrap", "ServiceUnavailable", "The service is temporarily unavailable."), WELL).once(),
    healed("this machine's clock is 2 days slow", Ahead(172_800), CLOCK_WRONG),
];
