//! `--chardev` and `--monitor`, in the notation of qemu-storage-daemon.

use std::path::PathBuf;

use super::SOCKET_PATH_MAX;

/// A socket for QMP clients: `--chardev socket,id=ID,path=PATH,server=on,wait=off`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chardev {
    /// The id that `--monitor` refers to.
    pub id: String,
    /// The path of the socket.
    pub path: PathBuf,
}

/// Parses the value of `--chardev`.
pub(super) fn parse_chardev(text: &str) -> Result<Chardev, String> {
    let mut parts = split(text);
    match parts.next() {
        Some((kind, None)) if kind == "socket" => {}
        Some((key, Some(kind))) if key == "backend" && kind == "socket" => {}
        _ => {
            return Err("only 'socket' is supported, as in socket,id=ID,path=PATH,server=on,wait=off".into());
        }
    }
    let (mut id, mut path, mut server) = (None, None, false);
    for (key, value) in parts {
        match (key.as_str(), value) {
            ("id", Some(value)) => id = Some(value),
            ("path", Some(value)) => path = Some(value),
            ("server", None) => server = true,
            ("server", Some(value)) => server = switch("server", &value)?,
            ("wait", Some(value)) if switch("wait", &value)? => {
                return Err(
                    "wait=on is not supported: the disks are served whether a client connects or not".into(),
                );
            }
            ("wait", Some(_)) | ("nowait", None) => {}
            (key, _) => {
                return Err(format!(
                    "'{key}' is not supported: use id, path, server=on and wait=off"
                ));
            }
        }
    }
    let path = path
        .filter(|path| !path.is_empty())
        .ok_or("path=PATH is missing")?;
    if path.len() > SOCKET_PATH_MAX {
        return Err(format!("the path is longer than {SOCKET_PATH_MAX} bytes"));
    }
    match (id, server) {
        (Some(id), true) => Ok(Chardev {
            id,
            path: path.into(),
        }),
        (None, _) => Err("id=ID is missing".into()),
        (_, false) => Err("server=on is missing: clients connect to this process".into()),
    }
}

/// Parses the value of `--monitor`: the id of a character device.
pub(super) fn parse_monitor(text: &str) -> Result<String, String> {
    let mut chardev = None;
    for (n, (key, value)) in split(text).enumerate() {
        match (key.as_str(), value) {
            ("chardev", Some(value)) => chardev = Some(value),
            (_, None) if n == 0 => chardev = Some(key),
            ("mode", Some(mode)) if mode == "control" => {}
            ("pretty", Some(value)) if !switch("pretty", &value)? => {}
            (key, _) => return Err(format!("'{key}' is not supported: use chardev=ID")),
        }
    }
    chardev
        .filter(|id| !id.is_empty())
        .ok_or_else(|| "chardev=ID is missing".into())
}

/// Returns the sockets of all monitors.
pub(super) fn monitor_paths(chardevs: &[Chardev], monitors: &[String]) -> Result<Vec<PathBuf>, String> {
    for (n, chardev) in chardevs.iter().enumerate() {
        if chardevs[..n].iter().any(|other| other.id == chardev.id) {
            return Err(format!("--chardev: the id '{}' is given twice", chardev.id));
        }
        if !monitors.contains(&chardev.id) {
            let id = &chardev.id;
            return Err(format!("--chardev {id} is not used: add --monitor chardev={id}"));
        }
    }
    let path = |id: &String| {
        let chardev = chardevs.iter().find(|chardev| chardev.id == *id);
        let unknown = || format!("--monitor: there is no --chardev with id={id}");
        chardev.map(|chardev| chardev.path.clone()).ok_or_else(unknown)
    };
    monitors.iter().map(path).collect()
}

/// Splits `a,b=c` into keys and values. A comma in a value is doubled.
fn split(text: &str) -> impl Iterator<Item = (String, Option<String>)> {
    const COMMA: char = '\0';
    let text = text.replace(",,", &COMMA.to_string());
    let parts: Vec<_> = text.split(',').map(str::to_owned).collect();
    parts.into_iter().map(|part| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.replace(COMMA, ","))),
        None => (part.replace(COMMA, ","), None),
    })
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("'{key}' is on or off, not '{value}'")),
    }
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
            };
            assert_eq!(parse_chardev(text), Ok(expected), "{text}");
        }
        for text in ["m", "chardev=m", "chardev=m,mode=control,pretty=off"] {
            assert_eq!(parse_monitor(text).as_deref(), Ok("m"), "{text}");
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
            ("socket,id=m,path=p,server=perhaps", "'perhaps'"),
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
        };
        let both = [chardev("a"), chardev("b")];
        let paths = monitor_paths(&both, &["b".into(), "a".into()]);
        assert_eq!(paths, Ok(vec!["b".into(), "a".into()]));
        assert!(monitor_paths(&both, &["a".into()]).is_err());
        assert!(monitor_paths(&[], &["a".into()]).is_err());
        assert!(monitor_paths(&[chardev("a"), chardev("a")], &["a".into()]).is_err());
    }
}
