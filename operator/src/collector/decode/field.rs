//! Validates fields of messages, and describes invalid values.

use std::{fmt::Display, net::IpAddr};

use topology::plural::counted;

/// The API's integers are signed.
const MAX_COUNT: u64 = i64::MAX as u64;

/// A message that cannot be taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(in crate::collector) struct Invalid {
    pub(super) field: String,
    problem: String,
}

pub(super) fn invalid(field: impl Display, problem: impl Into<String>) -> Invalid {
    Invalid { field: field.to_string(), problem: problem.into() }
}

pub(super) fn decode_ip(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    let v6 = <[u8; 16]>::try_from(bytes)
        .map_err(|_| format!("has {}; it has to have 4 or 16", counted(bytes.len(), "byte")))?;
    Ok(IpAddr::from(v6).to_canonical())
}

pub(super) fn at_most(field: impl Display, text: &str, limit: usize) -> Result<(), Invalid> {
    if text.len() > limit {
        return Err(invalid(field, format!("has {}; at most {limit}", counted(text.len(), "byte"))));
    }
    Ok(())
}

pub(super) fn countable(field: impl Display, count: u64) -> Result<(), Invalid> {
    if count > MAX_COUNT {
        return Err(invalid(field, format!("{count} is beyond {MAX_COUNT}")));
    }
    Ok(())
}
