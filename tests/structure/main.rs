//! The structure of the sources: neither files nor modules import each other in circles.
//!
//! Imports are read from the text of `use` items and of paths in the code. A name that a module only hands on (`pub use`)
//! counts as imported from the file that defines it. Code for tests does not count.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod circles;
mod imports;
mod paths;

use std::path::Path;

use circles::Graph;
use imports::Sources;

fn sources(folder: &str) -> Sources {
    Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
}

fn assert_no_circles(graph: &Graph) {
    assert!(!graph.lines().is_empty(), "no imports were found");
    let circles = graph.circles();
    assert!(circles.is_empty(), "imports in circles:\n{}", circles.join("\n"));
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    for folder in ["src", "bench/src", "ctl/src", "testkit/src"] {
        assert_no_circles(&sources(folder).between_files());
    }
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    assert_no_circles(&sources("src").between_modules());
}
