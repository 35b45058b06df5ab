//! `add`: makes the nodes of a disk, and its export.

use std::io::{Write, stdout};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::args::{Add, Format};
use crate::qcow2::{Header, path_of};
use crate::qmp::Qmp;

/// Maximum number of backing files, as the daemon's.
const BACKING_MAX: usize = 63;

/// Adds a disk: its nodes, and then its export. If one is refused, those before are removed again.
pub(crate) fn add(qmp: &mut Qmp, options: &Add) -> Result<()> {
    let (nodes, export) = (nodes(options)?, export(options)?);
    let mut made = Vec::new();
    let added = nodes.iter().try_for_each(|node| {
        qmp.execute("blockdev-add", node)?;
        made.push(node["node-name"].clone());
        Ok(())
    });
    let added = added.and_then(|()| qmp.execute("block-export-add", &export));
    if let Err(refusal) = added {
        let mut refusal = explain(refusal, options);
        for name in made.iter().rev() {
            if let Err(error) = qmp.execute("blockdev-del", &json!({ "node-name": name })) {
                refusal = refusal.context(format!("the node {name} stays: {error}"));
            }
        }
        return Err(refusal);
    }
    writeln!(
        stdout(),
        "disk {} listens at {}",
        options.disk,
        options.listen.display()
    )?;
    Ok(())
}

/// Adds the options of this program to a refusal of the daemon.
fn explain(refusal: anyhow::Error, options: &Add) -> anyhow::Error {
    let is_format = options.format.is_none() && refusal.to_string().contains("its format is not given");
    if !is_format {
        return refusal;
    }
    anyhow!(
        "{refusal}; --format qcow2 serves the disk in a qcow2 image, and --format raw the bytes of the file (a guest may \
         have written them to its raw disk)"
    )
}

/// Returns the nodes of the disk, in the order in which they can be made.
fn nodes(options: &Add) -> Result<Vec<Value>> {
    let (mut nodes, mut top) = match options.format {
        Some(Format::Qcow2) if options.follow_names => {
            let mut chain = Chain::new(options);
            let top = chain.image(&options.file, options.read_only)?;
            (chain.nodes, top)
        }
        Some(Format::Qcow2) => (Vec::new(), qcow2(options, &options.file, options.read_only)?),
        _ if options.follow_names => {
            bail!("--follow-names: only images with --format qcow2 name other files")
        }
        format => {
            let mut file = file(options, &options.file, options.read_only)?;
            file["x-probe"] = format.is_none().into();
            (Vec::new(), file)
        }
    };
    if let Some(group) = &options.throttle_group {
        top = json!({
            "driver": "throttle",
            "throttle-group": group,
            "read-only": options.read_only,
            "discard": "unmap",
            "cache": { "direct": options.direct },
            "file": top,
        });
    }
    top["node-name"] = options.disk.as_str().into();
    nodes.push(top);
    Ok(nodes)
}

/// Returns the node of a file or a block device, without its name.
fn file(options: &Add, path: &Path, read_only: bool) -> Result<Value> {
    Ok(json!({
        "driver": if is_device(path) { "host_device" } else { "file" },
        "filename": text(path)?,
        "discard": "unmap",
        "read-only": read_only,
        "cache": { "direct": options.direct },
    }))
}

/// Returns the node of a qcow2 image, without its name and without the names of other nodes.
fn qcow2(options: &Add, path: &Path, read_only: bool) -> Result<Value> {
    Ok(json!({
        "driver": "qcow2",
        "discard": "unmap",
        "read-only": read_only,
        "cache": { "direct": options.direct },
        "file": file(options, path, read_only)?,
    }))
}

/// The nodes of the files that an image names. The daemon's sandbox keeps it from following names by itself.
struct Chain<'a> {
    options: &'a Add,
    nodes: Vec<Value>,
    /// The images above, to find circles.
    above: Vec<PathBuf>,
}

impl<'a> Chain<'a> {
    fn new(options: &'a Add) -> Self {
        Self {
            options,
            nodes: Vec::new(),
            above: Vec::new(),
        }
    }

    /// Returns the node of an image, without its name. Adds the nodes below to the list.
    fn image(&mut self, path: &Path, read_only: bool) -> Result<Value> {
        let known = path
            .canonicalize()
            .with_context(|| format!("{}", path.display()))?;
        if self.above.contains(&known) || self.above.len() > BACKING_MAX {
            bail!(
                "{} is its own backing file, or there are more than {BACKING_MAX}",
                path.display()
            );
        }
        self.above.push(known);
        let depth = self.above.len();
        let header = Header::read(path)?;
        let mut node = qcow2(self.options, path, read_only)?;
        node["backing"] = match &header.backing {
            None => Value::Null,
            Some(name) => {
                let below = path_of(path, name)?;
                let mut below = match header.backing_format.as_deref() {
                    Some("raw") => file(self.options, &below, true)?,
                    Some("qcow2") => self.image(&below, true)?,
                    Some(other) => bail!(
                        "the backing file '{name}' of {} has the format '{other}', which is not supported",
                        path.display()
                    ),
                    None => bail!(
                        "{} does not tell the format of its backing file '{name}': write it with qemu-img rebase -u -F",
                        path.display()
                    ),
                };
                self.name(&mut below, &format!("backing{depth}"))
            }
        };
        if let Some(name) = &header.data_file {
            let mut data = file(self.options, &path_of(path, name)?, read_only)?;
            node["data-file"] = self.name(&mut data, &format!("data{depth}"));
        }
        Ok(node)
    }

    /// Names a node after the disk and adds it to the list. Returns its name.
    fn name(&mut self, node: &mut Value, part: &str) -> Value {
        node["node-name"] = part_name(&self.options.disk, part).into();
        self.nodes.push(node.take());
        part_name(&self.options.disk, part).into()
    }
}

/// Returns the name of the node of a file that the image of a disk names.
fn part_name(disk: &str, part: &str) -> String {
    format!("{disk}.{part}")
}

/// Returns whether a node is one that [`add`] has made for a file that the image of this disk names.
pub(crate) fn is_part(node: &str, disk: &str) -> bool {
    let part = node.strip_prefix(disk).and_then(|rest| rest.strip_prefix('.'));
    let number = part.and_then(|part| part.strip_prefix("backing").or_else(|| part.strip_prefix("data")));
    number.is_some_and(|number| number.parse::<usize>().is_ok())
}

fn is_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.file_type().is_block_device())
}

fn export(options: &Add) -> Result<Value> {
    let mut address = json!({ "type": "unix", "path": text(&options.listen)? });
    for (name, value) in [("mode", &options.mode), ("group", &options.group)] {
        if let Some(value) = value {
            address[name] = value.as_str().into();
        }
    }
    let mut export = json!({
        "type": "vhost-user-blk",
        "id": options.disk,
        "node-name": options.disk,
        "addr": address,
        "writable": !options.read_only,
        "num-queues": options.num_queues,
    });
    if !options.iothread.is_empty() {
        export["iothread"] = json!(options.iothread);
    }
    Ok(export)
}

/// Returns an absolute path, because the daemon has another working directory.
fn text(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("{}", path.display()))?;
    let text = path
        .to_str()
        .ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_recognised_by_their_names() {
        for (node, is) in [
            ("a.backing1", true),
            ("a.data12", true),
            ("a.backing", false),
            ("a.other1", false),
            ("ab.backing1", false),
            ("a", false),
        ] {
            assert_eq!(is_part(node, "a"), is, "{node}");
        }
    }
}
