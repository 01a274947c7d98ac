//! What a container files a session under.

use std::borrow::Borrow;
use std::fmt;
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
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Eight hex digits by which people may tell sessions apart in logs and errors: the first of a
    /// key that is a hash already (32 bytes that are no text), the first of the SHA-256 of any
    /// other.
    pub fn fingerprint(&self) -> String {
        let is_hash = self.0.len() == 32 && std::str::from_utf8(&self.0).is_err();
        let head: [u8; 4] = match is_hash {
            true => self.0[..4].try_into(),
            false => Sha256::digest(&self.0)[..4].try_into(),
        }
        .expect("four bytes were cut out");
        format!("{:08x}", u32::from_be_bytes(head))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.fingerprint())
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Key(bytes.into())
    }
}

impl<const N: usize> From<&[u8; N]> for Key {
    fn from(bytes: &[u8; N]) -> Self {
        Key(bytes.as_slice().into())
    }
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Self {
        Key(bytes.into())
    }
}

impl From<[u8; 32]> for Key {
    fn from(bytes: [u8; 32]) -> Self {
        Key(bytes.into())
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Key(text.as_bytes().into())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Key(text.into_bytes().into())
    }
}

impl From<&String> for Key {
    fn from(text: &String) -> Self {
        Key(text.as_bytes().into())
    }
}

impl From<&Key> for Key {
    fn from(key: &Key) -> Self {
        key.clone()
    }
}
