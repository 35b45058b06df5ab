//! The question to the old process, and its answer.
//!
//! Main thread.

use std::path::Path;
use std::time::Instant;

use super::message::{Everything, Hello, Message, SHORT};
use crate::succession::{self, Bundle, Line, LineError};

/// Why the old process has not described itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Line(#[from] LineError),
}

impl Unanswered {
    /// The old process has sent this message in place of the answer.
    fn instead(message: Message) -> Self {
        Self::Refused(match message {
            Message::Refused { reason } => reason,
            _ => "an unexpected message has come".to_owned(),
        })
    }
}

/// Says hello, and receives what the old process describes.
///
/// # Errors
/// It refuses, or does not answer.
pub(super) fn ask(line: &Line, path: &Path) -> Result<(Everything, Bundle), Unanswered> {
    let deadline = Instant::now() + SHORT;
    let program = greet(line, deadline)?;
    tracing::info!(path = %path.display(), program, "taking over");
    // From here on both processes have the images and the sockets.
    succession::begin();
    match line.receive(deadline)? {
        (Message::Everything(everything), bundle) => Ok((*everything, bundle)),
        (message, _) => Err(Unanswered::instead(message)),
    }
}

/// Says hello. Returns the name of the other program.
fn greet(line: &Line, deadline: Instant) -> Result<String, Unanswered> {
    match line.send(&Message::Hello(Hello::new()), &Bundle::default(), deadline) {
        // It may have refused before it was asked: another process takes over.
        Ok(()) | Err(LineError::Closed) => {}
        Err(error) => return Err(error.into()),
    }
    match line.receive(deadline)?.0 {
        Message::Hello(hello) => Ok(hello.program),
        message => Err(Unanswered::instead(message)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_refusal_before_the_hello_is_heard() {
        let (here, there) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + SHORT;
        let refused = Message::Refused {
            reason: "later".to_owned(),
        };
        Line::new(there)
            .send(&refused, &Bundle::default(), deadline)
            .unwrap();
        let refused = greet(&Line::new(here), deadline).unwrap_err();
        assert_eq!(refused.to_string(), "later");
    }
}
