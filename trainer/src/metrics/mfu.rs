//! Model FLOPs utilization: how much of the hardware's arithmetic a run turns into training.

/// Model FLOPs utilization, as a fraction of 1.
///
/// ```text
/// mfu = tokens_per_second * flops_per_token / (num_ranks * peak_flops_per_rank)
/// ```
///
/// `flops_per_token` counts the forward and backward pass of the model as written, without
/// recomputation, so recomputing activations lowers the result as it should. A worked number:
/// 1e5 tokens/s at 6e9 FLOPs a token on 2 ranks of 1e15 FLOP/s give 6e14 / 2e15 = 0.3.
///
/// The result is NaN (0 / 0) or infinite where the peak is given as 0.
///
/// # References
/// Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
#[must_use]
pub fn mfu(
    tokens_per_second: f64,
    flops_per_token: f64,
    num_ranks: usize,
    peak_flops_per_rank: f64,
) -> f64 {
    tokens_per_second * flops_per_token / (num_ranks as f64 * peak_flops_per_rank)
}
