//! Claims of a token before anyone has verified them. They decide only that a token cannot be an agent's, so that the API
//! server does not have to, and how long it lasts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

use super::agent::Refusal;
use crate::settings::COLLECTOR_AUDIENCE as AUDIENCE;

/// Minimum remaining lifetime that is assumed: the operator's clock may be ahead of the API server's.
const MIN_REMAINING: Duration = Duration::from_secs(10);
/// Maximum remaining lifetime that is assumed, for a clock that is behind.
const MAX_REMAINING: Duration = Duration::from_hours(24);

/// Claims that agents' tokens have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Claims {
    #[serde(rename = "sub")]
    subject: String,
    #[serde(rename = "aud")]
    audiences: Audiences,
    /// Seconds since 1970-01-01 UTC.
    #[serde(rename = "exp")]
    expires: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Claims {
    /// Reads a token, and checks that it may be one of this ServiceAccount for the collector.
    pub fn read(token: &str, account: &str) -> Result<Self, Refusal> {
        let mut parts = token.split('.');
        let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(Refusal::Malformed("it has not three parts"));
        };
        let payload = BASE64URL_NOPAD.decode(payload.as_bytes());
        let payload = payload.map_err(|_| Refusal::Malformed("its second part is no base64url"))?;
        let claims: Self = serde_json::from_slice(&payload)
            .map_err(|_| Refusal::Malformed("its second part has not the claims sub, aud and exp"))?;
        let audiences = match &claims.audiences {
            Audiences::One(audience) => std::slice::from_ref(audience),
            Audiences::Several(audiences) => audiences,
        };
        if !audiences.iter().any(|audience| audience == AUDIENCE) {
            return Err(Refusal::OtherAudience { found: audiences.to_vec() });
        }
        if claims.subject != account {
            return Err(Refusal::OtherAccount { found: claims.subject, expected: account.to_owned() });
        }
        Ok(claims)
    }

    /// Returns the time that is left, bounded in both directions: clocks differ.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::from_secs(self.expires).saturating_sub(now).clamp(MIN_REMAINING, MAX_REMAINING)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:system:agent";

    fn token(claims: &Value) -> String {
        format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()))
    }

    #[test]
    fn claims_of_an_agent_are_read() {
        for audience in [json!(AUDIENCE), json!(["other", AUDIENCE])] {
            let claims = Claims::read(&token(&json!({"sub": ACCOUNT, "aud": audience, "exp": 5000})), ACCOUNT).unwrap();
            let remaining = |now| claims.remaining(UNIX_EPOCH + Duration::from_secs(now)).as_secs();
            assert_eq!((remaining(4000), remaining(9000)), (1000, 10), "a clock that is ahead");
        }
        let claims = Claims::read(&token(&json!({"sub": ACCOUNT, "aud": AUDIENCE, "exp": u64::MAX})), ACCOUNT).unwrap();
        assert_eq!(claims.remaining(UNIX_EPOCH), MAX_REMAINING);
    }

    #[test]
    fn what_cannot_be_an_agents_token_is_refused() {
        let refusal = |token: &str| Claims::read(token, ACCOUNT).unwrap_err();
        for malformed in ["", "a", "a.b.c", "a.b.c.d", "e30.e30.e30", "e30.%%.e30", "..", "e30.bnVsbA.e30"] {
            assert!(matches!(refusal(malformed), Refusal::Malformed(_)), "{malformed}");
        }
        let negative = json!({"sub": ACCOUNT, "aud": AUDIENCE, "exp": -1});
        assert!(matches!(refusal(&token(&negative)), Refusal::Malformed(_)));
        let other = json!({"sub": ACCOUNT, "aud": ["https://kubernetes.default.svc"], "exp": 1});
        assert!(matches!(refusal(&token(&other)), Refusal::OtherAudience { .. }));
        let operator = json!({"sub": "system:serviceaccount:system:operator", "aud": AUDIENCE, "exp": 1});
        assert!(matches!(refusal(&token(&operator)), Refusal::OtherAccount { .. }));
    }
}
