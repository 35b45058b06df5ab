//! Loom models of the event loop.
