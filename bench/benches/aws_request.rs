//! Requests to AWS KMS: by hand with a kept signing key, and by the whole path of the `aws-sigv4` crate.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::io;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{self, SignableBody, SignableRequest, SigningSettings},
    sign::v4::SigningParams,
};
use http::header::AUTHORIZATION;
use tsp_bench::{AWS_CREDENTIALS, Case, aws_kms, aws_session_token, dek, now};
use tsp_kms::{HttpRequest, RemoteKms, Session};

/// Signs what we built as the crate does it: the same request, so the signature must be the same.
fn sign_by_crate(request: &HttpRequest, token: Option<&str>) -> http::HeaderMap {
    let (id, secret) = AWS_CREDENTIALS;
    let identity = Credentials::new(id, secret, token.map(str::to_owned), None, "bench").into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region("eu-west-1")
        .name("kms")
        .time(now())
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let header = |name| (name, request.header(name).unwrap());
    let headers = ["content-type", "host", "x-amz-target"].map(header);
    let signable = SignableRequest::new(
        "POST",
        "https://kms.eu-west-1.amazonaws.com/",
        headers.into_iter(),
        SignableBody::Bytes(request.body()),
    );
    let (instructions, _) = http_request::sign(signable.unwrap(), &params)
        .unwrap()
        .into_parts();
    let mut signed = http::Request::new(());
    instructions.apply_to_request_http1x(&mut signed);
    signed.into_parts().0.headers
}

fn main() -> io::Result<()> {
    let (dek, token) = (dek(), aws_session_token());
    let (lasting, temporary) = (aws_kms(None), aws_kms(Some(token.clone())));
    let wrap = |kms: &dyn RemoteKms, session: &mut Session| {
        kms.wrap_request(&dek, None, session, now()).unwrap()
    };
    for (kms, token) in [(&lasting, None), (&temporary, Some(token.as_str()))] {
        let ours = wrap(&**kms, &mut Session::default());
        let theirs = sign_by_crate(&ours, token);
        let theirs = theirs.get(AUTHORIZATION).unwrap();
        assert_eq!(ours.header("authorization").unwrap(), theirs);
    }
    let blob = [0x4c; 184];
    let unwrap = |session: &mut Session| lasting.unwrap_request(&blob, None, session, now());
    assert!(unwrap(&mut Session::default()).is_ok());

    let [mut first, mut second, mut third] = [(); 3].map(|()| Session::default());
    let built = wrap(&*lasting, &mut Session::default());
    tsp_bench::main(
        "aws",
        vec![
            Case::new("wrap request", || wrap(&*lasting, &mut first)),
            Case::new("wrap request with a session token", || {
                wrap(&*temporary, &mut second)
            }),
            Case::new("wrap request, first of the day", || {
                wrap(&*lasting, &mut Session::default())
            }),
            Case::new("unwrap request", || unwrap(&mut third).unwrap()),
            Case::new("signature by the crate", || sign_by_crate(&built, None)).without_budget(),
        ],
    )
}
