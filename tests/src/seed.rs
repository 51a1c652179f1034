//! Chance that can be repeated.

use std::env;

use anyhow::{Context, Result};
use fastrand::Rng;

use crate::knocks::random;

/// The environment variable with the seed of a run that is to be repeated.
const VARIABLE: &str = "POSTERN_SEED";

/// A generator of random numbers. Its seed is printed, which a test that fails shows.
///
/// # Errors
/// When the seed in the environment is no number.
pub fn seeded() -> Result<Rng> {
    let seed = match env::var(VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{VARIABLE} is no number: {text:?}"))?,
        Err(_) => u64::from_ne_bytes(random()),
    };
    println!("{VARIABLE}={seed}");
    Ok(Rng::with_seed(seed))
}
