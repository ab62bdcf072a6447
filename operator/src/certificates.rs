//! Certificates of the collector's port. The operator makes and rotates its own, or uses those of a Secret that another
//! program maintains. Agents verify the port by the certificates of CAs in a `ConfigMap`.
//!
//! `generation` makes and checks one certificate, `rotation` decides which ones exist and which one is served, `stored`
//! converts them to objects, and `keeper` does the I/O. `serving` hands the present one to TLS.

mod error;
mod generation;
pub mod keeper;
mod rotation;
pub mod serving;
mod stored;

pub use self::error::CertificateError;
