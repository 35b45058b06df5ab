//! The short form of the command line: one disk. It makes the same objects as the long form.

use std::path::Path;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::choices::{Aio, ImageFormat, Notify, OnOff};
use super::options::Cli;
use crate::daemon::Operation;
use crate::daemon::options::{
    Address, AddressType, AioOption, BlockdevOptions, BlockdevRef, Cache, Discard, Driver, ExportOptions,
    Mapping, NotifyOption, ObjectOptions, ObjectType, ServerOption,
};
use crate::nbd::{Server, parse_uri, uri_of_old_form};

/// The options of the one disk, by their names in [`Cli`].
pub(super) const OPTIONS: [&str; 31] = [
    "socket_path",
    "fd",
    "socket_mode",
    "socket_group",
    "blk_file",
    "format",
    "follow_names",
    "null",
    "null_latency_ns",
    "read_only",
    "incoming",
    "serial",
    "logical_block_size",
    "num_queues",
    "queue_size",
    "iothreads",
    "iothread_vq_mapping",
    "iothread_cpus",
    "aio",
    "mmap",
    "request_merging",
    "direct",
    "register_memory",
    "thread_pool_min",
    "thread_pool_max",
    "poll_max_ns",
    "notify",
    "rerror",
    "werror",
    "io_timeout",
    "inject",
];

/// Returns the name of an option of the short form that was given, if any.
pub(super) fn option(matches: &ArgMatches) -> Option<String> {
    let given = |option: &&&str| matches.value_source(option) == Some(ValueSource::CommandLine);
    OPTIONS.iter().find(given).map(|option| option.replace('_', "-"))
}

/// The names of the node and the export.
const NAME: &str = "disk";

/// Returns the operations that make the disk, in order.
///
/// # Errors
/// Options contradict each other.
pub(super) fn operations(cli: &Cli) -> Result<Vec<Operation>, String> {
    let mut operations = Vec::new();
    for number in 0..cli.iothreads {
        operations.push(Operation::Object(Box::new(iothread(cli, number)?)));
    }
    operations.push(Operation::Blockdev(Box::new(blockdev(cli)?)));
    operations.push(Operation::Export(Box::new(export(cli)?)));
    Ok(operations)
}

fn iothread_name(number: u16) -> String {
    format!("iothread{number}")
}

fn iothread(cli: &Cli, number: u16) -> Result<ObjectOptions, String> {
    let pinned = cli.cpus()?.iter().find(|(iothread, _)| *iothread == number);
    Ok(ObjectOptions {
        poll_max_ns: Some(cli.poll_max_ns),
        thread_pool_min: Some(cli.thread_pool_min),
        thread_pool_max: Some(cli.thread_pool_max),
        cpu_affinity: pinned.map(|(_, cpus)| cpus.clone()),
        ..ObjectOptions::new(ObjectType::IoThread, &iothread_name(number))
    })
}

fn blockdev(cli: &Cli) -> Result<BlockdevOptions, String> {
    let common = BlockdevOptions {
        node_name: Some(NAME.to_owned()),
        active: Some(!cli.incoming),
        ..BlockdevOptions::new(Driver::File)
    };
    if let Some(name) = cli.blk_file.as_deref().and_then(Path::to_str) {
        if let Some(uri) = parse_uri(name) {
            let (server, export) = uri.map_err(|error| error.to_string())?;
            return network(cli, common, &server, export);
        }
        if let Some(uri) = uri_of_old_form(name) {
            return Err(format!(
                "--blk-file: {name} is an older form of the address of an NBD server; write {uri} (a file of this name is \
                 ./{name})"
            ));
        }
        if let Some(name) = name.strip_prefix("rbd:") {
            return cluster(cli, common, name);
        }
    }
    if cli.null.is_some() {
        refuse_format(cli, "a null disk stores nothing")?;
    }
    if cli.follow_names && cli.format != Some(ImageFormat::Qcow2) {
        return Err("--follow-names: only images with --format qcow2 name other files".to_owned());
    }
    Ok(match cli.null {
        Some(size) => BlockdevOptions {
            driver: if cli.null_latency_ns.is_some() {
                Driver::NullAio
            } else {
                Driver::NullCo
            },
            size: Some(size),
            latency_ns: cli.null_latency_ns,
            ..common
        },
        None => in_format(
            cli,
            BlockdevOptions {
                filename: cli.blk_file.clone(),
                read_only: Some(cli.read_only),
                cache: Cache {
                    direct: Some(cli.direct),
                    no_flush: None,
                },
                discard: Some(Discard::Unmap),
                aio: match cli.aio {
                    Aio::Auto => None,
                    Aio::Threads => Some(AioOption::Threads),
                    Aio::IoUring => Some(AioOption::IoUring),
                    Aio::Native => Some(AioOption::Native),
                },
                mmap: Some(cli.mmap == OnOff::On),
                probe: cli.format.is_none(),
                ..common
            },
        ),
    })
}

/// Returns the node of the image in the given format. `file` is the node of the image itself.
fn in_format(cli: &Cli, file: BlockdevOptions) -> BlockdevOptions {
    if cli.format != Some(ImageFormat::Qcow2) {
        return file;
    }
    BlockdevOptions {
        node_name: file.node_name.clone(),
        active: file.active,
        read_only: file.read_only,
        cache: file.cache,
        discard: file.discard,
        follow_names: Some(cli.follow_names),
        file: Some(Box::new(BlockdevRef::New(Box::new(BlockdevOptions {
            node_name: None,
            ..file
        })))),
        ..BlockdevOptions::new(Driver::Qcow2)
    }
}

/// Refuses a format other than raw, and options for it. `why` says why there is none.
fn refuse_format(cli: &Cli, why: &str) -> Result<(), String> {
    match cli.format {
        Some(ImageFormat::Qcow2) => Err(format!("--format qcow2: {why}")),
        _ if cli.follow_names => Err(format!("--follow-names: {why}")),
        _ => Ok(()),
    }
}

/// Returns the node of a disk on an NBD server.
fn network(
    cli: &Cli,
    common: BlockdevOptions,
    server: &Server,
    export: String,
) -> Result<BlockdevOptions, String> {
    if cli.aio != Aio::Auto {
        return Err(
            "--aio: a disk on an NBD server is served over its connection and has no engine".to_owned(),
        );
    }
    if cli.direct {
        return Err("--direct: the server of an NBD disk decides whether it uses a page cache".to_owned());
    }
    refuse_format(
        cli,
        "an export of an NBD server is served as a raw disk; serve the disk in the image there (qemu-nbd -f qcow2)",
    )?;
    Ok(BlockdevOptions {
        driver: Driver::Nbd,
        server: Some(Box::new(ServerOption::Nbd(server.into()))),
        export: Some(export),
        read_only: Some(cli.read_only),
        discard: Some(Discard::Unmap),
        probe: cli.format.is_none(),
        ..common
    })
}

/// Returns the node of a disk in a Ceph cluster: `POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][:id=USER][:conf=PATH]`.
fn cluster(cli: &Cli, common: BlockdevOptions, name: &str) -> Result<BlockdevOptions, String> {
    const FORM: &str =
        "--blk-file: an RBD image is rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][:id=USER][:conf=PATH]";
    if cli.aio != Aio::Auto {
        return Err("--aio: a disk in a Ceph cluster is served by librbd and has no engine".to_owned());
    }
    if cli.direct {
        return Err("--direct: a disk in a Ceph cluster has no page cache on this host".to_owned());
    }
    refuse_format(cli, "an RBD image is served as a raw disk")?;
    let mut parts = name.split(':');
    let place: Vec<&str> = parts.next().unwrap_or_default().split('/').collect();
    let (pool, namespace, image) = match place[..] {
        [pool, image] => (pool, None, image),
        [pool, namespace, image] => (pool, Some(namespace), image),
        _ => return Err(FORM.to_owned()),
    };
    let (image, snapshot) = match image.split_once('@') {
        Some((image, snapshot)) => (image, Some(snapshot)),
        None => (image, None),
    };
    if [Some(pool), namespace, Some(image), snapshot].contains(&Some("")) {
        return Err(FORM.to_owned());
    }
    let mut options = BlockdevOptions {
        driver: Driver::Rbd,
        pool: Some(pool.to_owned()),
        namespace: namespace.map(str::to_owned),
        image: Some(image.to_owned()),
        snapshot: snapshot.map(str::to_owned),
        read_only: Some(cli.read_only),
        discard: Some(Discard::Unmap),
        probe: cli.format.is_none(),
        ..common
    };
    for part in parts {
        match part.split_once('=') {
            Some(("id", user)) => options.user = Some(user.to_owned()),
            Some(("conf", path)) => options.conf = Some(path.into()),
            _ => return Err(FORM.to_owned()),
        }
    }
    Ok(options)
}

fn export(cli: &Cli) -> Result<ExportOptions, String> {
    let queues = cli.queue_iothreads()?;
    let mapping = |number: u16| Mapping {
        iothread: iothread_name(number),
        vqs: Some(
            (0..)
                .zip(&queues)
                .filter(|(_, owner)| **owner == number)
                .map(|(queue, _)| queue)
                .collect(),
        ),
    };
    let image = cli.blk_file.as_ref().map(|path| path.display().to_string());
    let serial = cli.serial.iter().copied().take_while(|byte| *byte != 0).collect();
    Ok(ExportOptions {
        writable: !cli.read_only,
        num_queues: Some(cli.num_queues),
        logical_block_size: cli.logical_block_size,
        queue_size: Some(cli.queue_size),
        serial: String::from_utf8(serial).ok(),
        iothread_vq_mapping: Some((0..cli.iothreads).map(mapping).collect()),
        rerror: Some(cli.rerror),
        werror: Some(cli.werror),
        io_timeout: Some(cli.io_timeout),
        request_merging: Some(cli.request_merging == OnOff::On),
        notify: Some(match cli.notify {
            Notify::Batch => NotifyOption::Batch,
            Notify::Each => NotifyOption::Each,
        }),
        register_memory: cli.register_memory.then_some(true),
        inject: cli.inject.clone(),
        allow_inactive: cli.incoming,
        display_name: Some(image.unwrap_or_else(|| null_name(cli).to_owned())),
        ..ExportOptions::new(NAME, NAME, address(cli))
    })
}

/// Returns the name of a null disk in messages.
fn null_name(cli: &Cli) -> &'static str {
    match cli.null_latency_ns {
        None => "null",
        Some(_) => "null-aio",
    }
}

fn address(cli: &Cli) -> Address {
    let (kind, text) = match (&cli.socket_path, cli.fd) {
        (Some(_), _) => (AddressType::Unix, None),
        (None, Some(fd)) => (AddressType::Fd, Some(fd.to_string())),
        (None, None) => (AddressType::ServiceManager, None),
    };
    Address {
        kind,
        path: cli.socket_path.clone(),
        text,
        mode: cli.socket_mode.map(|mode| format!("{mode:o}")),
        group: cli.socket_group.clone(),
    }
}
