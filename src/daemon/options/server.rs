//! Addresses of servers: one NBD server, or the monitors of a Ceph cluster.

use std::fmt;
use std::path::PathBuf;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::export::AddressType;
use super::value_error::ValueError;
use crate::nbd::{SOCKET_PATH_MAX, Server};

/// The option `server`. Its form depends on the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ServerOption {
    /// The server of a node with driver `nbd`.
    Nbd(NbdServer),
    /// The monitors of a node with driver `rbd`.
    Monitors(Vec<Monitor>),
}

impl ServerOption {
    /// Returns the error for an option that has the form of another driver.
    pub(super) fn wrong(expected: &str) -> ValueError {
        ValueError::Type {
            path: "server".to_owned(),
            expected: expected.to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for ServerOption {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = ServerOption;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the address of a server or a list of monitors")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ServerOption, A::Error> {
                let server = NbdServer::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ServerOption::Nbd(server))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<ServerOption, A::Error> {
                let monitors = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(ServerOption::Monitors(monitors))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// The address of a monitor.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct Monitor {
    pub host: String,
    pub port: String,
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The address of an NBD server.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct NbdServer {
    #[serde(rename = "type")]
    pub kind: AddressType,
    // unix
    pub path: Option<PathBuf>,
    // inet
    pub host: Option<String>,
    pub port: Option<String>,
}

impl NbdServer {
    /// Returns the server's address.
    ///
    /// # Errors
    /// A member is missing, wrong, or not for this kind of address.
    pub fn address(&self) -> Result<Server, ValueError> {
        let wrong = |member: &str, expected: &str| ValueError::Type {
            path: format!("server.{member}"),
            expected: expected.to_owned(),
        };
        match (self.kind, &self.path, &self.host, &self.port) {
            (AddressType::Unix, Some(path), None, None) if path.as_os_str().len() > SOCKET_PATH_MAX => Err(
                wrong("path", &format!("a path of at most {SOCKET_PATH_MAX} bytes")),
            ),
            (AddressType::Unix, Some(path), None, None) => Ok(Server::Unix(path.clone())),
            (AddressType::Inet, None, Some(host), Some(port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                let port = port.ok_or_else(|| wrong("port", "a number from 1 to 65535"))?;
                Ok(Server::Inet(host.clone(), port))
            }
            (AddressType::Inet, None, Some(_), None) => Err(ValueError::Missing("server.port".to_owned())),
            (AddressType::Inet, None, None, _) => Err(ValueError::Missing("server.host".to_owned())),
            (AddressType::Unix, ..) => Err(wrong("path", "the path of a socket, without a host and a port")),
            (AddressType::Inet, ..) => Err(wrong("host", "given together with a port, without a path")),
            _ => Err(wrong("type", "'unix' or 'inet'")),
        }
    }
}

impl From<&Server> for NbdServer {
    fn from(server: &Server) -> Self {
        let (kind, path, inet) = match server {
            Server::Unix(path) => (AddressType::Unix, Some(path.clone()), None),
            Server::Inet(host, port) => (AddressType::Inet, None, Some((host.clone(), port.to_string()))),
        };
        let (host, port) = inet.unzip();
        Self {
            kind,
            path,
            host,
            port,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_addresses_are_named() {
        let inet = |host: Option<&str>, port: Option<&str>| NbdServer {
            kind: AddressType::Inet,
            path: None,
            host: host.map(str::to_owned),
            port: port.map(str::to_owned),
        };
        let unix = |len: usize| NbdServer {
            kind: AddressType::Unix,
            path: Some("p".repeat(len).into()),
            ..inet(None, None)
        };
        let told = |server: &NbdServer| server.address().expect_err("refused").to_string();
        assert_eq!(told(&inet(Some("h"), None)), "Parameter 'server.port' is missing");
        assert_eq!(told(&inet(None, Some("1"))), "Parameter 'server.host' is missing");
        assert_eq!(told(&inet(None, None)), "Parameter 'server.host' is missing");
        assert!(told(&inet(Some("h"), Some("0"))).contains("1 to 65535"));
        assert!(told(&unix(SOCKET_PATH_MAX + 1)).contains("at most 107 bytes"));
        assert!(unix(SOCKET_PATH_MAX).address().is_ok());
    }
}
