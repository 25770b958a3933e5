//! A file as a stream of its decompressed bytes, at any position, counting what was read.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};

use super::listing::{Compression, InputFile};
use crate::error::{Error, InputError, Result};

/// Adds the bytes that pass through to a counter that others watch.
struct Counted<'a> {
    file: File,
    num_bytes: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let num_bytes = self.file.read(buffer)?;
        self.num_bytes.fetch_add(num_bytes as u64, Ordering::Relaxed);
        Ok(num_bytes)
    }
}

/// The decompressed bytes of an input file.
pub(crate) struct ByteStream<'a> {
    bytes: Box<dyn Read + Send + 'a>,
    file: &'a InputFile,
    /// Decompressed bytes delivered or passed over.
    position: u64,
}

impl<'a> ByteStream<'a> {
    /// Opens `file` at decompressed byte `start`. Compressed bytes read are added to `num_bytes`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened, [`InputError::Damaged`] if it ends before `start` or
    /// is not compressed as its name says.
    pub(crate) fn open(file: &'a InputFile, start: u64, num_bytes: &'a AtomicU64) -> Result<Self> {
        let opened = File::open(&file.path).map_err(Error::io("open the input", &file.path))?;
        let mut counted = Counted { file: opened, num_bytes };
        let mut position = 0;
        let bytes: Box<dyn Read + Send + 'a> = match file.compression {
            Compression::None => {
                let seek = counted.file.seek(SeekFrom::Start(start));
                seek.map_err(Error::io("seek in", &file.path))?;
                num_bytes.fetch_add(start, Ordering::Relaxed);
                position = start;
                Box::new(counted)
            }
            // Several members may follow each other, as `cat a.gz b.gz` makes them.
            Compression::Gzip => {
                Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(counted)))
            }
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::new(counted);
                Box::new(decoder.map_err(Error::io("start to decompress", &file.path))?)
            }
        };
        let mut stream = Self { bytes, file, position };
        stream.pass_over(start - position)?;
        Ok(stream)
    }

    /// Appends up to `limit` bytes to `buffer`; fewer only at the end of the file.
    ///
    /// # Errors
    /// [`InputError::Damaged`] if the compressed data is broken or cut off, [`Error::Io`] if the
    /// file cannot be read.
    pub(crate) fn read(&mut self, limit: usize, buffer: &mut Vec<u8>) -> Result<usize> {
        let read = self.bytes.by_ref().take(limit as u64).read_to_end(buffer);
        let num_bytes = read.map_err(|cause| self.broken(cause))?;
        self.position += num_bytes as u64;
        Ok(num_bytes)
    }

    fn pass_over(&mut self, num_bytes: u64) -> Result<()> {
        let passed = io::copy(&mut self.bytes.by_ref().take(num_bytes), &mut io::sink());
        self.position += passed.map_err(|cause| self.broken(cause))?;
        Ok(())
    }

    fn broken(&self, cause: io::Error) -> Error {
        match self.file.compression {
            Compression::None => Error::io("read the input", &self.file.path)(cause),
            Compression::Gzip | Compression::Zstd => InputError::Damaged {
                path: self.file.path.clone(),
                what: "compressed data",
                cause: format!("{cause} (after {} decompressed bytes)", self.position),
            }
            .into(),
        }
    }
}
