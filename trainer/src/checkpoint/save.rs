//! Saving a checkpoint: what goes into the folder, in which order.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::layout::{CONFIG, GROVE, MANIFEST, MASTERS, MODEL, OPTIMIZER, RUN_STATE};
use super::staging::Staging;
use super::tensor_writer::TensorStream;
use super::{Error, RunStateRecord, TensorRecord, clear_stale};

/// All that a checkpoint holds. Its step is that of `run_state`.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    /// `config.json`, as Hugging Face reads it.
    pub config_json: &'a str,
    /// The model's weights, under Hugging Face's names.
    pub model: Vec<TensorRecord<'a>>,
    /// The master weights, under the same names.
    pub masters: Vec<TensorRecord<'a>>,
    /// The optimizer's state, named `<kind>/<parameter>`.
    pub optimizer: Vec<TensorRecord<'a>>,
    /// Where the run is.
    pub run_state: RunStateRecord,
    /// Files beside `config.json`: the tokenizer's, `generation_config.json`.
    pub extra_files: Vec<ExtraFile<'a>>,
}

/// A file that is stored beside `config.json`.
#[derive(Clone, Debug)]
pub enum ExtraFile<'a> {
    /// A file of this name with this content.
    Content {
        /// A plain file name.
        name: String,
        /// The content.
        bytes: Cow<'a, [u8]>,
    },
    /// A copy of an existing file under its own name.
    Copy {
        /// The existing file.
        from: PathBuf,
    },
}

/// Saves a checkpoint in `run_folder` and returns its folder, on the disk and complete.
///
/// Remains of saves that did not end are removed first. A checkpoint of the same step is
/// replaced. One process of a run may save at a time. Values are streamed: besides the records
/// themselves no copy is held.
///
/// # Errors
/// [`Error::Record`] or [`Error::ExtraFileName`] before anything is written, if the contents
/// contradict themselves; [`Error::Save`] if a file cannot be written: then the partial folder
/// is removed and earlier checkpoints are untouched.
pub fn save(run_folder: &Path, contents: &Contents<'_>) -> Result<PathBuf, Error> {
    let streams = [
        (MODEL, TensorStream::new(MODEL, &contents.model)?),
        (MASTERS, TensorStream::new(MASTERS, &contents.masters)?),
        (OPTIMIZER, TensorStream::new(OPTIMIZER, &contents.optimizer)?),
    ];
    let run_state = serde_json::to_string_pretty(&contents.run_state)
        .expect("integers and text can always be written as JSON");
    let texts = [(CONFIG, contents.config_json), (RUN_STATE, run_state.as_str())];
    let extra_files = contents.extra_files.iter().map(Source::new);
    let extra_files = extra_files.collect::<Result<Vec<_>, _>>()?;
    let needed_bytes = streams.iter().map(|(_, stream)| stream.len_bytes()).sum::<u64>()
        + texts.iter().map(|(_, text)| text.len() as u64).sum::<u64>()
        + extra_files.iter().map(|source| source.bytes).sum::<u64>();
    clear_stale(run_folder)?;
    let mut staging = Staging::begin(run_folder, contents.run_state.step, needed_bytes)?;
    for (name, text) in texts {
        staging.write_file(name, |out| out.write_all(text.as_bytes()))?;
    }
    for source in extra_files {
        staging.write_file(&source.name, |out| source.write_to(out))?;
    }
    for (name, stream) in streams {
        staging.write_file(name, |out| stream.write_to(out))?;
    }
    staging.publish()
}

/// An extra file whose name was checked and whose size is known.
struct Source<'a> {
    name: String,
    bytes: u64,
    file: &'a ExtraFile<'a>,
}

impl<'a> Source<'a> {
    fn new(file: &'a ExtraFile<'a>) -> Result<Self, Error> {
        let (name, bytes) = match file {
            ExtraFile::Content { name, bytes } => (name.clone(), bytes.len() as u64),
            ExtraFile::Copy { from } => {
                let metadata = fs::metadata(from).map_err(|cause| Error::Io {
                    action: "copy",
                    path: from.clone(),
                    cause,
                })?;
                let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (name, metadata.len())
            }
        };
        // A plain name is its own file name: no folder, no "..", not empty.
        let is_plain = Path::new(&name).file_name().is_some_and(|plain| plain == name.as_str());
        if !is_plain || [CONFIG, MODEL, MANIFEST, GROVE].contains(&name.as_str()) {
            return Err(Error::ExtraFileName { name });
        }
        Ok(Self { name, bytes, file })
    }

    fn write_to(&self, mut out: &mut dyn Write) -> io::Result<()> {
        match self.file {
            ExtraFile::Content { bytes, .. } => out.write_all(bytes),
            ExtraFile::Copy { from } => io::copy(&mut File::open(from)?, &mut out).map(|_| ()),
        }
    }
}
