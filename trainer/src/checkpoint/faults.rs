//! All that is wrong with a checkpoint: files against the manifest, tensors against `config.json`,
//! the run's state against both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use super::layout::{CONFIG, MANIFEST, MASTERS, OPTIMIZER, RUN_STATE};
use super::manifest::Manifest;
use super::{Dtype, Error, Finding, Mismatch, RunStateRecord, TensorFile, TensorSpec};
use crate::model::config::ModelConfig;
use crate::model::units::UnitMap;

/// The ending of files of tensors.
const TENSORS_ENDING: &str = ".safetensors";

/// One thing that is wrong with a checkpoint.
#[derive(Debug)]
pub enum Fault {
    /// A file cannot be read, or does not have the form that it must have.
    Unreadable {
        /// Its path in the checkpoint.
        file: String,
        /// Why.
        reason: String,
    },
    /// A file is not what the manifest says.
    File(Finding),
    /// A tensor is not what `config.json` says.
    Tensor {
        /// The file, by its path in the checkpoint.
        file: String,
        /// The difference.
        mismatch: Mismatch,
    },
    /// Two files contradict each other.
    Contradiction {
        /// The file that is probably wrong, by its path in the checkpoint.
        file: String,
        /// What it says, and what the other says.
        reason: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, reason } => write!(formatter, "{file}: {reason}"),
            Self::File(Finding::Foreign { file }) => {
                write!(formatter, "{file}: a foreign file, which {MANIFEST} does not name")
            }
            Self::File(finding) => write!(formatter, "{finding} by {MANIFEST}"),
            Self::Tensor { file, mismatch } => write!(formatter, "{file}: tensor {mismatch}"),
            Self::Contradiction { file, reason } => write!(formatter, "{file}: {reason}"),
        }
    }
}

/// Looks for everything that can be wrong with a checkpoint, reading all of it once.
///
/// A file that is not what the manifest says is named once, and its content not looked into.
/// An empty list means: every byte is the one that was saved, and the tensors are those of the
/// model in `config.json`.
///
/// # Errors
/// [`Error::Io`] if the folder itself cannot be read.
pub fn faults(folder: &Path) -> Result<Vec<Fault>, Error> {
    fs::read_dir(folder).map_err(|cause| Error::Io {
        action: "read",
        path: folder.to_path_buf(),
        cause,
    })?;
    let mut found = Search { folder, faults: Vec::new(), damaged: BTreeSet::new() };
    let manifest = found.manifest()?;
    let Some(manifest) = manifest else { return Ok(found.faults) };
    let model = found.tensors(&manifest);
    found.run_state(&manifest, model.as_ref());
    Ok(found.faults)
}

/// The parameters of a model: name and shape.
type Shapes = BTreeMap<String, Vec<usize>>;

struct Search<'a> {
    folder: &'a Path,
    faults: Vec<Fault>,
    /// Files that are known to be damaged, so that they are named once.
    damaged: BTreeSet<String>,
}

impl Search<'_> {
    /// The manifest, once the files were compared with it; `None` if it cannot be read.
    fn manifest(&mut self) -> Result<Option<Manifest>, Error> {
        let manifest = match Manifest::read(self.folder) {
            Ok(manifest) => manifest,
            Err(error) => {
                self.unreadable(MANIFEST, &error);
                return Ok(None);
            }
        };
        for file in [CONFIG, RUN_STATE, MASTERS, OPTIMIZER] {
            if !manifest.files.contains_key(file) {
                let reason = format!("it does not name {file}");
                self.faults.push(Fault::Contradiction { file: MANIFEST.to_owned(), reason });
                self.damaged.insert(file.to_owned());
            }
        }
        match manifest.check_content(self.folder) {
            Ok(()) => {}
            Err(Error::Damaged { findings, .. }) => {
                for finding in findings {
                    let (Finding::Missing { file }
                    | Finding::Size { file, .. }
                    | Finding::Content { file, .. }
                    | Finding::Foreign { file }) = &finding;
                    self.damaged.insert(file.clone());
                    self.faults.push(Fault::File(finding));
                }
            }
            Err(other) => return Err(other),
        }
        Ok(Some(manifest))
    }

    /// The parameters that `config.json` asks for. `num_tensors` bounds what is believed: a block
    /// has several.
    fn config(&mut self, num_tensors: usize) -> Option<Shapes> {
        let text = self.text(CONFIG)?;
        let config = match ModelConfig::from_hf_json(&text) {
            Ok(config) => config,
            Err(error) => {
                self.unreadable(CONFIG, &error);
                return None;
            }
        };
        let num_layers = config.spec().num_layers;
        if num_layers <= num_tensors {
            return Some(shapes(&config));
        }
        let reason =
            format!("{num_layers} layers, but the model's files have {num_tensors} tensors");
        self.faults.push(Fault::Contradiction { file: CONFIG.to_owned(), reason });
        None
    }

    fn run_state(&mut self, manifest: &Manifest, model: Option<&Shapes>) {
        let Some(text) = self.text(RUN_STATE) else { return };
        let state: RunStateRecord = match serde_json::from_str(&text) {
            Ok(state) => state,
            Err(error) => return self.unreadable(RUN_STATE, &error),
        };
        if state.step != manifest.step {
            let (file, by) = (MANIFEST.to_owned(), state.step);
            let reason = format!("step is {}, expected {by} by {RUN_STATE}", manifest.step);
            self.faults.push(Fault::Contradiction { file, reason });
        }
        let Some(model) = model else { return };
        let counted: BTreeSet<&String> = state.parameter_steps.keys().collect();
        for name in model.keys().filter(|name| !counted.contains(name)) {
            let reason = format!("parameter_steps lacks {name}");
            self.faults.push(Fault::Contradiction { file: RUN_STATE.to_owned(), reason });
        }
        for name in counted.into_iter().filter(|name| !model.contains_key(*name)) {
            let reason = format!("parameter_steps names {name}, which the model does not have");
            self.faults.push(Fault::Contradiction { file: RUN_STATE.to_owned(), reason });
        }
    }

    /// Compares the tensors with the model's parameters, and returns those.
    fn tensors(&mut self, manifest: &Manifest) -> Option<Shapes> {
        let is_model = |file: &&String| file.ends_with(TENSORS_ENDING) && !file.contains('/');
        let weights: Vec<&str> = manifest.files.keys().filter(is_model).map(|f| &**f).collect();
        if weights.is_empty() {
            let reason = "it names no file of the model's tensors".to_owned();
            self.faults.push(Fault::Contradiction { file: MANIFEST.to_owned(), reason });
        }
        let masters = self.files(&[MASTERS]);
        let weights = self.files(&weights);
        let optimizer = self.files(&[OPTIMIZER]);
        let known = [&weights, &masters].into_iter().flatten().map(|files| num_tensors(files));
        let model = self.config(known.max()?)?;
        for (files, is_wanted) in [
            (weights, (|dtype| dtype != Dtype::U8) as fn(Dtype) -> bool),
            (masters, |dtype| matches!(dtype, Dtype::F32 | Dtype::F64)),
        ] {
            if let Some(files) = files {
                self.parameters(&files, &model, is_wanted);
            }
        }
        if let Some(files) = optimizer {
            self.states(&files[0], &model);
        }
        Some(model)
    }

    /// Opens files; `None` if one of them is damaged.
    fn files(&mut self, names: &[&str]) -> Option<Vec<(String, TensorFile)>> {
        let mut files = Vec::new();
        for &name in names {
            if self.damaged.contains(name) {
                continue;
            }
            match TensorFile::open(&self.folder.join(name)) {
                Ok(file) => files.push((name.to_owned(), file)),
                Err(error) => self.unreadable(name, &error),
            }
        }
        (files.len() == names.len()).then_some(files)
    }

    /// Compares the tensors of some files with the parameters of the model.
    fn parameters(
        &mut self,
        files: &[(String, TensorFile)],
        model: &Shapes,
        is_wanted: fn(Dtype) -> bool,
    ) {
        let mut missing: BTreeSet<&String> = model.keys().collect();
        for (file, view) in files.iter().flat_map(|(n, f)| f.tensors().map(move |t| (n, t))) {
            let found = view.spec.clone();
            let mismatch = match model.get(&found.name) {
                None => Mismatch::Extra { found },
                Some(_) if !missing.remove(&found.name) => Mismatch::Extra { found },
                Some(shape) if *shape == found.shape && is_wanted(found.dtype) => continue,
                Some(shape) => Mismatch::Differs {
                    expected: TensorSpec {
                        name: found.name.clone(),
                        dtype: if is_wanted(found.dtype) { found.dtype } else { Dtype::F32 },
                        shape: shape.clone(),
                    },
                    found,
                },
            };
            self.faults.push(Fault::Tensor { file: file.clone(), mismatch });
        }
        let file = files.first().map_or("", |(name, _)| name);
        for name in missing {
            let (name, dtype, shape) = (name.clone(), Dtype::F32, model[name].clone());
            let expected = TensorSpec { name, dtype, shape };
            let mismatch = Mismatch::Missing { expected };
            self.faults.push(Fault::Tensor { file: file.to_owned(), mismatch });
        }
    }

    /// Checks that every state belongs to a parameter, and has its shape or is a list of blocks.
    fn states(&mut self, (file, tensors): &(String, TensorFile), model: &Shapes) {
        for view in tensors.tensors() {
            let found = view.spec.clone();
            let parameter = found.name.split_once('/').map(|(_, parameter)| parameter);
            let mismatch = match parameter.and_then(|parameter| model.get(parameter)) {
                None => Mismatch::Extra { found },
                Some(shape) if *shape == found.shape || found.shape.len() <= 1 => continue,
                Some(shape) => Mismatch::Differs {
                    expected: TensorSpec { shape: shape.clone(), ..found.clone() },
                    found,
                },
            };
            self.faults.push(Fault::Tensor { file: file.clone(), mismatch });
        }
    }

    /// The text of an undamaged file.
    fn text(&mut self, file: &str) -> Option<String> {
        if self.damaged.contains(file) {
            return None;
        }
        match fs::read(self.folder.join(file)).and_then(|bytes| {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            String::from_utf8(bytes).map_err(invalid)
        }) {
            Ok(text) => Some(text),
            Err(error) => {
                self.unreadable(file, &error);
                None
            }
        }
    }

    fn unreadable(&mut self, file: &str, reason: &impl ToString) {
        let (file, reason) = (file.to_owned(), reason.to_string());
        self.damaged.insert(file.clone());
        self.faults.push(Fault::Unreadable { file, reason });
    }
}

fn num_tensors(files: &[(String, TensorFile)]) -> usize {
    files.iter().map(|(_, file)| file.names().count()).sum()
}

fn shapes(config: &ModelConfig) -> Shapes {
    let units = UnitMap::new(config).units.into_iter();
    let params = units
        .flat_map(|unit| unit.params)
        .map(|param| (param.name, param.shape.into_iter().map(|size| size as usize).collect()));
    params.collect()
}
