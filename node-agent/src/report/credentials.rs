//! Files by which the agent verifies the operator and proves its own identity. They are read again for each connection: the
//! kubelet replaces them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, ClientTlsConfig},
};

/// Files for a connection by TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Certificates of the CAs that the operator's certificate may have, in PEM.
    pub ca: PathBuf,
    /// Name in the operator's certificate.
    pub name: String,
    /// The agent's token.
    pub token: PathBuf,
}

/// Error of one of these files.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file is unreadable.
    #[error("can't read {}, which {option} names: {source}", path.display())]
    Read {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file has no certificate.
    #[error("{} has no certificate in PEM; --operator-ca needs one", .0.display())]
    NoCertificate(PathBuf),
    /// The file has no token.
    #[error("{} is empty or no text on one line; --token-file needs a token", .0.display())]
    NoToken(PathBuf),
}

impl Credentials {
    /// Returns how the operator is verified. `timeout` bounds the handshake.
    ///
    /// # Errors
    /// Returns an error if the file is unreadable or has no certificate.
    pub fn tls(&self, timeout: Duration) -> Result<ClientTlsConfig, CredentialsError> {
        let pem = read("--operator-ca", &self.ca)?;
        if !pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(CredentialsError::NoCertificate(self.ca.clone()));
        }
        let tls = ClientTlsConfig::new().timeout(timeout);
        Ok(tls.ca_certificate(Certificate::from_pem(pem)).domain_name(self.name.clone()))
    }

    /// Returns the token as a header.
    ///
    /// # Errors
    /// Returns an error if the file is unreadable or has no token.
    pub fn authorization(&self) -> Result<MetadataValue<Ascii>, CredentialsError> {
        let token = read("--token-file", &self.token)?;
        let value: Option<MetadataValue<Ascii>> = match token.trim() {
            "" => None,
            token => format!("Bearer {token}").parse().ok(),
        };
        let mut value = value.ok_or_else(|| CredentialsError::NoToken(self.token.clone()))?;
        // Debug output leaves it out then.
        value.set_sensitive(true);
        Ok(value)
    }
}

fn read(option: &'static str, path: &Path) -> Result<String, CredentialsError> {
    fs::read_to_string(path).map_err(|source| CredentialsError::Read { option, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(folder: &Path) -> Credentials {
        Credentials { ca: folder.join("ca.crt"), name: "operator".to_owned(), token: folder.join("token") }
    }

    #[test]
    fn files_are_read_anew_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = credentials(folder.path());
        for token in ["one", "two"] {
            fs::write(&credentials.token, format!("{token}\n")).unwrap();
            let value = credentials.authorization().unwrap();
            assert_eq!(value.to_str().unwrap(), format!("Bearer {token}"));
            assert!(!format!("{value:?}").contains(token), "a log must not have it");
        }
    }

    #[test]
    fn missing_and_malformed_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = credentials(folder.path());
        assert!(
            credentials
                .tls(Duration::from_secs(1))
                .unwrap_err()
                .to_string()
                .contains("ca.crt, which --operator-ca names")
        );
        assert!(credentials.authorization().unwrap_err().to_string().contains("token, which --token-file names"));
        fs::write(&credentials.ca, "no certificate").unwrap();
        assert!(matches!(credentials.tls(Duration::from_secs(1)), Err(CredentialsError::NoCertificate(_))));
        for wrong in ["", " \n", "one\ntwo"] {
            fs::write(&credentials.token, wrong).unwrap();
            assert!(matches!(credentials.authorization(), Err(CredentialsError::NoToken(_))), "{wrong:?}");
        }
    }
}
