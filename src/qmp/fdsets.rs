//! Sets of file descriptors that clients have passed. A path `/dev/fdset/N` stands for a set.
//!
//! A set outlives the client that made it, but not the last client. Its users have opened it by then.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fstat};
use rustix::io::fcntl_dupfd_cloexec;

use super::error::QmpError;

/// The directory in the paths of sets.
const DIRECTORY: &str = "/dev/fdset/";
/// Maximum number of descriptors in all sets.
const MAX_FDS: usize = 1024;

/// All sets. Clones share them. Any thread.
#[derive(Clone, Debug, Default)]
pub struct FdSets(Arc<Mutex<BTreeMap<i64, Vec<Member>>>>);

#[derive(Debug)]
struct Member {
    /// The number of the descriptor for clients.
    number: i64,
    fd: OwnedFd,
    opaque: Option<String>,
    /// A node uses the descriptor, or has used it.
    used: bool,
}

/// A set, for `query-fdsets`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SetInfo {
    pub(super) id: i64,
    /// The number and the opaque text of each descriptor.
    pub(super) fds: Vec<(i64, Option<String>)>,
}

impl FdSets {
    /// Adds a descriptor to a set, or to a new set. Returns the numbers of both.
    pub(super) fn add(
        &self,
        fd: OwnedFd,
        set: Option<i64>,
        opaque: Option<String>,
    ) -> Result<(i64, i64), QmpError> {
        let mut sets = self.lock();
        if sets.values().map(Vec::len).sum::<usize>() >= MAX_FDS {
            return Err(QmpError::generic(format!(
                "There are {MAX_FDS} descriptors in fdsets already"
            )));
        }
        let id = match set {
            Some(id) if id < 0 => return Err(QmpError::expects("fdset-id", "a non-negative value")),
            Some(id) => id,
            None => (0..).find(|id| !sets.contains_key(id)).unwrap_or(i64::MAX),
        };
        let number = i64::from(fd.as_raw_fd());
        sets.entry(id).or_default().push(Member {
            number,
            fd,
            opaque,
            used: false,
        });
        Ok((id, number))
    }

    /// Removes a descriptor, or all descriptors of a set.
    pub(super) fn remove(&self, set: i64, number: Option<i64>) -> Result<(), QmpError> {
        let mut sets = self.lock();
        let unknown = || match number {
            Some(number) => QmpError::generic(format!(
                "File descriptor named 'fdset-id:{set}, fd:{number}' not found"
            )),
            None => QmpError::generic(format!("File descriptor named 'fdset-id:{set}' not found")),
        };
        let members = sets.get_mut(&set).ok_or_else(unknown)?;
        let before = members.len();
        members.retain(|member| number.is_some_and(|number| member.number != number));
        if members.len() == before {
            return Err(unknown());
        }
        if members.is_empty() {
            sets.remove(&set);
        }
        Ok(())
    }

    pub(super) fn list(&self) -> Vec<SetInfo> {
        let fds = |members: &Vec<Member>| {
            let info = |member: &Member| (member.number, member.opaque.clone());
            members.iter().map(info).collect()
        };
        let sets = self.lock();
        sets.iter()
            .map(|(id, members)| SetInfo {
                id: *id,
                fds: fds(members),
            })
            .collect()
    }

    /// Closes all sets.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// Returns whether a path names a set.
    pub fn has_name(path: &Path) -> bool {
        path.to_str().is_some_and(|path| path.starts_with(DIRECTORY))
    }

    /// Opens a path `/dev/fdset/N`: duplicates a descriptor of the set that has the required access mode, and was opened
    /// with or without O_DIRECT, as `direct` says. The second file is the same one, open for O_DIRECT, if the set has it
    /// and the first is not. Returns `None` if the path does not name a set.
    ///
    /// If no descriptor has the right flag, one is returned whose flag the caller changes, unless `keep_flags`. That
    /// changes all duplicates, so none of them may be in use.
    ///
    /// # Errors
    /// The set does not exist, or has no descriptor with the access mode. The kind is `ResourceBusy` if it has one, but
    /// with the other flag and in use.
    pub fn open(
        &self,
        path: &str,
        writable: bool,
        direct: bool,
        keep_flags: bool,
    ) -> Option<io::Result<(File, Option<File>)>> {
        let id = path.strip_prefix(DIRECTORY)?;
        Some(self.duplicate(id, writable, direct, keep_flags))
    }

    fn duplicate(
        &self,
        id: &str,
        writable: bool,
        direct: bool,
        keep_flags: bool,
    ) -> io::Result<(File, Option<File>)> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let id = id.parse::<i64>().map_err(|_| missing())?;
        let mut sets = self.lock();
        let members = sets.get_mut(&id).ok_or_else(missing)?;
        let wanted = match writable {
            true => OFlags::RDWR,
            false => OFlags::RDONLY,
        };
        let mut suitable = Vec::new();
        for (place, member) in members.iter().enumerate() {
            let flags = fcntl_getfl(&member.fd)?;
            if flags & OFlags::RWMODE == wanted {
                suitable.push((place, flags.contains(OFlags::DIRECT) == direct));
            }
        }
        let is_free = |&&(place, _): &&(usize, bool)| !keep_flags && !members[place].used;
        let found = suitable.iter().find(|(_, fits)| *fits);
        let Some(&(place, fits)) = found.or_else(|| suitable.iter().find(is_free)) else {
            return Err(match suitable.is_empty() {
                true => io::ErrorKind::PermissionDenied.into(),
                false => io::ErrorKind::ResourceBusy.into(),
            });
        };
        members[place].used = true;
        let file = copy(&members[place].fd)?;
        let sibling = match fits && !direct {
            true => direct_sibling(members, &file)?,
            false => None,
        };
        Ok((file, sibling))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i64, Vec<Member>>> {
        // Consistent even after a panic: no change can be interrupted halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a descriptor of the same file that is open for O_DIRECT, and can be read.
fn direct_sibling(members: &mut [Member], file: &File) -> io::Result<Option<File>> {
    let same = fstat(file)?;
    for member in members {
        let (flags, stat) = (fcntl_getfl(&member.fd)?, fstat(&member.fd)?);
        if flags.contains(OFlags::DIRECT)
            && flags & OFlags::RWMODE != OFlags::WRONLY
            && (stat.st_dev, stat.st_ino, stat.st_rdev) == (same.st_dev, same.st_ino, same.st_rdev)
        {
            member.used = true;
            return copy(&member.fd).map(Some);
        }
    }
    Ok(None)
}

fn copy(fd: &OwnedFd) -> io::Result<File> {
    Ok(fcntl_dupfd_cloexec(fd, 0)?.into())
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn descriptor(writable: bool) -> OwnedFd {
        let file = OpenOptions::new().read(true).write(writable).open("/dev/null");
        file.expect("exists everywhere").into()
    }

    #[test]
    fn paths_open_the_descriptor_with_the_same_mode() {
        let sets = FdSets::default();
        let (id, _) = sets.add(descriptor(false), None, None).expect("add");
        let path = format!("/dev/fdset/{id}");
        assert!(
            sets.open(&path, false, false, false)
                .expect("a set's path")
                .is_ok()
        );
        let refused = sets
            .open(&path, true, false, false)
            .expect("a set's path")
            .expect_err("none is writable");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        sets.add(descriptor(true), Some(id), None).expect("add");
        assert!(
            sets.open(&path, true, false, false)
                .expect("a set's path")
                .is_ok()
        );
        assert!(sets.open("/dev/null", true, false, false).is_none());
        assert!(
            sets.open("/dev/fdset/77", true, false, false)
                .expect("a set's path")
                .is_err()
        );
        assert!(
            sets.open("/dev/fdset/x", true, false, false)
                .expect("a set's path")
                .is_err()
        );
    }

    #[test]
    fn the_same_file_for_direct_io_comes_along() {
        let [image, other] =
            [(); 2].map(|()| tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("make"));
        let open = |file: &tempfile::NamedTempFile, writable, flags| {
            let mut options = OpenOptions::new();
            let opened = options
                .read(true)
                .write(writable)
                .custom_flags(flags)
                .open(file.path());
            OwnedFd::from(opened.expect("open"))
        };
        let sets = FdSets::default();
        let opened = || {
            sets.open("/dev/fdset/1", true, false, false)
                .expect("a set's path")
                .expect("is there")
        };
        sets.add(open(&other, false, libc::O_DIRECT), Some(1), None)
            .expect("add");
        sets.add(open(&image, true, 0), Some(1), None).expect("add");
        assert!(opened().1.is_none(), "another file");
        sets.add(open(&image, false, libc::O_DIRECT), Some(1), None)
            .expect("add");
        let (file, direct) = opened();
        let flags = |file: &File| fcntl_getfl(file).expect("flags");
        assert!(!flags(&file).contains(OFlags::DIRECT));
        assert!(flags(&direct.expect("the third")).contains(OFlags::DIRECT));
    }

    #[test]
    fn descriptors_in_use_keep_their_flags() {
        let sets = FdSets::default();
        let open = |direct, keep_flags| {
            let opened = sets.open("/dev/fdset/1", false, direct, keep_flags);
            opened.expect("a set's path").map_err(|error| error.kind())
        };
        sets.add(descriptor(false), Some(1), None).expect("add");
        assert_eq!(open(true, true).err(), Some(io::ErrorKind::ResourceBusy));
        assert!(open(true, false).is_ok(), "nobody else uses it");
        assert_eq!(open(true, false).err(), Some(io::ErrorKind::ResourceBusy));
        assert!(open(false, false).is_ok());
        sets.add(descriptor(false), Some(1), None).expect("add");
        assert!(open(true, false).is_ok(), "there is a fresh one");
    }

    #[test]
    fn removal_takes_one_descriptor_or_all() {
        let sets = FdSets::default();
        let (id, first) = sets.add(descriptor(true), Some(7), None).expect("add");
        let (_, second) = sets
            .add(descriptor(true), Some(7), Some("b".into()))
            .expect("add");
        assert_eq!(id, 7);
        sets.remove(7, Some(first)).expect("is there");
        assert!(sets.remove(7, Some(first)).is_err());
        let left = vec![(second, Some("b".to_owned()))];
        assert_eq!(sets.list(), [SetInfo { id: 7, fds: left }]);
        sets.remove(7, None).expect("is there");
        assert!(sets.remove(7, None).is_err());
        assert_eq!(sets.list(), []);
    }

    #[test]
    fn the_number_of_descriptors_is_limited() {
        let sets = FdSets::default();
        let added = (0..MAX_FDS + 1).filter(|_| sets.add(descriptor(false), Some(1), None).is_ok());
        assert_eq!(added.count(), MAX_FDS);
    }
}
