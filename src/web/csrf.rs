//! Tokens for forms, against requests that another site makes in a visitor's name.
//!
//! ```text
//!   secret   SHA-256("sessile csrf" | the session's token)
//!   token    mask | (secret xor mask)            base64url; the mask is new each time
//! ```
//!
//! Whoever knows a form's token does not know the session's, and whoever has stolen the store has neither:
//! it holds the hash of the token, and this is another one. Nothing is stored, so nothing can conflict, and
//! a session that gets another token gets another secret. The mask keeps the secret from being guessed by
//! the length of compressed pages (BREACH, Gluck, Harris, Prado 2013).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::{Error, Token};

const BYTES: usize = 32;

fn secret(token: &Token) -> [u8; BYTES] {
    let hash = Sha256::new().chain_update(b"sessile csrf").chain_update(token.expose());
    hash.finalize().into()
}

fn xor(left: [u8; BYTES], right: [u8; BYTES]) -> [u8; BYTES] {
    std::array::from_fn(|at| left[at] ^ right[at])
}

/// A token for a form.
pub(crate) fn token(session: &Token) -> Result<String, Error> {
    // Random bytes are random bytes.
    let mask = <[u8; BYTES]>::from(Sha256::digest(Token::random()?.expose()));
    let masked = xor(secret(session), mask);
    Ok(URL_SAFE_NO_PAD.encode([mask, masked].concat()))
}

/// Whether it is one of this session's.
pub(crate) fn is_token(text: &str, session: &Token) -> bool {
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(text) else { return false };
    let Ok(bytes) = <[u8; 2 * BYTES]>::try_from(bytes) else { return false };
    let (mask, masked) = bytes.split_at(BYTES);
    let [mask, masked] = [mask, masked].map(|half| half.try_into().expect("it is a half"));
    // Hashes are compared, so that how long it takes says nothing about the secret.
    Sha256::digest(xor(mask, masked)) == Sha256::digest(secret(session))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_session() {
        let [ours, theirs] = [(); 2].map(|()| Token::random().expect("random"));
        let first = token(&ours).expect("random");
        let second = token(&ours).expect("random");
        assert_ne!(first, second, "the mask is new each time");
        assert!(is_token(&first, &ours) && is_token(&second, &ours));
        assert!(!is_token(&first, &theirs));
        let mut cut = first.clone();
        cut.pop();
        let other = if first.starts_with('A') { "B" } else { "A" };
        let changed = format!("{other}{}", &first[1..]);
        for bad in ["", "A", &cut, &changed, &ours.expose(), &format!("{first}A"), "é"] {
            assert!(!is_token(bad, &ours), "{bad:?}");
        }
    }
}
