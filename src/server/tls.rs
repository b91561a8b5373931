//! The certificate that TLS connections are greeted with, and whose certificates are asked for.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{Error, RootCertStore, ServerConfig, crypto, version};

use super::live::Live;
use crate::audit;
use crate::config::{Problem, Sited, TlsSettings};

/// How often the files are looked at. A change counts once a second look finds nothing new: the
/// certificate and its key are seldom written at once.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// The newest certificate. Connections that are open keep the one they began with.
#[derive(Clone)]
pub struct Certificate(Arc<Live<Loaded>>);

struct Loaded {
    settings: TlsSettings,
    config: Arc<ServerConfig>,
    /// What the files were like before they were read.
    stamps: Stamps,
}

type Stamps = Vec<Option<(SystemTime, u64)>>;

impl Certificate {
    /// Looks after its files from now on.
    pub fn load(settings: &TlsSettings) -> Result<Self, Problem> {
        let live = Arc::new(Live::new(Loaded::from(settings)?));
        tokio::spawn(watch(Arc::downgrade(&live)));
        Ok(Self(live))
    }

    pub(super) fn replace(&self, prepared: Prepared) {
        self.0.replace(prepared.0);
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.get().config.clone().into()
    }
}

/// A certificate that can be used.
pub(super) struct Prepared(Loaded);

pub(super) fn prepare(settings: &TlsSettings) -> Result<Prepared, Problem> {
    Loaded::from(settings).map(Prepared)
}

impl Loaded {
    fn from(settings: &TlsSettings) -> Result<Self, Problem> {
        Ok(Self {
            stamps: stamps(settings),
            config: load(settings)?,
            settings: settings.clone(),
        })
    }
}

/// Ends with the certificate.
async fn watch(live: Weak<Live<Loaded>>) {
    let mut changed = None;
    loop {
        sleep(LOOK_EVERY).await;
        let Some(live) = live.upgrade() else { return };
        // Files may be far away.
        let looked = spawn_blocking(move || look(&live, changed)).await;
        changed = looked.unwrap_or_default();
    }
}

/// `changed` is what another look found different. Returns what is different now, if it has to be
/// looked at again.
fn look(live: &Live<Loaded>, changed: Option<Stamps>) -> Option<Stamps> {
    let loaded = live.get();
    let now = stamps(&loaded.settings);
    if now == loaded.stamps {
        return None;
    }
    if changed.as_ref() != Some(&now) {
        return Some(now);
    }
    let config = match load(&loaded.settings) {
        Ok(config) => {
            tracing::info!("the certificate is changed");
            audit::server("certificate");
            config
        }
        Err(problem) => {
            tracing::error!("the new certificate is refused, the old one stays: {problem}");
            audit::server("certificate_refused");
            loaded.config.clone()
        }
    };
    live.replace(Loaded {
        settings: loaded.settings.clone(),
        config,
        stamps: now,
    });
    None
}

fn stamps(settings: &TlsSettings) -> Stamps {
    let stamp = |found: Metadata| Some((found.modified().ok()?, found.len()));
    files(settings)
        .map(|file| fs::metadata(&file.value).ok().and_then(stamp))
        .collect()
}

fn files(settings: &TlsSettings) -> impl Iterator<Item = &Sited<PathBuf>> {
    [&settings.certificate, &settings.key]
        .into_iter()
        .chain(&settings.api_client_ca)
}

/// Everything that is wrong with the files.
pub(super) fn problems(settings: &TlsSettings) -> Vec<Problem> {
    let of_files = [
        certificates(&settings.certificate, CHAIN_MEND).err(),
        private_key(&settings.key).err(),
        (settings.api_client_ca.as_ref()).and_then(|authority| verifier(authority).err()),
    ];
    let problems: Vec<_> = of_files.into_iter().flatten().collect();
    match problems.is_empty() {
        true => load(settings).err().into_iter().collect(),
        false => problems,
    }
}

const CHAIN_MEND: &str = "write the server's own certificate into it, then the intermediate ones: \
                          often that is fullchain.pem";

/// TLS 1.3 and 1.2 with rustls' own choice of ciphers.
fn load(settings: &TlsSettings) -> Result<Arc<ServerConfig>, Problem> {
    let chain = certificates(&settings.certificate, CHAIN_MEND)?;
    let key = private_key(&settings.key)?;
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| unusable(&settings.certificate, &error))?;
    let builder = match &settings.api_client_ca {
        Some(authority) => builder.with_client_cert_verifier(verifier(authority)?),
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(chain, key);
    let mut config = config.map_err(|error| match error {
        Error::InconsistentKeys(_) => problem(
            &settings.key,
            "is not the key of the certificate",
            "`openssl pkey -pubout -in KEY` and `openssl x509 -noout -pubkey -in CERTIFICATE` must \
             print the same",
        ),
        error => unusable(&settings.certificate, &error),
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Also lets in who shows no certificate: what needs one, asks for it later.
fn verifier(authority: &Sited<PathBuf>) -> Result<Arc<dyn ClientCertVerifier>, Problem> {
    const MEND: &str = "write the certificate of the authority that signed your applications' \
                        certificates into it";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority, MEND)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(authority, &error))?;
    }
    let provider = Arc::new(crypto::ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| problem(authority, &format!("cannot be used: {error}"), MEND))
}

fn certificates(
    file: &Sited<PathBuf>,
    mend: &str,
) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let text = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(problem(file, "holds no certificate", mend)),
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(file, &error)),
    }
}

fn private_key(file: &Sited<PathBuf>) -> Result<PrivateKeyDer<'static>, Problem> {
    let text = read(file)?;
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            let what = match text.windows(9).any(|part| part == b"ENCRYPTED") {
                true => "holds a key that is encrypted",
                false => "holds no private key",
            };
            let mend = "a key begins with -----BEGIN PRIVATE KEY-----; `openssl pkey -in KEY -out \
                        PLAIN` takes a password away";
            Err(problem(file, what, mend))
        }
        Err(error) => Err(unusable(file, &error)),
    }
}

fn read(file: &Sited<PathBuf>) -> Result<Vec<u8>, Problem> {
    fs::read(&file.value).map_err(|error| {
        problem(
            file,
            &format!("cannot be read: {error}"),
            "write the path of a PEM file that the user of the server may read",
        )
    })
}

fn unusable(file: &Sited<PathBuf>, error: &dyn std::fmt::Display) -> Problem {
    let mend = "`openssl x509 -noout -text -in FILE` shows what is in a certificate";
    problem(file, &format!("cannot be used: {error}"), mend)
}

fn problem(file: &Sited<PathBuf>, what: &str, mend: &str) -> Problem {
    let path: &Path = &file.value;
    Problem {
        site: file.site.clone(),
        what: format!("{} {what}", path.display()),
        mend: mend.to_owned(),
    }
}
