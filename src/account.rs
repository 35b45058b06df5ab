//! Users and groups: finding their numbers, and becoming another user.
//!
//! Used only at start-up, while the process has one thread, because looking up a name may run code of the machine's
//! name services.

use std::io;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

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
    /// The group was not among those of `/etc/group` at the start.
    #[error("group {0} was not in /etc/group when this process started: give its number")]
    Forgotten(String),
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
            Ok(uid) => find_user(user, || User::from_uid(Uid::from_raw(uid)))?,
            Err(_) => find_user(user, || User::from_name(user))?,
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
        if Uid::effective().is_root() || self.is_ours() {
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

    /// Makes this thread, and the threads that it creates, run as this user, in this group only, for good. Other threads
    /// stay as they are.
    ///
    /// # Errors
    /// The process runs neither as root nor as this user and group, or a system call failed.
    pub fn become_it(&self) -> Result<(), Error> {
        let failed = |error: rustix::io::Errno| self.not_allowed(error.into());
        let groups = set_thread_groups(&[]);
        if groups.is_err() && self.is_ours() {
            return Ok(());
        }
        groups.map_err(failed)?;
        let (uid, gid) = (
            rustix::process::Uid::from_raw(self.uid),
            rustix::process::Gid::from_raw(self.gid),
        );
        set_thread_res_gid(gid, gid, gid).map_err(failed)?;
        set_thread_res_uid(uid, uid, uid).map_err(failed)
    }

    fn is_ours(&self) -> bool {
        (Uid::effective().as_raw(), Gid::effective().as_raw()) == (self.uid, self.gid)
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
    let entry = look_up("group", group, || Group::from_name(group))?;
    Ok(entry.ok_or_else(|| unknown("group", group))?.gid.as_raw())
}

/// The groups of this machine, remembered for a process that cannot look them up any more.
#[derive(Clone, Debug, Default)]
pub struct Groups(Vec<(String, libc::gid_t)>);

impl Groups {
    /// Reads `/etc/group`. Other databases may be too large to remember.
    #[must_use]
    pub fn remember() -> Self {
        let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let entry = |line: &str| {
            let mut fields = line.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    /// Returns the number of a group, given by name or by number.
    ///
    /// # Errors
    /// The name is not one of those that were remembered.
    pub fn find(&self, group: &str) -> Result<libc::gid_t, Error> {
        if let Ok(gid) = group.parse() {
            return Ok(gid);
        }
        let known = self.0.iter().find(|(name, _)| name == group);
        known
            .map(|(_, gid)| *gid)
            .ok_or_else(|| Error::Forgotten(group.to_owned()))
    }
}

/// Returns the name of a user, for messages.
pub fn user_name(uid: libc::uid_t) -> Option<String> {
    let entry = look_up("user", "", || User::from_uid(Uid::from_raw(uid)));
    Some(entry.ok()??.name)
}

/// Returns the name of a group, for messages.
pub fn group_name(gid: libc::gid_t) -> Option<String> {
    let entry = look_up("group", "", || Group::from_gid(Gid::from_raw(gid)));
    Some(entry.ok()??.name)
}

/// Returns the numbers of a user and of the user's own group.
fn find_user(
    user: &str,
    find: impl Fn() -> nix::Result<Option<User>>,
) -> Result<Option<(libc::uid_t, libc::gid_t)>, Error> {
    let entry = look_up("user", user, find)?;
    Ok(entry.map(|entry| (entry.uid.as_raw(), entry.gid.as_raw())))
}

fn look_up<T>(
    what: &'static str,
    name: &str,
    find: impl Fn() -> nix::Result<Option<T>>,
) -> Result<Option<T>, Error> {
    loop {
        match find() {
            Ok(entry) => return Ok(entry),
            Err(Errno::EINTR) => {}
            // Some databases return these if there is no entry.
            Err(Errno::ENOENT | Errno::ESRCH) => return Ok(None),
            Err(errno) => {
                return Err(Error::Lookup {
                    what,
                    name: name.to_owned(),
                    source: errno.into(),
                });
            }
        }
    }
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
    fn remembered_groups_are_found_by_name_and_number() {
        let groups = Groups::remember();
        assert_eq!(
            (groups.find("root").ok(), groups.find("12345").ok()),
            (Some(0), Some(12345))
        );
        assert!(
            groups
                .find("no-such-group")
                .unwrap_err()
                .to_string()
                .contains("its number")
        );
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
