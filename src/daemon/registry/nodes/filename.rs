//! The names of images, as QEMU shows them: a path, or a description of the nodes.

use serde_json::{Map, Value};

use super::{Kind, Node, Nodes};
use crate::daemon::options::{BackingRef, Driver};

impl Nodes {
    /// Returns the name of a node's image.
    pub(in super::super) fn filename(&self, name: &str) -> String {
        let Some(node) = self.nodes.get(name) else {
            return String::new();
        };
        let options = &node.options;
        let plain = match (&node.kind, options.driver) {
            (Kind::Leaf(_), Driver::NullCo | Driver::NullAio) if options.size.is_none() => {
                Some(format!("{}://", options.driver.name()))
            }
            (Kind::Leaf(_), Driver::File | Driver::HostDevice) => {
                options.filename.as_ref().map(|path| path.display().to_string())
            }
            (Kind::Leaf(leaf), Driver::Nbd | Driver::Rbd) => Some(leaf.path().display().to_string()),
            (Kind::Raw { child, .. }, _) if options.offset.is_none() && options.size.is_none() => {
                Some(self.filename(child)).filter(|name| !name.starts_with(JSON))
            }
            (Kind::Format { child, .. }, _) if options.backing.is_none() && options.data_file.is_none() => {
                Some(self.filename(child)).filter(|name| !name.starts_with(JSON))
            }
            _ => None,
        };
        plain.unwrap_or_else(|| format!("{JSON}{}", Value::Object(self.description(node))))
    }

    /// Describes a node and those below by the options that determine its data.
    fn description(&self, node: &Node) -> Map<String, Value> {
        let options = &node.options;
        let mut all = Map::new();
        let mut add = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                all.insert(key.to_owned(), value);
            }
        };
        add("driver", Some(options.driver.name().into()));
        let server = options.server.as_ref();
        add(
            "server",
            server.and_then(|server| serde_json::to_value(server).ok()),
        );
        add("export", options.export.clone().map(Value::from));
        let path = options.filename.as_ref();
        add("filename", path.map(|path| path.display().to_string().into()));
        add("pool", options.pool.clone().map(Value::from));
        add("namespace", options.namespace.clone().map(Value::from));
        add("image", options.image.clone().map(Value::from));
        add("snapshot", options.snapshot.clone().map(Value::from));
        add("offset", options.offset.map(Value::from));
        add("size", options.size.map(Value::from));
        add("throttle-group", options.throttle_group.clone().map(Value::from));
        let below = node.child().and_then(|child| self.nodes.get(child));
        for (role, other) in node.others() {
            let other = self.nodes.get(other);
            add(role, other.map(|other| self.description(other).into()));
        }
        if options.backing == Some(BackingRef::None) {
            add("backing", Some(Value::Null));
        }
        add("file", below.map(|below| self.description(below).into()));
        all
    }
}

/// The start of a name that describes nodes.
const JSON: &str = "json:";
