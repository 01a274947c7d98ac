//! The marker: the text whose presence makes a directory a store.
//!
//! It says of which format the store is and tells it from every other one. The format is read before
//! anything else, so that what a newer version wrote is told from what is damaged.

use twox_hash::XxHash3_64;

/// What this version writes and reads. It counts formats, not releases.
pub(crate) const FORMAT: u32 = 1;

/// The name of the file, and the first word in it.
pub(super) const MARKER: &str = "sessile";

/// What tells one store from another, so that a log is never taken for that of another store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreId(pub(super) u128);

/// The text of the marker. People may read it; [`read`] takes nothing else.
pub(super) fn text_of(id: StoreId) -> String {
    let text = format!("{MARKER}\nformat {FORMAT}\nstore {:032x}\n", id.0);
    let check = XxHash3_64::oneshot(text.as_bytes());
    format!("{text}check {check:016x}\n")
}

/// Why a marker is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has another format.
    Format(u32),
    /// It is none: "`sessile` ..."
    Not(&'static str),
}

/// The id in a marker. The format is read before the checksum is asked for: what comes after it is
/// another format's business.
pub(super) fn read(text: &[u8]) -> Result<StoreId, Refusal> {
    const BEGINNING: &str = "sessile\nformat ";
    const CUT_OFF: Refusal = Refusal::Not("is cut off");
    const FOREIGN: Refusal = Refusal::Not("was written by another program");
    const DAMAGED: Refusal = Refusal::Not("is damaged");
    if text.is_empty() {
        return Err(Refusal::Not("is empty"));
    }
    let Some(rest) = text.strip_prefix(BEGINNING.as_bytes()) else {
        return Err(if BEGINNING.as_bytes().starts_with(text) { CUT_OFF } else { FOREIGN });
    };
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Err(CUT_OFF) };
    let format = str::from_utf8(&rest[..end]).ok().and_then(|format| format.parse().ok());
    match format {
        Some(FORMAT) => {}
        Some(found) => return Err(Refusal::Format(found)),
        None => return Err(DAMAGED),
    }
    let id = rest[end..].strip_prefix(b"\nstore ").and_then(|rest| rest.get(..32));
    let id = id.and_then(|id| str::from_utf8(id).ok());
    let id = id.and_then(|id| u128::from_str_radix(id, 16).ok()).map(StoreId);
    let wanted = text_of(id.unwrap_or(StoreId(0)));
    match id {
        Some(id) if wanted.as_bytes() == text => Ok(id),
        _ if text.len() < wanted.len() => Err(CUT_OFF),
        _ => Err(DAMAGED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: StoreId = StoreId(0x00aa_55f0_1234_5678_9abc_def0_8765_4321);

    #[test]
    fn the_marker_is_what_the_documentation_shows() {
        let text = text_of(ID);
        assert!(text.contains("\nstore 00aa55f0123456789abcdef087654321\n"), "{text}");
        let documented = include_str!("../../docs/format.md");
        assert!(documented.contains(&format!("```text\n{text}```\n")), "{text}");
    }

    /// Whichever byte is whatever other byte: no marker but the one that was written is read.
    #[test]
    fn no_byte_of_the_marker_may_change() {
        let whole = text_of(ID);
        assert_eq!(read(whole.as_bytes()), Ok(ID));
        for place in 0..whole.len() {
            for byte in 0..=u8::MAX {
                let mut changed = whole.clone().into_bytes();
                changed[place] = byte;
                if changed != whole.as_bytes() {
                    assert!(read(&changed).is_err(), "byte {place} is {byte}");
                }
            }
        }
    }
}
