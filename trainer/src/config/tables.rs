//! Checks of arrays of tables, such as `[[data.sources]]`: each table against the keys of its kind.

use std::path::Path;

use toml::Value;

use super::check::{beside, mismatch};
use super::error::ConfigError;
use super::layers::{Settings, described};
use super::near::nearest_word;
use super::schema::{Key, Kind};

/// Everything wrong with the tables of the array at `path`, which `origin` sets.
pub(super) fn problems(
    (path, keys): (&str, &'static [Key]),
    tables: &Value,
    origin: &str,
) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    for (number, table) in tables.as_array().into_iter().flatten().enumerate() {
        let full = |name: &str| format!("{path}[{number}].{name}");
        let table = table.as_table().expect("an array of other things is refused before");
        for (name, value) in table {
            let Some(key) = keys.iter().find(|key| key.path == name) else {
                let names: Vec<&str> = keys.iter().map(|key| key.path).collect();
                let (key, nearest) = (full(name), nearest_word(name, &names).map(full));
                problems.push(ConfigError::UnknownKey { key, origin: origin.to_owned(), nearest });
                continue;
            };
            if let Some(expected) = mismatch(key.kind, value) {
                let (key, found) = (full(name), described(value));
                let origin = origin.to_owned();
                problems.push(ConfigError::WrongType { key, origin, expected, found });
            }
        }
        let missing = keys.iter().filter(|key| key.required && !table.contains_key(key.path));
        problems.extend(missing.map(|key| ConfigError::MissingKey {
            key: full(key.path),
            origin: origin.to_owned(),
            about: key.about.to_owned(),
        }));
    }
    problems
}

/// Whether a table of `data.sources` holds something out.
pub(super) fn have_validation(settings: &Settings) -> bool {
    let sources = settings.by_path.get("data.sources").and_then(|setting| setting.value.as_array());
    let holds_out = |table: &Value| {
        ["validation_fraction", "validation_tokens"].iter().any(|key| table.get(key).is_some())
    };
    sources.into_iter().flatten().any(holds_out)
}

/// Makes the input paths in tables that `file` wrote relative to its folder, where they exist there
/// and not from the current directory.
pub(super) fn resolve_input_paths(keys: &[Key], tables: &mut Value, file: &Path) {
    for table in tables.as_array_mut().into_iter().flatten() {
        for key in keys.iter().filter(|key| key.kind == Kind::InputPath) {
            let Some(value) = table.get_mut(key.path) else { continue };
            if let Some(found) = value.as_str().and_then(|written| beside(file, written)) {
                *value = Value::String(found);
            }
        }
    }
}
