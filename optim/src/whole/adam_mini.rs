//! Adam-mini: `AdamW` with one second moment a block (Zhang et al. 2024, arXiv:2406.16793,
//! algorithms 1 to 3).

use tch::Tensor;

use super::facts::ParamFacts;
use super::ranges::{ROOT_EPS, require_beta, require_eps, require_weight_decay};
use super::state::{WholeStateKind, WholeStateSpec};
use crate::elements::Scalars;
use crate::error::Result;

/// Hyper-parameters of [`AdamMini`]: those of [`crate::AdamWConfig`], with the same meaning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamMiniConfig {
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the blocks' second moments. Default 0.95.
    pub beta2: f64,
    /// Added to the root of the bias-corrected second moment. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay before the group's multiplier. Default 0.1.
    pub weight_decay: f64,
}

impl Default for AdamMiniConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// Adam-mini with validated hyper-parameters.
///
/// With `g = grad_scale * grad`, update number `t` (from 1), and the blocks of
/// [`ParamFacts::parts`]:
///
/// ```text
/// m     <- beta1 m + (1 - beta1) g
/// v_b   <- beta2 v_b + (1 - beta2) mean of g^2 over block b
/// theta <- (1 - lr weight_decay) theta
/// theta <- theta - lr / (1 - beta1^t) m / (sqrt(v_b) / sqrt(1 - beta2^t) + eps)
/// ```
///
/// The paper's blocks: a head of q and k, an output neuron of other matrices, a token of
/// embedding and head, all of a norm. Blocks of single elements make it `AdamW`. Below 10 to 20
/// thousand steps the authors take all of v as one block. Worked number: a block of gradients
/// 3 and 4, t = 1, lr = 0.1: v = 0.05 * 12.5, corrected 12.5, and the updates are
/// 0.1 * 3 / 3.5355 = 0.08485 and 0.11314.
///
/// Temporaries: one of the matrix's size besides the update. No synchronization with a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamMini {
    config: AdamMiniConfig,
}

impl AdamMini {
    pub(crate) const NAME: &'static str = "adam_mini";

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: AdamMiniConfig) -> Result<Self> {
        require_beta("optim.betas[0]", config.beta1, 0.9)?;
        require_beta("optim.betas[1]", config.beta2, 0.95)?;
        require_eps("optim.eps", config.eps, ROOT_EPS, 1e-8)?;
        require_weight_decay(config.weight_decay, 0.1)?;
        Ok(Self { config })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &AdamMiniConfig {
        &self.config
    }

    pub(super) fn state_specs(facts: &ParamFacts) -> Vec<WholeStateSpec> {
        vec![
            WholeStateSpec::new(WholeStateKind::FirstMoment, &facts.shape),
            WholeStateSpec::new(WholeStateKind::SecondMomentBlock, &[facts.num_blocks()]),
        ]
    }

    pub(super) fn update(
        &self,
        grad: &Tensor,
        state: &mut [Tensor],
        facts: &ParamFacts,
        scalars: &Scalars,
    ) -> Result<Tensor> {
        let AdamMiniConfig { beta1, beta2, eps, .. } = self.config;
        let [first, second] = state else { unreachable!("the number of states was checked") };
        let step = scalars.step as f64;
        let mut squares = block_mean_squares(grad, facts)?;
        let _ = second.f_mul_scalar_(beta2)?;
        let _ = second.f_add_(&squares.f_mul_scalar_(1.0 - beta2)?)?;
        let _ = first.f_lerp_(grad, 1.0 - beta1)?;
        let mut factor = second.f_sqrt()?;
        let _ = factor.f_mul_scalar_(1.0 / (1.0 - beta2.powf(step)).sqrt())?;
        let _ = factor.f_add_scalar_(eps)?;
        let _ = factor.f_reciprocal_()?;
        let _ = factor.f_mul_scalar_(scalars.lr / (1.0 - beta1.powf(step)))?;
        Ok(first.f_mul(&over_outputs(&factor, facts)?)?)
    }
}

/// The mean of `grad^2` over each block: `[num_blocks]`.
fn block_mean_squares(grad: &Tensor, facts: &ParamFacts) -> Result<Tensor> {
    let squares = match facts.matrix() {
        Some(_) => super::factored::mean_square(grad, 1 - facts.output_dim() as i64)?,
        None => grad.f_square()?,
    };
    let mut means = Vec::with_capacity(facts.parts.len());
    let mut start = 0;
    for part in &facts.parts {
        let outputs = squares.f_narrow(0, start, part.num_outputs)?;
        let blocks = outputs.f_reshape([part.num_blocks(), part.outputs_per_block])?;
        means.push(blocks.f_mean_dim([1_i64].as_slice(), false, squares.kind())?);
        start += part.num_outputs;
    }
    Ok(Tensor::f_cat(&means, 0)?)
}

/// The value of each block for each of its outputs, shaped to multiply the parameter.
fn over_outputs(values: &Tensor, facts: &ParamFacts) -> Result<Tensor> {
    let mut outputs = Vec::with_capacity(facts.parts.len());
    let mut start = 0;
    for part in &facts.parts {
        let num_blocks = part.num_blocks();
        let blocks = values.f_narrow(0, start, num_blocks)?.f_unsqueeze(1)?;
        let each = blocks.f_expand([num_blocks, part.outputs_per_block], false)?;
        outputs.push(each.f_reshape([part.num_outputs])?);
        start += num_blocks;
    }
    let outputs = Tensor::f_cat(&outputs, 0)?;
    match facts.matrix() {
        Some(_) => Ok(outputs.f_unsqueeze(1 - facts.output_dim() as i64)?),
        None => Ok(outputs),
    }
}

#[cfg(test)]
mod tests;
