//! Epochs: identify the counters that continue one another.

/// 16 random bytes: counters of different epochs do not continue one another.
pub type Epoch = [u8; 16];

/// Draws a new epoch.
///
/// # Errors
/// If the system has no random bytes.
pub fn draw() -> Result<Epoch, getrandom::Error> {
    let mut epoch = Epoch::default();
    getrandom::fill(&mut epoch)?;
    Ok(epoch)
}
