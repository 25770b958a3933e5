//! The ordered reduce-scatter: contributions travel as they are and are added where they arrive.
#![allow(unsafe_code, reason = "tensor memory is viewed as typed slices")]

use super::{Exchange, Piece, Region};
use crate::{
    collective::{
        Dtype, Onto,
        mpi::element::{self, Bf16, Term},
    },
    error::Result,
};

impl Exchange {
    /// Adds the contributions to this rank's part in rank order into `output`. By rank, `parts`
    /// are this rank's contributions to that rank's part.
    pub(super) fn add_in_order(
        &mut self,
        dtype: Dtype,
        onto: Onto,
        parts: &[Region],
        output: Region,
    ) -> Result<()> {
        match dtype {
            Dtype::Bf16 => self.add_typed::<Bf16>(onto, parts, output),
            Dtype::F32 => self.add_typed::<f32>(onto, parts, output),
            Dtype::F64 => self.add_typed::<f64>(onto, parts, output),
            Dtype::I32 | Dtype::I64 | Dtype::U8 => {
                unreachable!("such requests are refused when they are made")
            }
        }
    }

    fn add_typed<T: Term>(&mut self, onto: Onto, parts: &[Region], output: Region) -> Result<()> {
        let rank = self.wire.rank();
        self.each_piece(parts, parts[rank], |_, piece| {
            let Piece { step, piece_bytes, own, peers } = piece;
            let mut terms = peers;
            terms.insert(rank, own);
            // In elements, the piece lies in the output where it lies in the part.
            let start = step * piece_bytes / size_of::<T>() * size_of::<T::Sum>();
            let bytes = own.bytes() / size_of::<T>() * size_of::<T::Sum>();
            // SAFETY: all messages that touch the terms have been waited for, and nobody writes
            // to the input before the call is over; the output is tensor memory that no message
            // touches and, as checked when the call was made, no part of the input.
            let (output, terms) = unsafe {
                let terms: Vec<&[T]> = terms.iter().map(|term| term.elements()).collect();
                (output.cut(start..start + bytes).elements_mut::<T::Sum>(), terms)
            };
            element::add_in_order(output, onto, &terms);
            Ok(())
        })
    }
}
