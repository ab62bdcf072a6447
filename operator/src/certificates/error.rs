//! Errors of certificates.

use crate::{
    guarded_watch::with_cause,
    operator_deployment::{MANAGED_BY, OwnerError},
};

/// Reason for which a certificate cannot be made, read, published or served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A key or certificate could not be made.
    #[error("cannot make a certificate for {name}: {source}")]
    Make {
        /// Name in the certificate.
        name: String,
        /// Error of the library.
        source: rcgen::Error,
    },
    /// A field is missing or has another format.
    #[error("{field} {problem}")]
    Malformed {
        /// The field.
        field: &'static str,
        /// The violated rule.
        problem: String,
    },
    /// Certificate, key and CA do not belong together, or the certificate is not valid for this name and time.
    #[error("the certificate is not valid for {name}: {source}")]
    Invalid {
        /// Name that agents verify.
        name: String,
        /// Error of TLS.
        source: tokio_rustls::rustls::Error,
    },
    /// The content of an object is unusable.
    #[error("cannot use Secret {namespace}/{name}: {source}; {cure}")]
    Content {
        /// The operator's namespace.
        namespace: String,
        /// The Secret's name.
        name: String,
        /// The fault.
        source: Box<CertificateError>,
        /// The next step.
        cure: &'static str,
    },
    /// An object has the name of one of the operator's, and another program made it.
    #[error(
        "{kind} {namespace}/{name} has no label {}={}, so it is not the operator's and stays as it is: delete or rename it",
        MANAGED_BY.0,
        MANAGED_BY.1
    )]
    Foreign {
        /// Kind of the object.
        kind: &'static str,
        /// The operator's namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The Secret that the settings name does not exist.
    #[error(
        "there is no Secret {namespace}/{name}: create it, for example with a Certificate of cert-manager, or leave \
         collector.tls.secretName empty"
    )]
    Missing {
        /// The operator's namespace.
        namespace: String,
        /// The Secret's name.
        name: String,
    },
    /// The API server did not read or write an object.
    #[error("cannot {verb} {kind} {namespace}/{name}: {}", with_cause(source.as_ref()))]
    Request {
        /// Attempted operation.
        verb: &'static str,
        /// Kind of the object.
        kind: &'static str,
        /// The operator's namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// The objects have no owner with which they would be deleted.
    #[error(transparent)]
    Owner(#[from] OwnerError),
}
