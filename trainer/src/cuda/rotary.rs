//! Rotary position embedding.

use tch::{Kind, Tensor};

use super::source::Kernel;
use super::{Call, Fused, Grid, PACK, address};

impl Fused {
    /// Turns the first `num_heads` heads of each row of `qkv` `[N, row]` in place; `sign` is -1 to
    /// turn back.
    ///
    /// # Shapes
    /// - `cos`, `sin`: `[S, H / 2]` f32, `H / 2` of whole packs
    /// - `positions`: `[N]` i64 below `S`; without them row `r` is at `r % sequence_length`
    pub fn rotate(
        &self,
        qkv: &Tensor,
        (num_heads, sign): (i64, f32),
        (cos, sin): (&Tensor, &Tensor),
        (sequence_length, positions): (i64, Option<&Tensor>),
    ) {
        let (rows, width) = qkv.size2().expect("qkv is [N, row]");
        let (num_positions, half) = cos.size2().expect("cos is [S, H / 2]");
        assert!(self.takes(half), "half a head is whole packs");
        assert!(sequence_length <= num_positions, "tables are long enough");
        assert!(num_heads * 2 * half <= width, "heads lie within a row");
        let table = |table: &Tensor| address(table, Kind::Float, num_positions * half);
        let pointers = [
            self.activations(qkv, rows * width),
            table(cos),
            table(sin),
            positions.map_or(0, |positions| address(positions, Kind::Int64, rows)),
        ];
        let call = Call::new(pointers, [rows, width, num_heads, half, sequence_length]);
        let packs = rows * num_heads * (half / PACK);
        self.run(Kernel::Rotary, Grid::packs(packs), &call.with_number(sign));
    }
}
