//! Seeds: entries by which the kernel program counts the end of connections and attempts that it has not seen begin.

use aya::maps::MapError;

use super::programs::Programs;
use crate::capture::errors::{CaptureError, failed};

/// Removes an entry. Returns whether the kernel program had removed it already.
pub(super) fn remove_seed(programs: &mut Programs, cookie: u64) -> Result<bool, CaptureError> {
    was_taken(programs.seeds.remove(&cookie))
        .map_err(|error| failed("removing the note of a connection from before", error))
}

/// Returns whether the kernel had taken an entry before it was removed here.
pub(super) fn was_taken(removed: Result<(), MapError>) -> Result<bool, MapError> {
    match removed {
        Ok(()) => Ok(false),
        Err(MapError::KeyNotFound) => Ok(true),
        Err(error) => {
            if let MapError::SyscallError(call) = &error
                && call.io_error.kind() == std::io::ErrorKind::NotFound
            {
                return Ok(true);
            }
            Err(error)
        }
    }
}
