//! docs/security.md lists the system calls that threads may make. The list must match the filters.

use std::collections::BTreeSet;

use vhost_user_blk::sandbox::{Call, ThreadKind, allowed, refused};

const DOCUMENT: &str = include_str!("../../../docs/security.md");

/// Returns the table rows of the document whose first cell is a system call.
fn documented() -> BTreeSet<String> {
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `"));
    rows.map(str::to_owned).collect()
}

fn row(call: &Call, outcome: &str) -> String {
    let threads: Vec<String> = call.threads.iter().map(ToString::to_string).collect();
    let condition = call.condition();
    let outcome = match (outcome, &*condition) {
        ("", "") => "any",
        ("", condition) => condition,
        (outcome, _) => outcome,
    };
    format!("| `{}` | {} | {outcome} |", call.name(), threads.join(", "))
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_security_document_matches_the_filters() {
    let calls = ThreadKind::ALL
        .into_iter()
        .flat_map(allowed)
        .map(|call| row(call, ""));
    let fail = |errno| {
        if errno == libc::ENOSYS {
            "fails with ENOSYS"
        } else {
            "fails with EACCES"
        }
    };
    let refused = refused().map(|(call, errno)| row(call, fail(errno)));
    let real: BTreeSet<String> = calls.chain(refused).collect();
    let documented = documented();
    let missing: Vec<_> = real.difference(&documented).cloned().collect();
    let stale: Vec<_> = documented.difference(&real).cloned().collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "docs/security.md lacks:\n{}\nand has, wrongly:\n{}",
        missing.join("\n"),
        stale.join("\n")
    );
}
