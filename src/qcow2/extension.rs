//! Header extensions: what follows the header in the first cluster.

use super::error::HeaderError;

/// The type of the extension that ends the list.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const DATA_FILE: u32 = 0x4441_5441;

/// Size of an entry of the feature name table.
const FEATURE_NAME: usize = 48;

/// The format of a backing file, as the header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackingFormat {
    /// The file has the disk's bytes and nothing else.
    Raw,
    /// qcow2.
    Qcow2,
    /// Another format.
    Other(String),
}

/// The contents of an image's header extensions. Unknown extensions are ignored, as the specification asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// The format of the backing file.
    pub backing_format: Option<BackingFormat>,
    /// The name of the external data file.
    pub data_file: Option<String>,
    /// Names of incompatible features, by bit.
    names: Vec<(u8, String)>,
}

impl Extensions {
    /// Parses the extensions, which begin at `bytes`.
    ///
    /// # Errors
    /// An extension does not fit, or its text is not UTF-8.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut found = Self::default();
        while let Some((head, rest)) = bytes.split_first_chunk::<8>() {
            let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (kind, len) = (word(0), word(4) as usize);
            if kind == END {
                break;
            }
            let data = rest.get(..len).ok_or(HeaderError::Extension(kind))?;
            found.take(kind, data)?;
            // Padded to a multiple of 8.
            bytes = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(found)
    }

    fn take(&mut self, kind: u32, data: &[u8]) -> Result<(), HeaderError> {
        match kind {
            BACKING_FORMAT => {
                self.backing_format = Some(match text(data, "format of the backing file")?.as_str() {
                    "raw" => BackingFormat::Raw,
                    "qcow2" => BackingFormat::Qcow2,
                    other => BackingFormat::Other(other.to_owned()),
                });
            }
            DATA_FILE => self.data_file = Some(text(data, "name of the data file")?),
            FEATURE_NAMES => {
                let (entries, _) = data.as_chunks::<FEATURE_NAME>();
                // The first byte is the kind of the feature: 0 is incompatible.
                let incompatible = entries.iter().filter(|entry| entry[0] == 0);
                self.names = incompatible
                    .map(|entry| (entry[1], printable(&entry[2..])))
                    .collect();
            }
            _ => {}
        }
        Ok(())
    }

    /// Describes an incompatible feature for messages.
    pub(super) fn feature(&self, bit: u8) -> String {
        let known = self.names.iter().find(|(known, _)| *known == bit);
        match known {
            Some((_, name)) if !name.is_empty() => format!("bit {bit} ({name})"),
            _ => format!("bit {bit}"),
        }
    }
}

/// Returns text without a terminating zero.
pub(super) fn text(data: &[u8], what: &'static str) -> Result<String, HeaderError> {
    let data = data.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(data).map_err(|_| HeaderError::Text(what))?;
    Ok(text.to_owned())
}

/// Returns the printable part of a name that is only shown.
fn printable(data: &[u8]) -> String {
    let name = data.split(|byte| *byte == 0).next().unwrap_or_default();
    name.iter()
        .filter(|byte| byte.is_ascii_graphic() || **byte == b' ')
        .map(|byte| char::from(*byte))
        .collect()
}
