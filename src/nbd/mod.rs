//! The NBD protocol, client's side, as plain data: NetworkBlockDevice/nbd, doc/proto.md.
//!
//! [`negotiate`] is the handshake with a server, over any stream; its parts leave room for TLS
//! after the greeting. [`Request`] encodes requests. [`decode`] takes replies
//! apart: it never waits, never allocates, and checks each number of the server against the request it answers. This
//! module opens no sockets and knows no guests.

mod address;
mod coverage;
mod export;
mod handshake;
mod handshake_error;
mod line;
mod option;
mod remote;
mod reply;
mod request;
mod wire;

pub use address::{EXPORT_MAX, SOCKET_PATH_MAX, Server, UriError, parse_uri, uri_of_old_form};
pub(crate) use coverage::Coverage;
pub use export::{Export, Replies};
pub use handshake::{Greeting, choose_export, greet, negotiate, start_tls};
pub use handshake_error::HandshakeError;
pub use line::Line;
pub(crate) use line::{ATTEMPT_TIME, Answer, Ask, Connected, Offer, Ticket};
pub use remote::{Remote, Tls};
pub use reply::{Decoded, Event, Expected, HEADER_MAX, ProtocolError, decode, error_of};
pub use request::{Command, HEADER_LEN_MAX, Request};
