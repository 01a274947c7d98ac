//! The value of an attribute, and what can be done to it without knowing its type.
//!
//! A value is one serde value, encoded as self-describing MessagePack with struct fields by name.
//! It is encoded when it is written and decoded when it is read, one attribute at a time.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// One encoded value: self-describing MessagePack, struct fields by name.
///
/// `Debug` shows the kind and the size, never what it holds. Equality is that of the bytes.
///
/// ```
/// use sessile::Value;
///
/// let value = Value::of(&["apple", "pear"]).expect("strings can be encoded");
/// assert_eq!(value.kind(), "a list");
/// assert_eq!(value.to::<Vec<String>>(), Some(vec!["apple".to_owned(), "pear".to_owned()]));
/// assert_eq!(value.to::<u64>(), None);
/// ```
#[derive(Clone)]
pub struct Value {
    /// Its own bytes, or those of the session that it is part of.
    block: Arc<[u8]>,
    start: u32,
    end: u32,
}

impl Value {
    /// Encodes a value; `None` if its `Serialize` fails.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Option<Self> {
        let bytes = rmp_serde::to_vec_named(value).ok()?;
        u32::try_from(bytes.len()).is_ok().then(|| Value::whole(bytes))
    }

    /// Decodes the value; `None` if it is no `T`.
    pub fn to<T: DeserializeOwned>(&self) -> Option<T> {
        rmp_serde::from_slice(self.as_bytes()).ok()
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.block[self.start as usize..self.end as usize]
    }

    /// Plain bytes, as one value.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let mut value = Vec::with_capacity(5 + bytes.len());
        rmpv::encode::write_value_ref(&mut value, &rmpv::ValueRef::Binary(bytes))
            .expect("a Vec takes every byte");
        Value::whole(value)
    }

    /// The plain bytes, if it is that.
    pub(crate) fn to_bytes(&self) -> Option<&[u8]> {
        match rmpv::decode::read_value_ref(&mut self.as_bytes()) {
            Ok(rmpv::ValueRef::Binary(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// What the value is, for people: `"a string"`, `"a map"`.
    pub fn kind(&self) -> &'static str {
        match self.decode() {
            None => "no MessagePack",
            Some(rmpv::Value::Nil) => "nothing",
            Some(rmpv::Value::Boolean(_)) => "a boolean",
            Some(rmpv::Value::Integer(_)) => "an integer",
            Some(rmpv::Value::F32(_) | rmpv::Value::F64(_)) => "a float",
            Some(rmpv::Value::String(_)) => "a string",
            Some(rmpv::Value::Binary(_)) => "bytes",
            Some(rmpv::Value::Array(_)) => "a list",
            Some(rmpv::Value::Map(_)) => "a map",
            Some(rmpv::Value::Ext(..)) => "an extension",
        }
    }

    /// How deep lists and maps lie in each other: 0 for anything else. Does not recurse, and ends where
    /// the bytes are no MessagePack.
    pub(crate) fn depth(&self) -> usize {
        let mut bytes = self.as_bytes();
        let (mut open, mut depth) = (Vec::new(), 0);
        loop {
            let Some((parts, skipped)) = head(&mut bytes) else { return depth };
            let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
            bytes = bytes.get(skipped..).unwrap_or_default();
            if let Some(parts) = parts {
                open.push(parts);
                depth = depth.max(open.len());
            }
            // What is complete is one part less of what it lies in.
            loop {
                match open.last_mut() {
                    None => return depth,
                    Some(0) => {
                        open.pop();
                    }
                    Some(parts) => {
                        *parts -= 1;
                        break;
                    }
                }
            }
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Value::whole(bytes)
    }

    /// A value that lies within other bytes, and shares them.
    pub(crate) fn part(block: Arc<[u8]>, range: Range<usize>) -> Self {
        let number = |n: usize| u32::try_from(n).expect("a session has far less than 4 GiB");
        Value { block, start: number(range.start), end: number(range.end) }
    }

    fn whole(bytes: impl Into<Arc<[u8]>>) -> Self {
        let block = bytes.into();
        let all = 0..block.len();
        Value::part(block, all)
    }

    fn decode(&self) -> Option<rmpv::Value> {
        rmpv::decode::read_value_with_max_depth(&mut self.as_bytes(), DEPTH_MAX).ok()
    }

    fn encode(value: &rmpv::Value) -> Self {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).expect("a Vec takes every byte");
        Value::whole(bytes)
    }

    fn number(&self) -> Option<Number> {
        match self.decode()? {
            rmpv::Value::Integer(n) => {
                n.as_i64().map(i128::from).or(n.as_u64().map(i128::from)).map(Number::Int)
            }
            rmpv::Value::F32(n) => Some(Number::Float(n.into())),
            rmpv::Value::F64(n) => Some(Number::Float(n)),
            _ => None,
        }
    }

    /// The elements of a list, each encoded.
    fn elements(&self) -> Option<Vec<Value>> {
        match self.decode()? {
            rmpv::Value::Array(elements) => Some(elements.iter().map(Value::encode).collect()),
            _ => None,
        }
    }

    fn list(elements: &[Value]) -> Self {
        let elements = elements.iter().map(|e| e.decode().unwrap_or(rmpv::Value::Nil)).collect();
        Value::encode(&rmpv::Value::Array(elements))
    }
}

/// Reads the head of the next value: how many values it is made of, if it is a list or a map; and how
/// many bytes of it follow, if it is not. `None` if it is no MessagePack.
fn head(bytes: &mut &[u8]) -> Option<(Option<u64>, u64)> {
    let (marker, rest) = bytes.split_first()?;
    *bytes = rest;
    let mut number = |width: usize| {
        let (number, rest) = bytes.split_at_checked(width)?;
        *bytes = rest;
        Some(number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let low = |bits: u8| u64::from(marker & bits);
    let bytes = match marker {
        0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 0,
        0x80..=0x8f => return Some((Some(2 * low(0x0f)), 0)),
        0x90..=0x9f => return Some((Some(low(0x0f)), 0)),
        0xdc | 0xdd => return Some((Some(number(2 << low(0x01))?), 0)),
        0xde | 0xdf => return Some((Some(2 * number(2 << low(0x01))?), 0)),
        0xa0..=0xbf => low(0x1f),
        0xc4..=0xc6 => number(1 << low(0x03))?,
        // A byte more for the type.
        0xc7..=0xc9 => number(1 << (low(0x0f) - 7))? + 1,
        0xca | 0xcb => 4 << low(0x01),
        0xcc..=0xd3 => 1 << low(0x03),
        0xd4..=0xd8 => (1 << (low(0x0f) - 4)) + 1,
        0xd9..=0xdb => number(1 << (low(0x0f) - 9))?,
        0xc1 => return None,
    };
    Some((None, bytes))
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Value {}

/// Deeper nesting than this is taken for hostile; rmp-serde has the same limit.
const DEPTH_MAX: usize = 1_024;

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({}, {} bytes)", self.kind(), self.as_bytes().len())
    }
}

/// A number to add to an attribute: any integer or float converts into it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount(pub(crate) Number);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    /// Holds at least every `i64` and every `u64`, so that sums of a few never overflow here.
    Int(i128),
    Float(f64),
}

impl From<usize> for Amount {
    fn from(n: usize) -> Self {
        Amount(Number::Int(n as i128))
    }
}

macro_rules! amounts {
    ($variant:ident: $($from:ty),*) => {
        $(impl From<$from> for Amount {
            fn from(n: $from) -> Self {
                Amount(Number::$variant(n.into()))
            }
        })*
    };
}

amounts!(Int: i8, i16, i32, i64, u8, u16, u32, u64);
amounts!(Float: f32, f64);

impl Number {
    /// The sum; `None` where it is no number that can be stored.
    pub(crate) fn plus(self, other: Number) -> Option<Number> {
        match (self, other) {
            (Number::Int(a), Number::Int(b)) => a.checked_add(b).map(Number::Int),
            (a, b) => Some(Number::Float(a.float() + b.float())).filter(|n| n.float().is_finite()),
        }
    }

    fn minus(self, other: Number) -> Option<Number> {
        match other {
            Number::Int(n) => self.plus(Number::Int(n.checked_neg()?)),
            Number::Float(n) => self.plus(Number::Float(-n)),
        }
    }

    fn float(self) -> f64 {
        match self {
            Number::Int(n) => n as f64,
            Number::Float(n) => n,
        }
    }

    fn value(self) -> Option<Value> {
        let value = match self {
            Number::Int(n) => match (i64::try_from(n), u64::try_from(n)) {
                (Ok(n), _) => n.into(),
                (_, Ok(n)) => n.into(),
                _ => return None,
            },
            Number::Float(n) => rmpv::Value::F64(n),
        };
        Some(Value::encode(&value))
    }
}

/// A write that merges with whatever is stored, and so never conflicts. Absent is neutral.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    Add(Amount),
    Max(Value),
    Min(Value),
    Union(Vec<Value>),
    Append { items: Vec<Value>, cap: usize },
    SetIfAbsent(Value),
}

impl Op {
    /// What this makes of the stored value; `None` if it is of the wrong kind, or out of range.
    pub(crate) fn apply(&self, stored: Option<&Value>) -> Option<Value> {
        match (self, stored) {
            (Op::Add(amount), None) => amount.0.value(),
            (Op::Add(amount), Some(stored)) => stored.number()?.plus(amount.0)?.value(),
            (Op::Max(mine) | Op::Min(mine), None) => compare(mine, mine).map(|_| mine.clone()),
            (Op::Max(mine), Some(stored)) => extreme(stored, mine, Ordering::Greater),
            (Op::Min(mine), Some(stored)) => extreme(stored, mine, Ordering::Less),
            (Op::Union(items), None) => Some(set(items.clone())),
            (Op::Union(items), Some(stored)) => {
                Some(set([stored.elements()?, items.clone()].concat()))
            }
            (Op::Append { items, cap }, None) => Some(last(items.clone(), *cap)),
            (Op::Append { items, cap }, Some(stored)) => {
                Some(last([stored.elements()?, items.clone()].concat(), *cap))
            }
            (Op::SetIfAbsent(mine), None) => Some(mine.clone()),
            (Op::SetIfAbsent(_), Some(stored)) => Some(stored.clone()),
        }
    }

    /// Takes in an operation that follows, if the two are one.
    pub(crate) fn absorb(&mut self, next: &Op) -> bool {
        match (self, next) {
            (Op::Add(a), Op::Add(b)) => match a.0.plus(b.0) {
                Some(sum) => a.0 = sum,
                None => return false,
            },
            (Op::Union(items), Op::Union(more)) => {
                items.extend_from_slice(more);
                canonical(items);
            }
            (Op::Append { items, cap }, Op::Append { items: more, cap: same }) if cap == same => {
                items.extend_from_slice(more);
                items.drain(..items.len().saturating_sub(*cap));
            }
            (Op::Max(a), Op::Max(b)) => match extreme(a, b, Ordering::Greater) {
                Some(max) => *a = max,
                None => return false,
            },
            (Op::Min(a), Op::Min(b)) => match extreme(a, b, Ordering::Less) {
                Some(min) => *a = min,
                None => return false,
            },
            (Op::SetIfAbsent(_), Op::SetIfAbsent(_)) => {}
            _ => return false,
        }
        true
    }
}

/// What both writers added to `base`, added up. Absent is zero.
pub(crate) fn sum(base: Option<&Value>, stored: Option<&Value>, mine: &Value) -> Option<Value> {
    let zero = Number::Int(0);
    let number = |value: Option<&Value>| value.map_or(Some(zero), Value::number);
    number(stored)?.plus(mine.number()?.minus(number(base)?)?)?.value()
}

/// The stored set, with what `mine` added to `base` and without what it took out.
pub(crate) fn union(base: Option<&Value>, stored: Option<&Value>, mine: &Value) -> Option<Value> {
    let elements = |value: Option<&Value>| value.map_or(Some(Vec::new()), Value::elements);
    let (base, stored, mine) = (elements(base)?, elements(stored)?, mine.elements()?);
    let kept = stored.into_iter().filter(|e| mine.contains(e) || !base.contains(e));
    let added = mine.iter().filter(|e| !base.contains(e)).cloned();
    Some(set(kept.chain(added).collect()))
}

/// The stored list with what `mine` appended to `base`; `None` if it did something else.
pub(crate) fn append(
    base: Option<&Value>,
    stored: Option<&Value>,
    mine: &Value,
    cap: usize,
) -> Option<Value> {
    let elements = |value: Option<&Value>| value.map_or(Some(Vec::new()), Value::elements);
    let (base, stored, mine) = (elements(base)?, elements(stored)?, mine.elements()?);
    let appended = mine.strip_prefix(base.as_slice())?;
    Some(last([&stored, appended].concat(), cap))
}

/// The greater or the lesser of two values; `None` if they cannot be compared.
pub(crate) fn extreme(a: &Value, b: &Value, wanted: Ordering) -> Option<Value> {
    let order = compare(b, a)?;
    // Equal numbers may be written differently (1 and 1.0): the bytes decide, in either order.
    let order = order.then_with(|| b.as_bytes().cmp(a.as_bytes()));
    Some(if order == wanted { b.clone() } else { a.clone() })
}

fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a.number(), b.number()) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => Some(a.cmp(&b)),
        (Some(a), Some(b)) => a.float().partial_cmp(&b.float()),
        (None, None) => match (a.decode()?, b.decode()?) {
            (rmpv::Value::String(a), rmpv::Value::String(b)) => {
                Some(a.as_bytes().cmp(b.as_bytes()))
            }
            _ => None,
        },
        _ => None,
    }
}

/// A set is a list without duplicates, in the order of the encoded elements, so that it is the
/// same whoever added what first.
fn set(mut items: Vec<Value>) -> Value {
    canonical(&mut items);
    Value::list(&items)
}

fn canonical(items: &mut Vec<Value>) {
    items.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    items.dedup();
}

fn last(mut items: Vec<Value>, cap: usize) -> Value {
    items.drain(..items.len().saturating_sub(cap));
    Value::list(&items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<T: Serialize>(value: T) -> Value {
        Value::of(&value).expect("encodes")
    }

    #[test]
    fn sums_end_where_numbers_end() {
        let add = |n: i64| Op::Add(n.into());
        assert_eq!(add(1).apply(Some(&value(u64::MAX))), None);
        assert_eq!(add(-1).apply(Some(&value(i64::MIN))), None);
        assert_eq!(add(1).apply(Some(&value(i64::MAX))), Some(value(1u64 << 63)));
        assert_eq!(add(1).apply(Some(&value(0.5))), Some(value(1.5)));
        assert_eq!(add(1).apply(Some(&value("one"))), None);
        assert_eq!(Op::Add(f64::MAX.into()).apply(Some(&value(f64::MAX))), None);
    }

    #[test]
    fn not_a_number_is_neither_greater_nor_lesser() {
        assert_eq!(Op::Max(value(f64::NAN)).apply(None), None);
        assert_eq!(Op::Max(value(f64::NAN)).apply(Some(&value(1))), None);
        assert_eq!(Op::Min(value("a")).apply(Some(&value(1))), None);
        assert_eq!(Op::Min(value("a")).apply(Some(&value("b"))), Some(value("a")));
    }

    #[test]
    fn rules_of_lists_replay_what_a_writer_did() {
        let (base, stored) = (value(["a", "b"]), value(["a", "b", "c"]));
        let mine = value(["b", "d"]);
        assert_eq!(union(Some(&base), Some(&stored), &mine), Some(value(["b", "c", "d"])));
        assert_eq!(append(Some(&base), Some(&stored), &mine, 9), None);
        let mine = value(["a", "b", "d"]);
        assert_eq!(append(Some(&base), Some(&stored), &mine, 2), Some(value(["c", "d"])));
    }

    #[test]
    fn depth_is_that_of_what_was_encoded() {
        use rmpv::Value as V;
        fn depth(value: &V) -> usize {
            match value {
                V::Array(parts) => 1 + parts.iter().map(depth).max().unwrap_or(0),
                V::Map(pairs) => {
                    1 + pairs.iter().map(|(k, v)| depth(k).max(depth(v))).max().unwrap_or(0)
                }
                _ => 0,
            }
        }
        // Every kind of scalar, so that none is skipped by too few or too many bytes.
        let mut scalars = vec![V::Nil, V::from(true), V::F32(1.0), V::F64(1.0)];
        for bits in 0..64 {
            scalars.extend([V::from(1u64 << bits), V::from(-1i64 << bits)]);
        }
        for length in [0, 1, 2, 3, 4, 8, 16, 31, 32, 255, 256, 65_535, 65_536] {
            scalars.push(V::from("s".repeat(length)));
            scalars.push(V::Binary(vec![0x91; length]));
            scalars.push(V::Ext(1, vec![0x91; length]));
        }
        for scalar in &scalars {
            let deep = V::Array(vec![V::Map(vec![(V::Nil, V::Array(Vec::new()))])]);
            let list = V::Array(vec![scalar.clone(), deep.clone(), scalar.clone()]);
            let map = V::Map(vec![(scalar.clone(), scalar.clone()), (deep, scalar.clone())]);
            for value in [scalar, &list, &map] {
                assert_eq!(Value::encode(value).depth(), depth(value), "{value}");
            }
        }
        for parts in [15, 16, 65_535, 65_536] {
            let mut list = vec![V::Nil; parts - 1];
            list.push(V::Array(Vec::new()));
            let pairs: Vec<_> = list.iter().map(|value| (value.clone(), V::Nil)).collect();
            assert_eq!(Value::encode(&V::Array(list)).depth(), 2);
            assert_eq!(Value::encode(&V::Map(pairs)).depth(), 2);
        }
        // What is no MessagePack, or ends in the middle, ends.
        for bytes in [&[0xc1][..], &[0x92, 0x91], &[0xdd, 0xff, 0xff, 0xff, 0xff], &[0xdb, 1], &[]]
        {
            Value::from_bytes(bytes).depth();
        }
        assert_eq!(Value::from_bytes(&[0x91; 1 << 20]).depth(), 1 << 20);
    }

    #[test]
    fn a_value_is_not_shown() {
        assert_eq!(format!("{:?}", value("secret")), "Value(a string, 7 bytes)");
        assert_eq!(Value::from_bytes(&[0x92]).kind(), "no MessagePack");
    }
}
