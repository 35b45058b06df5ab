//! The effects of faults on requests.

use std::time::Duration;

/// The effect of the rules on a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Effect {
    /// Additional time that the request takes.
    pub(in crate::engine) delay: Duration,
    pub(in crate::engine) fault: Option<Fault>,
}

/// A fault other than a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Fault {
    /// The request fails with this errno, and nothing is done.
    Error(i32),
    /// Half of the data is written, and then the request fails with this errno.
    Torn(i32),
    /// The request is done in pieces, as if the kernel had transferred less than requested.
    Short,
    /// The IOThread panics.
    Panic,
}
