//! Attention as the formula says it, in f64, and inputs to try it on.

use super::super::{AttentionShape, Element, Segments};

/// The results of a pass in f64, laid out as the kernel's.
pub(super) struct Reference {
    pub(super) out: Vec<f64>,
    pub(super) lse: Vec<f64>,
    pub(super) d_qkv: Vec<f64>,
}

/// Standard normal values, always the same for a seed.
pub(super) fn normal<E: Element>(len: usize, mut seed: u64, deviation: f64) -> Vec<E> {
    let mut uniform = move || {
        // SplitMix64 (Steele, Lea, Flood 2014).
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = seed;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut next = move || {
        // Box and Muller 1958.
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * uniform()).cos()
    };
    (0..len).map(|_| E::narrow((deviation * next()) as f32)).collect()
}

/// Forward and backward by the formulas, one query at a time.
pub(super) fn reference<E: Element>(
    (shape, segments): (&AttentionShape, Option<&Segments>),
    qkv: &[E],
    d_out: &[E],
) -> Reference {
    let qkv: Vec<f64> = qkv.iter().map(|x| f64::from(x.widen())).collect();
    let d_out: Vec<f64> = d_out.iter().map(|x| f64::from(x.widen())).collect();
    let mut results = Reference {
        out: vec![0.0; shape.out_len()],
        lse: vec![0.0; shape.lse_len()],
        d_qkv: vec![0.0; shape.qkv_len()],
    };
    for sequence in 0..shape.batch {
        for head in 0..shape.num_heads {
            for row in 0..shape.sequence_length {
                query((shape, segments), &qkv, &d_out, [sequence, head, row], &mut results);
            }
        }
    }
    results
}

fn query(
    (shape, segments): (&AttentionShape, Option<&Segments>),
    qkv: &[f64],
    d_out: &[f64],
    [sequence, head, row]: [usize; 3],
    results: &mut Reference,
) {
    let (length, dim) = (shape.sequence_length, shape.head_dim);
    let kv_head = head / (shape.num_heads / shape.num_kv_heads);
    let num_slots = shape.num_heads + 2 * shape.num_kv_heads;
    let start = |row: usize, slot: usize| ((sequence * length + row) * num_slots + slot) * dim;
    let key = |row: usize| start(row, shape.num_heads + kv_head);
    let value = |row: usize| start(row, shape.num_heads + shape.num_kv_heads + kv_head);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = f64::from(shape.scale);
    let first = (row + 1).saturating_sub(shape.window.unwrap_or(usize::MAX));
    // The keys of the query's segment are those whose segment ends where its own does.
    let is_near = |column: &usize| {
        segments
            .is_none_or(|segments| segments.ends(sequence)[*column] == segments.ends(sequence)[row])
    };
    let first = (first..=row).find(is_near).expect("a query sees itself");

    let q = start(row, head);
    let scores: Vec<f64> =
        (first..=row).map(|c| scale * dot(&qkv[q..][..dim], &qkv[key(c)..][..dim])).collect();
    let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - maximum).exp()).sum();
    results.lse[(sequence * shape.num_heads + head) * length + row] = maximum + sum.ln();
    let weights: Vec<f64> = scores.iter().map(|score| (score - maximum).exp() / sum).collect();

    let o = ((sequence * length + row) * shape.num_heads + head) * dim;
    for (column, weight) in (first..=row).zip(&weights) {
        (0..dim).for_each(|h| results.out[o + h] += weight * qkv[value(column) + h]);
    }
    let d_o = &d_out[o..][..dim];
    let delta = dot(d_o, &results.out[o..][..dim]);
    for (column, weight) in (first..=row).zip(&weights) {
        let ds = scale * weight * (dot(d_o, &qkv[value(column)..][..dim]) - delta);
        for h in 0..dim {
            results.d_qkv[q + h] += ds * qkv[key(column) + h];
            results.d_qkv[key(column) + h] += ds * qkv[q + h];
            results.d_qkv[value(column) + h] += weight * d_o[h];
        }
    }
}
