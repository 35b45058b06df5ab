//! Certificates for servers and clients with TLS, in files with QEMU's names.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

/// An authority that signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Makes an authority with a key of its own.
    pub fn new() -> Self {
        let mut params = params(&[], "an authority", 2090);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("make a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("sign"))
    }

    /// Writes the certificate of the authority.
    pub fn trust(&self, dir: &Path) {
        fs::create_dir_all(dir).expect("make a directory");
        fs::write(dir.join("ca-cert.pem"), self.0.pem()).expect("write a certificate");
    }

    /// Writes a certificate for these names that is valid until the end of a year, and its key. `who` is `server` or
    /// `client`.
    pub fn certify(&self, dir: &Path, who: &str, names: &[&str], until: i32) {
        let key = KeyPair::generate().expect("make a key");
        let signed = params(names, who, until).signed_by(&key, &self.0).expect("sign");
        fs::write(dir.join(format!("{who}-cert.pem")), signed.pem()).expect("write a certificate");
        fs::write(dir.join(format!("{who}-key.pem")), key.serialize_pem()).expect("write a key");
    }

    /// Writes all files of a server for these names, and of a client.
    pub fn fill(&self, dir: &Path, names: &[&str]) {
        self.trust(dir);
        self.certify(dir, "server", names, 2090);
        self.certify(dir, "client", &["a client"], 2090);
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn params(names: &[&str], name: &str, until: i32) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until, 12, 31);
    params
}
