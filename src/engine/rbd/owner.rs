//! The holder of an image's lock: a note in the image's metadata, so that a successor need not wait until the cluster
//! thinks a killed process dead.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use rustix::process::{Pid, test_kill_process};

/// The key of the note.
pub(super) const KEY: &std::ffi::CStr = c"vhost-user-blk.owner";

/// Returns the note of this process for a client of the cluster. `None` if this process cannot be told from others.
pub(super) fn note(client: &str) -> Option<String> {
    let ourselves = ourselves()?;
    Some(format!("{client} {ourselves}"))
}

/// Finds out who this process is. Must be called before the process is confined.
pub(super) fn ourselves() -> Option<&'static str> {
    static OURSELVES: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let (machine, pid) = (machine().ok()?, std::process::id());
        Some(format!("{machine} {pid} {}", start_of(pid).ok()?.1))
    };
    OURSELVES.get_or_init(find).as_deref()
}

/// Returns whether the note is about `client`, and its process has ended. Looks at other processes, so it returns false in
/// a confined process.
pub(super) fn has_ended(note: &str, client: &str) -> bool {
    let mut words = note.split(' ');
    let mut next = || words.next().unwrap_or_default();
    let (of, boot, space, pid, start) = (next(), next(), next(), next(), next());
    let here = machine().is_ok_and(|machine| machine == format!("{boot} {space}"));
    let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) else {
        return false;
    };
    if of != client || !here {
        return false;
    }
    // Not by /proc alone, which may hide the processes of others.
    match test_kill_process(pid) {
        Err(rustix::io::Errno::SRCH) => true,
        _ => start_of(pid.as_raw_nonzero().get().unsigned_abs())
            .is_ok_and(|(state, known)| known != start || matches!(state, 'Z' | 'X')),
    }
}

/// Returns the boot of this machine, and the name space of our process numbers.
fn machine() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let space = fs::metadata("/proc/self/ns/pid")?.ino();
    Ok(format!("{} {space}", boot.trim()))
}

/// Returns the state of a process, and the time at which it was started.
fn start_of(pid: u32) -> io::Result<(char, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let unknown = || io::Error::from(io::ErrorKind::InvalidData);
    // The name of the program may have spaces and parentheses.
    let (_, rest) = stat.rsplit_once(") ").ok_or_else(unknown)?;
    let mut fields = rest.split(' ');
    let state = fields.next().and_then(|state| state.chars().next());
    let start = fields.nth(18);
    Ok((state.ok_or_else(unknown)?, start.ok_or_else(unknown)?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ended_processes_of_this_machine_have_ended() {
        let ours = note("client").unwrap();
        assert!(!has_ended(&ours, "client"));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (machine, pid) = (machine().unwrap(), child.id());
        child.wait().unwrap();
        assert!(has_ended(&format!("client {machine} {pid} 1"), "client"));
        assert!(!has_ended(&format!("client {machine} {pid} 1"), "another"));
        assert!(!has_ended(&format!("client elsewhere 1 {pid} 1"), "client"));
        assert!(!has_ended("", "client"));
        let earlier = format!("client {machine} {} 1", std::process::id());
        assert!(has_ended(&earlier, "client"));
    }
}
