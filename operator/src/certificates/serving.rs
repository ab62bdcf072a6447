//! The certificate that TLS presents now. Connections that exist keep theirs.

use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        Error, ServerConfig,
        server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
        sign::CertifiedKey,
        version::TLS13,
    },
};

use super::generation::provider;

/// The certificate that TLS presents now. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ServingCertificate(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl ServingCertificate {
    /// Presents another certificate from now on. Returns whether it is another.
    pub(super) fn set(&self, certificate: Arc<CertifiedKey>) -> bool {
        let mut present = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_news = present.as_ref().is_none_or(|present| present.cert != certificate.cert);
        *present = Some(certificate);
        is_news
    }

    fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns TLS 1.3 with this certificate. Handshakes fail until there is one.
    ///
    /// # Errors
    /// Returns an error if the cryptography lacks TLS 1.3.
    pub fn acceptor(&self) -> Result<TlsAcceptor, Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Agents connect once and stay: sessions to resume would only take memory.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get()
    }
}
