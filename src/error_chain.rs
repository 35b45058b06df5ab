//! Errors with their causes in one line.
//!
//! An error's text never repeats that of its source: [`chain`] prints all of them.

use std::error::Error;

/// Formats an error and its sources in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let text = error.to_string();
    let Some(source) = error.source() else {
        return text;
    };
    let causes = chain(source);
    if text.ends_with(&causes) {
        // Errors of some crates print their source themselves.
        text
    } else if text == source.to_string() {
        // A wrapper that says nothing of its own.
        causes
    } else {
        format!("{text}: {causes}")
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

    #[test]
    fn wrappers_add_nothing() {
        #[derive(Debug, thiserror::Error)]
        #[error("{source}")]
        struct Wrapper {
            source: Outer,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open it")]
        struct Outer(#[source] io::Error);

        let source = Outer(io::Error::from_raw_os_error(libc::ELOOP));
        let printed = chain(&Wrapper { source });
        assert!(
            printed.starts_with("cannot open it: Too many") && printed.ends_with("(os error 40)"),
            "{printed}"
        );
    }
}
