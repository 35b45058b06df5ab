//! `--chardev` and `--monitor`, in the notation of qemu-storage-daemon.

use std::path::PathBuf;

use serde::Deserialize;

use super::config::place::Place;
use super::keyval;
use super::values::SOCKET_PATH_MAX;
use crate::daemon::options::read;

/// A socket for QMP clients: `--chardev socket,id=ID,path=PATH,server=on,wait=off`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chardev {
    /// The id that `--monitor` refers to.
    pub id: String,
    /// The path of the socket.
    pub path: PathBuf,
    /// The table of a configuration file that describes it, if there is one.
    place: Option<Place>,
}

/// A monitor for QMP clients: `--monitor chardev=ID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// The id of the character device.
    pub chardev: String,
    place: Option<Place>,
}

/// The options of a character device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct ChardevOptions {
    #[serde(rename = "backend")]
    _backend: Backend,
    id: String,
    path: PathBuf,
    #[serde(default)]
    server: bool,
    #[serde(default)]
    wait: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Backend {
    Socket,
}

/// The options of a monitor.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct MonitorOptions {
    chardev: String,
    /// Nothing refers to it, neither here nor in QEMU.
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "mode", default)]
    _mode: Mode,
    #[serde(default)]
    pretty: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Control,
}

impl Chardev {
    /// Checks options. `place` is the table of a configuration file that has them.
    pub(super) fn new(options: ChardevOptions, place: Option<Place>) -> Result<Self, String> {
        let ChardevOptions {
            id,
            path,
            server,
            wait,
            ..
        } = options;
        if !server {
            return Err("server=on is missing: clients connect to this process".to_owned());
        }
        if wait {
            let why = "the disks are served whether a client connects or not";
            return Err(format!("wait=on is not supported: {why}"));
        }
        match (id.len(), path.as_os_str().len()) {
            (0, _) => Err("the id is empty".to_owned()),
            (_, 0) => Err("the path is empty".to_owned()),
            (_, 1..=SOCKET_PATH_MAX) => Ok(Self { id, path, place }),
            _ => Err(format!("the path is longer than {SOCKET_PATH_MAX} bytes")),
        }
    }
}

impl Monitor {
    /// Checks options. `place` is the table of a configuration file that has them.
    pub(super) fn new(options: MonitorOptions, place: Option<Place>) -> Result<Self, String> {
        if options.pretty {
            return Err("'pretty' is not supported: each message is one line".to_owned());
        }
        let chardev = options.chardev;
        match chardev.is_empty() {
            true => Err("the id of the chardev is empty".to_owned()),
            false => Ok(Self { chardev, place }),
        }
    }
}

/// Parses the value of `--chardev`.
pub(super) fn parse_chardev(text: &str) -> Result<Chardev, String> {
    // The notation of QEMU before 6.0.
    let words = [("server", ("server", "on")), ("nowait", ("wait", "off"))];
    let (value, origin) = keyval::parse_with_words(text, "backend", &words)?;
    let options = read(value, origin);
    let options = options.map_err(|error| {
        format!("{error}; only 'socket' is supported, as in socket,id=ID,path=PATH,server=on,wait=off")
    });
    Chardev::new(options?, None)
}

/// Parses the value of `--monitor`: the id of a character device.
pub(super) fn parse_monitor(text: &str) -> Result<Monitor, String> {
    let (value, origin) = keyval::parse(text, "chardev")?;
    let options = read(value, origin);
    let options = options.map_err(|error| format!("{error}; write chardev=ID"));
    Monitor::new(options?, None)
}

/// Returns the sockets of all monitors. A character device without a monitor has no effect.
pub(super) fn monitor_paths(chardevs: &[Chardev], monitors: &[Monitor]) -> Result<Vec<PathBuf>, String> {
    let told = |place: &Option<Place>, option: &str| match place {
        Some(place) => place.told(""),
        None => option.to_owned(),
    };
    for (n, chardev) in chardevs.iter().enumerate() {
        let (id, told) = (&chardev.id, told(&chardev.place, "--chardev"));
        if chardevs[..n].iter().any(|other| other.id == *id) {
            return Err(format!("{told}: the id '{id}' is given twice"));
        }
    }
    let path = |monitor: &Monitor| {
        let id = &monitor.chardev;
        let chardev = chardevs.iter().find(|chardev| chardev.id == *id);
        let unknown = || {
            let told = told(&monitor.place, "--monitor");
            format!("{told}: there is no chardev with id={id}")
        };
        chardev.map(|chardev| chardev.path.clone()).ok_or_else(unknown)
    };
    monitors.iter().map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_qsd_command_lines_are_understood() {
        for text in [
            "socket,id=m,path=/run/a,,b.sock,server=on,wait=off",
            "socket,path=/run/a,,b.sock,id=m,server,nowait",
            "backend=socket,path=/run/a,,b.sock,id=m,server=yes",
        ] {
            let expected = Chardev {
                id: "m".into(),
                path: "/run/a,b.sock".into(),
                place: None,
            };
            assert_eq!(parse_chardev(text), Ok(expected), "{text}");
        }
        for text in ["m", "chardev=m", "chardev=m,id=x,mode=control,pretty=off"] {
            let parsed = parse_monitor(text).map(|monitor| monitor.chardev);
            assert_eq!(parsed.as_deref(), Ok("m"), "{text}");
        }
    }

    #[test]
    fn unsupported_notations_are_named() {
        for (text, word) in [
            ("stdio,id=m", "'socket'"),
            ("socket,id=m,host=::,port=1,server=on", "'host'"),
            ("socket,id=m,path=p,server=on,wait=on", "wait=on"),
            ("socket,id=m,path=p", "server=on"),
            ("socket,id=m,server=on", "path"),
            ("socket,path=p,server=on", "id"),
            ("socket,id=m,path=p,server=perhaps", "'on' or 'off'"),
            ("socket,id=m,path,server=on", "'path'"),
        ] {
            let error = parse_chardev(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
        for (text, word) in [
            ("", "chardev=ID"),
            ("chardev=m,mode=readline", "'mode'"),
            ("chardev=m,pretty=on", "'pretty'"),
        ] {
            let error = parse_monitor(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn monitors_and_sockets_belong_together() {
        let chardev = |id: &str| Chardev {
            id: id.into(),
            path: id.into(),
            place: None,
        };
        let monitor = |id: &str| Monitor {
            chardev: id.into(),
            place: None,
        };
        let both = [chardev("a"), chardev("b")];
        let paths = monitor_paths(&both, &[monitor("b"), monitor("a")]);
        assert_eq!(paths, Ok(vec!["b".into(), "a".into()]));
        // A socket without a monitor is not made.
        assert_eq!(monitor_paths(&both, &[monitor("a")]), Ok(vec!["a".into()]));
        assert!(monitor_paths(&[], &[monitor("a")]).is_err());
        assert!(monitor_paths(&[chardev("a"), chardev("a")], &[monitor("a")]).is_err());
    }
}
