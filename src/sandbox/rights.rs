//! The rights that come with the process's user: capabilities, new privileges, access to its memory from outside.

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, set_dumpable_behavior, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Removes all capabilities from the bounding set, as far as we may. A program run later gets none of them.
pub(super) fn empty_bounding_set() {
    for bit in 0..u64::BITS {
        // The kernel refuses numbers that it does not know. A process that may not remove capabilities has none to pass on
        // once new privileges are off.
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit));
    }
}

/// Drops all capabilities of this thread, and so of the threads that it creates.
pub(super) fn drop_capabilities() -> io::Result<()> {
    keep_capabilities(CapabilitySet::empty())
}

/// Drops all capabilities of this thread but these, and but those that it does not have anyway.
pub(super) fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    // Old kernels do not have the ambient set.
    let _ = clear_ambient_capability_set();
    let kept = match kept.is_empty() {
        true => kept,
        false => capabilities(None)?.permitted & kept,
    };
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

/// Prevents programs run from now on from having more rights than this process.
pub(super) fn no_new_privileges() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// Hides our memory, which has the guest's data, from everybody but root, and keeps it out of core files.
pub(super) fn hide_memory() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Makes the kernel kill this process when the thread that has made it ends. The kernel may refuse to do so then, because
/// that thread has fewer rights by that time.
pub(super) fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}
