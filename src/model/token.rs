//! The secret a visitor carries.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::model::key::Key;

/// The secret a visitor carries: 256 random bits, written as 43 characters of base64url.
///
/// The store never sees it: it files the session under [`key`](Token::key), a hash. `Debug` shows
/// the first digits of that hash, and there is no `Display`; what goes into a cookie is taken out
/// by name, with [`expose`](Token::expose).
///
/// ```
/// use sessile::Token;
///
/// let token = Token::random()?;
/// let read: Token = token.expose().parse()?;
/// assert_eq!(read.key(), token.key());
/// assert!(!format!("{token:?}").contains(&token.expose()));
///
/// assert!("guest".parse::<Token>().is_err());
/// # Ok::<(), sessile::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// A new token from the operating system's generator.
    ///
    /// # Errors
    ///
    /// [`Error::Random`] if the generator fails. There is no weaker one to fall back to.
    pub fn random() -> Result<Self, Error> {
        Token::drawn_from(&mut SysRng)
    }

    fn drawn_from<S: TryRng>(source: &mut S) -> Result<Self, Error> {
        let mut bytes = [0; 32];
        source.try_fill_bytes(&mut bytes).map_err(|error| Error::Random(error.to_string()))?;
        Ok(Token(bytes))
    }

    /// The text to put into a cookie. Whoever has it has the session.
    pub fn expose(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// The key that a container files this visitor's session under: SHA-256 of the token.
    pub fn key(&self) -> Key {
        Key::from(<[u8; 32]>::from(Sha256::digest(self.0)))
    }
}

/// Accepts exactly what [`Token::expose`] writes: 43 characters, no padding, no spaces.
///
/// # Errors
///
/// [`Error::Token`], which does not repeat the text.
impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Token)?;
        bytes.try_into().map(Token).map_err(|_| Error::Token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.key().fingerprint())
    }
}

impl From<&Token> for Key {
    fn from(token: &Token) -> Self {
        token.key()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator that fails at one of its calls, after it has written something.
    struct Failing {
        calls: usize,
        fails_at: usize,
    }

    impl TryRng for Failing {
        type Error = fmt::Error;

        fn try_next_u32(&mut self) -> Result<u32, fmt::Error> {
            Err(fmt::Error)
        }

        fn try_next_u64(&mut self) -> Result<u64, fmt::Error> {
            Err(fmt::Error)
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), fmt::Error> {
            self.calls += 1;
            bytes.fill(self.calls as u8);
            if self.calls == self.fails_at { Err(fmt::Error) } else { Ok(()) }
        }
    }

    /// There is no weaker generator behind the first, and no token of half the bits.
    #[test]
    fn no_random_numbers_no_token() {
        for fails_at in 1..=10 {
            let mut source = Failing { calls: 0, fails_at };
            for call in 1..=10u8 {
                match Token::drawn_from(&mut source) {
                    Ok(token) => assert_eq!(token.0, [call; 32]),
                    Err(error) => assert!(matches!(error, Error::Random(_)), "{error}"),
                }
            }
            assert_eq!(source.calls, 10, "each token asks once");
        }
        let drawn = |fails_at| Token::drawn_from(&mut Failing { calls: 0, fails_at });
        assert!(drawn(1).is_err() && drawn(2).is_ok());
    }

    #[test]
    fn only_the_generated_form_is_accepted() {
        let text = Token::random().expect("random").expose();
        assert_eq!(text.len(), 43);
        for bad in [
            String::new(),
            text[1..].to_owned(),
            format!("{text}A"),
            format!("{text}="),
            format!(" {text}"),
            format!("{}\0", &text[1..]),
            format!("{}é", &text[2..]),
            text.replace(&text[..1], "+"),
            // The last character has two unused bits: another spelling of the same bytes.
            format!("{}{}", &"A".repeat(42), "B"),
        ] {
            assert!(bad.parse::<Token>().is_err(), "{bad:?} was accepted");
        }
    }
}
