//! Waiting for something to become true, by polling with a deadline: never a fixed sleep that is too long on one
//! machine and too short on another.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Long enough for anything that happens at all, on a slow machine with other work to do.
pub const LONG: Duration = Duration::from_secs(30);

/// Between two looks at something that happens soon.
const PAUSE: Duration = Duration::from_millis(10);

/// Polls until `look` finds something.
///
/// # Errors
/// When it found nothing for `limit`, with `what` in the message, or when `look` itself failed.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(PAUSE);
    }
}
