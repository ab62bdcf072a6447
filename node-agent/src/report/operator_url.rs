//! Validates the operator's address.

use tonic::transport::Uri;

/// Why the agent doesn't talk to that address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL.
    #[error("--operator {url:?} is not a URL: {reason}; write http://<ip>:<port>")]
    Malformed {
        /// As it was given.
        url: String,
        /// Error description.
        reason: String,
    },
    /// Plain text without consent.
    #[error(
        "--operator {url} means plain text: anybody on the way can read and change what is reported; pass \
         --insecure-plaintext if that is acceptable"
    )]
    Plaintext {
        /// As it was given.
        url: String,
    },
    /// TLS.
    #[error("--operator {url}: this version doesn't speak TLS yet; use http:// with --insecure-plaintext")]
    NoTls {
        /// As it was given.
        url: String,
    },
}

/// Reads the operator's address.
///
/// # Errors
/// If it is no `http://` URL with host and port, or if plain text wasn't consented to.
pub fn parse(url: &str, insecure_plaintext: bool) -> Result<Uri, UrlError> {
    let malformed = |reason: &str| UrlError::Malformed { url: url.to_owned(), reason: reason.to_owned() };
    let uri: Uri = url.parse().map_err(|error: tonic::codegen::http::uri::InvalidUri| malformed(&error.to_string()))?;
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() {
        return Err(malformed("it needs a host and a port"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(malformed("it must not have a path"));
    }
    match uri.scheme_str() {
        Some("http") if insecure_plaintext => Ok(uri),
        Some("http") => Err(UrlError::Plaintext { url: url.to_owned() }),
        Some("https") => Err(UrlError::NoTls { url: url.to_owned() }),
        _ => Err(malformed("it must begin with http:// or https://")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_needs_consent() {
        assert_eq!(parse("http://10.0.0.1:9463", true).unwrap().port_u16(), Some(9463));
        assert_eq!(parse("http://[fd00::1]:9463", true).unwrap().host(), Some("[fd00::1]"));
        assert!(matches!(parse("http://10.0.0.1:9463", false), Err(UrlError::Plaintext { .. })));
        assert!(matches!(parse("https://10.0.0.1:9463", true), Err(UrlError::NoTls { .. })));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in [
            "",
            "operator",
            "10.0.0.1:9463",
            "http://10.0.0.1",
            "ftp://a:1",
            "http://a:1/path",
            "http://:1",
            "http://a:99999",
        ] {
            assert!(matches!(parse(url, true), Err(UrlError::Malformed { .. })), "{url}");
        }
    }
}
