//! The rows of RMSNorm and LayerNorm: the two differ in centering and in the bias alone.

use super::super::block::{Blocks, block, rows_per_block, rows_per_partial};
use super::super::dispatch::{Body, Level};
use super::super::element::{Element, narrow, widen};
use super::super::lanes;
use super::super::pool::Pool;
use super::Upstream;

/// The affine map after the normalization.
#[derive(Clone, Copy)]
pub(super) struct Scale<'a, E> {
    pub(super) weight: &'a [E],
    pub(super) bias: Option<&'a [E]>,
}

/// What a forward pass writes; `mean` is there if the rows are to be centered.
pub(super) struct Output<'a, E> {
    pub(super) y: &'a mut [E],
    pub(super) mean: Option<&'a mut [f32]>,
    pub(super) rstd: &'a mut [f32],
}

/// What a backward pass reads; `mean` is there if the rows were centered.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a, E> {
    pub(super) x: &'a [E],
    pub(super) mean: Option<&'a [f32]>,
    pub(super) rstd: &'a [f32],
}

/// What a backward pass writes; `d_bias` is there if the rows were centered.
pub(super) struct Gradients<'a, E> {
    pub(super) dx: &'a mut [E],
    pub(super) d_weight: &'a mut [f32],
    pub(super) d_bias: Option<&'a mut [f32]>,
}

/// Checks that `x` is `[N, D]` and gives N.
fn num_rows(x_len: usize, hidden_size: usize) -> usize {
    assert!(hidden_size > 0, "a row has at least one element");
    assert!(x_len.is_multiple_of(hidden_size), "x is whole rows of hidden_size elements");
    x_len / hidden_size
}

/// Normalizes each row, in parallel over blocks of rows.
pub(super) fn forward<E: Element>(
    pool: &Pool,
    scale: Scale<'_, E>,
    eps: f32,
    x: &[E],
    output: Output<'_, E>,
) {
    let hidden_size = scale.weight.len();
    let num_rows = num_rows(x.len(), hidden_size);
    assert_eq!(output.y.len(), x.len(), "y has the shape of x");
    assert_eq!(output.rstd.len(), num_rows, "one rstd a row");
    if let Some(mean) = &output.mean {
        assert_eq!(mean.len(), num_rows, "one mean a row");
    }
    if let Some(bias) = scale.bias {
        assert_eq!(bias.len(), hidden_size, "the bias is as long as the weight");
    }
    let rows = rows_per_block(hidden_size);
    let y = Blocks::new(output.y, rows * hidden_size);
    let mean = output.mean.map(|mean| Blocks::new(mean, rows));
    let rstd = Blocks::new(output.rstd, rows);
    let level = Level::detect();
    pool.for_each(y.num_blocks(), |index| {
        level.run(ForwardBlock {
            scale,
            eps,
            x: block(x, index, rows * hidden_size),
            output: Output {
                y: y.take(index),
                mean: mean.as_ref().map(|mean| mean.take(index)),
                rstd: rstd.take(index),
            },
        });
    });
}

/// The forward pass over a block of rows.
pub(super) struct ForwardBlock<'a, E> {
    pub(super) scale: Scale<'a, E>,
    pub(super) eps: f32,
    pub(super) x: &'a [E],
    pub(super) output: Output<'a, E>,
}

impl<E: Element> Body for ForwardBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, level: Level) {
        let Self { scale, eps, x, output: Output { y, mut mean, rstd } } = self;
        let hidden_size = scale.weight.len();
        let mut wide = vec![0.0f32; hidden_size];
        let mut squares = vec![0.0f32; hidden_size];
        let rows = x.chunks_exact(hidden_size).zip(y.chunks_exact_mut(hidden_size));
        for (row, (x, y)) in rows.enumerate() {
            widen(x, &mut wide);
            if let Some(mean) = &mut mean {
                let row_mean = lanes::sum(level, &wide) / hidden_size as f32;
                mean[row] = row_mean;
                for value in &mut wide {
                    *value -= row_mean;
                }
            }
            for (square, value) in squares.iter_mut().zip(&wide) {
                *square = value * value;
            }
            let mean_square = lanes::sum(level, &squares) / hidden_size as f32;
            let row_rstd = 1.0 / (mean_square + eps).sqrt();
            rstd[row] = row_rstd;
            match scale.bias {
                None => {
                    for ((y, wide), weight) in y.iter_mut().zip(&wide).zip(scale.weight) {
                        *y = E::from_f32(wide * row_rstd * weight.to_f32());
                    }
                }
                Some(bias) => {
                    let affine = scale.weight.iter().zip(bias);
                    for ((y, wide), (weight, bias)) in y.iter_mut().zip(&wide).zip(affine) {
                        *y = E::from_f32(wide * row_rstd * weight.to_f32() + bias.to_f32());
                    }
                }
            }
        }
    }
}

/// The gradients, in parallel over the blocks of rows that the partial sums need.
pub(super) fn backward<E: Element>(
    pool: &Pool,
    weight: &[E],
    upstream: Upstream<'_, E>,
    saved: Saved<'_, E>,
    gradients: Gradients<'_, E>,
) {
    let hidden_size = weight.len();
    let num_rows = num_rows(saved.x.len(), hidden_size);
    check_backward(upstream, saved, &gradients, num_rows, hidden_size);
    let rows = rows_per_partial(num_rows);
    let mut weight_partials = vec![0.0f32; num_rows.div_ceil(rows) * hidden_size];
    let bias_len = if gradients.d_bias.is_some() { weight_partials.len() } else { 0 };
    let mut bias_partials = vec![0.0f32; bias_len];
    let dx = Blocks::new(gradients.dx, rows * hidden_size);
    let d_weight = Blocks::new(&mut weight_partials, hidden_size);
    let d_bias = Blocks::new(&mut bias_partials, hidden_size);
    let level = Level::detect();
    pool.for_each(dx.num_blocks(), |index| {
        level.run(BackwardBlock {
            weight,
            upstream: Upstream {
                dy: block(upstream.dy, index, rows * hidden_size),
                d_residual: upstream.d_residual.map(|d| block(d, index, rows * hidden_size)),
            },
            saved: Saved {
                x: block(saved.x, index, rows * hidden_size),
                mean: saved.mean.map(|mean| block(mean, index, rows)),
                rstd: block(saved.rstd, index, rows),
            },
            gradients: Gradients {
                dx: dx.take(index),
                d_weight: d_weight.take(index),
                d_bias: (bias_len > 0).then(|| d_bias.take(index)),
            },
        });
    });
    add_partials(&weight_partials, gradients.d_weight);
    if let Some(d_bias) = gradients.d_bias {
        add_partials(&bias_partials, d_bias);
    }
}

fn check_backward<E>(
    upstream: Upstream<'_, E>,
    saved: Saved<'_, E>,
    gradients: &Gradients<'_, E>,
    num_rows: usize,
    hidden_size: usize,
) {
    assert_eq!(upstream.dy.len(), saved.x.len(), "dy has the shape of x");
    assert!(upstream.d_residual.is_none_or(|d| d.len() == saved.x.len()), "so has d_residual");
    assert!(saved.mean.is_none_or(|mean| mean.len() == num_rows), "one mean a row");
    assert_eq!(saved.rstd.len(), num_rows, "one rstd a row");
    assert_eq!(gradients.dx.len(), saved.x.len(), "dx has the shape of x");
    assert_eq!(gradients.d_weight.len(), hidden_size, "d_weight is as long as the weight");
    let d_bias = gradients.d_bias.as_ref();
    assert!(d_bias.is_none_or(|d| d.len() == hidden_size), "d_bias is as long as the weight");
}

/// Adds the partial sums `[blocks, D]` to `sums` `[D]`, in the order of the blocks.
fn add_partials(partials: &[f32], sums: &mut [f32]) {
    for partial in partials.chunks_exact(sums.len()) {
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum += partial;
        }
    }
}

/// The backward pass over a block of rows; `d_weight` and `d_bias` are this block's partial sums.
pub(super) struct BackwardBlock<'a, E> {
    pub(super) weight: &'a [E],
    pub(super) upstream: Upstream<'a, E>,
    pub(super) saved: Saved<'a, E>,
    pub(super) gradients: Gradients<'a, E>,
}

impl<E: Element> Body for BackwardBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, level: Level) {
        let Self { weight, upstream, saved, gradients } = self;
        let Gradients { dx, d_weight, mut d_bias } = gradients;
        let hidden_size = weight.len();
        let mut normalized = vec![0.0f32; hidden_size];
        let mut scaled = vec![0.0f32; hidden_size];
        let mut products = vec![0.0f32; hidden_size];
        for row in 0..saved.rstd.len() {
            let range = row * hidden_size..(row + 1) * hidden_size;
            let (x, dy) = (&saved.x[range.clone()], &upstream.dy[range.clone()]);
            let rstd = saved.rstd[row];
            // Without centering this subtracts 0, which changes nothing.
            let mean = saved.mean.map_or(0.0, |mean| mean[row]);
            for (normalized, x) in normalized.iter_mut().zip(x) {
                *normalized = (x.to_f32() - mean) * rstd;
            }
            for ((scaled, dy), weight) in scaled.iter_mut().zip(dy).zip(weight) {
                *scaled = dy.to_f32() * weight.to_f32();
            }
            for ((product, scaled), normalized) in products.iter_mut().zip(&scaled).zip(&normalized)
            {
                *product = scaled * normalized;
            }
            let along = lanes::sum(level, &products) / hidden_size as f32;
            let mut offset = 0.0;
            if let Some(d_bias) = &mut d_bias {
                offset = lanes::sum(level, &scaled) / hidden_size as f32;
                for (d_bias, dy) in d_bias.iter_mut().zip(dy) {
                    *d_bias += dy.to_f32();
                }
            }
            for ((d_weight, dy), normalized) in d_weight.iter_mut().zip(dy).zip(&normalized) {
                *d_weight += dy.to_f32() * normalized;
            }
            for (scaled, normalized) in scaled.iter_mut().zip(&normalized) {
                *scaled = rstd * (*scaled - offset - normalized * along);
            }
            let dx = &mut dx[range.clone()];
            match upstream.d_residual {
                None => narrow(&scaled, dx),
                Some(d_residual) => {
                    let around = &d_residual[range];
                    for ((dx, scaled), around) in dx.iter_mut().zip(&scaled).zip(around) {
                        *dx = E::from_f32(scaled + around.to_f32());
                    }
                }
            }
        }
    }
}
