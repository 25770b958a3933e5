//! Tests of the configuration, on files in a temporary folder and on those in `configs/`.

mod layering;
mod messages;
mod plans;
mod reference;
mod residual;

use std::path::{Path, PathBuf};

use super::{ConfigErrors, Plan, load};

/// A small sound Llama, to be edited.
const LLAMA: &str = r#"
[run]
steps = 100
[model]
model_type = "llama"
vocab_size = 256
hidden_size = 64
intermediate_size = 176
num_hidden_layers = 2
num_attention_heads = 4
[data]
tokens = "a.tokens"
[batch]
sequence_length = 32
micro_batch_size = 2
micro_batches = 4
"#;

/// A small sound GPT-2, to be edited.
const GPT2: &str = r#"
[run]
steps = 100
[model]
model_type = "gpt2"
vocab_size = 256
n_embd = 64
n_layer = 2
n_head = 4
[data]
tokens = "a.tokens"
[batch]
sequence_length = 32
micro_batch_size = 2
micro_batches = 4
"#;

/// Configuration files in a folder of their own, removed at the end.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            std::fs::create_dir_all(folder.path(name).parent().unwrap()).unwrap();
            std::fs::write(folder.path(name), text).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, name: &str, overrides: &[&str]) -> Result<Plan, ConfigErrors> {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        load(&self.path(name), &overrides)
    }

    /// The message of a refusal, with paths relative to the folder.
    fn refusal(&self, name: &str, overrides: &[&str]) -> String {
        let message = self.load(name, overrides).unwrap_err().to_string();
        message.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// The plan of one file's text, with overrides.
fn plan(text: &str, overrides: &[&str]) -> Plan {
    Folder::new(&[("x.toml", text)]).load("x.toml", overrides).unwrap()
}

/// The message that refuses one file's text, with overrides.
fn refusal(text: &str, overrides: &[&str]) -> String {
    Folder::new(&[("x.toml", text)]).refusal("x.toml", overrides)
}

/// The repository's folder of configuration files.
fn configs() -> PathBuf {
    // Unit tests of a crate run in its folder, one below the root of the repository.
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    beside.canonicalize().unwrap()
}
