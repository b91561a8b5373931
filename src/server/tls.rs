//! The certificate that TLS connections are greeted with.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto, version};

use crate::config::TlsSettings;

/// The newest certificate. Connections that are open keep the one they began with.
#[derive(Clone)]
pub struct Certificate(Arc<RwLock<Arc<ServerConfig>>>);

impl Certificate {
    pub fn load(settings: &TlsSettings) -> Result<Self, String> {
        Ok(Self(Arc::new(RwLock::new(load(settings)?))))
    }

    pub(super) fn replace(&self, loaded: Arc<ServerConfig>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = loaded;
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner);
        config.clone().into()
    }
}

/// TLS 1.3 and 1.2 with rustls' own choice of ciphers.
pub(super) fn load(settings: &TlsSettings) -> Result<Arc<ServerConfig>, String> {
    let cannot = |path: &Path, error: &dyn std::fmt::Display| {
        format!("[tls]: {} cannot be used: {error}", path.display())
    };
    let path = &settings.certificate;
    let chain = CertificateDer::pem_file_iter(path).map_err(|error| cannot(path, &error))?;
    let chain: Result<Vec<_>, _> = chain.collect();
    let chain = chain.map_err(|error| cannot(path, &error))?;
    if chain.is_empty() {
        return Err(cannot(path, &"there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_file(&settings.key);
    let key = key.map_err(|error| cannot(&settings.key, &error))?;
    let provider = Arc::new(crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| cannot(path, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
