//! The frontend's process: QEMU's command line.

use std::fs;

use serde_json::Value;

use super::finding::Finding;

/// Looks at the frontend of a disk. Only QEMU's command line is understood.
pub(super) fn look(disk: &str, socket: &str, pid: u32) -> Vec<Finding> {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return Vec::new();
    };
    let words: Vec<String> = line
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let is_qemu = words.first().is_some_and(|program| program.contains("qemu"));
    if !is_qemu {
        return Vec::new();
    }
    let findings = [memory(&words, disk, pid), reconnect(&words, disk, socket, pid)];
    findings.into_iter().flatten().collect()
}

fn memory(words: &[String], disk: &str, pid: u32) -> Option<Finding> {
    let shared = options(words, "-object").any(|object| is_shared_memory(&object));
    (!shared).then(|| {
        Finding::error(
            format!("disk {disk}: QEMU (process {pid}) does not share its memory, so no request is answered"),
            "start QEMU with -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem \
             (libvirt: <memoryBacking> with <source type='memfd'/> and <access mode='shared'/>)",
        )
    })
}

fn is_shared_memory(object: &Options) -> bool {
    let kind = object.get("qom-type").unwrap_or_default();
    match object.get("share").as_deref() {
        Some("on" | "yes" | "true" | "y") => kind.starts_with("memory-backend-"),
        Some(_) => false,
        // Shared by default.
        None => kind == "memory-backend-memfd",
    }
}

fn reconnect(words: &[String], disk: &str, socket: &str, pid: u32) -> Option<Finding> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    // QEMU may know the socket by another path.
    let chardev = options(words, "-chardev").find(|chardev| {
        let path = chardev.get("path").or_else(|| chardev.get("addr.path"));
        path.is_some_and(|path| name(&path) == name(socket))
    })?;
    let given = ["reconnect-ms", "reconnect"]
        .into_iter()
        .find_map(|key| chardev.get(key));
    let reconnects = given.is_some_and(|time| time.parse::<u64>().is_ok_and(|time| time > 0));
    (!reconnects).then(|| {
        Finding::warning(
            format!("disk {disk}: QEMU (process {pid}) does not reconnect: its guest loses the disk when the daemon restarts"),
            "add reconnect-ms=100 to the chardev (reconnect=1 before QEMU 9.2; libvirt: <reconnect enabled='yes' timeout='1'/>)",
        )
    })
}

/// The members of an option: `TYPE,key=value,...`, or JSON.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(text: &str) -> Self {
        if let Ok(Value::Object(members)) = serde_json::from_str(text) {
            let text = |value: Value| match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            return Self(
                members
                    .into_iter()
                    .map(|(name, value)| (name, text(value)))
                    .collect(),
            );
        }
        let members = text
            .split(',')
            .enumerate()
            .map(|(place, member)| match member.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None if place == 0 => ("qom-type".to_owned(), member.to_owned()),
                None => (member.to_owned(), "on".to_owned()),
            });
        Self(members.collect())
    }

    fn get(&self, name: &str) -> Option<String> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    }
}

fn options<'a>(words: &'a [String], option: &'a str) -> impl Iterator<Item = Options> + 'a {
    let pairs = words.iter().zip(words.iter().skip(1));
    pairs
        .filter(move |(word, _)| *word == option || word.strip_prefix('-') == Some(option))
        .map(|(_, value)| Options::parse(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_recognised() {
        let shared = |text: &str| is_shared_memory(&Options::parse(text));
        assert!(shared("memory-backend-memfd,id=m,size=1G,share=on"));
        assert!(shared("memory-backend-memfd,id=m,size=1G"));
        assert!(shared(
            r#"{"qom-type":"memory-backend-file","id":"m","share":true}"#
        ));
        assert!(!shared("memory-backend-file,id=m,mem-path=/dev/hugepages"));
        assert!(!shared("memory-backend-ram,id=m,share=off"));
        assert!(!shared("iothread,id=io0"));
    }

    #[test]
    fn reconnecting_chardevs_are_recognised() {
        let found = |chardev: &str| {
            let words = ["qemu", "-chardev", chardev].map(str::to_owned);
            reconnect(&words, "d", "/run/d.sock", 1).is_some()
        };
        assert!(found("socket,id=c,path=/run/d.sock"));
        assert!(found("socket,id=c,path=d.sock,reconnect=0"));
        assert!(!found("socket,id=c,path=d.sock,reconnect=1"));
        assert!(!found("socket,id=c,path=d.sock,reconnect-ms=100"));
        assert!(!found("socket,id=c,path=other.sock"));
    }
}
