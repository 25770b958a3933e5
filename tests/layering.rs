//! What may name what: rooms by their manifests, the trainer's modules by their order.

use std::fs;
use std::path::{Path, PathBuf};

/// The trainer's modules, each naming only those before it. `crate::error` gathers the errors of
/// all modules, so it is free to name them; `lib.rs` and `main.rs` come last.
const ORDER: &[&[&str]] = &[
    &["kernel", "cuda"],
    &["model"],
    &["metrics"],
    &[
        "checkpoint",
        "config",
        "exchange",
        "signals",
        "beacon",
        "clock",
        "peak",
        "device",
        "backend",
        "run_lock",
        "guard",
        "watchdog",
        "error",
    ],
    &["sharding", "rules", "ownership"],
    &["state"],
    &["residents", "gradients", "spare", "step_numbers", "readback"],
    &["update", "pass", "eval_point", "curvature", "teacher"],
    &["step"],
    &["recipe", "corpus", "eval", "sample", "report", "blackbox", "snapshot"],
    &["saving", "saver"],
    &["loaded", "starting"],
    &["growth"],
    &["folder", "replay", "coordinates"],
    &["run"],
    &["cli"],
    &["job"],
    &["lib", "main"],
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn lower_rooms_name_no_other_room() {
    for room in ["data", "optim", "parallel"] {
        let manifest = fs::read_to_string(root().join(room).join("Cargo.toml")).expect("a room");
        let named = manifest.lines().filter(|line| line.starts_with("grove")).count();
        assert_eq!(named, 0, "{room} depends on another room");
    }
}

#[test]
fn modules_name_only_modules_before_them() {
    let source = root().join("trainer/src");
    let mut wrong = Vec::new();
    for file in rust_files(&source) {
        let module = module_of(&source, &file);
        let level = level_of(&module);
        let text = fs::read_to_string(&file).expect("a source file");
        for (number, line) in text.lines().enumerate() {
            for named in named_modules(line) {
                let above = level_of(&named) > level && named != module;
                if above && named != "error" && module != "error" {
                    wrong.push(format!("{}:{} names {named}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "against the order of modules:\n{}", wrong.join("\n"));
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for room in ["data", "optim", "parallel", "trainer"] {
        for file in rust_files(&root().join(room).join("src")) {
            let text = fs::read_to_string(&file).expect("a source file");
            let first = text.lines().next().unwrap_or_default();
            let documented = first.starts_with("//!") || first.starts_with("#![doc");
            assert!(documented, "{} does not open with //!", file.display());
        }
    }
}

#[test]
fn the_top_level_is_the_users() {
    const ALLOWED: [&str; 17] = [
        "ARCHITECTURE.md",
        "BENCHMARKS.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "configs",
        "data",
        "optim",
        "parallel",
        "runs",
        "scripts",
        "target",
        "tests",
        "trainer",
    ];
    for entry in fs::read_dir(root()).expect("the top level") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        let known = name.starts_with('.') || ALLOWED.contains(&name.as_str());
        assert!(known, "{name} is new at the top level");
    }
}

#[test]
fn the_readme_names_every_source_file() {
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let tree = readme.split_once("## The tree").expect("a tree").1;
    for folder in ["data", "optim", "parallel", "trainer", "tests"] {
        for file in rust_files(&root().join(folder)) {
            let name = file.file_name().expect("a file").to_string_lossy().into_owned();
            let grouped = file.components().any(|part| part.as_os_str() == "tests")
                && file.starts_with(root().join("trainer"));
            let named = tree.lines().any(|line| line.trim_start().starts_with(&name));
            assert!(named || grouped || name == "tests.rs", "README does not name {name}");
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn module_of(source: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(source).expect("a file of the trainer");
    let first = relative.components().next().expect("a path").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn level_of(module: &str) -> usize {
    ORDER
        .iter()
        .position(|level| level.contains(&module))
        .unwrap_or_else(|| panic!("module {module} has no place in the order"))
}

/// Modules in `crate::module` and `crate::{a::.., b::..}` on one line.
fn named_modules(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    code.split("crate::")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}
