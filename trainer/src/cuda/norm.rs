//! RMSNorm and LayerNorm, forward and backward.

use tch::{Kind, Tensor};

use super::source::Kernel;
use super::{Call, Fused, Grid, MOST_BLOCKS, PACK, address, count_of};

/// At most this many partial sums go into the gradient of a weight.
const MOST_PARTIALS: i64 = 512;
/// A partial sum takes in at least this many rows.
const LEAST_ROWS: i64 = 16;
/// Threads of a block that sums rows.
const SUM_THREADS: i64 = 128;

/// What a norm's backward reads.
#[derive(Clone, Copy, Debug)]
pub struct NormInput<'a> {
    /// `[N, D]`, the forward's input.
    pub x: &'a Tensor,
    /// `[D]`.
    pub weight: &'a Tensor,
    /// `[N]` f32, for `LayerNorm`.
    pub mean: Option<&'a Tensor>,
    /// `[N]` f32.
    pub rstd: &'a Tensor,
}

/// What a norm's backward finds.
#[derive(Debug)]
pub struct NormGradients {
    /// `[N, D]`.
    pub dx: Tensor,
    /// `[D]` f32.
    pub d_weight: Tensor,
    /// `[D]` f32, for `LayerNorm`.
    pub d_bias: Option<Tensor>,
}

impl Fused {
    /// `(y, mean, rstd)`; a `LayerNorm` if there is a bias.
    ///
    /// # Shapes
    /// - `x`: `[N, D]` with `D` of whole packs; `weight`, `bias`: `[D]`; `mean`, `rstd`: `[N]` f32
    pub fn norm_forward(
        &self,
        x: &Tensor,
        (weight, bias): (&Tensor, Option<&Tensor>),
        eps: f64,
    ) -> (Tensor, Option<Tensor>, Tensor) {
        let (rows, columns) = x.size2().expect("x is [N, D]");
        assert!(self.takes(columns), "rows are whole packs");
        let y = x.empty_like();
        let rstd = Tensor::empty([rows], (Kind::Float, x.device()));
        let mean = bias.map(|_| rstd.empty_like());
        let statistic = |tensor: &Tensor| address(tensor, Kind::Float, rows);
        let pointers = [
            self.activations(x, rows * columns),
            self.activations(weight, columns),
            bias.map_or(0, |bias| self.activations(bias, columns)),
            self.activations(&y, rows * columns),
            mean.as_ref().map_or(0, statistic),
            statistic(&rstd),
        ];
        let call = Call::new(pointers, [rows, columns]).with_number(eps as f32);
        self.run(Kernel::NormForward, Grid::rows(rows, columns), &call);
        (y, mean, rstd)
    }

    /// The gradients for `dy` `[N, D]` of the output; `residual` `[N, D]` is added to `dx`.
    pub fn norm_backward(
        &self,
        input: NormInput<'_>,
        dy: &Tensor,
        residual: Option<&Tensor>,
    ) -> NormGradients {
        let NormInput { x, weight, mean, rstd } = input;
        let (rows, columns) = x.size2().expect("x is [N, D]");
        assert!(self.takes(columns), "rows are whole packs");
        let dx = x.empty_like();
        let whole = |tensor: &Tensor| self.activations(tensor, rows * columns);
        let statistic = |tensor: &Tensor| address(tensor, Kind::Float, rows);
        let pointers = [
            whole(x),
            self.activations(weight, columns),
            whole(dy),
            residual.map_or(0, whole),
            mean.map_or(0, statistic),
            statistic(rstd),
            whole(&dx),
        ];
        let call = Call::new(pointers, [rows, columns]);
        self.run(Kernel::NormBackward, Grid::rows(rows, columns), &call);
        let (d_weight, d_bias) = self.norm_weights(input, dy);
        NormGradients { dx, d_weight, d_bias }
    }

    fn norm_weights(&self, input: NormInput<'_>, dy: &Tensor) -> (Tensor, Option<Tensor>) {
        let NormInput { x, mean, rstd, .. } = input;
        let (rows, columns) = x.size2().expect("x is [N, D]");
        let height = count_of(rows, MOST_PARTIALS).max(LEAST_ROWS);
        let partials = count_of(rows, height);
        let d_weight = Tensor::empty([partials, columns], (Kind::Float, x.device()));
        let d_bias = mean.map(|_| d_weight.empty_like());
        let sums = |tensor: &Tensor| address(tensor, Kind::Float, partials * columns);
        let statistic = |tensor: &Tensor| address(tensor, Kind::Float, rows);
        let pointers = [
            self.activations(x, rows * columns),
            self.activations(dy, rows * columns),
            mean.map_or(0, statistic),
            statistic(rstd),
            sums(&d_weight),
            d_bias.as_ref().map_or(0, sums),
        ];
        let blocks = (partials * count_of(columns, SUM_THREADS * PACK)).min(MOST_BLOCKS);
        let grid = Grid { blocks: blocks as u32, threads: SUM_THREADS as u32 };
        self.run(Kernel::NormWeights, grid, &Call::new(pointers, [rows, columns, height]));
        let sum =
            |partials: &Tensor| partials.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        (sum(&d_weight), d_bias.as_ref().map(sum))
    }
}
