//! Rust code as text: its paths, without comments and tests.

/// A path as it stands in the code: `crate::io::Requests`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) segments: Vec<String>,
    /// Part of a `use` item, under this name.
    pub(crate) imported_as: Option<String>,
    /// Part of a `use` item for others: `pub use`.
    pub(crate) handed_on: bool,
}

/// Removes comments, and returns what is left without the items of tests, and the names of modules for tests only.
pub(crate) fn without_tests(text: &str) -> (String, Vec<String>) {
    let mut code = String::new();
    let mut modules = Vec::new();
    let mut lines = text.lines().map(without_comment);
    while let Some(line) = lines.next() {
        if !is_for_tests(line) {
            code.push_str(line);
            code.push('\n');
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        for line in lines.by_ref() {
            let words = line.trim();
            if let Some(name) = words.strip_suffix(';').and_then(|item| item.split("mod ").nth(1)) {
                modules.push(name.to_string());
            }
            let outermost = line.len() - line.trim_start().len() == indent;
            if outermost && !words.starts_with("#[") && words.ends_with(['}', ';', ',']) {
                break;
            }
        }
    }
    (code, modules)
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        ""
    } else {
        line.split(" // ").next().unwrap()
    }
}

fn is_for_tests(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("#[cfg(test)]")
        || line.starts_with("#[cfg(all(test")
        || line.starts_with("#[cfg(all(loom, test")
}

/// All paths of the code that have at least two segments, with groups taken apart.
pub(crate) fn paths(code: &str) -> Vec<Path> {
    let mut paths = Vec::new();
    let mut rest = code;
    let mut before = ' ';
    // The words ahead of a path: `pub(crate) use`.
    let mut ahead = String::new();
    while let Some(c) = rest.chars().next() {
        if !is_word(c) || is_word(before) || matches!(before, ':' | '.' | '\'') {
            if matches!(c, ';' | '{' | '}' | '\n') {
                ahead.clear();
            } else if is_word(c) || c == '(' {
                ahead.push(c);
            }
            before = c;
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let imported = ahead.ends_with("use");
        // `pub(in super::super)` uses nothing of the module it names.
        let is_visibility = ahead.ends_with("pub(in");
        let start = rest;
        let mut tree = Tree {
            rest,
            found: Vec::new(),
        };
        tree.read(&mut Vec::new());
        rest = tree.rest;
        let text = &start[..start.len() - rest.len()];
        before = text.chars().last().unwrap();
        let handed_on = imported && ahead.starts_with("pub");
        paths.extend(
            tree.found
                .into_iter()
                .filter(|(segments, _)| imported || segments.len() > 1 && !is_visibility)
                .map(|(segments, name)| Path {
                    segments,
                    imported_as: imported.then_some(name),
                    handed_on,
                }),
        );
        ahead.push_str(text);
    }
    paths
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Reads `a::{b, c::d as e}` as `a::b` and `a::c::d`.
struct Tree<'a> {
    rest: &'a str,
    found: Vec<(Vec<String>, String)>,
}

impl Tree<'_> {
    fn read(&mut self, prefix: &mut Vec<String>) {
        let depth = prefix.len();
        loop {
            let word = self.word();
            if word.is_empty() {
                break;
            }
            prefix.push(word);
            let Some(rest) = self.rest.strip_prefix("::") else {
                break;
            };
            if let Some(group) = rest.strip_prefix('{') {
                self.rest = group;
                self.read_group(prefix);
                prefix.truncate(depth);
                return;
            }
            if !rest.starts_with(is_word) {
                break;
            }
            self.rest = rest;
        }
        let mut segments = prefix.clone();
        prefix.truncate(depth);
        let mut name = segments.last().cloned().unwrap_or_default();
        if let Some(rest) = self.rest.strip_prefix(" as ") {
            self.rest = rest;
            name = self.word();
        }
        // `fmt::{self, Display}` imports `fmt`.
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
            segments.pop();
            name = segments.last().cloned().unwrap_or_default();
        }
        self.found.push((segments, name));
    }

    fn read_group(&mut self, prefix: &mut Vec<String>) {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\n', ',', '*']);
            if let Some(rest) = self.rest.strip_prefix('}') {
                self.rest = rest;
                return;
            }
            if !self.rest.starts_with(is_word) {
                return;
            }
            self.read(prefix);
        }
    }

    fn word(&mut self) -> String {
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.into()
    }
}
