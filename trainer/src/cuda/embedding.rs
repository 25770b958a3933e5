//! The gradient of looked-up rows.

use tch::{Kind, Tensor};

use super::source::Kernel;
use super::{Call, Fused, Grid, address, count_of};

/// Neighbors of the sorted ids that a block takes, as in `embedding.cu`.
const CHUNK: i64 = 32;

impl Fused {
    /// Adds row `i` of `dx` to row `ids[i]` of `table`: the rows of an id in the order of `dx`, in
    /// groups that follow from `ids` alone.
    ///
    /// # Shapes
    /// - `table`: `[V, D]` f32, `D` of whole packs; `ids`: `[n]` i64 below `V`; `dx`: `[n, D]`
    pub fn add_rows(&self, table: &mut Tensor, ids: &Tensor, dx: &Tensor) {
        let (count, columns) = dx.size2().expect("dx is [n, D]");
        assert!(self.takes(columns), "rows are whole packs");
        assert_eq!(table.size()[1], columns, "the table's rows are as long as those of dx");
        let (sorted, order) = ids.sort_stable(true, 0, false);
        let chunks = count_of(count, CHUNK);
        let heads = Tensor::empty([chunks, columns], (Kind::Float, dx.device()));
        let tails = heads.empty_like();
        let pointers = [
            address(&sorted, Kind::Int64, count),
            address(&order, Kind::Int64, count),
            self.activations(dx, count * columns),
            address(table, Kind::Float, table.numel() as i64),
            address(&heads, Kind::Float, chunks * columns),
            address(&tails, Kind::Float, chunks * columns),
        ];
        let (grid, call) = (Grid::rows(chunks, columns), Call::new(pointers, [count, columns]));
        self.run(Kernel::EmbeddingRuns, grid, &call);
        self.run(Kernel::EmbeddingJoins, grid, &call);
    }
}
