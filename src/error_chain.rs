//! Errors with their causes in one line.
//!
//! An error's text never repeats that of its source: [`chain`] prints all of them.

use std::error::Error;

/// Formats an error and its sources in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let text = error.to_string();
    match error.source().map(chain) {
        // Errors of some crates print their source themselves.
        Some(source) if !text.ends_with(&source) => format!("{text}: {source}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn sources_that_are_printed_already_are_not_repeated() {
        let inner = io::Error::from_raw_os_error(libc::EMFILE);
        let source = crate::aio::Error::Epoll(event_manager::Error::Epoll(inner.into()));
        let printed = chain(&source);
        assert_eq!(printed.matches("os error 24").count(), 1, "{printed}");
    }
}
