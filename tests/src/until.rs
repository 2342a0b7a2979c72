//! Waiting for a condition, with a deadline and a reason.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `condition` is true and returns how long it took; errors of the condition count as "not yet".
///
/// # Errors
/// It is still false, or fails, after `patience`; the message has `what` and its last error.
pub async fn within<F>(patience: Duration, what: impl Display, mut condition: impl FnMut() -> F) -> Result<Duration>
where
    F: Future<Output = Result<bool>>,
{
    let started = Instant::now();
    loop {
        let looked = condition().await;
        let elapsed = started.elapsed();
        match looked {
            Ok(true) => return Ok(elapsed),
            Ok(false) if elapsed > patience => bail!("not within {patience:?}: {what}"),
            Err(error) if elapsed > patience => return Err(error.context(format!("not within {patience:?}: {what}"))),
            Ok(false) | Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// [`within()`] 10 s: for what has no time limit of its own.
///
/// # Errors
/// As [`within()`].
pub async fn eventually<F>(what: impl Display, condition: impl FnMut() -> F) -> Result<Duration>
where
    F: Future<Output = Result<bool>>,
{
    within(Duration::from_secs(10), what, condition).await
}
