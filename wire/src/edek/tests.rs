use aes_gcm::{
    Aes256Gcm, Nonce,
    aead::{Aead as _, KeyInit as _},
};
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;

use super::*;

// The examples of this file share one DEK, wrapped by a local KMS (`LKW1`, nonce, ciphertext, tag) of config 41.

const DEK: &str = "r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=";
const LOCAL_KEY: &str = "80f38bd88b9666851cdf73a8a02c387894c09663d2b534a39c3fdbf0da404d88";
const LEASED_KEY: &str = "b91ab4021e8bd25fd9f8749eff5140f464f2480ca96c5967f9a5e79e74180776";

const UNLEASED: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";
const UNLEASED_STRAY_OUTER_FIELD: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKTIEYWNtZQ==";
const REKEYED: &str = "CkQKQExLVzHJrQJ4LJSxCW+Qu5YY3P46se52WYMFOyFQqeffQePsrN9zXejDJBZPzG9DLA5I2VYg9Ve52IJuZ8Xgk5YQTQ==";
const LEASED: &str = "Co0BCjDbDJIiUdkh/W2RYPtBlAFdgZFcJtAeGnC/6FxqXs4WTe3vpn5J2ikftnx2Kc9n4L8QKRjZNiIM1br530s4xSCVFDPgKkYKRApATEtXMYzPUy+9CMYNDqVd6TpEdUCuRqvON204TbEC8VExy1sVTYFu3CTbEYAWn/fwhlYUOjYoGf+EJorcniZzyxAp";
const LEASED_WITH_TENANT: &str = "CpMBCjDbDJIiUdkh/W2RYPtBlAFdgZFcJtAeGnC/6FxqXs4WTe3vpn5J2ikftnx2Kc9n4L8QKRjZNiIM1br530s4xSCVFDPgKkYKRApATEtXMYzPUy+9CMYNDqVd6TpEdUCuRqvON204TbEC8VExy1sVTYFu3CTbEYAWn/fwhlYUOjYoGf+EJorcniZzyxApMgRhY21l";

fn decoded(base64: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(base64).unwrap()
}

/// AES-256-GCM without associated data.
fn opened(key_hex: &str, nonce: &[u8], sealed: &[u8]) -> Vec<u8> {
    let cipher = Aes256Gcm::new_from_slice(&hex::decode(key_hex).unwrap()).unwrap();
    let nonce: [u8; 12] = nonce.try_into().unwrap();
    cipher.decrypt(&Nonce::from(nonce), sealed).unwrap()
}

/// What the local KMS of the examples wrapped into `blob`.
fn opened_by_local_kms(blob: &[u8]) -> Vec<u8> {
    assert_eq!(&blob[..4], b"LKW1");
    opened(LOCAL_KEY, &blob[4..16], &blob[16..])
}

fn only_entry(base64: &str) -> EncryptedDek {
    let mut edek = parse(base64).unwrap();
    assert_eq!(edek.encrypted_deks.len(), 1);
    edek.encrypted_deks.remove(0)
}

fn assert_leased_example(entry: &EncryptedDek) {
    assert_eq!((entry.kms_config_id, entry.leased_key_id), (41, 7001));
    let inner = EncryptedDeks::from_bytes(&entry.encrypted_leased_key_data).unwrap();
    assert_eq!(inner.encrypted_deks.len(), 1);
    let inner = &inner.encrypted_deks[0];
    assert_eq!((inner.kms_config_id, inner.leased_key_id), (41, 0));
    assert_eq!(
        hex::encode(opened_by_local_kms(&inner.encrypted_dek_data)),
        LEASED_KEY
    );
    let dek = opened(LEASED_KEY, &entry.leased_key_iv, &entry.encrypted_dek_data);
    assert_eq!(dek, decoded(DEK));
}

// Examples.

#[test]
fn the_unleased_example_holds_the_dek() {
    let entry = only_entry(UNLEASED);
    assert_eq!((entry.kms_config_id, entry.leased_key_id), (41, 0));
    assert!(entry.leased_key_iv.is_empty() && entry.encrypted_leased_key_data.is_empty());
    assert_eq!(opened_by_local_kms(&entry.encrypted_dek_data), decoded(DEK));
}

#[test]
fn the_leased_example_holds_the_dek_and_the_leased_key() {
    let entry = only_entry(LEASED);
    assert!(entry.tenant_id.is_empty());
    assert_leased_example(&entry);
}

#[test]
fn the_leased_example_with_a_tenant_id_from_alloy_holds_the_same() {
    let entry = only_entry(LEASED_WITH_TENANT);
    assert_eq!(entry.tenant_id, b"acme");
    assert_leased_example(&entry);
}

#[test]
fn the_unleased_example_with_a_stray_outer_field_from_old_alloy_holds_the_dek() {
    let entry = only_entry(UNLEASED_STRAY_OUTER_FIELD);
    assert_eq!(entry, only_entry(UNLEASED));
}

#[test]
fn the_rekeyed_example_names_another_config() {
    let entry = only_entry(REKEYED);
    assert_eq!(
        (entry.kms_config_id, entry.encrypted_dek_data.len()),
        (77, 64)
    );
    assert_eq!(&entry.encrypted_dek_data[..4], b"LKW1");
}

#[test]
fn every_example_is_what_we_would_write() {
    for example in [UNLEASED, REKEYED, LEASED, LEASED_WITH_TENANT] {
        let bytes = decoded(example);
        assert_eq!(
            EncryptedDeks::from_bytes(&bytes).unwrap().encode_to_vec(),
            bytes
        );
        assert!(!looks_like_alloy_header(&bytes));
    }
    let entry = only_entry(UNLEASED);
    let id = KmsConfigId::new(41).unwrap();
    assert_eq!(
        encode_unleased(id, &entry.encrypted_dek_data),
        decoded(UNLEASED)
    );
}

#[test]
fn an_unleased_edek_byte_by_byte() {
    let blob = [0xb0; 3];
    #[rustfmt::skip]
    let expected = [
        0x0a, 8,                // outer field 1, message of 8 bytes: the only entry
        0x0a, 3,                //   field 1, 3 bytes: what the KMS made
        0xb0, 0xb0, 0xb0,
        0x10, 0xac, 0x02,       //   field 2, varint 300: the KMS config
    ];
    let encoded = encode_unleased(KmsConfigId::new(300).unwrap(), &blob);
    assert_eq!(encoded, expected);
}

#[test]
fn a_leased_edek_byte_by_byte() {
    #[rustfmt::skip]
    let bytes = [
        0x0a, 37,               // outer field 1, message of 37 bytes
        0x0a, 2, 0xd1, 0xd2,    //   field 1: the DEK under the leased key (48 bytes in a real one)
        0x10, 41,               //   field 2: the KMS config
        0x18, 0xd9, 0x36,       //   field 3, varint 7001: the leased key's id
        0x22, 12,               //   field 4, 12 bytes: the nonce
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
        0x2a, 7,                //   field 5, 7 bytes: the wrapped leased key, an EDEK itself
        0x0a, 5,                //     outer field 1, message of 5 bytes
        0x0a, 1, 0xe1,          //       field 1: what the KMS made
        0x10, 41,               //       field 2: the KMS config
        0x32, 3,                //   field 6, 3 bytes: a tenant id, here not even UTF-8
        0xff, 0x00, b'x',
    ];
    let edek = EncryptedDeks::from_bytes(&bytes).unwrap();
    let entry = EncryptedDek {
        encrypted_dek_data: vec![0xd1, 0xd2],
        kms_config_id: 41,
        leased_key_id: 7001,
        leased_key_iv: (1..=12).collect(),
        encrypted_leased_key_data: encode_unleased(KmsConfigId::new(41).unwrap(), &[0xe1]),
        tenant_id: vec![0xff, 0x00, b'x'],
    };
    assert_eq!(edek.encrypted_deks, [entry]);
    assert_eq!(edek.encode_to_vec(), bytes);
}

// Published by the original product's vendor.

/// The published EDEK at `index`: its base64, and its only entry after comparing it with what was published beside.
fn published(index: usize) -> (String, EncryptedDek) {
    let file = include_str!("../../tests/data/published-vectors.json");
    let vectors: serde_json::Value = serde_json::from_str(file).unwrap();
    let vector = &vectors["edeks"][index];
    let base64 = vector["base64"].as_str().unwrap().to_owned();
    let entry = only_entry(&base64);
    assert_eq!(
        entry.kms_config_id,
        i32::try_from(vector["kmsConfigId"].as_i64().unwrap()).unwrap()
    );
    assert_eq!(
        entry.leased_key_id,
        i32::try_from(vector["leasedKeyId"].as_i64().unwrap()).unwrap()
    );
    assert_eq!(
        entry.encrypted_dek_data.len() as u64,
        vector["data_len"].as_u64().unwrap()
    );
    assert_eq!(
        entry.leased_key_iv.len() as u64,
        vector["iv_len"].as_u64().unwrap_or(0)
    );
    assert!(entry.tenant_id.is_empty());
    let bytes = decoded(&base64);
    assert_eq!(
        EncryptedDeks::from_bytes(&bytes).unwrap().encode_to_vec(),
        bytes
    );
    assert!(!looks_like_alloy_header(&bytes));
    if let Some(inner_config) = vector["inner_kmsConfigId"].as_i64() {
        let inner = EncryptedDeks::from_bytes(&entry.encrypted_leased_key_data).unwrap();
        assert_eq!(inner.encrypted_deks.len(), 1);
        let inner = &inner.encrypted_deks[0];
        assert_eq!(i64::from(inner.kms_config_id), inner_config);
        assert_eq!(
            inner.encrypted_dek_data.len() as u64,
            vector["inner_data_len"].as_u64().unwrap()
        );
        assert_eq!(inner.leased_key_id, 0);
    } else {
        assert!(entry.encrypted_leased_key_data.is_empty());
    }
    (base64, entry)
}

#[test]
fn the_published_unleased_gcp_edek_is_read_and_written_back() {
    let (base64, entry) = published(0);
    let id = KmsConfigId::new(510).unwrap();
    assert_eq!(
        encode_unleased(id, &entry.encrypted_dek_data),
        decoded(&base64)
    );
}

#[test]
fn the_published_leased_gcp_edek_is_read() {
    let (_, entry) = published(1);
    assert_eq!((entry.kms_config_id, entry.leased_key_id), (511, 609));
}

#[test]
fn the_published_tenant_secret_is_read_and_written_back() {
    let (base64, entry) = published(2);
    let id = KmsConfigId::new(510).unwrap();
    assert_eq!(
        encode_unleased(id, &entry.encrypted_dek_data),
        decoded(&base64)
    );
}

// Base64.

#[test]
fn padding_may_be_missing_and_white_space_around() {
    let edek = parse(UNLEASED).unwrap();
    for text in [
        UNLEASED.trim_end_matches('=').to_owned(),
        UNLEASED.trim_end_matches("=").to_owned() + "=",
        format!(" \t\r\n{UNLEASED}\n"),
        format!("{}\n", UNLEASED.trim_end_matches('=')),
    ] {
        assert_eq!(parse(&text).as_ref(), Ok(&edek), "{text:?}");
    }
}

#[test]
fn what_is_not_base64_is_refused() {
    let url_safe = LEASED.replace('+', "-").replace('/', "_");
    let broken = format!("{}\n{}", &UNLEASED[..40], &UNLEASED[40..]);
    // The last character before the padding carries four bits that no encoder sets.
    let stray_bits = UNLEASED.replace("KQ==", "KR==");
    assert_ne!(stray_bits, UNLEASED);
    for text in [
        url_safe.as_str(),
        &broken,
        &stray_bits,
        "!",
        "A",
        "====",
        "Ck=Q",
        "\u{a0}AAAA",
        "ＡＡＡＡ",
    ] {
        assert_eq!(parse(text), Err(InvalidEdek::NotBase64), "{text:?}");
    }
}

// What is no EDEK.

#[test]
fn what_holds_no_entry_is_refused() {
    for text in ["", "  ", "="] {
        let error = parse(text).unwrap_err();
        assert!(
            matches!(error, InvalidEdek::NoEntry | InvalidEdek::NotBase64),
            "{text:?}"
        );
    }
    assert_eq!(parse(""), Err(InvalidEdek::NoEntry));
    // A lone outer field 6.
    assert_eq!(
        EncryptedDeks::from_bytes(b"\x32\x04acme"),
        Err(InvalidEdek::NoEntry)
    );
}

#[test]
fn the_word_edek_in_base64_is_refused() {
    assert_eq!(parse("ZWRlaw=="), Err(InvalidEdek::NotProtobuf));
}

#[test]
fn an_edek_cut_anywhere_is_refused() {
    let bytes = decoded(LEASED);
    for length in 0..bytes.len() {
        assert!(
            EncryptedDeks::from_bytes(&bytes[..length]).is_err(),
            "{length}"
        );
    }
}

#[test]
fn an_edek_of_absurd_length_is_refused() {
    let entry = |bytes| encode_unleased(KmsConfigId::new(1).unwrap(), &vec![b'x'; bytes]);
    let longest = entry(EDEK_BYTES_MAX - entry(EDEK_BYTES_MAX - 20).len() + EDEK_BYTES_MAX - 20);
    assert_eq!(longest.len(), EDEK_BYTES_MAX);
    assert!(parse(&BASE64_STANDARD.encode(&longest)).is_ok());
    let longer = BASE64_STANDARD.encode(entry(EDEK_BYTES_MAX));
    assert_eq!(parse(&longer), Err(InvalidEdek::TooLong));
    assert_eq!(parse(&"A".repeat(16 << 20)), Err(InvalidEdek::TooLong));
}

#[test]
fn every_message_has_the_words_that_clients_search_for() {
    for error in [
        InvalidEdek::NotBase64,
        InvalidEdek::TooLong,
        InvalidEdek::NotProtobuf,
        InvalidEdek::NoEntry,
    ] {
        let text = error.to_string();
        assert!(
            text.starts_with("Provided EDEK didn't contain IronCore EDEKs ("),
            "{text}"
        );
    }
}

#[test]
fn unknown_fields_are_ignored_at_both_levels() {
    let mut bytes = decoded(UNLEASED);
    // Outer field 15: a varint, eight bytes, four bytes, a string, a group.
    bytes.extend(*b"\x78\x2a\x79\0\0\0\0\0\0\0\0\x7d\0\0\0\0\x7a\x01x\x7b\x08\x01\x7c");
    // Inside the entry, field 7, a string.
    bytes[1] += 3;
    bytes.splice(2..2, *b"\x3a\x01x");
    assert_eq!(read_both_ways(&bytes), parse(UNLEASED));
}

#[test]
fn groups_inside_groups_do_not_exhaust_the_stack() {
    let deep = vec![0x7b; EDEK_BYTES_MAX];
    assert_eq!(read_both_ways(&deep), Err(InvalidEdek::NotProtobuf));
}

#[test]
fn several_entries_are_kept_in_order() {
    let mut bytes = decoded(UNLEASED);
    bytes.extend(decoded(REKEYED));
    let edek = EncryptedDeks::from_bytes(&bytes).unwrap();
    let ids: Vec<i32> = edek
        .encrypted_deks
        .iter()
        .map(|entry| entry.kms_config_id)
        .collect();
    assert_eq!(ids, [41, 77]);
}

// The sniffing hazard.

#[test]
fn alloy_headers_are_recognized_by_two_bytes() {
    for kind in 0..=0xff_u8 {
        for zero in [0, 1, 0xff] {
            let high = kind >> 4;
            let low = kind & 0x0f;
            let expected = zero == 0
                && (high == 0 || high == 4 || high == 8)
                && (low == 0 || low == 1 || low == 2);
            assert_eq!(
                looks_like_alloy_header(&[9, 9, 9, 9, kind, zero, 9]),
                expected
            );
        }
    }
    for length in 0..6 {
        assert!(!looks_like_alloy_header(&vec![0; length]));
    }
    // A short blob that starts so is what must not be issued.
    assert!(looks_like_alloy_header(&encode_unleased(
        KmsConfigId::new(1).unwrap(),
        b"\x42\0rest"
    )));
}

fn any_entry() -> impl Strategy<Value = EncryptedDek> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    (
        bytes(),
        any::<i32>(),
        any::<i32>(),
        bytes(),
        bytes(),
        bytes(),
    )
        .prop_map(
            |(data, config, leased, iv, leased_key, tenant)| EncryptedDek {
                encrypted_dek_data: data,
                kms_config_id: config,
                leased_key_id: leased,
                leased_key_iv: iv,
                encrypted_leased_key_data: leased_key,
                tenant_id: tenant,
            },
        )
}

/// What both readers say, which must be the same.
fn read_both_ways(bytes: &[u8]) -> Result<EncryptedDeks, InvalidEdek> {
    let owned = EncryptedDeks::from_bytes(bytes);
    let borrowed = entries(bytes).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    match &owned {
        Ok(edek) => {
            let expected = edek.encrypted_deks.iter().map(|entry| Entry {
                encrypted_dek_data: &entry.encrypted_dek_data,
                kms_config_id: entry.kms_config_id,
                leased_key_id: entry.leased_key_id,
                leased_key_iv: &entry.leased_key_iv,
                encrypted_leased_key_data: &entry.encrypted_leased_key_data,
            });
            assert_eq!(borrowed, Ok(expected.collect()));
        }
        Err(InvalidEdek::NoEntry) => assert_eq!(borrowed, Ok(Vec::new())),
        Err(why) => assert_eq!(borrowed, Err(*why)),
    }
    owned
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn both_readers_agree_on_bytes_that_look_like_fields(
        fields in prop::collection::vec((0..8_u8, 0..8_u8, prop::collection::vec(any::<u8>(), 0..12), 0..3_u8), 0..8),
        nested: bool,
    ) {
        let mut bytes = Vec::new();
        for (field, wire, content, lie) in fields {
            bytes.push(field << 3 | wire);
            if wire == 2 {
                bytes.push(u8::try_from(content.len()).unwrap() + lie / 2);
            }
            bytes.extend(content);
        }
        if nested {
            bytes.splice(0..0, [0x0a, u8::try_from(bytes.len()).unwrap()]);
        }
        drop(read_both_ways(&bytes));
    }
}

proptest! {
    #[test]
    fn whatever_is_encoded_is_read_back(
        encrypted_deks in prop::collection::vec(any_entry(), 1..4),
        padded: bool,
    ) {
        let edek = EncryptedDeks { encrypted_deks };
        prop_assert_eq!(&read_both_ways(&edek.encode_to_vec()), &Ok(edek.clone()));
        let mut text = BASE64_STANDARD.encode(edek.encode_to_vec());
        if !padded {
            text.truncate(text.trim_end_matches('=').len());
        }
        prop_assert_eq!(parse(&text), Ok(edek));
    }

    #[test]
    fn a_leased_form_is_the_encoded_message(
        id in 1..=i32::MAX,
        leased in 1..=i32::MAX,
        wrapped in prop::collection::vec(any::<u8>(), 1..700),
        iv: [u8; 12],
        data in prop::collection::vec(any::<u8>(), 48),
    ) {
        let data: [u8; 48] = data.try_into().unwrap();
        let form = LeasedForm::new(KmsConfigId::new(i64::from(id)).unwrap(), leased, &wrapped);
        let entry = EncryptedDek {
            encrypted_dek_data: data.to_vec(),
            kms_config_id: id,
            leased_key_id: leased,
            leased_key_iv: iv.to_vec(),
            encrypted_leased_key_data: wrapped,
            tenant_id: vec![],
        };
        let mut edek = vec![1, 2, 3];
        form.write(&mut edek, &iv, &data);
        prop_assert!(!looks_like_alloy_header(&edek));
        prop_assert_eq!(edek, EncryptedDeks { encrypted_deks: vec![entry] }.encode_to_vec());
    }

    #[test]
    fn unleased_edeks_have_one_entry_and_fields_in_order(
        id in 1..=i32::MAX,
        blob in prop::collection::vec(any::<u8>(), 1..600),
    ) {
        let bytes = encode_unleased(KmsConfigId::new(i64::from(id)).unwrap(), &blob);
        let edek = EncryptedDeks::from_bytes(&bytes).unwrap();
        let expected = EncryptedDek { encrypted_dek_data: blob, kms_config_id: id, ..Default::default() };
        prop_assert_eq!(&edek.encrypted_deks[..], &[expected]);
        prop_assert_eq!(edek.encode_to_vec(), bytes);
    }

    #[test]
    fn an_edek_of_the_local_kms_never_looks_like_an_alloy_header(
        id in 1..=i32::MAX,
        rest in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let blob = [&b"LKW1"[..], &rest].concat();
        let edek = encode_unleased(KmsConfigId::new(i64::from(id)).unwrap(), &blob);
        prop_assert!(!looks_like_alloy_header(&edek));
    }

    #[test]
    fn random_text_never_panics(text: String, bytes: Vec<u8>) {
        let _ = parse(&text);
        let _ = parse(&BASE64_STANDARD.encode(&bytes));
        let _ = looks_like_alloy_header(&bytes);
    }

    #[test]
    fn changed_edeks_never_panic(
        index in any::<prop::sample::Index>(),
        byte: u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = decoded(LEASED_WITH_TENANT);
        let index = index.index(bytes.len());
        bytes[index] = byte;
        drop(read_both_ways(&bytes));
        drop(read_both_ways(&bytes[..cut.index(bytes.len())]));
    }
}
