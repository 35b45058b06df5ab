//! A graph of imports, and its circles.

use std::collections::{BTreeMap, BTreeSet};

/// Who imports which names from whom.
#[derive(Default)]
pub(crate) struct Graph {
    imports: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

impl Graph {
    /// Adds an import. What a file takes from itself does not count.
    pub(crate) fn add(&mut self, from: &str, to: &str, name: &str) {
        if from != to {
            let imported = self.imports.entry(from.into()).or_default();
            imported.entry(to.into()).or_default().insert(name.into());
        }
    }

    /// Returns all that `start` imports, directly or through others.
    fn reachable<'a>(&'a self, start: &'a str) -> BTreeSet<&'a str> {
        let mut seen = BTreeSet::new();
        let mut left = vec![start];
        while let Some(next) = left.pop() {
            let imported = self.imports.get(next).into_iter().flat_map(BTreeMap::keys);
            left.extend(imported.map(String::as_str).filter(|&next| seen.insert(next)));
        }
        seen
    }

    /// Returns the imports as text: `from -> to: names`.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.imports_if(|_, _| true)
    }

    /// Returns the imports that are part of a circle.
    pub(crate) fn circles(&self) -> Vec<String> {
        let all = self
            .imports
            .keys()
            .map(|from| (from.as_str(), self.reachable(from)));
        let reachable: BTreeMap<&str, _> = all.collect();
        self.imports_if(|from, to| reachable.get(to).is_some_and(|imported| imported.contains(from)))
    }

    fn imports_if(&self, wanted: impl Fn(&str, &str) -> bool) -> Vec<String> {
        let all = self.imports.iter();
        let pairs =
            all.flat_map(|(from, imported)| imported.iter().map(move |(to, names)| (from, to, names)));
        pairs
            .filter(|(from, to, _)| wanted(from, to))
            .map(|(from, to, names)| {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                format!("{from} -> {to}: {}", names.join(", "))
            })
            .collect()
    }
}

#[test]
fn a_circle_is_found_and_a_fork_is_not() {
    let mut graph = Graph::default();
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "b"), ("a", "d"), ("d", "c")] {
        graph.add(from, to, "name");
    }
    assert_eq!(graph.circles(), ["b -> c: name", "c -> b: name"]);
}
