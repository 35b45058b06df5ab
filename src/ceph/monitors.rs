//! Addresses of monitors.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use super::error::Error;

/// Replaces the names of hosts by their addresses, because no name can be looked up later.
///
/// # Errors
/// A name has no address.
pub(super) fn resolved(monitors: &str) -> Result<String, Error> {
    let parts = monitors.split([',', ';', ' ']).filter(|part| !part.is_empty());
    let parts: Vec<String> = parts.map(address).collect::<Result<_, _>>()?;
    Ok(parts.join(","))
}

fn address(monitor: &str) -> Result<String, Error> {
    let host = host_and_port(monitor);
    if host.parse::<IpAddr>().is_ok() || host.parse::<SocketAddr>().is_ok() {
        return Ok(monitor.to_owned());
    }
    let found = match host.contains(':') {
        true => host.to_socket_addrs(),
        false => (host, 0).to_socket_addrs(),
    };
    let unknown = |why: String| Error::Monitor {
        monitor: monitor.to_owned(),
        why,
    };
    let first = found.map_err(|error| unknown(error.to_string()))?.next();
    let found = first.ok_or_else(|| unknown("it has no address".to_owned()))?;
    let found = match found.port() {
        0 => found.ip().to_string(),
        _ => found.to_string(),
    };
    Ok(monitor.replacen(host, &found, 1))
}

/// Returns an entry of `mon host` without its protocol, its nonce, and the brackets around a list of addresses.
fn host_and_port(monitor: &str) -> &str {
    let mut host = monitor.split('/').next().unwrap_or(monitor);
    if host.matches(']').count() > host.matches('[').count() {
        host = host.strip_suffix(']').unwrap_or(host);
    }
    for protocol in ["[v1:", "[v2:", "[any:", "v1:", "v2:", "any:"] {
        if let Some(rest) = host.strip_prefix(protocol) {
            host = rest;
            break;
        }
    }
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address,
        None => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_monitors_stay_as_they_are() {
        for monitors in [
            "v2:127.0.0.1:3300",
            "[v2:[::1]:3300,v1:[::1]:6789]",
            "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0],[::1]",
            "10.0.0.1:6789,::1",
            "10.0.0.1:6789/0",
        ] {
            assert_eq!(resolved(monitors).expect("addresses"), monitors);
        }
        let found = resolved("10.0.0.1; 10.0.0.2").expect("addresses");
        assert_eq!(found, "10.0.0.1,10.0.0.2");
    }

    #[test]
    fn unknown_monitors_are_named() {
        for monitor in [
            "no.such.host.invalid",
            "v2:no.such.host.invalid:3300",
            "10.0.0.1:99999",
        ] {
            let told = resolved(monitor).expect_err("no address").to_string();
            assert!(told.contains(monitor), "{told}");
        }
    }
}
