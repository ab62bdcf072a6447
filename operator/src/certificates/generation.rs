//! One certificate with its key, and the CA by which agents verify it. Pure but for random keys.

use std::{sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::{
    Error as TlsError, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::error::CertificateError;

/// A time, in seconds since 1970-01-01 UTC.
pub(super) type UnixSeconds = u64;

/// Time by which a certificate is valid before it was made: clocks of nodes may be behind.
const BACKDATED: Duration = Duration::from_hours(24);

/// A certificate, its key and the CA that signed it, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Generation {
    /// Time at which it was made, or first read.
    pub created: UnixSeconds,
    /// Time at which it expires; `None` if another program made it.
    pub expires: Option<UnixSeconds>,
    /// Certificates of CAs.
    pub ca: String,
    /// The certificate, and those between it and the CA.
    pub certificate: String,
    /// The certificate's key.
    pub key: String,
}

impl Generation {
    /// Makes a certificate with a CA of its own. The CA's key is dropped: nothing else can be signed with it.
    pub fn make(name: &str, now: UnixSeconds, lifetime: Duration) -> Result<Self, CertificateError> {
        let make = || -> Result<Self, rcgen::Error> {
            let expires = now.saturating_add(lifetime.as_secs());
            let mut ca = parameters(&format!("scopeprobe-collector CA {now}"), &[], now, expires)?;
            ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let ca_key = KeyPair::generate()?;
            let ca_certificate = ca.self_signed(&ca_key)?;
            let mut server = parameters("scopeprobe-collector", &[name], now, expires)?;
            server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let key = KeyPair::generate()?;
            let certificate = server.signed_by(&key, &Issuer::new(ca, ca_key))?;
            Ok(Self {
                created: now,
                expires: Some(expires),
                ca: ca_certificate.pem(),
                certificate: certificate.pem(),
                key: key.serialize_pem(),
            })
        };
        make().map_err(|source| CertificateError::Make { name: name.to_owned(), source })
    }

    /// Returns the certificate for TLS, if agents can verify it by this name at this time.
    pub fn certified(&self, name: &str, now: UnixSeconds) -> Result<Arc<CertifiedKey>, CertificateError> {
        let provider = provider();
        let roots = certificates("ca.crt", &self.ca)?;
        let chain = certificates("tls.crt", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| malformed("tls.key", format!("has no private key in PEM: {error}")))?;
        let check = || -> Result<CertifiedKey, TlsError> {
            let mut store = RootCertStore::empty();
            for root in roots {
                store.add(root)?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
                .build()
                .map_err(|error| TlsError::General(error.to_string()))?;
            let server = ServerName::try_from(name).map_err(|error| TlsError::General(error.to_string()))?;
            // `certificates` returns at least one.
            let (first, others) = chain.split_first().ok_or(TlsError::NoCertificatesPresented)?;
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
            verifier.verify_server_cert(first, others, &server, &[], now)?;
            CertifiedKey::from_der(chain, key, &provider)
        };
        check().map(Arc::new).map_err(|source| CertificateError::Invalid { name: name.to_owned(), source })
    }
}

/// Returns the cryptography of TLS.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn parameters(
    common_name: &str,
    names: &[&str],
    now: UnixSeconds,
    expires: UnixSeconds,
) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    let at = |seconds: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    parameters.not_before = at(now.saturating_sub(BACKDATED.as_secs()));
    parameters.not_after = at(expires);
    Ok(parameters)
}

fn certificates(field: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| malformed(field, format!("is no PEM: {error}")))?;
    if all.is_empty() { Err(malformed(field, "has no certificate in PEM".to_owned())) } else { Ok(all) }
}

fn malformed(field: &'static str, problem: String) -> CertificateError {
    CertificateError::Malformed { field, problem }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const NAME: &str = "scopeprobe-collector.system.svc";
    pub const NOW: UnixSeconds = 1_800_000_000;
    const LIFETIME: Duration = Duration::from_hours(24 * 90);

    #[test]
    fn made_certificate_is_valid_for_its_name_and_time() {
        let made = Generation::make(NAME, NOW, LIFETIME).unwrap();
        let end = NOW + LIFETIME.as_secs();
        assert_eq!(made.expires, Some(end));
        for time in [NOW - BACKDATED.as_secs() + 1, NOW, end - 1] {
            made.certified(NAME, time).unwrap();
        }
        for (name, time) in [
            (NAME, end + 1),
            (NAME, NOW - BACKDATED.as_secs() - 1),
            ("scopeprobe-collector.other.svc", NOW),
            ("10.96.0.7", NOW),
        ] {
            let error = made.certified(name, time).unwrap_err();
            assert!(matches!(error, CertificateError::Invalid { .. }), "{name} {time}: {error}");
        }
    }

    #[test]
    fn parts_of_different_certificates_are_refused() {
        let [one, other] = [(); 2].map(|()| Generation::make(NAME, NOW, LIFETIME).unwrap());
        let mixed = [
            Generation { ca: other.ca.clone(), ..one.clone() },
            Generation { key: other.key.clone(), ..one.clone() },
            Generation { certificate: other.certificate.clone(), ..one.clone() },
        ];
        for generation in mixed {
            assert!(matches!(generation.certified(NAME, NOW), Err(CertificateError::Invalid { .. })), "{generation:?}");
        }
        let both = Generation { ca: other.ca + &one.ca, ..one };
        both.certified(NAME, NOW).unwrap();
    }

    #[test]
    fn what_is_no_pem_is_named() {
        let good = Generation::make(NAME, NOW, LIFETIME).unwrap();
        let field = |generation: Generation| match generation.certified(NAME, NOW) {
            Err(CertificateError::Malformed { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(Generation { ca: String::new(), ..good.clone() }), "ca.crt");
        assert_eq!(field(Generation { ca: good.key.clone(), ..good.clone() }), "ca.crt");
        assert_eq!(field(Generation { certificate: "x".to_owned(), ..good.clone() }), "tls.crt");
        assert_eq!(field(Generation { key: good.ca.clone(), ..good }), "tls.key");
    }
}
