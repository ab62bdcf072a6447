//! Decides which requests the page answers: those of the one browser tab that has its address.

use anyhow::{Context as _, Result};
use axum::http::{HeaderMap, StatusCode, header};
use data_encoding::HEXLOWER;

/// Key to the page, which is part of its address.
pub struct Token(String);

impl Token {
    /// Returns a token of 128 random bits.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).context("the system has no random numbers")?;
        Ok(Self(HEXLOWER.encode(&bytes)))
    }

    /// Returns the token as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not depend on the number of equal characters.
    fn is(&self, other: &str) -> bool {
        let difference = self.0.bytes().zip(other.bytes()).fold(0, |sum, (one, other)| sum | (one ^ other));
        difference == 0 && self.0.len() == other.len()
    }
}

/// Returns the path below the token.
///
/// # Errors
/// Returns the status of the answer if the request is for another host, of another page, or without the token.
pub fn admit<'p>(token: &Token, path: &'p str, headers: &HeaderMap) -> Result<&'p str, StatusCode> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // A name of another site that resolves to 127.0.0.1 would make its page one of the same origin.
    let host = text(header::HOST).unwrap_or_default();
    if !is_loopback(host) {
        return Err(StatusCode::MISDIRECTED_REQUEST);
    }
    let is_foreign = text(header::ORIGIN).is_some_and(|origin| origin.strip_prefix("http://") != Some(host))
        || text(header::HeaderName::from_static("sec-fetch-site"))
            .is_some_and(|site| !matches!(site, "same-origin" | "none"));
    if is_foreign {
        return Err(StatusCode::FORBIDDEN);
    }
    let (first, rest) = path.strip_prefix('/').and_then(|path| path.split_once('/')).ok_or(StatusCode::NOT_FOUND)?;
    if token.is(first) { Ok(rest) } else { Err(StatusCode::NOT_FOUND) }
}

/// Returns whether a Host header has a name of loopback, with any port: the port may be a forwarded one.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || matches!(name, "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(path: &str, headers: &[(&'static str, &str)]) -> Result<String, u16> {
        let token = Token("0123456789abcdef".to_owned());
        let headers = headers.iter().map(|(name, value)| {
            (header::HeaderName::from_static(name), value.parse().unwrap_or(header::HeaderValue::from_static("?")))
        });
        admit(&token, path, &headers.collect()).map(str::to_owned).map_err(|status| status.as_u16())
    }

    #[test]
    fn token_opens_the_page() {
        let host = ("host", "127.0.0.1:8080");
        assert_eq!(admitted("/0123456789abcdef/", &[host]), Ok(String::new()));
        assert_eq!(admitted("/0123456789abcdef/api/graph", &[host]), Ok("api/graph".to_owned()));
        for wrong in ["/", "", "/0123456789abcdef", "/0123456789abcdeF/", "/0123456789abcde/", "//", "/api/graph"] {
            assert_eq!(admitted(wrong, &[host]), Err(404), "{wrong}");
        }
    }

    #[test]
    fn host_is_a_name_of_loopback() {
        let path = "/0123456789abcdef/";
        for host in ["127.0.0.1:1", "localhost:80", "LOCALHOST", "[::1]:9", "[::1]"] {
            assert_eq!(admitted(path, &[("host", host)]), Ok(String::new()), "{host}");
        }
        for host in
            ["example.com", "127.0.0.1.example.com:80", "localhost.example.com", "", "10.0.0.1:80", "::1", "a:b"]
        {
            assert_eq!(admitted(path, &[("host", host)]), Err(421), "{host}");
        }
        assert_eq!(admitted(path, &[]), Err(421));
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let path = "/0123456789abcdef/";
        let host = ("host", "127.0.0.1:80");
        assert_eq!(admitted(path, &[host, ("origin", "http://127.0.0.1:80")]), Ok(String::new()));
        for origin in ["http://127.0.0.1:81", "https://127.0.0.1:80", "null", "http://example.com"] {
            assert_eq!(admitted(path, &[host, ("origin", origin)]), Err(403), "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(admitted(path, &[host, ("sec-fetch-site", site)]), Err(403), "{site}");
        }
    }

    #[test]
    fn tokens_differ() {
        let tokens = [Token::random(), Token::random()].map(|token| token.map(|token| token.0).unwrap_or_default());
        assert_ne!(tokens[0], tokens[1]);
        assert_eq!(tokens[0].len(), 32);
    }
}
