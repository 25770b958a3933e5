//! The text and score columns of a Parquet file, some rows at a time.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::listing::{Compression, InputFile};
use super::stream::ByteStream;
use crate::error::{Error, InputError, Result};

/// Some rows; `None` is null.
pub(crate) struct Rows {
    pub(crate) texts: Vec<Option<Vec<u8>>>,
    /// Empty if no score column was asked for.
    pub(crate) scores: Vec<Option<f64>>,
    /// Number, from 0, of the first row in the file.
    pub(crate) first_row: u64,
}

/// Reads two columns of a Parquet file, row group by row group.
pub(crate) struct ColumnsReader<'a> {
    file: &'a InputFile,
    reader: SerializedFileReader<File>,
    text_column: usize,
    score_column: Option<usize>,
    /// Their names.
    names: (&'a str, Option<&'a str>),
    row_group: usize,
    /// Readers of the current row group and the rows it still has.
    open: Option<(ColumnReader, Option<ColumnReader>, u64)>,
    next_row: u64,
    num_bytes: &'a AtomicU64,
}

impl<'a> ColumnsReader<'a> {
    /// Opens the file at row `first_row`. A compressed file is unpacked into `folder` first,
    /// since Parquet is read from its end; the copy has no name and goes with the reader.
    ///
    /// # Errors
    /// [`InputError::Damaged`] if it is no Parquet file, [`InputError::NoColumn`] if a column is
    /// missing or of a type that cannot be used.
    pub(crate) fn open(
        file: &'a InputFile,
        names: (&'a str, Option<&'a str>),
        first_row: u64,
        (folder, num_bytes): (&Path, &'a AtomicU64),
    ) -> Result<Self> {
        let opened = match file.compression {
            Compression::None => {
                File::open(&file.path).map_err(Error::io("open the input", &file.path))?
            }
            Compression::Gzip | Compression::Zstd => unpacked(file, folder)?,
        };
        let reader = SerializedFileReader::new(opened).map_err(|cause| damaged(file, &cause))?;
        let text_column = find_column(file, &reader, names.0)?;
        let score_column = names.1.map(|score| find_column(file, &reader, score)).transpose()?;
        let (row_group, open, next_row) = (0, None, 0);
        let mut columns = Self {
            file,
            reader,
            text_column,
            score_column,
            names,
            row_group,
            open,
            next_row,
            num_bytes,
        };
        columns.pass_over(first_row)?;
        Ok(columns)
    }

    /// The next rows, at most `limit`; `None` at the end.
    ///
    /// # Errors
    /// [`InputError::Damaged`] if the data is broken, [`InputError::NoColumn`] if a column is not
    /// of a type that can be used.
    pub(crate) fn next(&mut self, limit: usize) -> Result<Option<Rows>> {
        if !self.open_row_group()? {
            return Ok(None);
        }
        let (file, names) = (self.file, self.names);
        let (text, score, rows_left) = self.open.as_mut().expect("a row group was just opened");
        let num_rows = (limit as u64).min(*rows_left) as usize;
        let texts =
            read_texts(text, num_rows).map_err(|failed| failed.into_error((file, names.0)))?;
        let scores = match score {
            Some(score) => read_scores(score, num_rows)
                .map_err(|failed| failed.into_error((file, names.1.unwrap_or_default())))?,
            None => Vec::new(),
        };
        *rows_left -= num_rows as u64;
        let first_row = self.next_row;
        self.next_row += num_rows as u64;
        Ok(Some(Rows { texts, scores, first_row }))
    }

    /// Makes sure that a row group with rows left is open; false at the end of the file.
    fn open_row_group(&mut self) -> Result<bool> {
        loop {
            if matches!(&self.open, Some((.., rows_left)) if *rows_left > 0) {
                return Ok(true);
            }
            if self.row_group == self.reader.num_row_groups() {
                return Ok(false);
            }
            let file = self.file;
            let group = self.reader.get_row_group(self.row_group);
            let group = group.map_err(|cause| damaged(file, &cause))?;
            let column = |index: usize| {
                group.get_column_reader(index).map_err(|cause| damaged(file, &cause))
            };
            let text = column(self.text_column)?;
            let score = self.score_column.map(column).transpose()?;
            let metadata = group.metadata();
            self.num_bytes.fetch_add(metadata.compressed_size() as u64, Ordering::Relaxed);
            self.open = Some((text, score, metadata.num_rows() as u64));
            self.row_group += 1;
        }
    }

    fn pass_over(&mut self, num_rows: u64) -> Result<()> {
        // Whole row groups are passed over by their numbers alone.
        while self.row_group < self.reader.num_row_groups() {
            let group = self.reader.metadata().row_group(self.row_group);
            if self.next_row + group.num_rows() as u64 > num_rows {
                break;
            }
            self.next_row += group.num_rows() as u64;
            self.row_group += 1;
        }
        const ROWS_AT_ONCE: u64 = 1024;
        while self.next_row < num_rows {
            let limit = (num_rows - self.next_row).min(ROWS_AT_ONCE) as usize;
            if self.next(limit)?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// Why a column could not be read.
enum ReadFailure {
    Broken(parquet::errors::ParquetError),
    WrongType(&'static str),
}

impl ReadFailure {
    fn into_error(self, (file, column): (&InputFile, &str)) -> Error {
        let (path, column) = (file.path.clone(), column.to_owned());
        match self {
            Self::Broken(cause) => damaged(file, &cause),
            Self::WrongType(expected) => {
                let cause = format!("it does not hold {expected}");
                InputError::NoColumn { path, column, cause }.into()
            }
        }
    }
}

fn read_texts(
    reader: &mut ColumnReader,
    num_rows: usize,
) -> std::result::Result<Vec<Option<Vec<u8>>>, ReadFailure> {
    let ColumnReader::ByteArrayColumnReader(reader) = reader else {
        return Err(ReadFailure::WrongType("a string"));
    };
    let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::new());
    let read = reader.read_records(num_rows, Some(&mut levels), None, &mut values);
    read.map_err(ReadFailure::Broken)?;
    Ok(with_nulls(values.into_iter().map(|value| value.data().to_vec()), &levels, num_rows))
}

fn read_scores(
    reader: &mut ColumnReader,
    num_rows: usize,
) -> std::result::Result<Vec<Option<f64>>, ReadFailure> {
    let mut levels = Vec::new();
    macro_rules! numbers {
        ($reader:expr) => {{
            let mut values = Vec::new();
            let read = $reader.read_records(num_rows, Some(&mut levels), None, &mut values);
            read.map_err(ReadFailure::Broken)?;
            Ok(with_nulls(values.into_iter().map(|value| value as f64), &levels, num_rows))
        }};
    }
    match reader {
        ColumnReader::Int32ColumnReader(reader) => numbers!(reader),
        ColumnReader::Int64ColumnReader(reader) => numbers!(reader),
        ColumnReader::FloatColumnReader(reader) => numbers!(reader),
        ColumnReader::DoubleColumnReader(reader) => numbers!(reader),
        _ => Err(ReadFailure::WrongType("a number")),
    }
}

/// Puts nulls where the definition level is below the highest; a column that cannot be null has
/// no levels. Columns inside lists were refused, so a row has one value at most.
fn with_nulls<T>(
    mut values: impl Iterator<Item = T>,
    levels: &[i16],
    num_rows: usize,
) -> Vec<Option<T>> {
    match levels.iter().max() {
        None => values.by_ref().take(num_rows).map(Some).collect(),
        // An all-null stretch has no value, whatever its levels.
        Some(&top) => {
            let rows = levels.iter().map(|&level| if level == top { values.next() } else { None });
            rows.collect()
        }
    }
}

fn find_column(file: &InputFile, reader: &SerializedFileReader<File>, name: &str) -> Result<usize> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let columns = schema.columns();
    let refuse =
        |cause| InputError::NoColumn { path: file.path.clone(), column: name.to_owned(), cause };
    let Some(index) = columns.iter().position(|column| column.path().string() == name) else {
        let names: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
        return Err(refuse(format!("the file has {}", names.join(", "))).into());
    };
    if columns[index].max_rep_level() > 0 {
        return Err(refuse("it lies inside a list".to_owned()).into());
    }
    Ok(index)
}

fn unpacked(file: &InputFile, folder: &Path) -> Result<File> {
    let mut copy =
        tempfile::tempfile_in(folder).map_err(Error::io("create a temporary file in", folder))?;
    let counter = AtomicU64::new(0);
    let mut stream = ByteStream::open(file, 0, &counter)?;
    let (mut buffer, mut written) = (Vec::new(), 0);
    while stream.read(1 << 20, &mut buffer)? > 0 {
        std::io::Write::write_all(&mut copy, &buffer).map_err(Error::write(folder, written))?;
        written += buffer.len() as u64;
        buffer.clear();
    }
    copy.seek(SeekFrom::Start(0)).map_err(Error::io("seek in", folder))?;
    Ok(copy)
}

fn damaged(file: &InputFile, cause: &parquet::errors::ParquetError) -> Error {
    let path = file.path.clone();
    InputError::Damaged { path, what: "Parquet data", cause: cause.to_string() }.into()
}
