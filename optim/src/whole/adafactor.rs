//! Adafactor: a second moment of rows and columns only (Shazeer and Stern 2018, arXiv:1804.04235,
//! algorithms 4 and 5).

use tch::Tensor;

use super::factored::{clip_rms_, mean_square, outer_estimate, rms};
use super::facts::ParamFacts;
use super::ranges::{require_eps, require_positive, require_weight_decay};
use super::state::{WholeStateKind, WholeStateSpec};
use crate::elements::Scalars;
use crate::error::{Result, require};

/// How long a step of [`Adafactor`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepScale {
    /// `max(eps2, RMS(theta)) * min(lr, 1 / sqrt(t))`: the paper's relative step. Reads the master.
    Relative,
    /// `lr`, as other rules: the schedule alone decides.
    Plain,
}

/// Hyper-parameters of [`Adafactor`]; the defaults are torch's, but for `eps1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdafactorConfig {
    /// The second moment's decay at update `t` is `1 - t^-decay_power`. Default 0.8.
    pub decay_power: f64,
    /// The least mean of squared gradients that is believed; its square is the least estimate of
    /// a squared gradient. Default 1e-18, for gradients down to 1e-9: torch takes the spacing of
    /// the dtype, 1.2e-7 in f32, which exceeds the mean square of most layers of a language model.
    pub eps1: f64,
    /// The least root mean square of a parameter for [`StepScale::Relative`]. Default 1e-3.
    pub eps2: f64,
    /// The most that the root mean square of an update may be before the step's length. Default 1.
    pub clip_threshold: f64,
    /// How long a step is. Default [`StepScale::Relative`].
    pub step_scale: StepScale,
    /// Decoupled weight decay before the group's multiplier. Default 0.
    pub weight_decay: f64,
}

impl Default for AdafactorConfig {
    fn default() -> Self {
        Self {
            decay_power: 0.8,
            eps1: 1e-18,
            eps2: 1e-3,
            clip_threshold: 1.0,
            step_scale: StepScale::Relative,
            weight_decay: 0.0,
        }
    }
}

/// Adafactor with validated hyper-parameters.
///
/// With `g = grad_scale * grad` and update number `t` (from 1), for a matrix:
///
/// ```text
/// w     = t^-decay_power
/// R     <- (1 - w) R + w rowmean(g^2)           C <- (1 - w) C + w colmean(g^2)
/// V     = R C^T / max(mean(R), eps1)
/// U     = g / sqrt(max(V, eps1^2))
/// alpha = max(eps2, RMS(theta)) min(lr, 1 / sqrt(t))       (Plain: alpha = lr)
/// theta <- (1 - lr weight_decay) theta - alpha U / max(1, RMS(U) / clip_threshold)
/// ```
///
/// A vector keeps all of `V`. This is the form of `torch.optim.Adafactor`, which departs from the
/// paper: means for sums, `eps1` in the denominators for `eps1` added to `g^2`, and `lr` for the
/// paper's 0.01. `RMS(theta)` is that before the decay. Worked number: a 1 x 1 matrix theta = 2,
/// g = 0.5, t = 1, lr = 0.01: R = C = 0.25 = V, U = 1, alpha = 2 * 0.01, and the update is 0.02.
///
/// Temporaries: one of the matrix's size besides the update. No synchronization with a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    config: AdafactorConfig,
}

impl Adafactor {
    pub(crate) const NAME: &'static str = "adafactor";

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: AdafactorConfig) -> Result<Self> {
        let AdafactorConfig { decay_power, eps1, eps2, clip_threshold, weight_decay, .. } = config;
        let holds = decay_power > 0.0 && decay_power <= 1.0;
        require(holds, "optim.decay_power", decay_power, "0 < decay_power <= 1", 0.8)?;
        // The square of a smaller one would be zero in f32, and a row without gradient 0 / 0.
        let eps1_range = (1.1e-19, "1.1e-19 <= eps1 < 1");
        require_eps("optim.eps1", eps1, eps1_range, 1e-18)?;
        require_positive("optim.eps2", eps2, 1e-3)?;
        require_positive("optim.clip_threshold", clip_threshold, 1.0)?;
        require_weight_decay(weight_decay, 0.0)?;
        Ok(Self { config })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &AdafactorConfig {
        &self.config
    }

    pub(super) fn state_specs(facts: &ParamFacts) -> Vec<WholeStateSpec> {
        match facts.matrix() {
            Some([rows, cols]) => vec![
                WholeStateSpec::new(WholeStateKind::SecondMomentRow, &[rows]),
                WholeStateSpec::new(WholeStateKind::SecondMomentCol, &[cols]),
            ],
            None => vec![WholeStateSpec::new(WholeStateKind::SecondMoment, &facts.shape)],
        }
    }

    pub(super) fn update(
        &self,
        grad: &Tensor,
        master: Option<&Tensor>,
        state: &mut [Tensor],
        scalars: &Scalars,
    ) -> Result<Tensor> {
        let AdafactorConfig { decay_power, eps1, eps2, clip_threshold, .. } = self.config;
        let weight = (scalars.step as f64).powf(-decay_power);
        let least = eps1 * eps1;
        let mut update = match state {
            [row, col] => {
                let _ = row.f_lerp_(&mean_square(grad, 1)?, weight)?;
                let _ = col.f_lerp_(&mean_square(grad, 0)?, weight)?;
                let mut estimate = outer_estimate(row, col, eps1)?;
                let _ = estimate.f_clamp_min_(least)?;
                estimate
            }
            [second] => {
                let _ = second.f_lerp_(&grad.f_square()?, weight)?;
                second.f_clamp_min(least)?
            }
            _ => unreachable!("the number of states was checked"),
        };
        let _ = update.f_rsqrt_()?;
        let _ = update.f_mul_(grad)?;
        clip_rms_(&mut update, clip_threshold)?;
        let _ = match master {
            Some(master) if self.config.step_scale == StepScale::Relative => {
                let longest = scalars.lr.min((scalars.step as f64).sqrt().recip());
                let length = rms(master)?.f_clamp_min(eps2)?.f_mul_scalar(longest)?;
                update.f_mul_(&length)?
            }
            _ => update.f_mul_scalar_(scalars.lr)?,
        };
        Ok(update)
    }
}

#[cfg(test)]
mod tests;
