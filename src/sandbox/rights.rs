//! The rights that come with the process's user: capabilities, new privileges, access to its memory from outside.

use std::io;

use crate::status::status;

/// `linux/capability.h`: version 3 has two words of each set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// The number of possible capabilities. The kernel refuses numbers that it does not know.
const CAPABILITIES: i32 = 64;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Removes all capabilities from the bounding set, as far as we may. A program run later gets none of them.
pub(super) fn empty_bounding_set() {
    for capability in 0..CAPABILITIES {
        // A process that may not remove capabilities has none to pass on once new privileges are off.
        let _ = prctl(libc::PR_CAPBSET_DROP, capability);
    }
}

/// Drops all capabilities of this thread, and so of the threads that it creates.
pub(super) fn drop_capabilities() -> io::Result<()> {
    // Old kernels do not have the ambient set.
    let _ = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL);
    let header = Header {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let none = [Sets::default(); 2];
    // SAFETY: the kernel reads a header and, for this version, two elements.
    status(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) })
}

/// Prevents programs run from now on from having more rights than this process.
pub(super) fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Hides our memory, which has the guest's data, from everybody but root, and keeps it out of core files.
pub(super) fn hide_memory() -> io::Result<()> {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel reads the limit.
    status(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })?;
    prctl(libc::PR_SET_DUMPABLE, 0)
}

fn prctl(option: libc::c_int, argument: libc::c_int) -> io::Result<()> {
    let argument = libc::c_long::from(argument);
    let none: libc::c_long = 0;
    // SAFETY: the options used here take numbers.
    status(unsafe { libc::prctl(option, argument, none, none, none) })
}
