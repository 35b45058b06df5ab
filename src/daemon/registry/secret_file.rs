//! Reads the file of a secret on the main thread, which serves all disks and clients: it must not wait or grow there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Maximum length of a secret's file, far above any key or password.
const MAX_LENGTH: u64 = 64 << 10;

/// The files that a secret may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecretSource {
    /// Any file, also a pipe, whose other end the start waits for.
    Any,
    /// Only a regular file. A pipe or a device could keep the main thread from everything else.
    RegularFile,
}

/// Reads the whole file.
///
/// # Errors
/// The file cannot be read, is of a kind that `from` excludes, or is too long.
pub(super) fn read_secret(path: &Path, from: SecretSource) -> io::Result<Vec<u8>> {
    let file = match from {
        SecretSource::Any => File::open(path)?,
        SecretSource::RegularFile => open_regular(path)?,
    };
    let mut text = Vec::new();
    file.take(MAX_LENGTH + 1).read_to_end(&mut text)?;
    match text.len() as u64 > MAX_LENGTH {
        true => Err(io::Error::other(format!("longer than {MAX_LENGTH} bytes"))),
        false => Ok(text),
    }
}

fn open_regular(path: &Path) -> io::Result<File> {
    let regular = |is: bool| match is {
        true => Ok(()),
        false => Err(io::Error::other("not a regular file")),
    };
    // Checked before, because opening a device may have effects, and after, because the name may lead elsewhere by then.
    regular(fs::metadata(path)?.is_file())?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    regular(file.metadata()?.is_file())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_short() {
        let dir = tempfile::tempdir().expect("make a directory");
        let path = dir.path().join("secret");
        for (len, short) in [(0, true), (1 << 16, true), ((1 << 16) + 1, false)] {
            fs::write(&path, vec![b's'; len]).expect("write a file");
            for from in [SecretSource::Any, SecretSource::RegularFile] {
                let read = read_secret(&path, from).map(|text| text.len());
                assert_eq!(read.ok(), short.then_some(len), "{from:?}");
            }
        }
        assert!(read_secret(Path::new("/dev/zero"), SecretSource::Any).is_err());
    }

    #[test]
    fn a_device_can_be_excluded() {
        let null = Path::new("/dev/null");
        assert_eq!(read_secret(null, SecretSource::Any).expect("empty"), b"");
        let refused = read_secret(null, SecretSource::RegularFile);
        assert_eq!(refused.expect_err("a device").to_string(), "not a regular file");
    }
}
