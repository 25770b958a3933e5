//! Token embedding, with learned positions where the family has them.

use tch::Tensor;

use super::compute::{Compute, per_element};
use super::segments::Segments;
use super::views::{Accumulate, Grads, Weights};
use crate::kernel::embedding::{self as kernel, EmbeddingGradients};
use crate::kernel::view;

/// Index of the token embedding in its unit.
pub const TOKENS: usize = 0;
/// Index of the position embedding in its unit, in families that learn positions.
pub const POSITIONS: usize = 1;

/// Which rows of a table of learned positions are added to the tokens'.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// None: the family learns no positions.
    None,
    /// Those of the positions in rows.
    OfRows,
    /// Those of the positions in segments.
    OfSegments(&'a Segments),
}

impl<'a> Positions<'a> {
    fn are_learned(self) -> bool {
        !matches!(self, Self::None)
    }

    /// `[B * S]` i64, where they do not follow from the rows.
    fn listed(self) -> Option<&'a Tensor> {
        match self {
            Self::None | Self::OfRows => None,
            Self::OfSegments(segments) => Some(segments.position_ids()),
        }
    }
}

/// Looks the tokens up and adds the positions' rows if there are any.
///
/// # Shapes
/// - `tokens`: `[B, S]` i64; returns `[B * S, D]` in the compute dtype
pub fn forward(
    compute: &Compute,
    weights: &Weights<'_>,
    tokens: &Tensor,
    positions: Positions<'_>,
) -> Tensor {
    if compute.has_kernels() {
        return forward_kernel(compute, weights, tokens, positions);
    }
    let rows = weights.get(TOKENS).index_select(0, &tokens.view(-1));
    if !positions.are_learned() {
        return rows;
    }
    if let Some(listed) = positions.listed() {
        return rows + weights.get(POSITIONS).index_select(0, listed);
    }
    let (b, s) = tokens.size2().expect("tokens are [B, S]");
    let positions = weights.get(POSITIONS).narrow(0, 0, s);
    (rows.view([b, s, -1]) + positions).view([b * s, -1])
}

/// Adds the gradient of the looked-up rows to `grads`, wide buffers, in an order that does not depend
/// on threads.
///
/// `token_grads` says whether the token table's gradient is replaced or added to, which differs
/// from `grads` when the table is the head's output matrix too and the head came first.
///
/// # Shapes
/// - `tokens`: `[B, S]` i64; `dx`: `[B * S, D]`
pub fn backward(
    compute: &Compute,
    grads: &Grads<'_>,
    token_grads: Accumulate,
    (tokens, dx): (&Tensor, &Tensor),
    positions: Positions<'_>,
) {
    let ids = tokens.view(-1);
    let (b, s) = tokens.size2().expect("tokens are [B, S]");
    let mut target = grads.with(token_grads).open(compute, TOKENS);
    let learned = positions.are_learned();
    let mut d_positions = learned.then(|| grads.open(compute, POSITIONS).narrow(0, 0, s));
    if let Some(fused) = compute.fused(dx.size()[1]) {
        fused.add_rows(&mut target, &ids, dx);
        if let (Some(table), Some(listed)) = (&mut d_positions, positions.listed()) {
            fused.add_rows(table, listed, dx);
        } else if let Some(table) = &mut d_positions {
            add_sequences(compute, table, dx, (b, s));
        }
        return;
    }
    if compute.has_kernels() {
        let sums = (&mut target, d_positions.as_mut());
        return add_rows_kernel(compute, sums, positions.listed(), (&ids, dx));
    }
    let (vocab, wide) = (target.size()[0], dx.to_kind(compute.accumulation()));
    let _ = target.g_add_(&Tensor::embedding_dense_backward(&wide, &ids, vocab, -1, false));
    let Some(mut d_positions) = d_positions else { return };
    if let Some(listed) = positions.listed() {
        let _ = d_positions.index_add_(0, listed, &wide);
    } else {
        add_sequences(compute, &mut d_positions, dx, (b, s));
    }
}

/// Adds each sequence of `dx` `[B * S, D]` to a table `[S, D]`.
fn add_sequences(compute: &Compute, table: &mut Tensor, dx: &Tensor, (b, s): (i64, i64)) {
    let rows = dx.view([b, s, -1]);
    let sum = rows.sum_dim_intlist([0i64].as_slice(), false, compute.accumulation());
    let _ = table.g_add_(&sum);
}

fn forward_kernel(
    compute: &Compute,
    weights: &Weights<'_>,
    tokens: &Tensor,
    positions: Positions<'_>,
) -> Tensor {
    let (b, s) = tokens.size2().expect("tokens are [B, S]");
    let table = weights.get(TOKENS);
    let hidden_size = table.size()[1];
    let learned = positions.are_learned();
    let table_of_positions = learned.then(|| weights.get(POSITIONS).narrow(0, 0, s));
    let mut x = compute.empty(&[b * s, hidden_size]);
    per_element!(compute, E => {
        let embedding = kernel::Embedding::<E> {
            weight: view::slice(&table),
            positions: table_of_positions.as_ref().map(view::slice),
            position_ids: positions.listed().map(view::slice),
            hidden_size: hidden_size as usize,
        };
        embedding
            .forward(&compute.pool, view::slice(tokens), view::slice_mut(&mut x))
            .expect("token ids are checked against the vocabulary when they are read");
    });
    x
}

fn add_rows_kernel(
    compute: &Compute,
    (target, d_positions): (&mut Tensor, Option<&mut Tensor>),
    position_ids: Option<&Tensor>,
    (ids, dx): (&Tensor, &Tensor),
) {
    let ids = view::slice::<i64>(ids);
    let gradients = EmbeddingGradients {
        d_weight: view::slice_mut(target),
        d_positions: d_positions.map(view::slice_mut),
        position_ids: position_ids.map(view::slice),
        hidden_size: dx.size()[1] as usize,
    };
    per_element!(compute, E => {
        kernel::backward(&compute.pool, ids, view::slice::<E>(dx), gradients)
            .expect("token ids are checked against the vocabulary when they are read");
    });
}
