//! Errors of TLS, in plain words.

use rustls::{CertificateError, Error};

/// Explains an error.
pub(super) fn explain(error: &Error) -> String {
    use CertificateError as C;
    match error {
        Error::InvalidCertificate(why) => match why {
            C::Expired | C::ExpiredContext { .. } => "its certificate has expired".to_owned(),
            C::NotValidYet | C::NotValidYetContext { .. } => {
                "its certificate is not valid yet (are both clocks right?)".to_owned()
            }
            C::Revoked => "its certificate was revoked (ca-crl.pem)".to_owned(),
            C::NotValidForNameContext { expected, presented } => format!(
                "its certificate is not for '{}' but for {}: use one of these names (tls-hostname=)",
                expected.to_str(),
                names(presented)
            ),
            C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
                "its certificate is not for servers".to_owned()
            }
            why => format!("its certificate is wrong: {why}"),
        },
        Error::AlertReceived(alert) => format!("the server ended the TLS handshake: {alert:?}"),
        Error::InvalidMessage(_) => "it does not speak TLS after it has agreed to".to_owned(),
        Error::PeerIncompatible(why) => format!("it has no version or cipher of TLS in common: {why:?}"),
        Error::InconsistentKeys(_) => "the private key is not the key of this certificate".to_owned(),
        error => format!("TLS failed: {error}"),
    }
}

/// Lists the names in a certificate. They are the server's, so the list stays short and on one line.
fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no name at all (it needs a subjectAltName)".to_owned();
    }
    let list = presented.join(", ");
    list.chars().filter(|c| !c.is_control()).take(200).collect()
}
