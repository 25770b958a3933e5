//! Buffers that units of one size hand on to each other.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::state::UnitState;

/// Flat buffers for whole units. Those of a size that several units have (the blocks') are kept for
/// the next of them; others (embedding, head) are given back to the allocator after use.
#[derive(Debug, Default)]
pub struct SpareBuffers {
    /// How many units have a buffer of this many elements.
    sizes: BTreeMap<usize, usize>,
    spare: Vec<Tensor>,
    held_bytes: u64,
    peak_bytes: u64,
}

impl SpareBuffers {
    /// For the buffers of these units.
    pub fn new(units: &[UnitState]) -> Self {
        let mut sizes = BTreeMap::new();
        for unit in units {
            *sizes.entry(unit.layout.padded_numel()).or_default() += 1;
        }
        Self { sizes, ..Self::default() }
    }

    /// A buffer of arbitrary content.
    pub fn take(&mut self, numel: usize, kind: Kind, device: Device) -> Tensor {
        let fits = |spare: &Tensor| spare.numel() == numel && spare.kind() == kind;
        if let Some(fitting) = self.spare.iter().position(fits) {
            return self.spare.swap_remove(fitting);
        }
        self.held_bytes += (numel * kind.elt_size_in_bytes()) as u64;
        self.peak_bytes = self.peak_bytes.max(self.held_bytes);
        Tensor::empty([numel as i64], (kind, device))
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Tensor) {
        if self.sizes.get(&buffer.numel()).is_some_and(|&units| units > 1) {
            self.spare.push(buffer);
        } else {
            self.held_bytes -= (buffer.numel() * buffer.kind().elt_size_in_bytes()) as u64;
        }
    }

    /// The most bytes that were held at one time.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }
}
