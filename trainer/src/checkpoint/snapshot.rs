//! Values on their way to the disk: copies in host memory, so that the run can go on at once.

use super::{Blueprint, Error, Part};

/// One rank's values of a checkpoint, each with its place in the files.
///
/// Ranks may bring any ranges of any tensors; all ranks together must bring each element once.
#[derive(Debug, Default)]
pub struct Snapshot {
    buffer: Vec<u8>,
    pieces: Vec<Piece>,
}

/// Bytes of the buffer that belong into a file.
#[derive(Debug)]
struct Piece {
    file: usize,
    offset: u64,
    start: usize,
    len_bytes: usize,
}

impl Snapshot {
    /// An empty one in the memory of an earlier one.
    #[must_use]
    pub fn reusing(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self { buffer, pieces: Vec::new() }
    }

    /// Makes room for this many more bytes at once.
    pub fn reserve(&mut self, len_bytes: usize) {
        self.buffer.reserve_exact(len_bytes);
    }

    /// Copies the values of some elements of a tensor, from the element `first` on: row-major,
    /// little-endian. They are written to each of `places`, for masters may be the model's weights
    /// too.
    ///
    /// # Errors
    /// [`Error::Record`] if the blueprint has no such tensor, or the tensor no such elements.
    pub fn add(
        &mut self,
        blueprint: &Blueprint,
        places: &[(Part, &str)],
        first: usize,
        bytes: &[u8],
    ) -> Result<(), Error> {
        for &place in places {
            let (file, offset) = blueprint.locate(place, first, bytes.len())?;
            let start = self.buffer.len();
            self.pieces.push(Piece { file, offset, start, len_bytes: bytes.len() });
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// All values with the index of their file and the byte in it.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (usize, u64, &[u8])> {
        self.pieces.iter().map(|&Piece { file, offset, start, len_bytes }| {
            (file, offset, &self.buffer[start..start + len_bytes])
        })
    }

    /// Bytes of host memory it takes.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// The memory, to be used again.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}
