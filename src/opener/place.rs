//! The directories that are left open, and the paths that lie beneath them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::StartError;

/// A directory.
#[derive(Debug)]
pub(super) struct Directory {
    /// Open for nothing but lookups (O_PATH).
    pub(super) fd: OwnedFd,
    /// The names that paths may begin with: as given, and without symbolic links.
    names: [PathBuf; 2],
}

/// A path beneath a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The index of the directory.
    pub(super) directory: usize,
    /// The rest of the path.
    pub(super) rest: PathBuf,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, StartError> {
        let failed = |source| StartError::Directory {
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let given = std::path::absolute(path).map_err(failed)?;
        let real = fs::canonicalize(path).map_err(failed)?;
        Ok(Self {
            fd,
            names: [given, real],
        })
    }
}

/// The names of the directories, and the working directory.
#[derive(Debug)]
pub(super) struct Names {
    names: Vec<[PathBuf; 2]>,
    working: PathBuf,
}

impl Names {
    pub(super) fn of(directories: &[Directory]) -> Self {
        Self {
            names: directories
                .iter()
                .map(|directory| directory.names.clone())
                .collect(),
            // Without a working directory, relative paths are beneath no directory.
            working: std::env::current_dir().unwrap_or_default(),
        }
    }

    /// Returns the place of a path. Of several directories, the innermost counts.
    ///
    /// Whether symbolic links and `..` lead out of the directory shows only when the path is opened.
    pub(super) fn place(&self, path: &Path) -> Option<Place> {
        let path = self.working.join(path);
        let beneath = |(directory, names): (usize, &[PathBuf; 2])| {
            let names = names.iter().filter_map(|name| path.strip_prefix(name).ok());
            let rest = names.min_by_key(|rest| rest.components().count())?;
            let has_name = rest.components().any(|part| matches!(part, Component::Normal(_)));
            has_name.then(|| Place {
                directory,
                rest: rest.to_owned(),
            })
        };
        let places = self.names.iter().enumerate().filter_map(beneath);
        places.min_by_key(|place| place.rest.components().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_belong_to_the_innermost_directory() {
        let directory = |name: &str| [PathBuf::from(name), PathBuf::from("/real").join(&name[1..])];
        let names = Names {
            names: vec![
                directory("/images"),
                directory("/images/vm0"),
                directory("/run/vub"),
            ],
            working: "/run/vub".into(),
        };
        for (path, expected) in [
            ("/images/a", Some((0, "a"))),
            ("/images//./b/c", Some((0, "b/c"))),
            ("/images/vm0/a", Some((1, "a"))),
            ("/images/vm00/a", Some((0, "vm00/a"))),
            ("/real/images/vm0/a", Some((1, "a"))),
            ("s.sock", Some((2, "s.sock"))),
            // The kernel refuses these.
            ("../vub/s.sock", Some((2, "../vub/s.sock"))),
            ("/images/../etc/passwd", Some((0, "../etc/passwd"))),
            ("/images", None),
            ("/images/..", None),
            ("/imagesx", None),
            ("/etc/passwd", None),
            ("", None),
        ] {
            let expected = expected.map(|(directory, rest)| Place {
                directory,
                rest: rest.into(),
            });
            assert_eq!(names.place(Path::new(path)), expected, "{path}");
        }
    }
}
