//! Waiting for conditions, never for time to pass.

use std::{env, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{Error, Result};

/// Long enough for a slow machine under load: a test that waits so long has failed.
const SECONDS: u64 = 180;

/// Repeats `look` until it returns a result. Its error describes the state that it found instead.
///
/// # Errors
/// [`Error::TimedOut`] after three minutes, or after `SCOPEPROBE_TEST_TIMEOUT` seconds.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Result<T, String>) -> Result<T> {
    let seconds = env::var("SCOPEPROBE_TEST_TIMEOUT").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    eventually_within(Duration::from_secs(seconds), what, look).await
}

/// The same with a limit of its own, for what takes longer.
///
/// # Errors
/// [`Error::TimedOut`] after `limit`.
pub async fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(last) if begin.elapsed() >= limit => {
                return Err(Error::TimedOut { what: what.to_owned(), seconds: limit.as_secs(), last });
            }
            Err(_) => sleep(pause(begin.elapsed())).await,
        }
    }
}

/// Returns the time to the next look. What takes long is not hastened by looking: each look is the machine's work too.
fn pause(waited: Duration) -> Duration {
    (waited / 8).clamp(Duration::from_millis(100), Duration::from_millis(500))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_shows_what_was_seen_last() {
        let mut looks = 0;
        let result: Result<()> = eventually_within(Duration::ZERO, "the moon", async || {
            looks += 1;
            Err(format!("cloud {looks}"))
        })
        .await;
        assert_eq!(result.unwrap_err().to_string(), "the moon did not happen within 0 s; last seen: cloud 1");
    }
}
