//! The thread pool, with gates in its works.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod pool_support;

use pool_support::*;

#[test]
fn a_submitted_work_is_run_and_completed_once() {
    let rig = Rig::new(0, 4);
    rig.submit(rig.gate(), 0);
    rig.gate().open();
    rig.wait_for(1);
    assert_eq!(rig.log(), [(0, Outcome::Done)]);
}
