//! Opens images, with their backing files and data files. Any thread; the file system may take its time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache_options::CacheOptions;
use super::disk::{Backing, Qcow2Disk};
use super::error::OpenError;
use super::tables::Tables;
use crate::engine::node::BlockNode;
use crate::qcow2::{BackingFormat, Header, HeaderError};
use crate::storage::{Content, OpenOptions, RawFile};

/// Maximum number of images below each other. Reads go through them by recursion.
const DEPTH_MAX: usize = 64;

/// The source of the data that an image does not have.
#[derive(Clone, Debug, Default)]
pub enum BackingOption {
    /// From the backing file that the header names.
    #[default]
    Header,
    /// From nowhere: it reads as zeroes.
    None,
    /// From a node.
    Node(Arc<BlockNode>),
}

/// How an image is opened.
#[derive(Clone, Debug, Default)]
pub struct Qcow2Options {
    /// The backing file.
    pub backing: BackingOption,
    /// The node of the external data file, instead of the one that the header names.
    pub data_file: Option<Arc<BlockNode>>,
    /// Only read the image.
    pub read_only: bool,
    /// Open files that the image names. Only for images that are trusted: the names may be those of any files.
    pub follow_names: bool,
    /// The files that the image names, if another process has passed them. No others are opened then.
    pub passed: Option<Vec<Arc<RawFile>>>,
    /// The options for files that the image names. Their path is not used.
    pub files: OpenOptions,
    /// The sizes of the caches. Backing files that the image names have the same.
    pub cache: CacheOptions,
}

impl Qcow2Disk {
    /// Opens the image in `file`, for reading only if that is asked for or the file was opened so.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(file: &Arc<BlockNode>, options: &Qcow2Options) -> Result<Self, OpenError> {
        open(&file_of(file)?, options, &[])
    }

    /// Makes a disk of the same image with another backing file. Only one of the two may be used.
    ///
    /// # Errors
    /// The image cannot be read, or would be its own backing file, or there are too many.
    pub(in crate::engine) fn above(&self, below: &Arc<BlockNode>) -> Result<Self, OpenError> {
        let backing = backing_node(below)?;
        check_chain(&self.file, &backing, self.data_file.as_deref())?;
        let read_only = self.limits().read_only;
        let tables = Tables::read(&self.file, read_only, &self.cache)?;
        let (file, data_file) = (Arc::clone(&self.file), self.data_file.clone());
        Ok(Self::new(file, data_file, backing, tables, self.cache, read_only))
    }
}

/// Opens an image that is below the images in `above`.
fn open(file: &Arc<RawFile>, options: &Qcow2Options, above: &[&RawFile]) -> Result<Qcow2Disk, OpenError> {
    let path = || file.path().to_owned();
    if above.iter().any(|other| other.is_same_image(file)) {
        return Err(OpenError::Loop { path: path() });
    }
    if above.len() >= DEPTH_MAX {
        return Err(too_deep(above[0].path()));
    }
    let read_only = options.read_only || !above.is_empty() || file.limits().read_only;
    let tables = Tables::read(file, read_only, &options.cache)?;
    let data_file = data_file(file, &tables.header, options, read_only)?;
    let above: Vec<&RawFile> = above.iter().copied().chain([&**file]).collect();
    let backing = match &options.backing {
        BackingOption::None => Backing::None,
        BackingOption::Node(node) => backing_node(node)?,
        BackingOption::Header => backing_file(file, &tables.header, options, &above)?,
    };
    if above.len() + backing.depth() > DEPTH_MAX {
        return Err(too_deep(file.path()));
    }
    check_chain(file, &backing, data_file.as_deref())?;
    if !read_only {
        check_writable(file, data_file.as_deref(), &tables.header)?;
    }
    Ok(Qcow2Disk::new(
        Arc::clone(file),
        data_file,
        backing,
        tables,
        options.cache,
        read_only,
    ))
}

/// Checks the files below an image.
fn check_chain(file: &RawFile, backing: &Backing, data_file: Option<&RawFile>) -> Result<(), OpenError> {
    if backing.depth() >= DEPTH_MAX {
        return Err(too_deep(file.path()));
    }
    let below = backing.files();
    let mut others = below.iter().map(|file| &***file).chain(data_file);
    match others.any(|other| other.is_same_image(file)) {
        true => Err(OpenError::Loop {
            path: file.path().to_owned(),
        }),
        false => Ok(()),
    }
}

/// Checks whether an image can be written to.
fn check_writable(file: &RawFile, data: Option<&RawFile>, header: &Header) -> Result<(), OpenError> {
    let path = || file.path().to_owned();
    if let Some(data) = data
        && data.limits().read_only
    {
        return Err(OpenError::ReadOnlyData { path: path() });
    }
    let files = [Some(file), data];
    let block = files.iter().flatten().map(|file| file.limits().request_alignment);
    let block = u64::from(block.max().unwrap_or(1));
    match header.cluster.bytes() < block || !header.size.is_multiple_of(block) {
        true => Err(OpenError::DirectBlocks { path: path(), block }),
        false => Ok(()),
    }
}

fn too_deep(path: &Path) -> OpenError {
    OpenError::Depth {
        path: path.to_owned(),
        max: DEPTH_MAX - 1,
    }
}

/// Returns the file of a node that has one.
fn file_of(node: &BlockNode) -> Result<Arc<RawFile>, OpenError> {
    match node {
        BlockNode::File(file) => Ok(Arc::clone(file)),
        other => Err(OpenError::NoFile {
            path: other.path().to_owned(),
        }),
    }
}

fn backing_node(node: &Arc<BlockNode>) -> Result<Backing, OpenError> {
    match &**node {
        BlockNode::Qcow2(disk) => Ok(Backing::Qcow2(Arc::clone(disk))),
        node => file_of(node).map(Backing::Raw),
    }
}

fn data_file(
    image: &RawFile,
    header: &Header,
    options: &Qcow2Options,
    read_only: bool,
) -> Result<Option<Arc<RawFile>>, OpenError> {
    let path = || image.path().to_owned();
    match (header.external_data, &options.data_file) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(OpenError::NoDataFile { path: path() }),
        (true, Some(node)) => file_of(node).map(Some),
        (true, None) => {
            let name = header.extensions.data_file.clone();
            let name = name.ok_or_else(|| OpenError::Header {
                path: path(),
                source: HeaderError::NoDataFile,
            })?;
            if !options.follow_names {
                return Err(OpenError::DataFile { path: path(), name });
            }
            named_file(image, &name, options, read_only).map(Some)
        }
    }
}

/// Opens the backing file that the header names.
fn backing_file(
    image: &RawFile,
    header: &Header,
    options: &Qcow2Options,
    above: &[&RawFile],
) -> Result<Backing, OpenError> {
    let path = || image.path().to_owned();
    let Some(name) = header.backing_file.clone() else {
        return Ok(Backing::None);
    };
    if !options.follow_names {
        return Err(OpenError::Backing { path: path(), name });
    }
    match &header.extensions.backing_format {
        None => Err(OpenError::NoFormat { path: path(), name }),
        Some(BackingFormat::Other(format)) => Err(OpenError::Format {
            path: path(),
            name,
            format: format.clone(),
        }),
        Some(BackingFormat::Raw) => named_file(image, &name, options, true).map(Backing::Raw),
        Some(BackingFormat::Qcow2) => {
            let file = named_file(image, &name, options, true)?;
            let below = Qcow2Options {
                backing: BackingOption::Header,
                data_file: None,
                ..options.clone()
            };
            Ok(Backing::Qcow2(Arc::new(open(&file, &below, above)?)))
        }
    }
}

/// Opens a file that an image names.
fn named_file(
    image: &RawFile,
    name: &str,
    options: &Qcow2Options,
    read_only: bool,
) -> Result<Arc<RawFile>, OpenError> {
    let path = path_of(image.path(), name).ok_or_else(|| OpenError::Protocol {
        path: image.path().to_owned(),
        name: name.to_owned(),
    })?;
    if let Some(passed) = &options.passed {
        let mut files = passed.iter().filter(|file| file.path() == path);
        return files.next().cloned().ok_or(OpenError::NotPassed { path });
    }
    let options = OpenOptions {
        path,
        read_only,
        content: Content::Part,
        ..options.files.clone()
    };
    let opened = RawFile::open(&options);
    Ok(Arc::new(opened.map_err(|source| OpenError::Named {
        path: image.path().to_owned(),
        name: name.to_owned(),
        source,
    })?))
}

/// Returns the path that `name` in the image at `image` means. A relative path begins in the directory of the image.
/// `None`: it is not a path, but begins with a protocol.
fn path_of(image: &Path, name: &str) -> Option<PathBuf> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let before_slash = name.split('/').next().unwrap_or_default();
    if name.is_empty() || before_slash.contains(':') {
        return None;
    }
    let directory = image.parent().unwrap_or(Path::new(""));
    Some(directory.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_names_begin_where_the_image_is() {
        let path = |name| path_of(Path::new("dir/top.qcow2"), name);
        assert_eq!(path("base"), Some("dir/base".into()));
        assert_eq!(path("../base"), Some("dir/../base".into()));
        assert_eq!(path("/base"), Some("/base".into()));
        assert_eq!(path("file:base"), Some("dir/base".into()));
        assert_eq!(path("./a:b"), Some("dir/./a:b".into()));
        for name in [
            "nbd://host/export",
            "json:{}",
            "rbd:pool/image",
            "file:nbd:x",
            "",
            "file:",
        ] {
            assert_eq!(path(name), None, "{name}");
        }
    }
}
