//! Schedule-free AdamW: an average of iterates in place of a decaying learning rate (Defazio et al.
//! 2024, arXiv:2405.15682, algorithm 1), in the form of the `schedulefree` package.

use crate::dispatch::SimdLevel;
use crate::elements::{Elements, Scalars};
use crate::error::{Error, Result, require};
use crate::real::Real;
use crate::state::{StateKind, StateSpec, Storage};
use crate::sweep::{ElementRule, sweep};
use crate::tensor::TensorElements;
use tch::Tensor;

/// Hyper-parameters of [`ScheduleFree`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScheduleFreeConfig {
    /// Interpolation between the base iterate and the average where gradients are taken; averages
    /// as a momentum does. Default 0.9; 0.95 to 0.98 for very long runs.
    pub beta1: f64,
    /// Decay of the second moment, a step. Default 0.999.
    pub beta2: f64,
    /// Added to the root of the bias-corrected second moment, in units of the gradient. Default
    /// 1e-8.
    pub eps: f64,
    /// Weight decay at `y` before the group's multiplier. Default 0.1.
    pub weight_decay: f64,
}

impl Default for ScheduleFreeConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// Schedule-free AdamW with validated hyper-parameters.
///
/// Three points: `z`, which plain steps move; `x`, the average of all `z`, which is the model to
/// evaluate and to keep; and `y` between them, where gradients are taken. The master is `y`, `z` is
/// a state, and `x` follows from the two ([`ScheduleFree::eval_point`]). With
/// `g = grad_scale * grad` (at `y`), update number `t` and `c` the averaging weight:
///
/// ```text
/// v <- beta2 v + (1 - beta2) g^2
/// u <- g / (sqrt(v) / sqrt(1 - beta2^t) + eps) + weight_decay y
/// y <- y + c (z - y) + lr (beta1 (1 - c) - 1) u
/// z <- z - lr u
/// ```
///
/// `lr` should warm up and then stay ([`crate::Decay::Constant`]), at 1 to 10 times AdamW's; `c`
/// is [`crate::Schedule::averaging_weight`]. `z` starts as a copy of the master. A model loaded
/// from `x` starts anew with `z = y = x`. Worked number: y = z = 1, v = 0, g = 0.5, t = 1, c = 1,
/// lr = 0.1, weight_decay = 0, defaults else: u = 1 (to 2e-8), y becomes 1 - 0.1 = 0.9 and z 0.9.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScheduleFree {
    config: ScheduleFreeConfig,
}

impl ScheduleFree {
    pub(crate) const NAME: &'static str = "schedule_free";
    pub(crate) const STATES: [StateSpec; 2] = [
        StateSpec::new(StateKind::BaseIterate, Storage::Accumulation),
        StateSpec::new(StateKind::SecondMoment, Storage::Accumulation),
    ];

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: ScheduleFreeConfig) -> Result<Self> {
        let ScheduleFreeConfig { beta1, beta2, eps, weight_decay } = config;
        // The average is a quotient by beta1.
        let between = beta1 > 0.0 && beta1 < 1.0;
        require(between, "optim.betas[0]", beta1, "0 < betas[0] < 1", 0.9)?;
        let fraction = 0.0..1.0;
        require(fraction.contains(&beta2), "optim.betas[1]", beta2, "0 <= betas[1] < 1", 0.999)?;
        // Below 1e-30 it would soon be zero in f32, and an element without a gradient 0 / 0.
        require((1e-30..1.0).contains(&eps), "optim.eps", eps, "1e-30 <= eps < 1", 1e-8)?;
        require(
            weight_decay >= 0.0 && weight_decay.is_finite(),
            "optim.weight_decay",
            weight_decay,
            "0 <= weight_decay < inf",
            0.1,
        )?;
        Ok(Self { config })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &ScheduleFreeConfig {
        &self.config
    }

    /// The model to evaluate and to keep: `x = y + (1 - 1 / beta1) (z - y)`, written to `x`. The
    /// master stays as it is: going to `x` and back would round.
    ///
    /// # Shapes
    /// `y` (the master), `z` (the state), `x`: `[n]`.
    ///
    /// # Errors
    /// [`Error::Length`], before anything is written.
    pub fn eval_point<T: Real>(&self, y: &[T], z: &[T], x: &mut [T]) -> Result<()> {
        interpolate(y, z, 1.0 - 1.0 / self.config.beta1, x)
    }

    /// The point where gradients are taken, from the other two: `y = x + (1 - beta1) (z - x)`,
    /// written to `y`. Undoes [`ScheduleFree::eval_point`] up to rounding.
    ///
    /// # Shapes
    /// `x`, `z`, `y`: `[n]`.
    ///
    /// # Errors
    /// [`Error::Length`], before anything is written.
    pub fn training_point<T: Real>(&self, x: &[T], z: &[T], y: &mut [T]) -> Result<()> {
        interpolate(x, z, 1.0 - self.config.beta1, y)
    }

    /// [`ScheduleFree::eval_point`] for tensors of any device, as a new tensor.
    ///
    /// # Errors
    /// [`Error::Tensor`] if libtorch refuses, for instance other lengths.
    pub fn eval_point_tensor(&self, y: &Tensor, z: &Tensor) -> Result<Tensor> {
        let weight = 1.0 - 1.0 / self.config.beta1;
        tch::no_grad(|| Ok(y.f_add(&z.f_sub(y)?.f_mul_scalar_(weight)?)?))
    }

    /// The numbers of one step, computed in `f64` and rounded once.
    pub(crate) fn step<T: Real>(&self, scalars: &Scalars) -> ScheduleFreeStep<T> {
        let ScheduleFreeConfig { beta1, beta2, eps, .. } = self.config;
        let average = scalars.averaging_weight;
        let correction = 1.0 - beta2.powf(scalars.step as f64);
        ScheduleFreeStep {
            grad_scale: T::from_f64(scalars.grad_scale),
            beta2: T::from_f64(beta2),
            one_minus_beta2: T::from_f64(1.0 - beta2),
            inverse_root_correction: T::from_f64(1.0 / correction.sqrt()),
            eps: T::from_f64(eps),
            weight_decay: T::from_f64(scalars.weight_decay),
            average: T::from_f64(average),
            y_step: T::from_f64(scalars.lr * (beta1 * (1.0 - average) - 1.0)),
            lr: T::from_f64(scalars.lr),
        }
    }

    pub(crate) fn update<T: Real>(
        &self,
        level: SimdLevel,
        elements: Elements<T>,
        scalars: &Scalars,
    ) -> Result<()> {
        let elements = elements.checked(Self::NAME, &Self::STATES, scalars)?;
        sweep::<T, _, 2>(level, self.step(scalars), elements);
        Ok(())
    }

    pub(crate) fn update_tensor(&self, elements: TensorElements, scalars: &Scalars) -> Result<()> {
        let tensors = elements.checked(Self::NAME, &Self::STATES, scalars)?;
        let [mut z, mut v] = tensors.load()?;
        let step = self.step::<f64>(scalars);
        let grad = tensors.grad.f_mul_scalar(step.grad_scale)?;
        let _ = v.f_mul_scalar_(step.beta2)?;
        let _ = v.f_addcmul_(&grad.f_mul_scalar(step.one_minus_beta2)?, &grad)?;
        let mut denominator = v.f_sqrt()?;
        let _ = denominator.f_mul_scalar_(step.inverse_root_correction)?;
        let _ = denominator.f_add_scalar_(step.eps)?;
        let y = &mut *tensors.master;
        let mut u = grad.f_div(&denominator)?;
        drop((grad, denominator));
        let _ = u.f_add_(&y.f_mul_scalar(step.weight_decay)?)?;
        let _ = y.f_add_(&z.f_sub(y)?.f_mul_scalar_(step.average)?)?;
        let _ = y.f_add_(&u.f_mul_scalar(step.y_step)?)?;
        let _ = z.f_sub_(&u.f_mul_scalar_(step.lr)?)?;
        tensors.finish(&[z, v])
    }
}

/// `out = start + weight (end - start)`, element by element.
fn interpolate<T: Real>(start: &[T], end: &[T], weight: f64, out: &mut [T]) -> Result<()> {
    let expected = start.len();
    for (buffer, found) in [("z", end.len()), ("interpolated point", out.len())] {
        if found != expected {
            return Err(Error::Length { buffer, expected, found });
        }
    }
    let weight = T::from_f64(weight);
    for ((out, &start), &end) in out.iter_mut().zip(start).zip(end) {
        *out = start + weight * (end - start);
    }
    Ok(())
}

/// The numbers of one schedule-free step.
#[derive(Clone, Copy)]
pub(crate) struct ScheduleFreeStep<T> {
    grad_scale: T,
    beta2: T,
    one_minus_beta2: T,
    inverse_root_correction: T,
    eps: T,
    weight_decay: T,
    average: T,
    y_step: T,
    lr: T,
}

impl<T: Real> ScheduleFreeStep<T> {
    /// In the order of the CUDA kernel.
    pub(crate) fn numbers(self) -> [T; 9] {
        [
            self.grad_scale,
            self.beta2,
            self.one_minus_beta2,
            self.inverse_root_correction,
            self.eps,
            self.weight_decay,
            self.average,
            self.y_step,
            self.lr,
        ]
    }
}

impl<T: Real> ElementRule<T, 2> for ScheduleFreeStep<T> {
    #[inline(always)]
    fn element(self, y: T, grad: T, [z, v]: [T; 2]) -> (T, [T; 2]) {
        let grad = self.grad_scale * grad;
        let v = self.beta2 * v + self.one_minus_beta2 * grad * grad;
        let denominator = v.sqrt() * self.inverse_root_correction + self.eps;
        let u = grad / denominator + self.weight_decay * y;
        let y = y + self.average * (z - y) + self.y_step * u;
        (y, [z - self.lr * u, v])
    }
}

#[cfg(test)]
mod tests;
