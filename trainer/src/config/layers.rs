//! Reading a configuration: the file, what it extends, and the overrides, as one flat map from key
//! to value in which later layers win.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::error::ConfigError;
use super::schema::{self, Kind};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// In this file.
    File(PathBuf),
    /// On the command line, as this text.
    Override(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Override(text) => write!(f, "--set {text}"),
        }
    }
}

/// One value, where it was written, and how late: a higher layer replaces a lower one.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
    pub(super) layer: usize,
}

/// All settings by full path.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) by_path: BTreeMap<String, Setting>,
    num_layers: usize,
}

impl Settings {
    /// Reads `file`, all that it extends, and the overrides, in rising order of precedence.
    ///
    /// # Errors
    /// `Read`, `Syntax`, `WrongType` (of `extends`), `ExtendsCycle` or `Override`, the first found.
    pub(super) fn read(file: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut settings = Self::default();
        for (path, table) in files_from_the_lowest(file)? {
            settings.lay(table, &Origin::File(path));
        }
        for text in overrides {
            let table = parse_override(text)?;
            settings.lay(table, &Origin::Override(text.clone()));
        }
        Ok(settings)
    }

    /// The text of a string setting.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.by_path.get(path).and_then(|setting| setting.value.as_str())
    }

    /// The value of a numeric setting.
    pub(super) fn number(&self, path: &str) -> Option<f64> {
        let value = &self.by_path.get(path)?.value;
        value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))
    }

    /// The settings as nested tables again.
    pub(super) fn to_table(&self) -> Table {
        let mut root = Table::new();
        for (path, setting) in &self.by_path {
            insert(&mut root, path, setting.value.clone());
        }
        root
    }

    fn lay(&mut self, table: Table, origin: &Origin) {
        let layer = self.num_layers;
        self.num_layers += 1;
        for (path, value) in flatten(table) {
            self.by_path.insert(path, Setting { value, origin: origin.clone(), layer });
        }
    }
}

/// The leaves of nested tables by full path, in sorted order; an empty table is a leaf unless it
/// is one of the schema's.
pub(super) fn flatten(table: Table) -> Vec<(String, Value)> {
    let mut leaves = Vec::new();
    let mut open: Vec<(String, Value)> = table.into_iter().collect();
    while let Some((path, value)) = open.pop() {
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                open.extend(inner.into_iter().map(|(key, value)| (format!("{path}.{key}"), value)));
            }
            Value::Table(_) if schema::is_table(&path) => {}
            leaf => leaves.push((path, leaf)),
        }
    }
    leaves.sort_by(|a, b| a.0.cmp(&b.0));
    leaves
}

fn insert(root: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            root.insert(path.to_owned(), value);
        }
        Some((head, rest)) => {
            let inner = root.entry(head).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// The file and those it extends, the lowest first, each without its `extends` key.
fn files_from_the_lowest(file: &Path) -> Result<Vec<(PathBuf, Table)>, ConfigError> {
    let mut files: Vec<(PathBuf, Table)> = Vec::new();
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut next = Some(file.to_owned());
    while let Some(path) = next {
        let mut table = read_table(&path)?;
        let identity = path.canonicalize().unwrap_or_else(|_| path.clone());
        if seen.contains(&identity) {
            let mut chain: Vec<PathBuf> = files.into_iter().map(|(path, _)| path).collect();
            chain.push(path);
            return Err(ConfigError::ExtendsCycle { chain });
        }
        seen.push(identity);
        next = match table.remove("extends") {
            None => None,
            Some(Value::String(lower)) => Some(path.with_file_name("").join(lower)),
            Some(other) => {
                return Err(ConfigError::WrongType {
                    key: "extends".to_owned(),
                    origin: path.display().to_string(),
                    expected: "the path of a TOML file, relative to this one".to_owned(),
                    found: described(&other),
                });
            }
        };
        files.push((path, table));
    }
    files.reverse();
    Ok(files)
}

fn read_table(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Read { path: path.to_owned(), message: error.to_string() })?;
    text.parse().map_err(|error: toml::de::Error| {
        let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
        ConfigError::Syntax {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1,
            message: error.message().trim_end().replace('\n', ", "),
        }
    })
}

/// `a.b=value` as nested tables. The value is TOML; a bare word, and anything for a key that
/// holds a string, is a string without quotes.
fn parse_override(text: &str) -> Result<Table, ConfigError> {
    let refuse = |problem: &str| ConfigError::Override {
        text: text.to_owned(),
        problem: problem.to_owned(),
    };
    let (path, raw) = text.split_once('=').ok_or_else(|| refuse("no = in it"))?;
    let (path, raw) = (path.trim(), raw.trim());
    let is_name = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    if !path.split('.').all(is_name) {
        return Err(refuse("the key is not names joined by dots"));
    }
    let holds_text = schema::find(path).is_some_and(|key| {
        matches!(key.kind, Kind::Text | Kind::InputPath | Kind::Tokenizer | Kind::OneOf(_))
    });
    let parsed = toml::de::ValueDeserializer::parse(raw).and_then(Value::deserialize);
    let value = match parsed {
        Ok(value) if !holds_text || value.is_str() => value,
        Err(_) if raw.is_empty() && !holds_text => return Err(refuse("no value after =")),
        Err(_) if raw.starts_with(['"', '\'', '[', '{']) => {
            return Err(refuse("the value opens like TOML but is not"));
        }
        _ => Value::String(raw.to_owned()),
    };
    let mut table = Table::new();
    insert(&mut table, path, value);
    Ok(table)
}

/// A value for an error message: its type and its text.
pub(super) fn described(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the string {text:?}"),
        Value::Integer(integer) => format!("the integer {integer}"),
        Value::Float(float) => format!("the number {float:?}"),
        Value::Boolean(flag) => format!("{flag}"),
        Value::Datetime(datetime) => format!("the date {datetime}"),
        Value::Array(_) => format!("the array {value}"),
        Value::Table(_) => "a table".to_owned(),
    }
}
