//! TLS with a server: credentials in files with QEMU's names, and the handshake. Helper only.
//!
//! The private key is read in the helper, so it is never in the memory of the process that serves the guest.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnection, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::tls_error::explain;
use crate::nbd::Tls;

const CA: &str = "ca-cert.pem";
const REVOKED: &str = "ca-crl.pem";
const CERTIFICATE: &str = "client-cert.pem";
const KEY: &str = "client-key.pem";
/// As in QEMU, a certificate is never accepted for whatever name it has.
const NO_NAME: &str = "a server on a Unix socket needs tls-hostname=NAME, the name in its certificate";

/// The client's side of TLS connections to a server.
pub(super) struct TlsClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    dir: PathBuf,
    has_certificate: bool,
}

impl TlsClient {
    /// Reads the credentials.
    ///
    /// # Errors
    /// A file is missing or has something else in it.
    pub(super) fn load(tls: &Tls) -> Result<Self, String> {
        if tls.verify_peer && tls.hostname.is_none() {
            return Err(NO_NAME.to_owned());
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Verifier::load(tls, &provider)?);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| explain(&error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let own = own_certificate(&tls.dir)?;
        let has_certificate = own.is_some();
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("{}: {}", tls.dir.join(CERTIFICATE).display(), explain(&error)))?,
        };
        // Each connection checks the server's certificate.
        config.resumption = Resumption::disabled();
        config.enable_sni = tls.hostname.is_some();
        // Without verification, this one is neither checked nor sent.
        let name = tls.hostname.as_deref().unwrap_or("localhost").to_owned();
        Ok(Self {
            config: Arc::new(config),
            name: ServerName::try_from(name.clone())
                .map_err(|_| format!("tls-hostname: '{name}' cannot be the name of a host"))?,
            dir: tls.dir.clone(),
            has_certificate,
        })
    }

    /// Does the handshake. Each call of `stream` has to end by itself.
    ///
    /// # Errors
    /// The server is not the one that it should be, refuses this client, or does not answer.
    pub(super) fn handshake(&self, stream: &mut (impl Read + Write)) -> Result<ClientConnection, String> {
        let made = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let mut connection = made.map_err(|error| explain(&error))?;
        while connection.is_handshaking() {
            connection
                .complete_io(stream)
                .map_err(|error| self.failure(&error))?;
        }
        Ok(connection)
    }

    /// Explains an error of an encrypted stream.
    pub(super) fn failure(&self, error: &io::Error) -> String {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match (inner, error.kind()) {
            (
                Some(Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature,
                )),
                _,
            ) => format!(
                "none of the authorities in {} has signed its certificate",
                self.dir.join(CA).display()
            ),
            (Some(Error::AlertReceived(_)), _) => format!(
                "{}{}",
                inner.map(explain).unwrap_or_default(),
                self.about_certificate()
            ),
            (Some(inner), _) => explain(inner),
            (None, io::ErrorKind::TimedOut) => "the server does not answer".to_owned(),
            (
                None,
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe,
            ) => self.closed(),
            (None, _) => format!("TLS failed: {error}"),
        }
    }

    /// Explains the end of a connection that the server gives no reason for.
    pub(super) fn closed(&self) -> String {
        format!(
            "the server closed the connection in the TLS handshake{}",
            self.about_certificate()
        )
    }

    fn about_certificate(&self) -> String {
        let path = self.dir.join(CERTIFICATE);
        match self.has_certificate {
            true => format!(" (does it accept {}?)", path.display()),
            false => format!(" (does it want a certificate? There is no {})", path.display()),
        }
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{} has no certificate (PEM)", path.display())),
        Err(error) => Err(format!("{} is damaged: {error}", path.display())),
    }
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads the certificate of this client, and its key. Both may be missing.
fn own_certificate(dir: &Path) -> Result<Option<Own>, String> {
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    if !certificate.exists() && !key.exists() {
        return Ok(None);
    }
    let chain = certificates(&certificate)?;
    let key_bytes = read(&key)?;
    let found = PrivateKeyDer::from_pem_slice(&key_bytes);
    let found = found.map_err(|_| format!("{} has no private key (PEM, not encrypted)", key.display()))?;
    Ok(Some((chain, found)))
}

/// Checks certificates of servers, unless they are not to be verified.
#[derive(Debug)]
struct Verifier {
    /// `None`: every certificate is accepted.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn load(tls: &Tls, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let (path, revoked) = (tls.dir.join(CA), tls.dir.join(REVOKED));
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&path)? {
            let added = roots.add(certificate);
            added.map_err(|error| format!("{}: {}", path.display(), explain(&error)))?;
        }
        let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        if revoked.exists() {
            let lists: Result<Vec<_>, _> =
                CertificateRevocationListDer::pem_slice_iter(&read(&revoked)?).collect();
            let lists = lists.map_err(|error| format!("{} is damaged: {error}", revoked.display()))?;
            // QEMU's library checks the server's own certificate, and knows nothing of those that no list names.
            builder = builder
                .with_crls(lists)
                .only_check_end_entity_revocation()
                .allow_unknown_revocation_status();
        }
        let built = builder.build();
        let built = built.map_err(|error| format!("{}: {error}", tls.dir.display()))?;
        Ok(Self {
            authorities: tls.verify_peer.then_some(built),
            provider: Arc::clone(provider),
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.authorities {
            None => Ok(ServerCertVerified::assertion()),
            Some(authorities) => {
                authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
