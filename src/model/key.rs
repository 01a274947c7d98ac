//! What a container files a session under.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// What a container files a session under: any bytes, the empty ones included.
///
/// For web sessions it is the SHA-256 of the visitor's [`Token`](crate::Token), so that a stolen
/// store lets nobody in. `Debug` shows the [`fingerprint`](Key::fingerprint) only, because an
/// application may well use a secret as its key.
///
/// ```
/// use sessile::Key;
///
/// let key = Key::from("ada");
/// assert_eq!(key.as_bytes(), b"ada");
/// assert!(!format!("{key:?}").contains("ada"));
/// ```
#[derive(Clone)]
pub struct Key(Bytes);

/// Most keys are hashes. They lie where the key lies, so that comparing two of them, which every
/// look into a map does, follows no pointer, and a clone counts nothing.
#[derive(Clone)]
enum Bytes {
    Short { len: u8, bytes: [u8; SHORT_MAX] },
    Long(Arc<[u8]>),
}

const SHORT_MAX: usize = 32;

impl Key {
    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short { len, bytes } => &bytes[..usize::from(*len)],
            Bytes::Long(bytes) => bytes,
        }
    }

    /// Eight hex digits by which people may tell sessions apart in logs and errors: the first of a
    /// key that is a hash already (32 bytes that are no text), the first of the SHA-256 of any
    /// other.
    pub fn fingerprint(&self) -> String {
        let bytes = self.as_bytes();
        let is_hash = bytes.len() == 32 && std::str::from_utf8(bytes).is_err();
        let head: [u8; 4] = match is_hash {
            true => bytes[..4].try_into(),
            false => Sha256::digest(bytes)[..4].try_into(),
        }
        .expect("four bytes were cut out");
        format!("{:08x}", u32::from_be_bytes(head))
    }

    /// The bytes as text, as the store's own notes name a key.
    pub(crate) fn to_hex(&self) -> String {
        self.as_bytes().iter().fold(String::new(), |mut hex, byte| {
            let digit = |n: u8| char::from_digit(n.into(), 16).expect("less than sixteen");
            hex.extend([digit(byte >> 4), digit(byte & 15)]);
            hex
        })
    }

    /// The key of which this is the text; `None` if it is none's.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let digit = |digit: &u8| char::from(*digit).to_digit(16);
        let byte = |pair: &[u8]| Some((digit(pair.first()?)? * 16 + digit(pair.get(1)?)?) as u8);
        let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
        bytes.map(Key::from)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.fingerprint())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl From<&[u8]> for Key {
    fn from(key: &[u8]) -> Self {
        let mut bytes = [0; SHORT_MAX];
        Key(match bytes.get_mut(..key.len()) {
            Some(short) => {
                short.copy_from_slice(key);
                Bytes::Short { len: key.len() as u8, bytes }
            }
            None => Bytes::Long(key.into()),
        })
    }
}

impl<const N: usize> From<&[u8; N]> for Key {
    fn from(bytes: &[u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

impl From<[u8; 32]> for Key {
    fn from(bytes: [u8; 32]) -> Self {
        bytes.as_slice().into()
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        text.as_bytes().into()
    }
}

impl From<&String> for Key {
    fn from(text: &String) -> Self {
        text.as_bytes().into()
    }
}

impl From<&Key> for Key {
    fn from(key: &Key) -> Self {
        key.clone()
    }
}
