//! CAME: Adafactor with momentum, slowed where the momentum and the update disagree (Luo et al.
//! 2023, arXiv:2307.02047, algorithm 2).

use tch::Tensor;

use super::factored::{clip_rms_, mean_square};
use super::facts::ParamFacts;
use super::ranges::{require_beta, require_eps, require_positive, require_weight_decay};
use super::state::{WholeStateKind, WholeStateSpec};
use crate::elements::Scalars;
use crate::error::Result;

/// Hyper-parameters of [`Came`]; the defaults are the paper's and its authors' code's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CameConfig {
    /// Decay of the averaged update. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment's rows and columns. Default 0.999.
    pub beta2: f64,
    /// Decay of the instability's rows and columns. Default 0.9999; with `beta2` 0.95, 0.99 to
    /// 0.999 is used.
    pub beta3: f64,
    /// Added to the mean squared gradient. Default 1e-30.
    pub eps1: f64,
    /// Added to the mean squared instability. Default 1e-16.
    pub eps2: f64,
    /// The most that the root mean square of an update may be before averaging. Default 1.
    pub clip_threshold: f64,
    /// Decoupled weight decay before the group's multiplier. Default 0.
    pub weight_decay: f64,
}

impl Default for CameConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            beta3: 0.9999,
            eps1: 1e-30,
            eps2: 1e-16,
            clip_threshold: 1.0,
            weight_decay: 0.0,
        }
    }
}

/// CAME with validated hyper-parameters.
///
/// With `g = grad_scale * grad`, for a matrix:
///
/// ```text
/// R     <- beta2 R + (1 - beta2) (rowmean(g^2) + eps1)                  C likewise
/// u     = g / sqrt(R C^T / mean(R))             u <- u / max(1, RMS(u) / clip_threshold)
/// m     <- beta1 m + (1 - beta1) u
/// S     <- beta3 S + (1 - beta3) (rowmean((u - m)^2) + eps2)            D likewise, of columns
/// theta <- (1 - lr weight_decay) theta - lr m / sqrt(S D^T / mean(S))
/// ```
///
/// A vector keeps all of its second moment and steps by `lr m`, without confidence. As in the
/// authors' code there is no bias correction: the clipping hides the first steps' excess of
/// `1 / sqrt(1 - beta2)` in `u`, and nothing hides that of `1 / sqrt(1 - beta3)`, 100 with the
/// default, in the confidence: warm up. Worked number: a 1 x 1 matrix, g = 0.5, t = 1, lr = 1e-4:
/// R = C = 0.00025, u = 31.6 clipped to 1, m = 0.1, S = D = 0.81e-4, and the update is
/// 1e-4 * 0.1 / 0.009 = 1.11e-3.
///
/// Temporaries: one of the matrix's size besides the update. No synchronization with a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Came {
    config: CameConfig,
}

impl Came {
    pub(crate) const NAME: &'static str = "came";

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: CameConfig) -> Result<Self> {
        require_beta("optim.betas[0]", config.beta1, 0.9)?;
        require_beta("optim.betas[1]", config.beta2, 0.999)?;
        require_beta("optim.beta3", config.beta3, 0.9999)?;
        // Times 1 - beta, a smaller one would not be a normal number in f32.
        let eps1_range = (1e-32, "1e-32 <= eps1 < 1");
        let eps2_range = (1e-32, "1e-32 <= eps2 < 1");
        require_eps("optim.eps1", config.eps1, eps1_range, 1e-30)?;
        require_eps("optim.eps2", config.eps2, eps2_range, 1e-16)?;
        require_positive("optim.clip_threshold", config.clip_threshold, 1.0)?;
        require_weight_decay(config.weight_decay, 0.0)?;
        Ok(Self { config })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &CameConfig {
        &self.config
    }

    pub(super) fn state_specs(facts: &ParamFacts) -> Vec<WholeStateSpec> {
        let mut specs = vec![WholeStateSpec::new(WholeStateKind::FirstMoment, &facts.shape)];
        match facts.matrix() {
            Some([rows, cols]) => specs.extend([
                WholeStateSpec::new(WholeStateKind::SecondMomentRow, &[rows]),
                WholeStateSpec::new(WholeStateKind::SecondMomentCol, &[cols]),
                WholeStateSpec::new(WholeStateKind::InstabilityRow, &[rows]),
                WholeStateSpec::new(WholeStateKind::InstabilityCol, &[cols]),
            ]),
            None => {
                specs.push(WholeStateSpec::new(WholeStateKind::SecondMoment, &facts.shape));
            }
        }
        specs
    }

    pub(super) fn update(
        &self,
        grad: Tensor,
        state: &mut [Tensor],
        scalars: &Scalars,
    ) -> Result<Tensor> {
        let CameConfig { beta1, beta2, beta3, eps1, eps2, clip_threshold, .. } = self.config;
        let mut update = grad;
        let mut step = match state {
            [first, row, col, instability_row, instability_col] => {
                average_(row, &mean_square(&update, 1)?, beta2, eps1)?;
                average_(col, &mean_square(&update, 0)?, beta2, eps1)?;
                divide_by_root_(&mut update, row, col)?;
                clip_rms_(&mut update, clip_threshold)?;
                let _ = first.f_lerp_(&update, 1.0 - beta1)?;
                let _ = update.f_sub_(first)?;
                average_(instability_row, &mean_square(&update, 1)?, beta3, eps2)?;
                average_(instability_col, &mean_square(&update, 0)?, beta3, eps2)?;
                update.f_copy_(first)?;
                divide_by_root_(&mut update, instability_row, instability_col)?;
                update
            }
            [first, second] => {
                average_(second, &update.f_square()?, beta2, eps1)?;
                let _ = update.f_mul_(&second.f_rsqrt()?)?;
                clip_rms_(&mut update, clip_threshold)?;
                let _ = first.f_lerp_(&update, 1.0 - beta1)?;
                update.f_copy_(first)?;
                update
            }
            _ => unreachable!("the number of states was checked"),
        };
        let _ = step.f_mul_scalar_(scalars.lr)?;
        Ok(step)
    }
}

/// `average <- beta average + (1 - beta) (values + eps)`.
fn average_(average: &mut Tensor, values: &Tensor, beta: f64, eps: f64) -> Result<()> {
    let _ = average.f_mul_scalar_(beta)?;
    let mut new = values.f_add_scalar(eps)?;
    let _ = average.f_add_(&new.f_mul_scalar_(1.0 - beta)?)?;
    Ok(())
}

/// `values / sqrt(row col^T / mean(row))`, by its two factors: the product could underflow in f32.
fn divide_by_root_(values: &mut Tensor, row: &Tensor, col: &Tensor) -> Result<()> {
    let row = row.f_div(&row.f_mean(row.kind())?)?.f_rsqrt()?;
    let _ = values.f_mul_(&row.f_unsqueeze(1)?)?;
    let _ = values.f_mul_(&col.f_rsqrt()?)?;
    Ok(())
}

#[cfg(test)]
mod tests;
