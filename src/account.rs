//! Users and groups: finding their numbers, and becoming another user.
//!
//! Used only at start-up, while the process has one thread, because looking up a name may run code of the machine's
//! name services.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use crate::status::status;

/// The initial and the maximum size of memory for one entry of the user or group database.
const ENTRY_MIN: usize = 1 << 10;
const ENTRY_MAX: usize = 1 << 24;

/// A user or group cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user or group does not exist.
    #[error("there is no {what} {name}")]
    Unknown {
        /// "user" or "group".
        what: &'static str,
        /// The name or number as given.
        name: String,
    },
    /// No user has this number, so the group is not known.
    #[error("user {0} is not in the user database: give the group too, as {0}:GROUP")]
    NoGroup(String),
    /// The user or group database cannot be read.
    #[error("cannot look up {what} {name}")]
    Lookup {
        /// "user" or "group".
        what: &'static str,
        /// The name or number as given.
        name: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The process may not become this user.
    #[error("cannot become user {name}")]
    Become {
        /// The `USER[:GROUP]` as given.
        name: String,
        /// The error of the operating system.
        source: io::Error,
    },
}

/// A user and a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    name: String,
    uid: libc::uid_t,
    gid: libc::gid_t,
}

impl Account {
    /// Finds the account that `USER[:GROUP]` names, each by name or by number. The default is the user's own group.
    ///
    /// # Errors
    /// The user or group does not exist, or the database cannot be read.
    pub fn find(text: &str) -> Result<Self, Error> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let entry = match user.parse() {
            // With a group given, no entry is needed.
            Ok(uid) if group.is_some() => Some((uid, 0)),
            Ok(uid) => user_entry(user, |entry, memory, found| {
                // SAFETY: see `look_up`.
                unsafe { libc::getpwuid_r(uid, entry, memory.as_mut_ptr().cast(), memory.len(), found) }
            })?,
            Err(_) => {
                let name = c_string("user", user)?;
                user_entry(user, |entry, memory, found| {
                    // SAFETY: see `look_up`; the name is a C string.
                    unsafe {
                        libc::getpwnam_r(
                            name.as_ptr(),
                            entry,
                            memory.as_mut_ptr().cast(),
                            memory.len(),
                            found,
                        )
                    }
                })?
            }
        };
        let (uid, own) = entry.ok_or_else(|| match user.parse::<libc::uid_t>() {
            Ok(_) => Error::NoGroup(user.to_owned()),
            Err(_) => unknown("user", user),
        })?;
        Ok(Self {
            name: text.to_owned(),
            uid,
            gid: group.map_or(Ok(own), find_group)?,
        })
    }

    /// Returns the user's number.
    pub fn uid(&self) -> libc::uid_t {
        self.uid
    }

    /// Returns the group's number.
    pub fn gid(&self) -> libc::gid_t {
        self.gid
    }

    /// Checks early whether [`become_it`](Self::become_it) can succeed.
    ///
    /// # Errors
    /// The process runs neither as root nor as this user and group.
    pub fn check(&self) -> Result<(), Error> {
        // SAFETY: takes nothing and always succeeds.
        if unsafe { libc::geteuid() } == 0 || self.is_ours() {
            return Ok(());
        }
        Err(self.not_allowed(io::Error::from_raw_os_error(libc::EPERM)))
    }

    fn not_allowed(&self, source: io::Error) -> Error {
        Error::Become {
            name: self.name.clone(),
            source,
        }
    }

    /// Makes the whole process run as this user, in this group only, for good.
    ///
    /// # Errors
    /// The process runs neither as root nor as this user and group, or a system call failed.
    pub fn become_it(&self) -> Result<(), Error> {
        let failed = |source| self.not_allowed(source);
        // SAFETY: an empty list is read from nowhere.
        let groups = unsafe { libc::setgroups(0, ptr::null()) };
        if groups != 0 && self.is_ours() {
            return Ok(());
        }
        status(groups).map_err(failed)?;
        // SAFETY: takes only numbers.
        status(unsafe { libc::setresgid(self.gid, self.gid, self.gid) }).map_err(failed)?;
        // SAFETY: takes only numbers.
        status(unsafe { libc::setresuid(self.uid, self.uid, self.uid) }).map_err(failed)
    }

    fn is_ours(&self) -> bool {
        // SAFETY: they take nothing and always succeed.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        (user, group) == (self.uid, self.gid)
    }
}

/// Returns the number of a group, given by name or by number.
///
/// # Errors
/// The group does not exist, or the database cannot be read.
pub fn find_group(group: &str) -> Result<libc::gid_t, Error> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let name = c_string("group", group)?;
    let number = |entry: &libc::group| entry.gr_gid;
    let entry = look_up("group", group, number, |entry, memory, found| {
        // SAFETY: see `look_up`; the name is a C string.
        unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                entry,
                memory.as_mut_ptr().cast(),
                memory.len(),
                found,
            )
        }
    })?;
    entry.ok_or_else(|| unknown("group", group))
}

/// Returns the name of a user, for messages.
pub fn user_name(uid: libc::uid_t) -> Option<String> {
    // SAFETY: the entry is valid during the call, and its name is a C string.
    let name = |entry: &libc::passwd| unsafe { owned_string(entry.pw_name) };
    let entry = look_up("user", "", name, |entry, memory, found| {
        // SAFETY: see `look_up`.
        unsafe { libc::getpwuid_r(uid, entry, memory.as_mut_ptr().cast(), memory.len(), found) }
    });
    entry.ok().flatten()
}

/// Returns the name of a group, for messages.
pub fn group_name(gid: libc::gid_t) -> Option<String> {
    // SAFETY: the entry is valid during the call, and its name is a C string.
    let name = |entry: &libc::group| unsafe { owned_string(entry.gr_name) };
    let entry = look_up("group", "", name, |entry, memory, found| {
        // SAFETY: see `look_up`.
        unsafe { libc::getgrgid_r(gid, entry, memory.as_mut_ptr().cast(), memory.len(), found) }
    });
    entry.ok().flatten()
}

/// Copies a C string.
///
/// # Safety
/// `text` is a valid C string.
unsafe fn owned_string(text: *const libc::c_char) -> String {
    // SAFETY: the caller guarantees a valid C string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn user_entry(
    user: &str,
    call: impl FnMut(*mut libc::passwd, &mut [u8], &mut *mut libc::passwd) -> libc::c_int,
) -> Result<Option<(libc::uid_t, libc::gid_t)>, Error> {
    look_up("user", user, |entry| (entry.pw_uid, entry.pw_gid), call)
}

/// Calls one of the `get..._r` functions with enough memory, and returns what `read` takes from the entry. The memory
/// of the entry's strings lives only until `read` returns.
fn look_up<T, R>(
    what: &'static str,
    name: &str,
    read: impl Fn(&T) -> R,
    mut call: impl FnMut(*mut T, &mut [u8], &mut *mut T) -> libc::c_int,
) -> Result<Option<R>, Error> {
    let mut memory = vec![0; ENTRY_MIN];
    loop {
        let (mut entry, mut found) = (MaybeUninit::uninit(), ptr::null_mut());
        match call(entry.as_mut_ptr(), &mut memory, &mut found) {
            0 if found.is_null() => return Ok(None),
            // SAFETY: the entry was found, and so the call has filled it in.
            0 => return Ok(Some(read(unsafe { entry.assume_init_ref() }))),
            libc::ERANGE if memory.len() < ENTRY_MAX => memory.resize(memory.len() * 2, 0),
            libc::EINTR => {}
            // Some databases return these if there is no entry.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            errno => {
                return Err(Error::Lookup {
                    what,
                    name: name.to_owned(),
                    source: io::Error::from_raw_os_error(errno),
                });
            }
        }
    }
}

fn c_string(what: &'static str, name: &str) -> Result<CString, Error> {
    CString::new(name).map_err(|_| unknown(what, name))
}

fn unknown(what: &'static str, name: &str) -> Error {
    Error::Unknown {
        what,
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> (libc::uid_t, libc::gid_t) {
        let account = Account::find(text).expect(text);
        (account.uid(), account.gid())
    }

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!(numbers("root"), (0, 0));
        assert_eq!(numbers("0"), (0, 0));
        assert_eq!(numbers("12345:0"), (12345, 0));
        assert_eq!(numbers("12345:root"), (12345, 0));
        assert_eq!(numbers("root:12345"), (0, 12345));
    }

    #[test]
    fn numbers_have_names() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(group_name(0).as_deref(), Some("root"));
        assert_eq!((user_name(0x5eed_b10d), group_name(0x5eed_b10d)), (None, None));
    }

    #[test]
    fn errors_name_the_missing_user_or_group() {
        for (text, told) in [
            ("no-such-user", "there is no user no-such-user"),
            ("root:no-such-group", "there is no group no-such-group"),
            ("", "there is no user "),
            (":root", "there is no user "),
            ("root:", "there is no group "),
            ("3999999999", "3999999999:GROUP"),
            ("-1", "there is no user -1"),
        ] {
            let error = Account::find(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
