//! The encoding threads: a task to ids, and what became of each of its records.

use twox_hash::XxHash3_128;

use super::reader::{Task, Work};
use super::{BadRecord, BadUtf8, DocumentOptions, TextDocuments};
use crate::dataset::Position;
use crate::error::{Error, InputError, Result};
use crate::input::json::{FieldPath, Found, extract};
use crate::input::records::split_records;
use crate::input::{InputFile, InputKind};
use crate::tokenize::{Encoder, Tokenizer};

/// The ids of a task.
pub(crate) struct Encoded {
    /// The task's place in the order.
    pub(crate) number: u64,
    /// Number of its input.
    pub(crate) input: usize,
    /// The ids of all its documents, one after the other.
    pub(crate) ids: Vec<u32>,
    /// Its records, in order.
    pub(crate) fates: Vec<Fate>,
    /// Why nothing beyond the last of `fates` could be done.
    pub(crate) failure: Option<Error>,
}

impl Encoded {
    /// What stands for a task that could not be read.
    pub(crate) fn failed(number: u64, failure: Error) -> Self {
        Self { number, input: 0, ids: Vec::new(), fates: Vec::new(), failure: Some(failure) }
    }
}

/// What became of a record, and where the next one begins.
pub(crate) struct Fate {
    /// Number of the record in its input, from 0.
    pub(crate) record: u64,
    pub(crate) next: Position,
    pub(crate) outcome: Outcome,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    /// A part of a document, but not its last.
    Part {
        num_ids: usize,
        num_bytes: u64,
        hash: Option<u128>,
        is_replaced: bool,
    },
    /// A document, or the last part of one.
    Document {
        num_ids: usize,
        num_bytes: u64,
        hash: u128,
        is_replaced: bool,
    },
    BadUtf8,
    /// Broken, for this reason.
    BadRecord(String),
    Filtered,
}

/// A record's text, or why it has none.
enum Text<'r> {
    Found(std::borrow::Cow<'r, [u8]>),
    Bad(String),
    NotUtf8 { byte: u64 },
    Filtered,
}

pub(super) struct Worker<'a> {
    encoder: Encoder<'a>,
    documents: &'a DocumentOptions,
    inputs: &'a [InputFile],
    text_path: FieldPath,
    score_path: Option<FieldPath>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        documents: &'a DocumentOptions,
        inputs: &'a [InputFile],
    ) -> Self {
        let text_path = FieldPath::new(&documents.text_field);
        let score_path = documents.score.as_ref().map(|score| FieldPath::new(&score.field));
        let encoder = Encoder::new(tokenizer);
        Self { encoder, documents, inputs, text_path, score_path }
    }

    pub(super) fn encode(&mut self, task: Task) -> Encoded {
        let Task { number, input, work } = task;
        let (ids, fates) = (Vec::new(), Vec::new());
        let mut encoded = Encoded { number, input, ids, fates, failure: None };
        let outcome = match work {
            Work::Part { bytes, start_byte, is_last, hash } => {
                self.encode_part(&bytes, (start_byte, is_last, hash), &mut encoded)
            }
            Work::NotUtf8 => {
                let next = Position { input: input + 1, record: 0, byte: 0 };
                encoded.fates.push(Fate { record: 0, next, outcome: Outcome::BadUtf8 });
                Ok(())
            }
            Work::Records(block) => {
                let mut outcome = Ok(());
                for ((bytes, end), record) in
                    split_records(&block.bytes, self.separator(input)).zip(block.first_record..)
                {
                    let byte = block.start_byte + end as u64;
                    let next = Position { input, record: record + 1, byte };
                    let start_byte = byte - (end - start_of(&block.bytes, bytes)) as u64;
                    let text = self.text_of_record(input, bytes, start_byte);
                    outcome = self.encode_record(text, (record, next), &mut encoded);
                    if outcome.is_err() {
                        break;
                    }
                }
                outcome
            }
            Work::Rows(rows) => {
                let mut outcome = Ok(());
                for (index, cell) in rows.texts.iter().enumerate() {
                    let record = rows.first_row + index as u64;
                    let next = Position { input, record: record + 1, byte: 0 };
                    let score = rows.scores.get(index).copied().flatten();
                    let text = self.text_of_row(cell.as_deref(), score);
                    outcome = self.encode_record(text, (record, next), &mut encoded);
                    if outcome.is_err() {
                        break;
                    }
                }
                outcome
            }
        };
        encoded.failure = outcome.err();
        encoded
    }

    fn separator(&self, input: usize) -> &'a [u8] {
        match (self.inputs[input].kind, &self.documents.text_documents) {
            (InputKind::Text, TextDocuments::Separated { separator }) => separator.as_bytes(),
            _ => b"\n",
        }
    }

    fn encode_part(
        &mut self,
        bytes: &[u8],
        (start_byte, is_last, hash): (u64, bool, Option<u128>),
        encoded: &mut Encoded,
    ) -> Result<()> {
        let mut is_replaced = false;
        if let Err(valid) = self.encoder.encode_bytes(bytes, &mut encoded.ids)? {
            if self.documents.on_bad_utf8 != BadUtf8::Replace {
                // Under the policy to skip, the reader found the file good, so it changed since.
                let path = &self.inputs[encoded.input].path;
                let (origin, byte) = (format!("`{}`", path.display()), start_byte + valid as u64);
                return Err(Error::NotUtf8 { origin, byte });
            }
            is_replaced = true;
            self.encoder.encode(&String::from_utf8_lossy(bytes), &mut encoded.ids)?;
        }
        let (num_ids, num_bytes) = (encoded.ids.len(), bytes.len() as u64);
        let outcome = match hash {
            Some(hash) if is_last => Outcome::Document { num_ids, num_bytes, hash, is_replaced },
            _ => Outcome::Part { num_ids, num_bytes, hash, is_replaced },
        };
        let next = Position { input: encoded.input + 1, record: 0, byte: 0 };
        encoded.fates.push(Fate { record: 0, next, outcome });
        Ok(())
    }

    /// The text of a line or other record, whose first byte is `start_byte` of the file.
    fn text_of_record<'r>(&self, input: usize, record: &'r [u8], start_byte: u64) -> Text<'r> {
        let found = |text: &'r [u8]| Text::Found(text.into());
        if self.inputs[input].kind == InputKind::Text {
            return match self.documents.text_documents {
                TextDocuments::Lines => found(record.strip_suffix(b"\r").unwrap_or(record)),
                _ => found(record),
            };
        }
        let replaced;
        let json = match std::str::from_utf8(record) {
            Ok(_) => record,
            Err(_) if self.documents.on_bad_utf8 == BadUtf8::Replace => {
                replaced = String::from_utf8_lossy(record).into_owned();
                replaced.as_bytes()
            }
            Err(bad) => return Text::NotUtf8 { byte: start_byte + bad.valid_up_to() as u64 },
        };
        if json.trim_ascii().is_empty() {
            // A blank line, as often stands at the end of a file.
            return found(&[]);
        }
        let fields = match extract(json, [Some(&self.text_path), self.score_path.as_ref()]) {
            Ok(fields) => fields,
            Err(cause) => return Text::Bad(format!("broken JSON: {cause}")),
        };
        let [text, score] = fields;
        let score = score.map(|score| match score {
            Found::Number(score) => Ok(score),
            Found::Text(_) => Err("a string"),
            Found::Other(kind) => Err(kind),
        });
        if let Some(refused) = self.filter(score) {
            return refused;
        }
        let field = &self.documents.text_field;
        match text {
            Some(Found::Text(text)) => Text::Found(text.into_bytes().into()),
            Some(Found::Number(_)) => Text::Bad(format!("field `{field}` is a number, not text")),
            Some(Found::Other(kind)) => Text::Bad(format!("field `{field}` is {kind}, not text")),
            None => Text::Bad(format!("it has no field `{field}`")),
        }
    }

    fn text_of_row<'r>(&self, cell: Option<&'r [u8]>, score: Option<f64>) -> Text<'r> {
        if let Some(refused) = self.filter(score.map(Ok)) {
            return refused;
        }
        match cell {
            Some(cell) => Text::Found(cell.into()),
            None => Text::Bad(format!("column `{}` is null", self.documents.text_field)),
        }
    }

    /// What a score makes of a record; `None` if it is kept.
    fn filter(
        &self,
        score: Option<std::result::Result<f64, &'static str>>,
    ) -> Option<Text<'static>> {
        let filter = self.documents.score.as_ref()?;
        let field = &filter.field;
        match score {
            Some(Ok(score)) => (!filter.keeps(score)).then_some(Text::Filtered),
            Some(Err(kind)) => Some(Text::Bad(format!("field `{field}` is {kind}, not a number"))),
            None => Some(Text::Bad(format!("it has no score in `{field}`"))),
        }
    }

    fn encode_record(
        &mut self,
        text: Text<'_>,
        (record, next): (u64, Position),
        encoded: &mut Encoded,
    ) -> Result<()> {
        let outcome = match text {
            Text::Filtered => Outcome::Filtered,
            Text::Bad(cause) => match self.documents.on_bad_record {
                BadRecord::Skip => Outcome::BadRecord(cause),
                BadRecord::Fail => {
                    let (path, unit) = self.name(encoded.input);
                    let number = record + 1;
                    return Err(InputError::BadRecord { path, unit, number, cause }.into());
                }
            },
            Text::NotUtf8 { byte } => self.bad_utf8(encoded.input, record, byte)?,
            Text::Found(text) => {
                let (start, mut is_replaced) = (encoded.ids.len(), false);
                let encoding = self.encoder.encode_bytes(&text, &mut encoded.ids)?;
                if encoding.is_err() && self.documents.on_bad_utf8 == BadUtf8::Replace {
                    is_replaced = true;
                    self.encoder.encode(&String::from_utf8_lossy(&text), &mut encoded.ids)?;
                } else if let Err(valid) = encoding {
                    let outcome = self.bad_utf8(encoded.input, record, valid as u64)?;
                    encoded.fates.push(Fate { record, next, outcome });
                    return Ok(());
                }
                let (num_ids, num_bytes) = (encoded.ids.len() - start, text.len() as u64);
                let hash = XxHash3_128::oneshot(&text);
                Outcome::Document { num_ids, num_bytes, hash, is_replaced }
            }
        };
        encoded.fates.push(Fate { record, next, outcome });
        Ok(())
    }

    /// What becomes of a record that is not UTF-8 and is not to be mended.
    fn bad_utf8(&self, input: usize, record: u64, byte: u64) -> Result<Outcome> {
        if self.documents.on_bad_utf8 == BadUtf8::Skip {
            return Ok(Outcome::BadUtf8);
        }
        let (path, unit) = self.name(input);
        Err(InputError::BadUtf8 { path, unit, number: record + 1, byte }.into())
    }

    fn name(&self, input: usize) -> (std::path::PathBuf, &'static str) {
        let InputFile { path, kind, .. } = &self.inputs[input];
        let unit = match (kind, &self.documents.text_documents) {
            (InputKind::Parquet, _) => "row",
            (InputKind::Text, TextDocuments::Separated { .. }) => "record",
            _ => "line",
        };
        (path.clone(), unit)
    }
}

/// Where a record, which is a part of the block, starts in it.
fn start_of(block: &[u8], record: &[u8]) -> usize {
    record.as_ptr() as usize - block.as_ptr() as usize
}
