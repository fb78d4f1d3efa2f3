//! Which of the four a request is for. One port serves all, because their paths differ; the host decides where they do not.

use super::{
    exchange::{Provider, Request},
    gcp,
};

/// Hosts by what they end in, for requests whose path tells nothing.
const HOSTS: [(&str, Provider); 12] = [
    ("amazonaws.com", Provider::Aws),
    ("amazonaws.com.cn", Provider::Aws),
    ("api.aws", Provider::Aws),
    ("googleapis.com", Provider::Gcp),
    ("vault.azure.net", Provider::Azure),
    ("managedhsm.azure.net", Provider::Azure),
    ("vault.usgovcloudapi.net", Provider::Azure),
    ("managedhsm.usgovcloudapi.net", Provider::Azure),
    ("vault.azure.cn", Provider::Azure),
    ("managedhsm.azure.cn", Provider::Azure),
    ("login.microsoftonline.com", Provider::Azure),
    ("login.microsoftonline.us", Provider::Azure),
];

/// `None` for what belongs to nobody.
pub(crate) fn provider(request: &Request) -> Option<Provider> {
    let path = request.path();
    if path == "/" {
        return Some(Provider::Aws);
    }
    if path.starts_with("/api/v1/") {
        return Some(Provider::Thales);
    }
    if path.starts_with("/v1/") || gcp::is_token_path(path) {
        return Some(Provider::Gcp);
    }
    let is_entra = path.ends_with("/oauth2/v2.0/token")
        || path.ends_with("/v2.0/.well-known/openid-configuration")
        || path == "/common/discovery/instance";
    if path.starts_with("/keys/") || is_entra {
        return Some(Provider::Azure);
    }
    if request.parts.headers.contains_key("x-amz-target") {
        return Some(Provider::Aws);
    }
    let host = request.host();
    let found = HOSTS.iter().find(|(suffix, _)| host.ends_with(suffix));
    found.map(|(_, provider)| *provider)
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn path_decides_and_then_the_host() {
        let to = |url: &str| provider(&Request::made(Method::POST, url, &[], ""));
        for (url, expected) in [
            ("https://localhost:1/", Some(Provider::Aws)),
            (
                "https://localhost/v1/projects/p:encrypt",
                Some(Provider::Gcp),
            ),
            ("https://oauth2.googleapis.com/token", Some(Provider::Gcp)),
            (
                "https://localhost/keys/k//wrapkey?api-version=7.4",
                Some(Provider::Azure),
            ),
            (
                "https://localhost/some-tenant/oauth2/v2.0/token",
                Some(Provider::Azure),
            ),
            (
                "https://localhost/api/v1/crypto/encrypt",
                Some(Provider::Thales),
            ),
            (
                "https://acme.vault.azure.net/secrets/x",
                Some(Provider::Azure),
            ),
            ("https://cloudkms.googleapis.com/v2/x", Some(Provider::Gcp)),
            ("https://localhost/favicon.ico", None),
        ] {
            assert_eq!(to(url), expected, "{url}");
        }
    }
}
