//! `configs/reference.toml` lists every key, and every default in it is the code's.

use std::collections::{BTreeMap, BTreeSet};

use super::super::schema::{KEYS, Kind};
use super::{Folder, configs};

/// One `key = value` line of the file.
#[derive(Debug)]
struct Entry {
    /// Its line, counted from 0.
    line: usize,
    path: String,
    /// The value with its comment.
    value: String,
    is_required: bool,
}

/// What the reference file says.
#[derive(Debug, Default)]
struct Reference {
    active: Vec<Entry>,
    /// Commented keys outside of a condition: without a default.
    optional: Vec<Entry>,
    /// By the condition, such as `optim.rule = "lion"`: the keys that it brings.
    conditional: BTreeMap<String, Vec<Entry>>,
    /// Keys of arrays of tables, as `data.sources[].name`.
    tables: Vec<Entry>,
}

impl Reference {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let (mut table, mut commented_table) = (String::new(), None);
        let mut condition: Option<String> = None;
        for (line, written) in text.lines().enumerate() {
            let commented = written.starts_with("# ");
            let content = written.trim_start_matches("# ");
            let header = content.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            let tables = content.strip_prefix("[[").and_then(|rest| rest.split_once("]]"));
            if written.is_empty() {
                (condition, commented_table) = (None, None);
            } else if let Some(text) = content.strip_prefix("if ") {
                found.conditional.entry(text.to_owned()).or_default();
                condition = Some(text.to_owned());
            } else if let Some((name, _)) = tables {
                commented_table = Some(format!("{name}[]."));
            } else if let Some((name, _)) = header {
                let prefix = format!("{name}.");
                if commented { commented_table = Some(prefix) } else { table = prefix }
            } else if let Some(entry) = Entry::parse(line, content) {
                let prefix = commented_table.as_ref().unwrap_or(&table);
                let entry = Entry { path: format!("{prefix}{}", entry.path), ..entry };
                if prefix.ends_with("[].") {
                    found.tables.push(entry);
                    continue;
                }
                match (&condition, commented) {
                    (_, false) => found.active.push(entry),
                    (None, true) => found.optional.push(entry),
                    (Some(condition), true) => {
                        found.conditional.entry(condition.clone()).or_default().push(entry);
                    }
                }
            }
        }
        found
    }
}

impl Entry {
    fn parse(line: usize, content: &str) -> Option<Self> {
        let (name, value) = content.split_once(" = ")?;
        let is_name =
            name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        is_name.then(|| Self {
            line,
            path: name.to_owned(),
            value: value.to_owned(),
            is_required: value.contains("# required"),
        })
    }

    /// The override that sets this entry.
    fn set(&self) -> String {
        let value = self.value.split(" #").next().unwrap().trim();
        format!("{}={value}", self.path)
    }
}

fn text() -> String {
    std::fs::read_to_string(configs().join("reference.toml")).unwrap()
}

fn without_lines(text: &str, dropped: &BTreeSet<usize>) -> String {
    let kept = text.lines().enumerate().filter(|(line, _)| !dropped.contains(line));
    kept.map(|(_, line)| format!("{line}\n")).collect()
}

/// The plan of the reference file without some lines, with overrides.
fn plan(dropped: &BTreeSet<usize>, sets: &[String]) -> super::Plan {
    let folder = Folder::new(&[("reference.toml", &without_lines(&text(), dropped))]);
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    folder.load("reference.toml", &sets).unwrap_or_else(|error| panic!("{sets:?}: {error}"))
}

#[test]
fn the_reference_lists_every_key_once_where_it_is_active() {
    let reference = Reference::parse(&text());
    let conditions = reference.conditional.keys().map(|c| c.split(" = ").next().unwrap());
    let brought = reference.conditional.values().flatten();
    let entries = reference.active.iter().chain(&reference.optional).chain(&reference.tables);
    let entries = entries.chain(brought);
    let listed: BTreeSet<&str> =
        entries.map(|entry| entry.path.as_str()).chain(conditions).collect();
    let of_tables = KEYS.iter().filter_map(|key| match key.kind {
        Kind::Tables(keys) => Some((key.path, keys)),
        _ => None,
    });
    let of_tables: Vec<String> = of_tables
        .flat_map(|(path, keys)| keys.iter().map(move |key| format!("{path}[].{}", key.path)))
        .collect();
    let mut known: BTreeSet<&str> = KEYS.iter().map(|key| key.path).collect();
    known.extend(of_tables.iter().map(String::as_str));
    assert_eq!(listed, known);
}

#[test]
fn removing_an_active_default_changes_nothing() {
    let whole = plan(&BTreeSet::new(), &[]);
    let reference = Reference::parse(&text());
    let defaults: Vec<&Entry> = reference.active.iter().filter(|e| !e.is_required).collect();
    assert!(defaults.len() > 30, "only {} active defaults were found", defaults.len());
    for entry in &defaults {
        assert_eq!(plan(&[entry.line].into(), &[]), whole, "{}", entry.path);
    }
    let all = defaults.iter().map(|entry| entry.line).collect();
    assert_eq!(plan(&all, &[]), whole);
}

#[test]
fn removing_a_conditional_default_changes_nothing() {
    let reference = Reference::parse(&text());
    assert!(reference.conditional.len() >= 6, "{:?}", reference.conditional.keys());
    for (condition, entries) in &reference.conditional {
        let paths: BTreeSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        let replaced = reference.active.iter().filter(|e| paths.contains(e.path.as_str()));
        let replaced: BTreeSet<usize> = replaced.map(|entry| entry.line).collect();
        let mut fixed = vec![condition.replacen(" = ", "=", 1)];
        if condition.starts_with("sample.") {
            fixed.push("data.tokenizer=bytes".to_owned());
        }
        fixed.extend(entries.iter().filter(|e| e.is_required).map(Entry::set));
        let mut all = fixed.clone();
        all.extend(entries.iter().filter(|e| !e.is_required).map(Entry::set));
        let (shortest, longest) = (plan(&replaced, &fixed), plan(&replaced, &all));
        assert_eq!(shortest, longest, "{condition}");
    }
}

#[test]
fn a_default_that_is_not_the_codes_is_seen() {
    let reference = Reference::parse(&text());
    let entry = reference.active.iter().find(|entry| entry.path == "optim.clip_norm").unwrap();
    let changed = plan(&[entry.line].into(), &["optim.clip_norm=2".to_owned()]);
    assert_ne!(changed, plan(&BTreeSet::new(), &[]));
}
