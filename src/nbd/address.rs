//! Addresses of servers, and `nbd://` URIs.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The port of NBD servers.
const PORT: u16 = 10809;

/// The longest path of a Unix socket in bytes.
pub const SOCKET_PATH_MAX: usize = 107;
/// The longest name of an export in bytes.
pub const EXPORT_MAX: usize = 4096;

/// The address of a server.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Server {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host, by name or number, and a port.
    Inet(String, u16),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Inet(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Inet(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// The reason why a URI is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri}: {why}")]
pub struct UriError {
    uri: String,
    why: String,
}

/// Returns the server and the export that a URI names, or `None` if the text is not a URI of an NBD server.
///
/// # Errors
/// It is one, but with mistakes, or needs TLS.
pub fn parse_uri(text: &str) -> Option<Result<(Server, String), UriError>> {
    let (scheme, rest) = text.split_once("://")?;
    let parsed = match scheme {
        "nbd" => inet(rest),
        "nbd+unix" => unix(rest),
        "nbds" | "nbds+unix" => Err("TLS needs --blockdev driver=nbd with tls-creds=ID"),
        _ if scheme.starts_with("nbd+") || scheme.starts_with("nbds+") => {
            return Some(Err(UriError {
                uri: text.to_owned(),
                why: format!(
                    "{scheme} is unknown: use nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"
                ),
            }));
        }
        _ => return None,
    };
    Some(parsed.map_err(|why| UriError {
        uri: text.to_owned(),
        why: why.to_owned(),
    }))
}

fn inet(rest: &str) -> Result<(Server, String), &'static str> {
    if rest.contains(['?', '#']) {
        return Err("nbd:// takes no query");
    }
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err("nbd:// takes no user");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("the address lacks its ']'")?;
            (host, rest.strip_prefix(':').unwrap_or(rest))
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let port = match port {
        "" => PORT,
        port => port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or("the port is not a number from 1 to 65535")?,
    };
    let host = decoded(host)?;
    if host.is_empty() {
        return Err("a host is missing: nbd://HOST[:PORT]/EXPORT");
    }
    Ok((Server::Inet(host, port), export_name(export)?))
}

fn export_name(text: &str) -> Result<String, &'static str> {
    let name = decoded(text)?;
    match name.len() > EXPORT_MAX {
        true => Err("the name of the export is longer than 4096 bytes"),
        false => Ok(name),
    }
}

fn unix(rest: &str) -> Result<(Server, String), &'static str> {
    const FORM: &str = "a path is missing: nbd+unix:///EXPORT?socket=PATH";
    let (path, query) = rest.split_once('?').ok_or(FORM)?;
    let export = match path.strip_prefix('/') {
        Some(export) => export,
        None if path.is_empty() => "",
        None => return Err("nbd+unix:// takes no host"),
    };
    let socket = query.strip_prefix("socket=").ok_or(FORM)?;
    if socket.contains('&') {
        return Err("nbd+unix:// takes one parameter, socket");
    }
    let socket = decoded(socket)?;
    if socket.is_empty() {
        return Err(FORM);
    }
    if socket.len() > SOCKET_PATH_MAX {
        return Err("the path of the socket is longer than 107 bytes");
    }
    Ok((Server::Unix(socket.into()), export_name(export)?))
}

/// Returns the URI for an address in an older form of QEMU: `nbd:HOST:PORT[:exportname=NAME]` or
/// `nbd:unix:PATH[:exportname=NAME]`. `None`: the text has another form.
pub fn uri_of_old_form(text: &str) -> Option<String> {
    let rest = text.strip_prefix("nbd:").filter(|rest| !rest.starts_with("//"))?;
    let (address, export) = rest.split_once(":exportname=").unwrap_or((rest, ""));
    let encoded = |text: &str| {
        let text = text.replace('%', "%25").replace('?', "%3f");
        text.replace('#', "%23").replace('&', "%26")
    };
    let export = encoded(export);
    Some(match (address.strip_prefix("unix:"), address.rsplit_once(':')) {
        (Some(path), _) if !path.is_empty() => format!("nbd+unix:///{export}?socket={}", encoded(path)),
        (None, Some((host, port))) if !host.is_empty() && !port.is_empty() => {
            format!("nbd://{host}:{port}/{export}")
        }
        _ => "nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH".to_owned(),
    })
}

/// Decodes `%XX`.
fn decoded(text: &str) -> Result<String, &'static str> {
    const WRONG: &str = "a '%' is not followed by two hexadecimal digits of valid text";
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part
            .get(..2)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.filter(|byte| *byte != 0).ok_or(WRONG)?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| WRONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Result<(String, String), String>> {
        let uri = parse_uri(text)?;
        Some(match uri {
            Ok((server, export)) => Ok((server.to_string(), export)),
            Err(error) => Err(error.to_string()),
        })
    }

    #[test]
    fn uris_name_servers_and_exports() {
        for (uri, server, export) in [
            ("nbd://host", "host:10809", ""),
            ("nbd://host/", "host:10809", ""),
            ("nbd://host:1/a/b", "host:1", "a/b"),
            ("nbd://[::1]:20/%2fx%20", "[::1]:20", "/x "),
            ("nbd://127.0.0.1/", "127.0.0.1:10809", ""),
            ("nbd+unix:///?socket=/a/b", "/a/b", ""),
            ("nbd+unix://?socket=s", "s", ""),
            ("nbd+unix:///disk?socket=/a%25b", "/a%b", "disk"),
            ("nbd+unix:////x?socket=/s", "/s", "/x"),
        ] {
            let expected = Ok((server.to_owned(), export.to_owned()));
            assert_eq!(parsed(uri), Some(expected), "{uri}");
        }
    }

    #[test]
    fn other_names_are_no_uris() {
        for name in ["disk.img", "/a://b", "nbd:host", "https://host/", "nbd", ""] {
            assert_eq!(parsed(name), None, "{name}");
        }
    }

    #[test]
    fn old_forms_have_a_uri() {
        for (old, uri) in [
            ("nbd:host:10809", Some("nbd://host:10809/")),
            ("nbd:[::1]:1:exportname=a%b", Some("nbd://[::1]:1/a%25b")),
            ("nbd:unix:/run/s", Some("nbd+unix:///?socket=/run/s")),
            ("nbd:unix:s:exportname=e", Some("nbd+unix:///e?socket=s")),
            ("nbd://host/", None),
            ("disk.img", None),
        ] {
            assert_eq!(uri_of_old_form(old).as_deref(), uri, "{old}");
            assert!(
                uri.is_none_or(|uri| matches!(parse_uri(uri), Some(Ok(_)))),
                "{old}"
            );
        }
        for wrong in ["nbd:host", "nbd:unix:", "nbd:", "nbd::1"] {
            assert!(
                uri_of_old_form(wrong).expect("told").contains("HOST:PORT"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn long_names_are_refused() {
        let uri = |path: usize, export: usize| {
            let (path, export) = ("p".repeat(path), "e".repeat(export));
            [
                format!("nbd+unix:///{export}?socket={path}"),
                format!("nbd://h/{export}"),
            ]
        };
        for uri in uri(SOCKET_PATH_MAX, EXPORT_MAX) {
            assert!(matches!(parsed(&uri), Some(Ok(_))), "{uri}");
        }
        let refused = |uri: &str| parsed(uri).expect("a URI").expect_err("refused");
        for uri in uri(1, EXPORT_MAX + 1) {
            assert!(refused(&uri).contains("longer than 4096 bytes"));
        }
        let [uri, _] = uri(SOCKET_PATH_MAX + 1, 1);
        assert!(refused(&uri).contains("longer than 107 bytes"));
    }

    #[test]
    fn wrong_uris_are_refused() {
        for (uri, why) in [
            ("nbd://", "a host is missing"),
            ("nbd:///export", "a host is missing"),
            ("nbd://host:0/", "port"),
            ("nbd://host:x/", "port"),
            ("nbd://[::1/", "']'"),
            ("nbd://me@host/", "user"),
            ("nbd://host/?tls=1", "query"),
            ("nbd://host/%0", "'%'"),
            ("nbd://host/%ff", "'%'"),
            ("nbd://host/%00", "'%'"),
            ("nbds://host/", "TLS"),
            ("nbds+unix:///?socket=/s", "TLS"),
            ("nbd+unix:///x", "a path is missing"),
            ("nbd+unix:///x?socket=", "a path is missing"),
            ("nbd+unix:///x?other=1", "a path is missing"),
            ("nbd+unix:///x?socket=/s&tls=1", "one parameter"),
            ("nbd+unix://host/x?socket=/s", "host"),
        ] {
            let error = parsed(uri).expect("a URI").expect_err(uri);
            assert!(error.starts_with(uri) && error.contains(why), "{error}");
        }
    }
}
