//! The one spelling of an event: members sorted by their names' bytes, no white space, strings with JSON's shortest escapes,
//! whole numbers without a fraction. Of members with the same name the last one counts.

use std::{borrow::Cow, fmt, io::Write as _};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// An object of JSON whose texts lie where it was read from.
#[derive(Debug)]
pub(super) struct Object<'a>(Vec<(Text<'a>, Tree<'a>)>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Text<'a>(Cow<'a, str>);

#[derive(Debug)]
enum Tree<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Text<'a>),
    Array(Vec<Self>),
    Object(Object<'a>),
}

impl<'a> Object<'a> {
    fn new(mut members: Vec<(Text<'a>, Tree<'a>)>) -> Self {
        // Stable: the last one of a name stays the last.
        members.sort_by(|(one, _), (other, _)| one.cmp(other));
        members.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                std::mem::swap(&mut later.1, &mut earlier.1);
            }
            same
        });
        Self(members)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known.0 == name)
    }

    pub(super) fn push(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (index, (name, value)) in self.0.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            name.push(out);
            out.push(b':');
            value.push(out);
        }
        out.push(b'}');
    }
}

impl Text<'_> {
    fn push(&self, out: &mut Vec<u8>) {
        // Neither a `str` nor a `Vec` can make this fail.
        let _ = serde_json::to_writer(out, &self.0);
    }
}

impl Tree<'_> {
    // As deep as the JSON parser goes, which is 128 levels.
    fn push(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(value) => {
                out.extend_from_slice(if *value { b"true" } else { b"false" });
            }
            Self::Number(number) => {
                let whole = number.is_f64().then(|| number.as_f64().and_then(integer));
                // Writing to a Vec cannot fail.
                let _ = match whole.flatten() {
                    Some(whole) => write!(out, "{whole}"),
                    None => write!(out, "{number}"),
                };
            }
            Self::Text(text) => text.push(out),
            Self::Array(values) => {
                out.push(b'[');
                for (index, value) in values.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    value.push(out);
                }
                out.push(b']');
            }
            Self::Object(object) => object.push(out),
        }
    }
}

/// The whole number that a fraction is, if none is lost by saying so.
pub(super) fn integer(number: f64) -> Option<i64> {
    /// The first whole number that has a neighbour of the same spelling, as a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;

    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole and below 2^53, so the cast is exact"
    )]
    (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64)
}

impl<'a> From<&'a Map<String, Value>> for Object<'a> {
    fn from(map: &'a Map<String, Value>) -> Self {
        let members = map.iter().map(|(name, value)| {
            let name = Text(Cow::Borrowed(name));
            (name, Tree::from(value))
        });
        Self::new(members.collect())
    }
}

impl<'a> From<&'a Value> for Tree<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => Self::Number(number.clone()),
            Value::String(text) => Self::Text(Text(Cow::Borrowed(text))),
            Value::Array(values) => Self::Array(values.iter().map(Self::from).collect()),
            Value::Object(map) => Self::Object(map.into()),
        }
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
                object(members)
            }
        }
        from.deserialize_map(Members)
    }
}

/// Members of an event's objects, as a rule.
const MEMBERS_USUAL: usize = 10;

fn object<'de, A: MapAccess<'de>>(mut from: A) -> Result<Object<'de>, A::Error> {
    let mut members = Vec::with_capacity(MEMBERS_USUAL);
    while let Some(member) = from.next_entry()? {
        members.push(member);
    }
    Ok(Object::new(members))
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Spelling;
        impl<'de> Visitor<'de> for Spelling {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Spelling)
    }
}

impl<'de> Deserialize<'de> for Tree<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Tree<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Tree::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(Tree::Bool(value))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Tree::Number(number.into()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Tree::Number(number.into()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
                Ok(Number::from_f64(number).map_or(Tree::Null, Tree::Number))
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Tree::Text(Text(Cow::Borrowed(text))))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Tree::Text(Text(Cow::Owned(text.to_owned()))))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = from.next_element()? {
                    values.push(value);
                }
                Ok(Tree::Array(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
                object(members).map(Tree::Object)
            }
        }
        from.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spelled(object: &Object<'_>) -> String {
        let mut out = Vec::new();
        object.push(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn both(json: &str) -> [String; 2] {
        let read: Object<'_> = serde_json::from_str(json).unwrap();
        let map: Map<String, Value> = serde_json::from_str(json).unwrap();
        [spelled(&read), spelled(&Object::from(&map))]
    }

    #[test]
    fn canonical_json_is_sorted_and_bare() {
        let json = "{ \"b\" : [1.0, 2.5, -3, true, null, {\"z\":0,\"y\":\"\\u00e9\\n\"}], \"a\" : {}, \"B\":18446744073709551615 }";
        let expected = "{\"B\":18446744073709551615,\"a\":{},\"b\":[1,2.5,-3,true,null,{\"y\":\"é\\n\",\"z\":0}]}";
        assert_eq!(both(json), [expected; 2]);
    }

    #[test]
    fn the_last_member_of_a_name_counts() {
        let json = r#"{"b":1,"a":1,"\u0061":{"x":[]},"b":2,"a":3}"#;
        assert_eq!(both(json), [r#"{"a":3,"b":2}"#; 2]);
    }

    #[test]
    fn what_is_no_object_is_none() {
        for json in ["", "7", "[]", "{", "{\"a\":1}x", "{a:1}", "null"] {
            assert!(serde_json::from_str::<Object<'_>>(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn it_is_the_same_read_from_text_and_from_a_map(
            members in proptest::collection::vec((".{0,4}", ".{0,8}", any::<f64>(), any::<i64>()), 0..6),
        ) {
            let members: Map<String, Value> = members
                .into_iter()
                .map(|(name, text, fraction, whole)| {
                    (name, serde_json::json!([text, fraction, { text.clone(): whole }]))
                })
                .collect();
            for json in [
                serde_json::to_string(&members).unwrap(),
                serde_json::to_string_pretty(&members).unwrap(),
            ] {
                let [read, mapped] = both(&json);
                prop_assert_eq!(&read, &mapped);
                let again: Map<String, Value> = serde_json::from_str(&read).unwrap();
                prop_assert_eq!(spelled(&Object::from(&again)), read);
            }
        }
    }
}
