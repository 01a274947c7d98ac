//! How things are written for people, and for programs.
//!
//! What a store holds was written by strangers, and goes to a terminal. So nothing is printed that is
//! not printable: control characters, marks that turn the direction of writing and the like are
//! escaped, in JSON too.

use std::iter;
use std::time::Duration;

use serde_json::{Map, Value as Json};
use sessile::{Key, Time, Value};

fn is_printable(letter: char) -> bool {
    matches!(letter, '"' | '\'' | '\\') || letter.escape_debug().eq(iter::once(letter))
}

/// A text of which a terminal shows every letter and obeys none: `a\nb`, `\u{1b}`.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match is_printable(letter) && letter != '\\' {
            true => shown.push(letter),
            false => shown.extend(letter.escape_debug()),
        }
    }
    shown
}

/// JSON in one line that holds printable letters only. What is none stands in a text there, and may be
/// escaped.
pub(crate) fn json_line(json: &Json) -> String {
    let mut line = String::new();
    for letter in json.to_string().chars() {
        if is_printable(letter) {
            line.push(letter);
            continue;
        }
        for unit in letter.encode_utf16(&mut [0; 2]) {
            line += &format!("\\u{unit:04x}");
        }
    }
    line
}

/// A value whose type only its application knows. What JSON cannot say is said by an object:
/// `{"bytes":"00ff"}`, `{"extension":1,"bytes":"00ff"}`; a map whose keys are no texts is a list of
/// pairs, and a number that is none is its name. `None` if it is no MessagePack.
pub(crate) fn json_of(value: &Value) -> Option<Json> {
    // As deep as the store itself looks into values.
    const DEPTH_MAX: usize = 1_024;
    let mut bytes = value.as_bytes();
    rmpv::decode::read_value_with_max_depth(&mut bytes, DEPTH_MAX).ok().map(json_of_part)
}

fn json_of_part(part: rmpv::Value) -> Json {
    let bytes =
        |bytes: &[u8]| Json::from(Map::from_iter([("bytes".to_owned(), hex(bytes).into())]));
    let float = |number: f64| match Json::from(number) {
        Json::Null => number.to_string().into(),
        number => number,
    };
    match part {
        rmpv::Value::Nil => Json::Null,
        rmpv::Value::Boolean(truth) => truth.into(),
        rmpv::Value::Integer(n) => n.as_i64().map_or(n.as_u64().into(), Json::from),
        rmpv::Value::F32(number) => float(number.into()),
        rmpv::Value::F64(number) => float(number),
        rmpv::Value::String(text) => match text.as_str() {
            Some(text) => text.into(),
            None => bytes(text.as_bytes()),
        },
        rmpv::Value::Binary(binary) => bytes(&binary),
        rmpv::Value::Array(parts) => parts.into_iter().map(json_of_part).collect(),
        rmpv::Value::Map(pairs) => json_of_map(pairs),
        rmpv::Value::Ext(kind, binary) => {
            let fields = [("extension", kind.into()), ("bytes", hex(&binary).into())];
            fields.map(|(name, field): (_, Json)| (name.to_owned(), field)).into_iter().collect()
        }
    }
}

fn json_of_map(pairs: Vec<(rmpv::Value, rmpv::Value)>) -> Json {
    let name = |(key, _): &(rmpv::Value, rmpv::Value)| Some(key.as_str()?.to_owned());
    let names: Option<Vec<String>> = pairs.iter().map(name).collect();
    let parts = pairs.iter().map(|(_, part)| part.clone()).map(json_of_part);
    let object: Option<Map<_, _>> = names.map(|names| names.into_iter().zip(parts).collect());
    match object {
        // The same name twice would be one lost.
        Some(object) if object.len() == pairs.len() => object.into(),
        _ => {
            let pair = |(key, part)| Json::from(vec![json_of_part(key), json_of_part(part)]);
            pairs.into_iter().map(pair).collect()
        }
    }
}

/// What a value is, in one word or two: `string`, `no MessagePack`.
pub(crate) fn kind(value: &Value) -> &'static str {
    let kind = value.kind();
    kind.strip_prefix("a ").or(kind.strip_prefix("an ")).unwrap_or(kind)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key as people may type it: as text, or as `0x…` if it is none.
pub(crate) fn key(key: &Key) -> String {
    match std::str::from_utf8(key.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("0x{}", hex(key.as_bytes())),
    }
}

/// The key that is written so, if it is no text.
pub(crate) fn key_of_hex(text: &str) -> Option<Key> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.is_ascii())?;
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    bytes.map(Key::from)
}

/// A point in time: RFC 3339, UTC.
pub(crate) fn utc(time: Time) -> String {
    let micros = i64::try_from(time.as_micros()).ok();
    match micros.and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok()) {
        Some(timestamp) => timestamp.to_string(),
        // So late that years have more than four digits.
        None => format!("@{time}"),
    }
}

/// A time span in the largest unit that fits: `14 s`, `41 min`, `11 h`, `3 d`.
pub(crate) fn span(span: Duration) -> String {
    match span.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7_200 => format!("{} min", secs / 60),
        secs @ 7_200..172_800 => format!("{} h", secs / 3_600),
        secs => format!("{} d", secs / 86_400),
    }
}

/// A point in time as seen from another: `6 min ago`, `in 20 min`.
pub(crate) fn relative(time: Time, now: Time) -> String {
    match time > now {
        true => format!("in {}", span(time.since(now))),
        false => format!("{} ago", span(now.since(time))),
    }
}

/// So many bytes: `412 B`, `3.1 KiB`, `61 KiB`, `18.3 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len() - 1).find(|unit| bytes < 1_024 << (10 * unit)).unwrap_or(4);
    let amount = bytes as f64 / (1u64 << (10 * unit)) as f64;
    match unit > 0 && amount < 100.0 {
        true => format!("{amount:.1} {}", UNITS[unit]),
        false => format!("{amount:.0} {}", UNITS[unit]),
    }
}

/// `12345` as `12,345`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A duration in the unit that people would use.
pub(crate) fn duration(time: Duration) -> String {
    match time.as_micros() {
        micros @ 0..1_000 => format!("{micros} µs"),
        micros @ 1_000..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        micros @ 10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// So many a second.
pub(crate) fn rate(count: u64, time: Duration) -> String {
    thousands((count as f64 / time.as_secs_f64().max(1e-6)) as u64)
}

/// `1 session`, `2 sessions`.
pub(crate) fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(n), if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What terminals obey, and what deceives readers.
    const HOSTILE: [&str; 14] = [
        "\u{1b}[2J",
        "\u{1b}]8;;http://example.org\u{7}x",
        "\u{1b}]52;c;eA==\u{7}",
        "\u{1b}P+q\u{1b}\\",
        "\u{1b}_x\u{1b}\\",
        "\u{9b}31m",
        "\u{9d}0;x\u{9c}",
        "good\rbad",
        "a\tb\nc",
        "\u{7f}\u{0}\u{8}",
        "\u{202e}txt.exe",
        "\u{2066}x\u{2069}",
        "a\u{200d}b\u{200b}c\u{feff}",
        "\u{2028}\u{2029}\u{e0001}\u{fff9}",
    ];

    fn is_safe(text: &str) -> bool {
        text.chars().all(|letter| {
            let hidden =
                "\u{200b}\u{200d}\u{202e}\u{2066}\u{2069}\u{2028}\u{2029}\u{feff}\u{e0001}\u{fff9}";
            !letter.is_control() && !hidden.contains(letter)
        })
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        for text in HOSTILE {
            let shown = printable(text);
            assert!(is_safe(&shown) && shown.contains('\\'), "{shown:?}");
            let json = json_line(&Json::from(text));
            assert!(is_safe(&json), "{json:?}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
        assert_eq!(printable("\u{1b}[31m\\n"), "\\u{1b}[31m\\\\n");
        for text in ["plain", "Zoë's \"東京\" 🦀", "ß ≥ 1"] {
            assert_eq!(printable(text), text);
            assert_eq!(json_line(&Json::from(text)), serde_json::to_string(text).unwrap());
        }
    }

    #[test]
    fn every_value_is_json() {
        let text = |text: &str| rmpv::Value::from(text);
        for (value, expected) in [
            (rmpv::Value::Nil, "null"),
            (true.into(), "true"),
            (u64::MAX.into(), "18446744073709551615"),
            (i64::MIN.into(), "-9223372036854775808"),
            (0.5.into(), "0.5"),
            (f64::NAN.into(), "\"NaN\""),
            (f32::NEG_INFINITY.into(), "\"-inf\""),
            (text("tea"), "\"tea\""),
            (rmpv::Value::Binary(vec![0, 255]), r#"{"bytes":"00ff"}"#),
            (rmpv::Value::Ext(7, vec![1]), r#"{"bytes":"01","extension":7}"#),
            (vec![1.into(), text("a")].into(), r#"[1,"a"]"#),
            (vec![(text("b"), 1.into()), (text("a"), 2.into())].into(), r#"{"a":2,"b":1}"#),
            (vec![(1.into(), text("one"))].into(), r#"[[1,"one"]]"#),
            (vec![(text("a"), 1.into()), (text("a"), 2.into())].into(), r#"[["a",1],["a",2]]"#),
        ] {
            assert_eq!(json_line(&json_of_part(value)), expected);
        }
        let list = Value::of(&["a", "b"]).unwrap();
        assert_eq!(json_of(&list), Some(serde_json::json!(["a", "b"])));
        assert_eq!(kind(&list), "list");
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        for bytes in [&b"ada"[..], b"", &[0, 255, 16], b"0x12"] {
            let text = key(&Key::from(bytes));
            let read = key_of_hex(&text).filter(|_| bytes != b"0x12");
            assert_eq!(read.unwrap_or_else(|| Key::from(&text)).as_bytes(), bytes);
        }
        for text in ["0x1", "0xzz", "12", "0xé1"] {
            assert!(key_of_hex(text).is_none());
        }
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(["0", "999", "1,000", "1,234,567"], [0, 999, 1_000, 1_234_567].map(thousands));
        assert_eq!(["1 batch", "2 batches"], [1, 2].map(|n| plural(n, "batch", "batches")));
        let durations = [7, 1_234, 12_345, 1_234_567].map(Duration::from_micros);
        assert_eq!(["7 µs", "1.2 ms", "12 ms", "1.2 s"], durations.map(duration));
        let spans = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(Duration::from_secs);
        assert_eq!(spans.map(span), ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
        let sizes = [0, 1_023, 1_024, 62_464, 19_188_941, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "61.0 KiB", "18.3 MiB", "16777216 TiB"]);
        let now = Time::from_secs(1_700_000_000);
        assert_eq!(relative(Time::from_secs(1_700_000_060), now), "in 60 s");
        assert_eq!(relative(Time::from_secs(1_699_996_400), now), "60 min ago");
        assert_eq!(utc(now), "2023-11-14T22:13:20Z");
        assert_eq!(utc(Time::from_micros(1_500_000)), "1970-01-01T00:00:01.5Z");
        assert_eq!(utc(Time::from_secs(999_999_999_999)), "@999999999999");
    }
}
