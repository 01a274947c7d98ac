//! A value in JSON, without losing anything of it.
//!
//! Most of what MessagePack can say JSON can say too, and is said so. The rest is an object with one
//! name in it that begins with `$`:
//!
//! ```text
//!   bytes                                      {"$bytes":"00ff"}
//!   a float of 32 bits                         {"$f32":1.5}
//!   an extension                               {"$ext":[1,"00ff"]}
//!   a map whose keys are not all texts that    {"$map":[[1,"one"],[2,"two"]]}
//!     differ and do not begin with $
//!   whatever else, and what is nested deeply   {"$msgpack":"cb7ff8000000000000"}
//! ```
//!
//! Numbers with a point are floats of 64 bits, others are integers, and the names of a map stay in
//! their order. A value that would not be the same bytes when it is read back is written as those bytes.

use std::fmt;

use rmpv::Value as Part;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};

use crate::model::value::Value;

/// A value that is to be written as JSON, or was.
#[derive(Debug, PartialEq)]
pub(crate) enum Portable {
    Whole(Value),
    /// What it is, and how large, but not what it holds: `{"$redacted":"a string","bytes":12}`.
    Redacted(Value),
}

/// What is nested deeper is written as bytes: a level may be three in JSON, and readers of JSON have
/// bounds of their own.
const DEPTH_MAX: usize = 32;

impl Serialize for Portable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tree = match self {
            Portable::Whole(value) => {
                let bytes = value.as_bytes();
                said(bytes).unwrap_or_else(|| tagged("$msgpack", hex(bytes).into()))
            }
            Portable::Redacted(value) => {
                let bytes = value.as_bytes().len();
                Part::Map(vec![
                    ("$redacted".into(), value.kind().into()),
                    ("bytes".into(), bytes.into()),
                ])
            }
        };
        Tree(&tree).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Portable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tree = deserializer.deserialize_any(Trees)?;
        let value = match tag(&tree) {
            Some(("$msgpack", Part::String(text))) => text.as_str().and_then(unhex),
            _ => heard(tree).map(|part| encoded(&part)),
        };
        // No message of serde's: it would show the value.
        let value = value.ok_or_else(|| D::Error::custom("a value is none of ours"))?;
        Ok(Portable::Whole(Value::from_bytes(&value)))
    }
}

/// The bytes of a value as a tree that JSON can say; `None` if they would not come back the same.
fn said(bytes: &[u8]) -> Option<Part> {
    let part = rmpv::decode::read_value_with_max_depth(&mut &*bytes, DEPTH_MAX).ok()?;
    let tree = say(&part)?;
    (encoded(&part) == bytes).then_some(tree)
}

fn encoded(part: &Part) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, part).expect("a Vec takes every byte");
    bytes
}

fn tagged(tag: &str, part: Part) -> Part {
    Part::Map(vec![(tag.into(), part)])
}

/// What is tagged, and how.
fn tag(tree: &Part) -> Option<(&str, &Part)> {
    match tree.as_map().map(Vec::as_slice) {
        Some([(name, part)]) => name.as_str().filter(|name| name.starts_with('$')).zip(Some(part)),
        _ => None,
    }
}

fn say(part: &Part) -> Option<Part> {
    Some(match part {
        Part::Nil | Part::Boolean(_) | Part::Integer(_) => part.clone(),
        Part::F64(number) => number.is_finite().then(|| part.clone())?,
        Part::F32(number) => {
            number.is_finite().then(|| tagged("$f32", f64::from(*number).into()))?
        }
        Part::String(text) => text.as_str().is_some().then(|| part.clone())?,
        Part::Binary(bytes) => tagged("$bytes", hex(bytes).into()),
        Part::Ext(kind, bytes) => {
            tagged("$ext", Part::Array(vec![(*kind).into(), hex(bytes).into()]))
        }
        Part::Array(parts) => Part::Array(parts.iter().map(say).collect::<Option<_>>()?),
        Part::Map(pairs) if is_object(pairs) => {
            let pair = |(name, part): &(Part, Part)| Some((name.clone(), say(part)?));
            Part::Map(pairs.iter().map(pair).collect::<Option<_>>()?)
        }
        Part::Map(pairs) => {
            let pair = |(key, part): &(Part, Part)| Some(Part::Array(vec![say(key)?, say(part)?]));
            tagged("$map", Part::Array(pairs.iter().map(pair).collect::<Option<_>>()?))
        }
    })
}

/// Whether the keys of a map can be the names of an object: the same name twice would be one lost.
fn is_object(pairs: &[(Part, Part)]) -> bool {
    let names = pairs.iter().map(|(key, _)| key.as_str().filter(|name| !name.starts_with('$')));
    let Some(mut names) = names.collect::<Option<Vec<_>>>() else { return false };
    names.sort_unstable();
    names.windows(2).all(|two| two[0] != two[1])
}

/// What a tree says; `None` if it was not said here.
fn heard(tree: Part) -> Option<Part> {
    if let Some((tag, part)) = tag(&tree) {
        let bytes = |part: &Part| part.as_str().and_then(unhex);
        return match (tag, part) {
            ("$bytes", part) => bytes(part).map(Part::Binary),
            ("$f32", Part::F64(number)) => Some(Part::F32(*number as f32)),
            ("$ext", Part::Array(parts)) => match &parts[..] {
                [kind, part] => {
                    let kind = i8::try_from(kind.as_i64()?).ok()?;
                    bytes(part).map(|bytes| Part::Ext(kind, bytes))
                }
                _ => None,
            },
            ("$map", Part::Array(pairs)) => {
                let pair = |pair: &Part| match pair.as_array()?.as_slice() {
                    [key, part] => Some((heard(key.clone())?, heard(part.clone())?)),
                    _ => None,
                };
                Some(Part::Map(pairs.iter().map(pair).collect::<Option<_>>()?))
            }
            _ => None,
        };
    }
    match tree {
        Part::Array(parts) => {
            Some(Part::Array(parts.into_iter().map(heard).collect::<Option<_>>()?))
        }
        Part::Map(pairs) if is_object(&pairs) => {
            let pair = |(name, part)| Some((name, heard(part)?));
            Some(Part::Map(pairs.into_iter().map(pair).collect::<Option<_>>()?))
        }
        Part::Map(_) => None,
        plain => Some(plain),
    }
}

/// A tree of what JSON can say.
struct Tree<'a>(&'a Part);

impl Serialize for Tree<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Part::Nil => serializer.serialize_unit(),
            Part::Boolean(truth) => serializer.serialize_bool(*truth),
            Part::Integer(n) => match (n.as_u64(), n.as_i64()) {
                (Some(n), _) => serializer.serialize_u64(n),
                (None, n) => serializer.serialize_i64(n.unwrap_or_default()),
            },
            Part::F64(number) => serializer.serialize_f64(*number),
            Part::String(text) => serializer.serialize_str(text.as_str().unwrap_or_default()),
            Part::Array(parts) => serializer.collect_seq(parts.iter().map(Tree)),
            Part::Map(pairs) => {
                serializer.collect_map(pairs.iter().map(|(name, part)| (Tree(name), Tree(part))))
            }
            Part::F32(_) | Part::Binary(_) | Part::Ext(..) => {
                Err(S::Error::custom("JSON has no word for it"))
            }
        }
    }
}

/// Reads such a tree.
struct Trees;

impl<'de> Visitor<'de> for Trees {
    type Value = Part;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Part, E> {
        Ok(Part::Nil)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Part, E> {
        Ok(truth.into())
    }

    fn visit_u64<E>(self, n: u64) -> Result<Part, E> {
        Ok(n.into())
    }

    fn visit_i64<E>(self, n: i64) -> Result<Part, E> {
        Ok(n.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Part, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Part, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Part, A::Error> {
        let mut found = Vec::new();
        while let Some(Grown(part)) = parts.next_element()? {
            found.push(part);
        }
        Ok(Part::Array(found))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Part, A::Error> {
        let mut found = Vec::new();
        while let Some((name, Grown(part))) = pairs.next_entry::<String, _>()? {
            found.push((name.into(), part));
        }
        Ok(Part::Map(found))
    }
}

struct Grown(Part);

impl<'de> Deserialize<'de> for Grown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Trees).map(Grown)
    }
}

/// Two hex digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// The bytes of so many hex digits, as [`hex`] writes them; `None` if they are none.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |letter: &u8| match letter {
        b'0'..=b'9' => Some(letter - b'0'),
        b'a'..=b'f' => Some(letter - b'a' + 10),
        _ => None,
    };
    let pair = |pair: &[u8]| Some(digit(&pair[0])? << 4 | digit(&pair[1])?);
    match text.len().is_multiple_of(2) {
        true => text.as_bytes().chunks_exact(2).map(pair).collect(),
        false => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(bytes: &[u8]) -> String {
        serde_json::to_string(&Portable::Whole(Value::from_bytes(bytes))).unwrap()
    }

    fn read(json: &str) -> Result<Vec<u8>, serde_json::Error> {
        match serde_json::from_str(json)? {
            Portable::Whole(value) => Ok(value.as_bytes().to_vec()),
            Portable::Redacted(_) => unreachable!("what is redacted cannot be read"),
        }
    }

    /// Any value that MessagePack can say.
    pub(crate) fn value() -> impl Strategy<Value = Value> {
        part().prop_map(|part| Value::from_bytes(&encoded(&part)))
    }

    fn part() -> impl Strategy<Value = Part> {
        let text = prop_oneof!["[a-c$]{0,2}", ".{0,8}", Just("$bytes".to_owned())];
        let leaf = prop_oneof![
            Just(Part::Nil),
            any::<bool>().prop_map(Part::from),
            any::<u64>().prop_map(Part::from),
            any::<i64>().prop_map(Part::from),
            proptest::num::f64::ANY.prop_map(Part::from),
            proptest::num::f32::ANY.prop_map(Part::from),
            text.clone().prop_map(Part::from),
            any::<Vec<u8>>().prop_map(Part::from),
            (any::<i8>(), any::<Vec<u8>>()).prop_map(|(kind, bytes)| Part::Ext(kind, bytes)),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            let name = prop_oneof![3 => text.clone().prop_map(Part::from), 1 => inner.clone()];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Part::Array),
                proptest::collection::vec((name, inner), 0..6).prop_map(Part::Map),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whatever a value holds, it comes back to the byte; so do bytes that are no value.
        #[test]
        fn a_value_comes_back_to_the_byte(part in part(), noise in any::<Vec<u8>>()) {
            let bytes = encoded(&part);
            let json = written(&bytes);
            prop_assert_eq!(&read(&json).unwrap(), &bytes);
            prop_assert!(!json.contains('\n'));
            prop_assert_eq!(read(&written(&noise)).unwrap(), noise);
        }

        /// What others have written is a value of ours, or refused.
        #[test]
        fn any_json_is_a_value_or_refused(json in "[\\[\\]{}$:,\"0-9a-f.mapbytes]{0,24}") {
            if let Ok(bytes) = read(&json) {
                let again = written(&bytes);
                prop_assert_eq!(read(&again).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn what_json_can_say_is_said_in_json() {
        let of = |part: Part| written(&encoded(&part));
        let text = |text: &str| Part::from(text);
        for (part, expected) in [
            (Part::Nil, "null"),
            (5.into(), "5"),
            (u64::MAX.into(), "18446744073709551615"),
            (Part::from(1.0), "1.0"),
            (Part::from(1.5f32), r#"{"$f32":1.5}"#),
            (text("Zoë\n"), r#""Zoë\n""#),
            (Part::Binary(vec![0, 255]), r#"{"$bytes":"00ff"}"#),
            (Part::Ext(-1, vec![7]), r#"{"$ext":[-1,"07"]}"#),
            (vec![1.into(), text("a")].into(), r#"[1,"a"]"#),
            // The order of the fields of a struct is part of the value.
            (vec![(text("b"), 1.into()), (text("a"), 2.into())].into(), r#"{"b":1,"a":2}"#),
            (vec![(1.into(), text("one"))].into(), r#"{"$map":[[1,"one"]]}"#),
            (vec![(text("$f32"), 1.into())].into(), r#"{"$map":[["$f32",1]]}"#),
            (Part::from(f64::NAN), r#"{"$msgpack":"cb7ff8000000000000"}"#),
        ] {
            assert_eq!(of(part), expected);
        }
        let deep = (0..1_000).fold(Part::Nil, |part, _| Part::Array(vec![part]));
        assert!(of(deep).starts_with(r#"{"$msgpack":"9191"#));
        // Two bytes for what takes one: nobody here writes so, and it is kept all the same.
        assert_eq!(written(&[0xcc, 5]), r#"{"$msgpack":"cc05"}"#);
    }

    #[test]
    fn what_is_redacted_is_not_shown() {
        let json = serde_json::to_string(&Portable::Redacted(Value::of("secret").unwrap()));
        assert_eq!(json.unwrap(), r#"{"$redacted":"a string","bytes":7}"#);
        assert!(read(r#"{"$redacted":"a string","bytes":7}"#).is_err());
        assert!(read(r#"{"$unknown":1}"#).is_err());
    }
}
