//! `--metrics`: addresses at which metrics can be read.

use std::path::PathBuf;

use serde::Deserialize;

use super::keyval;
use super::values::{parse_mode, parse_socket_path};
use crate::daemon::MetricsAddress;
use crate::daemon::options::read;

/// Parses the value of `--metrics`: `ADDR:PORT` or `unix:PATH[,mode=MODE][,group=GROUP]`.
pub(super) fn parse_metrics(text: &str) -> Result<MetricsAddress, String> {
    match text.strip_prefix("unix:") {
        Some(text) => parse_unix(text),
        None => text.parse().map(MetricsAddress::Tcp).map_err(|_| {
            "not unix:PATH, or a numeric address and a port, as in 127.0.0.1:9108 or [::1]:9108".to_owned()
        }),
    }
}

/// The options of a Unix socket.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct UnixOptions {
    path: PathBuf,
    mode: Option<String>,
    group: Option<String>,
}

fn parse_unix(text: &str) -> Result<MetricsAddress, String> {
    let (value, origin) = keyval::parse(text, "path")?;
    let options = read(value, origin);
    let options = options.map_err(|error| format!("{error}; write unix:PATH,mode=MODE,group=GROUP"));
    let UnixOptions { path, mode, group } = options?;
    if group.as_ref().is_some_and(String::is_empty) {
        return Err("group: empty".to_owned());
    }
    let mode = mode.as_deref().map(parse_mode).transpose();
    Ok(MetricsAddress::Unix {
        path: parse_socket_path(path.as_os_str()).map_err(|error| format!("path: {error}"))?,
        mode: mode.map_err(|error| format!("mode: {error}"))?,
        group,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ports_or_paths() {
        for text in ["127.0.0.1:9108", "0.0.0.0:0", "[::1]:9108", "[::]:1"] {
            assert_eq!(
                parse_metrics(text),
                Ok(MetricsAddress::Tcp(text.parse().unwrap())),
                "{text}"
            );
        }
        let unix = |path: &str, mode, group: Option<&str>| {
            Ok(MetricsAddress::Unix {
                path: path.into(),
                mode,
                group: group.map(str::to_owned),
            })
        };
        assert_eq!(
            parse_metrics("unix:path=/run/a=b,,c"),
            unix("/run/a=b,c", None, None)
        );
        assert_eq!(
            parse_metrics("unix:m.sock,mode=0660,group=prometheus"),
            unix("m.sock", Some(0o660), Some("prometheus"))
        );
    }

    #[test]
    fn wrong_addresses_are_named() {
        let long = format!("unix:{}", "x".repeat(108));
        for (text, word) in [
            ("", "127.0.0.1:9108"),
            ("9108", "127.0.0.1:9108"),
            (":9108", "127.0.0.1:9108"),
            ("localhost:9108", "127.0.0.1:9108"),
            ("127.0.0.1:65536", "127.0.0.1:9108"),
            ("::1:9108", "127.0.0.1:9108"),
            ("unix:", "'path' is missing"),
            (&long, "108 bytes"),
            ("unix:a,mode=8", "mode"),
            ("unix:a,group=", "group"),
            ("unix:a,owner=b", "owner"),
        ] {
            let error = parse_metrics(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
