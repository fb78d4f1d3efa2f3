//! Bodies of the type `application/x-www-form-urlencoded`, with secrets in them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use crate::{Endpoint, HttpRequest};

/// A request that posts `fields` and wants JSON back.
pub(crate) fn post(endpoint: &Endpoint, path: &str, fields: &[(&str, &str)]) -> HttpRequest {
    let host = endpoint.host_header();
    let headers = [
        ("accept", "application/json"),
        ("content-type", CONTENT_TYPE),
        ("host", &host),
    ];
    HttpRequest::post(path, headers.into_iter(), &form(fields))
}

/// Their media type.
const CONTENT_TYPE: &str = "application/x-www-form-urlencoded";

/// All but the unreserved characters (RFC 3986, section 2.3). A blank becomes `%20`, which every reader of forms takes,
/// as readers of URLs do.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Spells `fields` in their order, into a buffer that is allocated once, at its full size.
pub(crate) fn form(fields: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    let encoded_bytes = |text| {
        utf8_percent_encode(text, RESERVED)
            .map(str::len)
            .sum::<usize>()
    };
    // Per field an equals sign and an ampersand, of which the first has none.
    let size: usize = fields
        .iter()
        .map(|(name, value)| encoded_bytes(name) + encoded_bytes(value) + 2)
        .sum();
    let mut body = Zeroizing::new(Vec::with_capacity(size));
    for (index, (name, value)) in fields.iter().enumerate() {
        if index > 0 {
            body.push(b'&');
        }
        for (before, text) in [("", *name), ("=", *value)] {
            body.extend_from_slice(before.as_bytes());
            for piece in utf8_percent_encode(text, RESERVED) {
                body.extend_from_slice(piece.as_bytes());
            }
        }
    }
    assert!(body.len() <= size, "the buffer did not grow");
    body
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_form_reserves_is_escaped() {
        let body = form(&[("a b", "~+/=&%"), ("c", ""), ("d", "ä.-_9")]);
        assert_eq!(
            String::from_utf8_lossy(&body),
            "a%20b=~%2B%2F%3D%26%25&c=&d=%C3%A4.-_9"
        );
        assert_eq!(form(&[]).len(), 0);
    }

    proptest! {
        #[test]
        fn a_form_reads_as_it_was_written(fields in prop::collection::vec((".{0,20}", ".{0,60}"), 0..5)) {
            let pairs: Vec<_> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
            let read: Vec<_> = form_urlencoded::parse(&form(&pairs)).into_owned().collect();
            prop_assert_eq!(read, fields);
        }
    }
}
