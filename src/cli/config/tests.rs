use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};
use testkit::words;

use super::*;
use crate::cli::{Cli, Form, one_line};

fn refusal(text: &str) -> String {
    let error = Config::parse(text, "vm.toml").expect_err(text);
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn endless_files_are_refused() {
    let error = Config::read(std::path::Path::new("/dev/zero")).expect_err("no end");
    assert!(error.starts_with("/dev/zero: larger than 16 MiB"), "{error}");
}

/// Files with a mistake, and the beginning of the message.
const MISTAKES: &[(&str, &str)] = &[
    ("a = ", "vm.toml:1: not valid TOML: "),
    (
        "[[blockdev]]\n",
        "vm.toml:1: blockdev number 1: Parameter 'driver' is missing",
    ),
    (
        "[[blockdev]]\ndriver = 'file'\n[[blockdev]]\nnode-name = 'a'\ndriver = 'file'\nfilenam = 'x'\n",
        "vm.toml:6: blockdev 'a': Parameter 'filenam' is unexpected",
    ),
    (
        "[[blockdev]]\nnode-name = 'a'\ndriver = 'file'\n\n[blockdev.cache]\ndirekt = true\n",
        "vm.toml:6: blockdev 'a': Parameter 'cache.direkt' is unexpected",
    ),
    (
        "[[export]]\nid = 'e'\ntype = 'vhost-user-blk'\nnode-name = 'n'\nwritable = 'on'\naddr.type = 'unix'\n",
        "vm.toml:5: export 'e': Parameter 'writable' expects boolean",
    ),
    (
        "[[object]]\nqom-type = 'iothread'\nid = 'io'\nthread-pool-max = 70000\n",
        "vm.toml:4: object 'io': Parameter 'thread-pool-max' expects a number",
    ),
    (
        "[blockdev]\n",
        "vm.toml:1: 'blockdev' is not a list of tables: write [[blockdev]]",
    ),
    ("export = [1]\n", "vm.toml:1: 'export' is not a list of tables"),
    (
        "\n[[chardev]]\nbackend = 'stdio'\nid = 'c'\npath = 'p'\n",
        "vm.toml:3: chardev 'c': Parameter 'backend' does not accept value 'stdio'",
    ),
    (
        "[[chardev]]\nbackend = 'socket'\nid = 'c'\npath = 'p'\n",
        "vm.toml:1: chardev 'c': server=on is missing",
    ),
    (
        "[[monitor]]\nchardev = 'c'\nmode = 'readline'\n",
        "vm.toml:3: monitor 'c': Parameter 'mode' does not accept value 'readline'",
    ),
    (
        "sandbx = 'on'\n",
        "vm.toml:1: unknown key 'sandbx': a file has the lists object, ",
    ),
    (
        "\nsandbox = 'maybe'\n",
        "vm.toml:2: sandbox: invalid value 'maybe' for '--sandbox <WHEN>'",
    ),
    (
        "sandbox = true\n",
        "vm.toml:1: 'sandbox' expects a string or a number",
    ),
    (
        "\nsandbox-path = ['/images', 1]\n",
        "vm.toml:2: 'sandbox-path' expects a string",
    ),
    ("hand-over = 1\n", "vm.toml:1: 'hand-over' expects a string"),
    ("stats = 'yes'\n", "vm.toml:1: 'stats' expects true or false"),
    (
        "blk-file = 'disk.img'\n",
        "vm.toml:1: 'blk-file' is for a single disk without a file",
    ),
    ("config = 'other.toml'\n", "vm.toml:1: unknown key 'config'"),
    ("trace = 'vhost*'\n", "vm.toml:1: unknown key 'trace'"),
    (
        "{\n  \"blockdev\": [{\"driver\": \"file\", \"node-name\": \"a\", \"x\": 1}]}",
        "vm.toml: blockdev 'a': Parameter 'x'",
    ),
    ("{\n  \"user\" \"x\"}", "vm.toml:2: not valid JSON: expected `:`"),
    (
        "{\n  \"user\": \"x\",\n  \"user\": \"y\"}",
        "vm.toml:3: not valid JSON: duplicate key",
    ),
];

#[test]
fn unknown_keys_are_answered_with_documented_ones() {
    let error = refusal("sandbx = 'on'\n");
    assert!(
        error.contains("take-over") && !error.contains("fail-take-over"),
        "{error}"
    );
}

#[test]
fn mistakes_name_file_line_table_and_key() {
    for (text, told) in MISTAKES {
        let error = refusal(text);
        assert!(error.starts_with(told), "{text}: {error}");
    }
}

/// Returns the command line that results from a file and options.
fn with_file(text: &str, options: &[&str]) -> Result<Cli, String> {
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("vm.conf");
    std::fs::write(&file, text).expect("write a file");
    let file = file.to_str().expect("UTF-8");
    let line = [&["vhost-user-blk", "--config", file], options].concat();
    Cli::from_line(line).map_err(|error| one_line(&error))
}

#[test]
fn the_command_line_adds_to_the_file_and_wins() {
    let text = "user = 'nobody'\nlog-level = 'debug'\nstats = true\ndaemonize = false\n
        [[blockdev]]\ndriver = 'null-co'\nnode-name = 'a'\n
        [[chardev]]\nbackend = 'socket'\nid = 'c'\npath = 'c.sock'\nserver = true\n
        [[monitor]]\nchardev = 'c'\n";
    let alone = with_file(text, &[]).expect("valid");
    assert_eq!(alone.form(), Form::Long);
    assert_eq!(
        (alone.user.as_deref(), alone.stats, alone.daemonize),
        (Some("nobody"), true, false)
    );
    let options = [
        "--user=root",
        "--blockdev=null-co,node-name=b",
        "--chardev=socket,id=d,path=d.sock,server=on",
        "--monitor=d",
        "--daemonize",
    ];
    let both = with_file(text, &options).expect("valid");
    let settings = both.settings().expect("consistent");
    assert_eq!(
        (settings.user.as_deref(), settings.daemonize),
        (Some("root"), true)
    );
    assert_eq!(both.log_level, crate::cli::LogLevel::Debug);
    let sockets: Vec<_> = settings
        .monitors
        .iter()
        .filter_map(|path| path.to_str())
        .collect();
    assert_eq!(sockets, ["c.sock", "d.sock"]);
    let nodes: Vec<_> = settings
        .operations
        .iter()
        .map(|operation| format!("{operation:?}"))
        .collect();
    assert!(
        nodes.len() == 2 && nodes[0].contains("\"a\"") && nodes[1].contains("\"b\""),
        "{nodes:?}"
    );
}

#[test]
fn a_file_of_process_wide_options_leaves_the_short_form() {
    let cli = with_file("sandbox = 'off'\n", &["--socket-path=s", "--blk-file=f"]).expect("valid");
    assert_eq!(cli.form(), Form::Short);
    cli.settings().expect("consistent");
    let file = "[[blockdev]]\ndriver = 'null-co'\nnode-name = 'a'\n";
    let both = with_file(file, &["--blk-file=f"]).expect("each is valid");
    assert!(both.settings().expect_err("both forms").contains("--blk-file"));
}

#[test]
fn only_missing_chardevs_are_mistakes() {
    let text = "[[chardev]]\nbackend = 'socket'\nid = 'c'\npath = 'p'\nserver = true\n[[blockdev]]\ndriver = 'null-co'\n";
    with_file(text, &[])
        .expect("valid")
        .settings()
        .expect("an unused chardev has no effect");
    let told = with_file("[[monitor]]\nchardev = 'x'\n", &[])
        .expect("valid")
        .settings();
    let told = told.expect_err("unknown");
    assert!(
        told.contains("vm.conf:1: monitor 'x': there is no chardev with id=x"),
        "{told}"
    );
}

#[test]
fn a_file_without_a_disk_is_named() {
    for text in [
        "",
        "\n# sandbox = 'on'\n",
        "{}",
        "export = []\n",
        "sandbox = 'off'\n",
    ] {
        let told = with_file(text, &[]).expect("valid").settings().expect_err(text);
        assert!(
            told.contains("vm.conf: no disk: [[blockdev]] and [[export]] are missing"),
            "{text}: {told}"
        );
        let told = with_file(text, &["--socket-path=s"]).expect("valid").settings();
        assert!(told.expect_err(text).starts_with("--blk-file missing"), "{text}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Cli::from_line(["vhost-user-blk", "--config", "nowhere/vm.toml"]).expect_err("missing");
    let error = one_line(&error);
    assert!(
        error.contains("nowhere/vm.toml: cannot read the configuration: No such file"),
        "{error}"
    );
}

/// Words of the options, and some that are none.
const KEYS: [&str; 30] = [
    "driver",
    "node-name",
    "filename",
    "read-only",
    "cache",
    "discard",
    "aio",
    "file",
    "size",
    "throttle-group",
    "qom-type",
    "id",
    "poll-max-ns",
    "limits",
    "cpu-affinity",
    "type",
    "addr",
    "writable",
    "num-queues",
    "iothread",
    "iothread-vq-mapping",
    "serial",
    "direct",
    "path",
    "str",
    "iops-total",
    "vqs",
    "detect-zeroes",
    "x",
    "inject",
];
const WORDS: [&str; 18] = [
    "file",
    "null-co",
    "raw",
    "throttle",
    "iothread",
    "vhost-user-blk",
    "unix",
    "fd",
    "a",
    "1",
    "on",
    "a,b=c",
    "#{[",
    "",
    "unmap",
    "io_uring",
    "{\"x\": 1}",
    "read:eio",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        select(&WORDS[..]).prop_map(Value::from),
        "[ -~]{0,6}".prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        (0..100_000u64).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            btree_map(select(&KEYS[..]), inner, 0..4).prop_map(|map| map
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect::<Map<_, _>>()
                .into()),
        ]
    })
}

/// A valid table, before something is added.
fn valid() -> impl Strategy<Value = (&'static str, Value)> {
    select(vec![
        (
            "object",
            json!({"qom-type": "iothread", "id": "io", "cpu-affinity": [0, 1]}),
        ),
        (
            "object",
            json!({"qom-type": "throttle-group", "id": "t", "limits": {"iops-total": 5}}),
        ),
        (
            "blockdev",
            json!({"driver": "file", "node-name": "n", "filename": "f", "cache": {"direct": true}}),
        ),
        (
            "blockdev",
            json!({"driver": "raw", "node-name": "n", "file": {"driver": "null-co", "size": 4096}}),
        ),
        (
            "export",
            json!({"type": "vhost-user-blk", "id": "e", "node-name": "n", "addr": {"type": "unix", "path": "s"},
                   "iothread": ["a", "b"]}),
        ),
    ])
}

fn made(config: &Config) -> String {
    format!("{:?}", config.operations().collect::<Vec<_>>())
}

proptest! {
    /// Everything can be said in each notation, and means the same.
    #[test]
    fn all_notations_mean_the_same(
        (list, base) in valid(),
        more in btree_map(select(&KEYS[..]), value(), 0..3),
    ) {
        let mut options = base;
        for (key, value) in more {
            options[key] = value;
        }
        let (toml, json) = (words::toml(list, &options), words::json(list, &options));
        let place = |error: String| error.split_once(": ").map(|(_, told)| told.to_owned());
        let of_toml = Config::parse(&toml, "f").map(|config| made(&config)).map_err(place);
        let of_json = Config::parse(&json, "f").map(|config| made(&config)).map_err(place);
        prop_assert_eq!(&of_toml, &of_json, "{}", toml);
        if let (Ok(expected), Some(text)) = (of_json, words::text(&options)) {
            let line = ["vhost-user-blk".to_owned(), format!("--{list}"), text.clone()];
            let cli = Cli::from_line(line).map_err(|error| TestCaseError::fail(one_line(&error)))?;
            prop_assert_eq!(format!("{:?}", cli.operations), expected, "{}", text);
        }
    }

    #[test]
    fn no_text_is_too_strange(text in "[\\[\\]{}=.\"'# \na-z0-9]{0,40}") {
        if let Err(error) = Config::parse(&text, "f") {
            prop_assert!(error.starts_with('f') && !error.contains('\n'), "{}", error);
        }
    }
}
