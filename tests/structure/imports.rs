//! Which file imports names from which other file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path as FilePath;

use crate::circles::Graph;
use crate::paths::{Path, paths, without_tests};

type Name = Vec<String>;

/// A module that is a file.
struct Module {
    file: String,
    paths: Vec<Path>,
    /// Names from `use` items, with the paths that they stand for.
    imported: BTreeMap<String, Name>,
    /// Modules for tests only.
    for_tests: Vec<String>,
}

/// The modules of a crate, without those for tests.
pub(crate) struct Sources {
    modules: BTreeMap<Name, Module>,
}

impl Sources {
    /// Reads the files below the folder of `lib.rs`, or of `main.rs` where there is no library.
    pub(crate) fn read(root: &FilePath) -> Self {
        let mut files = Vec::new();
        read_folder(root, "", &mut files);
        Self::new(files)
    }

    /// Takes the names of files, relative to the root, and their text.
    fn new(files: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut modules: BTreeMap<Name, Module> = files
            .into_iter()
            .filter_map(|(file, text)| Some((name_of(&file)?, Module::new(file, &text))))
            .collect();
        if let Some(main) = modules.remove(&vec!["main".to_string()]) {
            modules.entry(Vec::new()).or_insert(main);
        }
        let for_tests: Vec<Name> = modules
            .iter()
            .flat_map(|(name, module)| module.for_tests.iter().map(|child| child_of(name, child)))
            .collect();
        modules.retain(|name, _| !for_tests.iter().any(|tests| name.starts_with(tests)));
        Self { modules }
    }

    pub(crate) fn between_files(&self) -> Graph {
        self.graph(|module| &module.file)
    }

    /// Returns the graph of the folders and files directly in the root.
    pub(crate) fn between_modules(&self) -> Graph {
        self.graph(|module| module.file.split('/').next().unwrap())
    }

    fn graph(&self, node: impl Fn(&Module) -> &str) -> Graph {
        let mut graph = Graph::default();
        for (name, module) in &self.modules {
            let used: BTreeSet<&String> = module
                .paths
                .iter()
                .filter(|path| !path.handed_on)
                .flat_map(|path| &path.segments)
                .collect();
            for path in &module.paths {
                // A name that is only handed on is imported by those that take it.
                let taken = path.imported_as.as_ref().is_some_and(|name| used.contains(name));
                if path.handed_on && !taken {
                    continue;
                }
                if let Some(owner) = self.owner(name, &path.segments, 0) {
                    graph.add(node(module), node(owner), path.segments.last().unwrap());
                }
            }
        }
        graph
    }

    /// Returns the module that defines what the path means in this module.
    fn owner(&self, module: &Name, path: &[String], depth: usize) -> Option<&Module> {
        /// Modules through which a name may come.
        const DEPTH_MAX: usize = 10;
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Name::new(), &path[1..]),
            "self" => (module.clone(), &path[1..]),
            "super" => (module.split_last()?.1.to_vec(), &path[1..]),
            child if self.modules.contains_key(&child_of(module, child)) => (module.clone(), path),
            _ => return None,
        };
        while let Some((next, after)) = rest.split_first() {
            rest = after;
            let child = child_of(&at, next);
            if next == "super" {
                at.pop();
            } else if self.modules.contains_key(&child) {
                at = child;
            } else {
                let here = self.modules.get(&at)?;
                return match here.imported.get(next) {
                    Some(from) if depth < DEPTH_MAX => self.owner(&at, &[from, after].concat(), depth + 1),
                    _ => Some(here),
                };
            }
        }
        self.modules.get(&at)
    }
}

fn child_of(module: &[String], child: &str) -> Name {
    [module, &[child.to_string()]].concat()
}

/// Returns the name of the module in a file.
fn name_of(file: &str) -> Option<Name> {
    let mut name: Name = file.strip_suffix(".rs")?.split('/').map(Into::into).collect();
    if name.last().is_some_and(|last| last == "mod" || last == "lib") {
        name.pop();
    }
    Some(name)
}

fn read_folder(folder: &FilePath, prefix: &str, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            read_folder(&path, &format!("{name}/"), files);
        } else {
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

impl Module {
    fn new(file: String, text: &str) -> Self {
        let (code, for_tests) = without_tests(text);
        let paths = paths(&code);
        let imported = |path: &Path| Some((path.imported_as.clone()?, path.segments.clone()));
        Self {
            file,
            imported: paths.iter().filter_map(imported).collect(),
            paths,
            for_tests,
        }
    }
}

#[test]
fn imports_are_found_in_each_form() {
    let files = [
        ("lib.rs", "mod disk;\nmod io;\nmod queue;\n"),
        ("io.rs", "pub struct Request;\npub struct Batch;\n"),
        (
            "disk/mod.rs",
            "mod file;\nmod lock;\n#[cfg(test)]\nmod tests;\n\npub use file::{File, Size as Bytes};\n",
        ),
        (
            "disk/file.rs",
            "use std::io;\n\npub struct File;\npub struct Size;\n\nfn lock() {\n    super::lock::take();\n}\n",
        ),
        ("disk/lock.rs", "pub(in crate::queue) fn take() {}\n"),
        ("disk/tests.rs", "use crate::queue::Queue;\n"),
        (
            "queue.rs",
            "// Not crate::lib::Name.\nuse crate::{\n    disk::{Bytes, File},\n    io::{self, Request},\n};\n\n#[cfg(test)]\nmod tests {\n    use crate::disk::lock::take;\n}\n",
        ),
    ];
    let sources = Sources::new(files.map(|(file, text)| (file.into(), text.into())));
    let expected = [
        "disk/file.rs -> disk/lock.rs: take",
        "queue.rs -> disk/file.rs: Bytes, File",
        "queue.rs -> io.rs: Request, io",
    ];
    assert_eq!(sources.between_files().lines(), expected);
}
