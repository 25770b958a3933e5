//! A model from a folder, for evaluation and sampling: one of our checkpoints, the newest of a
//! run, or a Hugging Face folder of a family that we know with safetensors in one or several files.

use std::fs;
use std::path::{Path, PathBuf};

use grove_data::Tokenizer;
use grove_parallel::Collective;

use crate::checkpoint::{self, Checkpoint, TensorFile};
use crate::config::{Plan, Tokenizer as Wanted};
use crate::error::Error;
use crate::model::block::Recompute;
use crate::model::compute::Compute;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, RunOptions};
use crate::pass::{Layers, Traffic};
use crate::saving;
use crate::sharding::{Placement, Sharding};
use crate::state::RunState;

/// Rows of logits held at once.
const LOGITS_ROWS: usize = 256;

/// A model ready to run, without gradients or optimizer state.
#[derive(Debug)]
pub struct LoadedModel {
    /// The layers.
    pub decoder: Decoder,
    /// The units' buffers.
    pub state: RunState,
    /// Where it was loaded from.
    pub folder: PathBuf,
    /// How the model's tokens are made, if the folder tells.
    pub tokenizer: Option<Wanted>,
}

impl LoadedModel {
    /// Loads the model in `path`.
    ///
    /// # Errors
    /// If the folder holds no model that can be loaded.
    pub fn open(path: &Path, compute: &Compute) -> Result<Self, Error> {
        let folder = match checkpoint::latest(path)? {
            Some(newest) => newest.folder,
            None => path.to_owned(),
        };
        let config_path = folder.join("config.json");
        let text = fs::read_to_string(&config_path).map_err(|source| Error::Io {
            action: "read",
            path: config_path,
            source,
        })?;
        let config = ModelConfig::from_hf_json(&text)?;
        let options = RunOptions {
            sequence_length: config.spec().max_positions,
            recompute: Recompute::Block,
            logits_rows: LOGITS_ROWS,
        };
        let decoder = Decoder::new(compute, &config, options);
        let state = RunState::allocate_working(compute, decoder.units())?;
        saving::load_working(&state.units, &TensorFile::open_model(&folder)?)?;
        let tokenizer = tokenizer_of(&folder)?;
        Ok(Self { decoder, state, folder, tokenizer })
    }

    /// The layers with their parameters.
    pub fn layers<'a>(&'a self, compute: &'a Compute) -> Layers<'a> {
        Layers { model: &self.decoder, compute, units: &self.state.units }
    }

    /// What a forward needs beside the layers, on one rank.
    ///
    /// # Errors
    /// Never on one rank.
    pub fn traffic<'a>(
        &self,
        alone: &'a dyn Collective,
    ) -> Result<Traffic<'a>, grove_parallel::Error> {
        let sharding = Sharding::new(Placement::alone(), alone)?;
        Ok(Traffic::new(sharding, &self.state.units, 0))
    }

    /// The model's tokenizer: `wanted` if given, else what the folder tells, else bytes.
    ///
    /// # Errors
    /// If it cannot be loaded or has ids that the model does not.
    pub fn tokenizer(&self, wanted: Option<&str>) -> Result<Tokenizer, Error> {
        let spec = match (wanted, &self.tokenizer) {
            (Some(wanted), _) => wanted.to_owned(),
            (None, Some(known)) => String::from(known.clone()),
            (None, None) => String::from(Wanted::Bytes),
        };
        let tokenizer = Tokenizer::from_spec(&spec)?;
        let (found, expected) = (tokenizer.vocab_size() as usize, self.decoder.spec.vocab_size);
        if found > expected {
            return Err(Error::Tokenizer { tokenizer: tokenizer.describe(), expected, found });
        }
        Ok(tokenizer)
    }
}

/// How the tokens of the model in a folder are made: by the tokenizer's files in the folder itself,
/// else as the run's plan says; `None` if neither tells.
///
/// # Errors
/// If the plan in the checkpoint cannot be read.
pub fn tokenizer_of(folder: &Path) -> Result<Option<Wanted>, Error> {
    if ["tokenizer.json", "vocab.json"].iter().any(|name| folder.join(name).exists()) {
        return Ok(Some(Wanted::File(folder.to_owned())));
    }
    let Ok(checkpoint) = Checkpoint::open(folder) else { return Ok(None) };
    match checkpoint.run_state().plan_toml.as_str() {
        // It was imported.
        "" => Ok(None),
        plan => Ok(Plan::from_toml(plan)?.data.tokenizer),
    }
}
