//! Options as keys and values, as JSON and as TOML: the long form of the command line, and configuration files.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use testkit::words;
use vhost_user_blk::cli::config::Config;
use vhost_user_blk::cli::{Cli, one_line};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// The text of an option.
    Option(u8, &'a str),
    /// The text of a file.
    File(&'a str),
    /// A table with any keys.
    Table(u8, Vec<(Key<'a>, Node<'a>)>),
}

#[derive(Arbitrary, Debug)]
enum Key<'a> {
    Known(u8),
    Any(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Node<'a> {
    Known(u8),
    Text(&'a str),
    Switch(bool),
    Number(u64),
    Negative(i64),
    List(Vec<Node<'a>>),
    Table(Vec<(Key<'a>, Node<'a>)>),
}

const LISTS: [&str; 5] = ["object", "blockdev", "export", "chardev", "monitor"];
const KEYS: [&str; 53] = [
    "qom-type",
    "id",
    "poll-max-ns",
    "poll-grow",
    "poll-shrink",
    "aio-max-batch",
    "thread-pool-min",
    "thread-pool-max",
    "cpu-affinity",
    "limits",
    "iops-total",
    "bps-write-max-length",
    "data",
    "format",
    "driver",
    "node-name",
    "read-only",
    "auto-read-only",
    "force-share",
    "cache",
    "direct",
    "no-flush",
    "discard",
    "detect-zeroes",
    "active",
    "filename",
    "locking",
    "aio",
    "file",
    "offset",
    "size",
    "latency-ns",
    "read-zeroes",
    "throttle-group",
    "type",
    "addr",
    "path",
    "str",
    "mode",
    "group",
    "writable",
    "writethrough",
    "num-queues",
    "iothread",
    "iothread-vq-mapping",
    "vqs",
    "inject",
    "rerror",
    "backend",
    "server",
    "wait",
    "chardev",
    "pretty",
];
const WORDS: [&str; 20] = [
    "iothread",
    "throttle-group",
    "secret",
    "file",
    "host_device",
    "raw",
    "null-co",
    "throttle",
    "vhost-user-blk",
    "unix",
    "fd",
    "ignore",
    "on",
    "off",
    "auto",
    "io_uring",
    "report",
    "socket",
    "control",
    "read:eio:sector=1",
];

fuzz_target!(|input: Input<'_>| match input {
    Input::Option(list, text) => {
        let _ = of_option(LISTS[usize::from(list) % LISTS.len()], text);
    }
    Input::File(text) => {
        let _ = of_file(text);
    }
    Input::Table(list, members) => table(LISTS[usize::from(list) % LISTS.len()], &members),
});

/// Returns what an option makes, or the reason why it is refused.
fn of_option(list: &str, text: &str) -> Result<String, String> {
    let line = ["vhost-user-blk".to_owned(), format!("--{list}={text}")];
    match Cli::from_line(line) {
        Ok(cli) => Ok(made(&cli)),
        Err(error) => {
            let told = one_line(&error);
            assert!(!told.contains('\n') && !told.is_empty(), "{told}");
            Err(told)
        }
    }
}

fn made(cli: &Cli) -> String {
    format!("{:?}", cli.operations())
}

/// Returns what a file makes, or the reason why it is refused, without its place.
fn of_file(text: &str) -> Result<String, String> {
    match Config::parse(text, "f") {
        Ok(config) => Ok(format!("{:?}", config.operations().collect::<Vec<_>>())),
        Err(error) => {
            assert!(!error.contains('\n'), "{error}");
            let (place, told) = error.split_once(": ").expect("every error has a place");
            assert!(place.starts_with('f'), "{error}");
            Err(told.to_owned())
        }
    }
}

/// Checks that a table means the same in each notation.
fn table(list: &str, members: &[(Key<'_>, Node<'_>)]) {
    let options = map(members, 0);
    let of_json = of_file(&words::json(list, &options));
    assert_eq!(of_file(&words::toml(list, &options)), of_json, "{options}");
    if let (Ok(made), Some(text)) = (of_json, words::text(&options))
        && made != "[]"
    {
        assert_eq!(of_option(list, &text), Ok(made), "{text}");
    }
}

fn map(members: &[(Key<'_>, Node<'_>)], depth: usize) -> Value {
    let member = |(key, value): &(Key<'_>, Node<'_>)| {
        let key = match key {
            Key::Known(index) => KEYS[usize::from(*index) % KEYS.len()].to_owned(),
            // In keys and values, dots make tables and numbers make lists.
            Key::Any(text) => text.chars().filter(char::is_ascii_alphabetic).collect(),
        };
        (key, to_value(value, depth + 1))
    };
    Value::Object(members.iter().take(8).map(member).collect::<Map<_, _>>())
}

fn to_value(node: &Node<'_>, depth: usize) -> Value {
    match node {
        Node::Known(index) => WORDS[usize::from(*index) % WORDS.len()].into(),
        Node::Text(text) => text
            .chars()
            .filter(|c| (' '..='~').contains(c))
            .collect::<String>()
            .into(),
        Node::Switch(on) => (*on).into(),
        Node::Number(number) => (*number).into(),
        Node::Negative(number) => (*number).into(),
        Node::List(list) if depth < 6 => list
            .iter()
            .take(6)
            .map(|node| to_value(node, depth + 1))
            .collect(),
        Node::Table(members) if depth < 6 => map(members, depth),
        Node::List(_) | Node::Table(_) => false.into(),
    }
}
