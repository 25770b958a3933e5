//! Values on their way to the disk: copies in host memory, so that the run can go on at once, or the
//! run's own memory where it waits.

use std::fmt::{Debug, Formatter};

use super::{Blueprint, Error, Part};

/// Memory that is written as it is when its turn comes, and not changed until then.
pub type HeldBytes = Box<dyn AsRef<[u8]> + Send>;

/// One rank's values of a checkpoint, each with its place in the files.
///
/// Ranks may bring any ranges of any tensors; all ranks together must bring each element once.
#[derive(Default)]
pub struct Snapshot {
    buffer: Vec<u8>,
    held: Vec<HeldBytes>,
    pieces: Vec<Piece>,
}

impl Debug for Snapshot {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        let (copied, held) = (self.buffer.len(), self.held.len());
        write!(formatter, "Snapshot of {copied} bytes and {held} parts that are not copied")
    }
}

/// Bytes that belong into a file.
struct Piece {
    file: usize,
    offset: u64,
    bytes: Bytes,
}

/// Where a piece's bytes are.
enum Bytes {
    /// In the buffer.
    Copied { start: usize, len: usize },
    /// All of one of the parts that are not copied.
    Held { part: usize },
}

impl Snapshot {
    /// An empty one in the memory of an earlier one.
    #[must_use]
    pub fn reusing(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self { buffer, held: Vec::new(), pieces: Vec::new() }
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
            let bytes = Bytes::Copied { start: self.buffer.len(), len: bytes.len() };
            self.pieces.push(Piece { file, offset, bytes });
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The same without a copy: what `bytes` are when they are written counts.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn hold(
        &mut self,
        blueprint: &Blueprint,
        places: &[(Part, &str)],
        first: usize,
        bytes: HeldBytes,
    ) -> Result<(), Error> {
        for &place in places {
            let (file, offset) = blueprint.locate(place, first, (*bytes).as_ref().len())?;
            self.pieces.push(Piece { file, offset, bytes: Bytes::Held { part: self.held.len() } });
        }
        self.held.push(bytes);
        Ok(())
    }

    /// All values with the index of their file and the byte in it.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (usize, u64, &[u8])> {
        self.pieces.iter().map(|piece| {
            let bytes = match piece.bytes {
                Bytes::Copied { start, len } => &self.buffer[start..start + len],
                Bytes::Held { part } => (*self.held[part]).as_ref(),
            };
            (piece.file, piece.offset, bytes)
        })
    }

    /// Bytes of host memory its copies take.
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
