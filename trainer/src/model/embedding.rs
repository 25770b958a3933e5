//! Token embedding, with learned positions where the family has them.

use tch::Tensor;

use super::compute::{Compute, per_element};
use super::views::{Accumulate, Grads, Weights};
use crate::kernel::embedding::{self as kernel, EmbeddingGradients};
use crate::kernel::view;

/// Index of the token embedding in its unit.
pub const TOKENS: usize = 0;
/// Index of the position embedding in its unit, in families that learn positions.
pub const POSITIONS: usize = 1;

/// Looks the tokens up and adds the positions' rows if there are any.
///
/// # Shapes
/// - `tokens`: `[B, S]` i64; returns `[B * S, D]` in the compute dtype
pub fn forward(
    compute: &Compute,
    weights: &Weights<'_>,
    tokens: &Tensor,
    learned_positions: bool,
) -> Tensor {
    if compute.has_kernels() {
        return forward_kernel(compute, weights, tokens, learned_positions);
    }
    let rows = weights.get(TOKENS).index_select(0, &tokens.view(-1));
    if !learned_positions {
        return rows;
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
    learned_positions: bool,
) {
    let ids = tokens.view(-1);
    let (b, s) = tokens.size2().expect("tokens are [B, S]");
    let mut target = Grads { accumulate: token_grads, ..*grads }.open(compute, TOKENS);
    let mut positions = learned_positions.then(|| grads.open(compute, POSITIONS).narrow(0, 0, s));
    if compute.has_kernels() {
        return add_rows_kernel(compute, &mut target, positions.as_mut(), (&ids, dx));
    }
    let (vocab, wide) = (target.size()[0], dx.to_kind(compute.accumulation()));
    let _ = target.g_add_(&Tensor::embedding_dense_backward(&wide, &ids, vocab, -1, false));
    if let Some(mut positions) = positions {
        let rows = dx.view([b, s, -1]);
        let sum = rows.sum_dim_intlist([0i64].as_slice(), false, compute.accumulation());
        let _ = positions.g_add_(&sum);
    }
}

fn forward_kernel(
    compute: &Compute,
    weights: &Weights<'_>,
    tokens: &Tensor,
    learned_positions: bool,
) -> Tensor {
    let (b, s) = tokens.size2().expect("tokens are [B, S]");
    let table = weights.get(TOKENS);
    let hidden_size = table.size()[1];
    let positions = learned_positions.then(|| weights.get(POSITIONS).narrow(0, 0, s));
    let mut x = compute.empty(&[b * s, hidden_size]);
    per_element!(compute, E => {
        let embedding = kernel::Embedding::<E> {
            weight: view::slice(&table),
            positions: positions.as_ref().map(view::slice),
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
    target: &mut Tensor,
    positions: Option<&mut Tensor>,
    (ids, dx): (&Tensor, &Tensor),
) {
    let ids = view::slice::<i64>(ids);
    let gradients = EmbeddingGradients {
        d_weight: view::slice_mut(target),
        d_positions: positions.map(view::slice_mut),
        hidden_size: dx.size()[1] as usize,
    };
    per_element!(compute, E => {
        kernel::backward(&compute.pool, ids, view::slice::<E>(dx), gradients)
            .expect("token ids are checked against the vocabulary when they are read");
    });
}
