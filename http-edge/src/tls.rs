//! The certificate that clients see, and its renewal without a restart: the files are looked at every few seconds, and at
//! once on SIGHUP. What cannot be used is reported, and the certificate that serves stays.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hedgerow_process::exit::Failure;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::settings::TlsFiles;

/// How often the files are looked at: soon enough after a renewal, and reading two small files costs nothing.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Longer than any chain of certificates.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// The certificate in use.
pub(crate) struct Certificates {
    files: TlsFiles,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // There is one certificate: a client that asked for another name sees that it does not match.
        Some(self.0.load_full())
    }
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CertificateError {
    #[error("cannot read {0}: {1}")]
    Read(String, String),
    #[error("{0} holds no certificate in PEM")]
    NoCertificate(String),
    #[error("{0} holds no private key in PEM")]
    NoKey(String),
    #[error("the private key in {0} is of a kind that TLS cannot use here: {1}")]
    Key(String, String),
    #[error("the private key in {key} does not belong to the first certificate in {cert}")]
    Mismatch { cert: String, key: String },
}

impl From<CertificateError> for Failure {
    fn from(error: CertificateError) -> Self {
        let failure = Self::runtime(&error).means("the entry cannot serve https, so it did not start");
        match error {
            CertificateError::Read(..) => failure.advice("check the path, and that this user may read the file"),
            CertificateError::NoCertificate(_) => {
                failure.advice("give --tls-cert the chain (often fullchain.pem): the server's own certificate first")
            }
            CertificateError::NoKey(_) => failure.advice("give --tls-key the private key (often privkey.pem)"),
            CertificateError::Key(..) => failure.advice("make the key with ECDSA P-256, RSA of 2048 bits, or Ed25519"),
            CertificateError::Mismatch { .. } => {
                failure.advice("put the server's own certificate first in the chain, and give the key made for it")
            }
        }
    }
}

/// The two files as they were read: what is compared to see a change.
#[derive(PartialEq, Eq)]
struct Pem {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Pem {
    fn read(files: &TlsFiles) -> Result<Self, CertificateError> {
        Ok(Self { cert: read(&files.cert)?, key: read(&files.key)? })
    }

    fn parse(&self, files: &TlsFiles) -> Result<CertifiedKey, CertificateError> {
        let (cert, key) = (files.cert.display().to_string(), files.key.display().to_string());
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.cert).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| CertificateError::NoCertificate(cert.clone()))?;
        let private = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| CertificateError::NoKey(key.clone()))?;
        let signing = aws_lc_rs::sign::any_supported_type(&private)
            .map_err(|error| CertificateError::Key(key.clone(), error.to_string()))?;
        let certified = CertifiedKey::new(chain, signing);
        match certified.keys_match() {
            // Unknown: the kind of key does not tell, and the first handshake will.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
            Err(_) => Err(CertificateError::Mismatch { cert, key }),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let problem = |what: &dyn ToString| CertificateError::Read(path.display().to_string(), what.to_string());
    let length = std::fs::metadata(path).map_err(|error| problem(&error))?.len();
    if length > PEM_BYTES_MAX {
        return Err(problem(&format!("it is longer than {PEM_BYTES_MAX} bytes")));
    }
    std::fs::read(path).map_err(|error| problem(&error))
}

impl Certificates {
    /// Reads the files.
    pub(crate) fn load(files: TlsFiles) -> Result<Self, CertificateError> {
        let certified = Pem::read(&files)?.parse(&files)?;
        Ok(Self { files, current: Arc::new(Current(ArcSwap::from_pointee(certified))) })
    }

    /// How all threads do TLS with their clients: HTTP/2 where they know it, and HTTP/1.1. Tickets instead of remembered
    /// sessions: a client comes back to any thread.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(Arc::new(config))
    }

    /// Takes new files up for as long as it runs.
    pub(crate) async fn keep_current(&self) -> std::io::Result<std::convert::Infallible> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        // What was last looked at, good or bad: each change is reported once.
        let mut seen = Pem::read(&self.files).ok();
        let mut broken: Option<CertificateError> = None;
        loop {
            let asked = tokio::select! {
                _ = hangup.recv() => true,
                _ = tick.tick() => false,
            };
            let outcome = match Pem::read(&self.files) {
                Ok(pem) if !asked && seen.as_ref() == Some(&pem) => continue,
                Ok(pem) => {
                    let parsed = pem.parse(&self.files);
                    seen = Some(pem);
                    parsed
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(certified) => {
                    self.current.0.store(Arc::new(certified));
                    broken = None;
                    info!(cert = %self.files.cert.display(), "the certificate was read anew");
                }
                Err(error) if asked || broken.as_ref() != Some(&error) => {
                    error!(%error, "the new certificate cannot be used; the old one stays in use");
                    broken = Some(error);
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_said_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: directory.path().join("cert.pem"), key: directory.path().join("key.pem") };
        let error = |files: &TlsFiles| Certificates::load(files.clone()).err().expect("an error");
        assert!(matches!(error(&files), CertificateError::Read(path, _) if path.ends_with("cert.pem")));
        std::fs::write(&files.cert, "nothing").unwrap();
        std::fs::write(&files.key, "nothing").unwrap();
        assert!(matches!(error(&files), CertificateError::NoCertificate(_)));
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        assert!(matches!(error(&files), CertificateError::NoKey(_)));
        let other = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&files.key, other.serialize_pem()).unwrap();
        assert!(matches!(error(&files), CertificateError::Mismatch { .. }));
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        assert!(Certificates::load(files).is_ok());
    }
}
