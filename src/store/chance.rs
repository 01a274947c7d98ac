//! The one generator of chance: session ids and back-off. A seed replays a run.

use std::time::Duration;

use rand::rngs::{StdRng, SysRng};
use rand::{RngExt, SeedableRng, TryRng};

use crate::error::Error;
use crate::model::session::SessionId;
use crate::store::lock;
use crate::sync::Mutex;

#[derive(Debug)]
pub(crate) struct Chance(Mutex<StdRng>);

impl Chance {
    /// Seeded by the operating system, unless a test gives a seed.
    pub(crate) fn new(seed: Option<u64>) -> Result<Self, Error> {
        let generator = match seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => {
                let mut seed = [0; 32];
                SysRng
                    .try_fill_bytes(&mut seed)
                    .map_err(|error| Error::Random(error.to_string()))?;
                StdRng::from_seed(seed)
            }
        };
        Ok(Chance(Mutex::new(generator)))
    }

    pub(crate) fn session_id(&self) -> SessionId {
        SessionId(lock(&self.0).random())
    }

    /// How long to wait before an attempt: up to 1, 2, 4 ms, so that two who collided part ways.
    pub(crate) fn back_off(&self, attempt: u32) -> Duration {
        let max = 1_000u64 << attempt.min(6);
        Duration::from_micros(lock(&self.0).random_range(0..=max))
    }
}
