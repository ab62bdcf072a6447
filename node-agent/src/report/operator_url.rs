//! Validates the operator's address, and what a connection to it needs.

use std::path::PathBuf;

use tonic::transport::Uri;

use super::credentials::Credentials;

/// Why the agent doesn't talk to that address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL.
    #[error("--operator {url:?} is not a URL: {reason}; write https://<ip>:<port>")]
    Malformed {
        /// As it was given.
        url: String,
        /// Error description.
        reason: String,
    },
    /// Plain text without consent.
    #[error(
        "--operator {url} means plain text: anybody on the way can read and change what is reported; use https://, or pass \
         --insecure-plaintext if that is acceptable"
    )]
    Plaintext {
        /// As it was given.
        url: String,
    },
    /// TLS without a file that it needs.
    #[error("--operator {url} needs {option}=FILE: {purpose}")]
    MissingFile {
        /// As it was given.
        url: String,
        /// The missing option.
        option: &'static str,
        /// Its purpose.
        purpose: &'static str,
    },
}

/// Options that a connection by TLS needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates of CAs.
    pub ca: Option<PathBuf>,
    /// Name in the operator's certificate; the URL's host by default.
    pub name: Option<String>,
    /// The agent's token.
    pub token: Option<PathBuf>,
}

/// Address of the operator, with the credentials for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The address.
    pub uri: Uri,
    /// Files for a connection by TLS; `None` for plain text.
    pub credentials: Option<Credentials>,
}

impl Operator {
    /// Returns an address for plain text.
    #[must_use]
    pub fn plaintext(uri: Uri) -> Self {
        Self { uri, credentials: None }
    }
}

/// Reads the operator's address.
///
/// # Errors
/// If it is no `https://` or `http://` URL with host and port, if a file for TLS is missing, or if plain text wasn't
/// consented to.
pub fn parse(url: &str, tls: TlsOptions, insecure_plaintext: bool) -> Result<Operator, UrlError> {
    let malformed = |reason: &str| UrlError::Malformed { url: url.to_owned(), reason: reason.to_owned() };
    let uri: Uri = url.parse().map_err(|error: tonic::codegen::http::uri::InvalidUri| malformed(&error.to_string()))?;
    let host = uri.host().filter(|host| !host.is_empty() && uri.port_u16().is_some());
    let host = host.ok_or_else(|| malformed("it needs a host and a port"))?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(malformed("it must not have a path"));
    }
    let missing = |option, purpose| UrlError::MissingFile { url: url.to_owned(), option, purpose };
    match uri.scheme_str() {
        Some("https") => {
            let credentials = Credentials {
                ca: tls.ca.ok_or_else(|| missing("--operator-ca", "the CA by which the operator is verified"))?,
                // Without the brackets of an IPv6 address.
                name: tls.name.unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned()),
                token: tls.token.ok_or_else(|| missing("--token-file", "the token by which the agent is known"))?,
            };
            Ok(Operator { uri, credentials: Some(credentials) })
        }
        Some("http") if insecure_plaintext => Ok(Operator::plaintext(uri)),
        Some("http") => Err(UrlError::Plaintext { url: url.to_owned() }),
        _ => Err(malformed("it must begin with https:// or http://")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> TlsOptions {
        TlsOptions { ca: Some("ca".into()), name: None, token: Some("token".into()) }
    }

    #[test]
    fn plain_text_needs_consent() {
        let plain = |url| parse(url, TlsOptions::default(), true).unwrap();
        assert_eq!(plain("http://10.0.0.1:9463").uri.port_u16(), Some(9463));
        assert_eq!(plain("http://[fd00::1]:9463").uri.host(), Some("[fd00::1]"));
        assert_eq!(plain("http://10.0.0.1:9463").credentials, None);
        for tls in [TlsOptions::default(), files()] {
            assert!(matches!(parse("http://10.0.0.1:9463", tls, false), Err(UrlError::Plaintext { .. })));
        }
    }

    #[test]
    fn tls_needs_both_files_and_verifies_the_given_name() {
        let name = |url, tls| parse(url, tls, true).unwrap().credentials.unwrap().name;
        let named = TlsOptions { name: Some("collector.system.svc".to_owned()), ..files() };
        assert_eq!(name("https://10.0.0.1:9463", named), "collector.system.svc");
        assert_eq!(name("https://10.0.0.1:9463", files()), "10.0.0.1");
        assert_eq!(name("https://[fd00::1]:9463", files()), "fd00::1");
        for (tls, missing) in [
            (TlsOptions { ca: None, ..files() }, "--operator-ca"),
            (TlsOptions { token: None, ..files() }, "--token-file"),
        ] {
            let error = parse("https://10.0.0.1:9463", tls, true).unwrap_err();
            assert!(matches!(error, UrlError::MissingFile { option, .. } if option == missing), "{error}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in [
            "",
            "operator",
            "10.0.0.1:9463",
            "http://10.0.0.1",
            "ftp://a:1",
            "https://a:1/path",
            "http://:1",
            "http://a:99999",
        ] {
            assert!(matches!(parse(url, files(), true), Err(UrlError::Malformed { .. })), "{url}");
        }
    }
}
