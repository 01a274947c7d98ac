//! Tokens come from the operating system. What it does cannot be seeded, so a run that fails here may be
//! one of the seven thousand that should: 256 bits have a chance of 1 in 1.7 million each to be off by five
//! standard deviations. That failing randomness is an error is tested beside the token (`model/token.rs`).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sessile::Token;

use super::say;

#[test]
fn tokens_differ_and_their_bits_are_even() {
    let count: u32 = match std::env::var("SESSILE_SIMULATION").as_deref() {
        Ok("ci") => 10_000_000,
        _ => 1_000_000,
    };
    let mut ones = [0u32; 256];
    // Half a token is enough to tell them apart, and takes half the memory.
    let mut seen = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let bytes = URL_SAFE_NO_PAD.decode(Token::random().unwrap().expose()).unwrap();
        let halves =
            [&bytes[..16], &bytes[16..]].map(|half| u128::from_be_bytes(half.try_into().unwrap()));
        for (half, ones) in halves.iter().zip(ones.chunks_mut(128)) {
            for (bit, ones) in ones.iter_mut().enumerate() {
                *ones += (half >> bit & 1) as u32;
            }
        }
        seen.push(halves[0]);
    }
    seen.sort_unstable();
    let duplicates = seen.windows(2).filter(|pair| pair[0] == pair[1]).count();
    let deviation = f64::from(count).sqrt() / 2.0;
    let off = |ones: &u32| (f64::from(*ones) - f64::from(count) / 2.0).abs() / deviation;
    let worst = ones.iter().map(off).fold(0.0, f64::max);
    say(&format!(
        "{count} tokens, {duplicates} duplicates, the worst bit is off by {worst:.2} deviations"
    ));
    assert_eq!(duplicates, 0);
    assert!(worst <= 5.0, "a bit is off by {worst} deviations");
}
