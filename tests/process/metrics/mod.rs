//! Metrics: the page and its figures, the HTTP server, and its sockets.

mod figures;
mod format;
mod http;
mod sockets;

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use testkit::daemon::Daemon;
use testkit::target::image;

/// The option for a Unix socket in the daemon's directory.
const UNIX: [&str; 2] = ["--metrics", "unix:metrics.sock"];

/// Starts a daemon whose metrics are at a Unix socket.
fn start(options: &[&str]) -> Daemon {
    Daemon::start(&image(), &[&UNIX[..], options].concat())
}

fn connect(daemon: &Daemon) -> UnixStream {
    UnixStream::connect(daemon.dir().join("metrics.sock")).expect("connect")
}

/// Returns the TCP addresses at which a daemon serves metrics, from its log.
fn addresses(daemon: &Daemon) -> Vec<SocketAddr> {
    let log = daemon.output();
    let lines = log
        .lines()
        .filter_map(|line| line.split("metrics can be read address=").nth(1));
    lines
        .map(|address| address.trim().parse().expect("an address"))
        .collect()
}

fn connect_to(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).expect("connect")
}
