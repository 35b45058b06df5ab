//! `blockdev-reopen`: changes the options of existing nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use super::super::error::OperationError;
use super::super::objects::Objects;
use super::check::check;
use super::{Kind, Node, Nodes, Opened, Resolved};
use crate::daemon::options::{BlockdevOptions, Driver};
use crate::engine::BlockNode;

/// The nodes that differ after a reopen: `None` if they are gone.
pub(in super::super) type Changes = BTreeMap<String, Option<Node>>;

impl Nodes {
    /// Checks a node's new options as far as that is possible before its image is open, and completes them. Options that
    /// QEMU cannot change stay as they are.
    pub(in super::super) fn check_reopen(&self, options: &mut BlockdevOptions) -> Result<(), OperationError> {
        options.pass_down();
        let name = options.node_name.clone().ok_or(OperationError::NoNodeName)?;
        let old = self
            .nodes
            .get(&name)
            .ok_or_else(|| OperationError::NotFound { name: name.clone() })?;
        if old.options.driver != options.driver {
            return Err(OperationError::OtherDriver { name });
        }
        let is_active = old.is_active();
        let mut next = Some(&mut *options);
        while let Some(options) = next {
            if options.active.is_some_and(|active| active != is_active) {
                return Err(OperationError::CannotChange("active"));
            }
            options.active = Some(is_active);
            next = options.below_mut();
        }
        for options in options.all() {
            check(options)?;
            if options.driver == Driver::Qcow2 {
                return Err(OperationError::ReopenFormat { name });
            }
            if let Some(name) = &options.node_name {
                self.busy.check(name)?;
                if self.is_in_format(name) {
                    let name = name.clone();
                    return Err(OperationError::ReopenFormat { name });
                }
                if let Some(old) = self.nodes.get(name) {
                    check_fixed(&old.options, options)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the open image at the bottom of a node's new options, and whether it is right for them.
    pub(in super::super) fn leaf_before(&self, new: &BlockdevOptions) -> Option<(Arc<BlockNode>, bool)> {
        let new = new.all().last()?;
        let node = self.nodes.get(new.node_name.as_ref()?)?;
        let Kind::Leaf(leaf) = &node.kind else { return None };
        let key = |options: &BlockdevOptions| {
            (
                options.is_read_only(),
                options.is_auto_read_only(),
                options.cache.is_direct(),
                options.cache.ignores_flushes(),
                options.unmaps(),
            )
        };
        Some((Arc::clone(leaf), key(&node.options) == key(new)))
    }

    /// Returns what changes when these nodes get other options and images. Nothing changes yet.
    pub(in super::super) fn plan_reopen(
        &mut self,
        list: Vec<(BlockdevOptions, Option<Arc<BlockNode>>)>,
        objects: &Objects,
    ) -> Result<Changes, OperationError> {
        let before = self.nodes.clone();
        let named = list.iter().flat_map(|(options, _)| options.all());
        let mut names: BTreeSet<String> = named.filter_map(|options| options.node_name.clone()).collect();
        let reopened = list
            .into_iter()
            .try_for_each(|(options, leaf)| self.reopen_one(options, leaf, objects));
        let mut after = mem::replace(&mut self.nodes, before);
        reopened?;
        let all = self.nodes.keys().chain(after.keys());
        let parents = |nodes: &BTreeMap<String, Node>, name: &String| {
            nodes.get(name).map(|node: &Node| node.parents.clone())
        };
        names.extend(
            all.filter(|name| parents(&self.nodes, name) != parents(&after, name))
                .cloned(),
        );
        Ok(names
            .into_iter()
            .map(|name| (name.clone(), after.remove(&name)))
            .collect())
    }

    /// Makes the changes. Returns the nodes that were replaced.
    pub(in super::super) fn apply(&mut self, changes: Changes) -> Vec<Node> {
        let apply = |(name, node)| match node {
            None => self.nodes.remove(&name),
            Some(node) => self.nodes.insert(name, node),
        };
        changes.into_iter().filter_map(apply).collect()
    }

    /// Resolves a node as it will be after these changes.
    pub(in super::super) fn resolve_with(
        &mut self,
        changes: &Changes,
        name: &str,
    ) -> Result<Resolved, OperationError> {
        let before = self.nodes.clone();
        self.apply(changes.clone());
        let resolved = self.resolve(name);
        self.nodes = before;
        resolved
    }

    /// Returns the first node on the way down from `name` that will be read-only after these changes.
    pub(in super::super) fn read_only_node(&self, changes: &Changes, name: &str) -> Option<String> {
        let node = changes
            .get(name)
            .map_or_else(|| self.nodes.get(name), Option::as_ref)?;
        let is_read_only = match &node.kind {
            Kind::Leaf(leaf) => leaf.limits().read_only,
            _ => node.options.is_read_only(),
        };
        match is_read_only {
            true => Some(name.to_owned()),
            false => self.read_only_node(changes, node.child()?),
        }
    }

    fn reopen_one(
        &mut self,
        options: BlockdevOptions,
        leaf: Option<Arc<BlockNode>>,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        let name = options.node_name.clone().ok_or(OperationError::NoNodeName)?;
        let old = self.nodes.remove(&name);
        let old = old.ok_or_else(|| OperationError::NotFound { name: name.clone() })?;
        for below in old.below() {
            self.let_go(&below, &name, &mut Vec::new());
        }
        // Removed from the map meanwhile, so that a node cannot become its own child.
        let opened = Opened { leaf, disk: None };
        self.add_as(name.clone(), options, old.owned, opened, objects)?;
        if self.is_below(&name, &old.parents) {
            return Err(OperationError::Circle { name });
        }
        if let Some(new) = self.nodes.get_mut(&name) {
            new.parents = old.parents;
            new.active = old.active;
        }
        Ok(())
    }

    /// Returns whether a node has one of `others` below it.
    fn is_below(&self, name: &str, others: &[String]) -> bool {
        let child = self.nodes.get(name).and_then(|node| node.child());
        // The recursion ends: a path back to `name` leads through one of `others`, where the search stops.
        child.is_some_and(|child| others.iter().any(|other| other == child) || self.is_below(child, others))
    }
}

/// Refuses changes of options that stay the same as long as a node exists, as in QEMU.
fn check_fixed(old: &BlockdevOptions, new: &BlockdevOptions) -> Result<(), OperationError> {
    use Driver::{File, HostDevice, Nbd, Rbd};
    if old.driver != new.driver || !matches!(old.driver, File | HostDevice | Nbd | Rbd) {
        return match old.shares_writing() == new.shares_writing() {
            true => Ok(()),
            false => Err(OperationError::CannotChange("force-share")),
        };
    }
    let changes = [
        ("filename", old.filename != new.filename),
        (
            "locking",
            old.locking.unwrap_or_default() != new.locking.unwrap_or_default(),
        ),
        ("aio", old.aio != new.aio),
        ("mmap", old.mmap != new.mmap),
        ("server", old.server != new.server),
        ("export", old.export != new.export),
        ("tls-creds", old.tls_creds != new.tls_creds),
        ("tls-hostname", old.tls_hostname != new.tls_hostname),
        ("pool", old.pool != new.pool),
        ("namespace", old.namespace != new.namespace),
        ("image", old.image != new.image),
        ("snapshot", old.snapshot != new.snapshot),
        ("conf", old.conf != new.conf),
        ("user", old.user != new.user),
        ("key-secret", old.key_secret != new.key_secret),
        ("force-share", old.shares_writing() != new.shares_writing()),
    ];
    match changes.iter().find(|(_, changed)| *changed) {
        Some((name, _)) => Err(OperationError::CannotChange(name)),
        None => Ok(()),
    }
}
