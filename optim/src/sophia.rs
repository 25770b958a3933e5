//! Sophia: momentum over an estimate of the Hessian's diagonal, clipped (Liu et al. 2023,
//! arXiv:2305.14342, algorithm 3).

use crate::dispatch::{Kernel, SimdLevel};
use crate::elements::{Elements, Scalars};
use crate::error::{Error, Result, require};
use crate::real::Real;
use crate::state::{StateKind, StateSpec, Storage};
use crate::sweep::{ElementRule, sweep};
use crate::tensor::TensorElements;
use tch::Tensor;

/// Hyper-parameters of [`Sophia`]; the betas, `eps` and `weight_decay` are the paper's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SophiaConfig {
    /// Decay of the momentum, a step. Default 0.965.
    pub beta1: f64,
    /// Decay of the Hessian estimate, a *folded estimate* (the paper folds one in every 10 steps).
    /// Default 0.99.
    pub beta2: f64,
    /// How much curvature a full step takes: the larger, the fewer elements are clipped. Tune it so
    /// that 10 to 50 % are not. Default 0.05 (Gauss-Newton-Bartlett; 0.01 for Hutchinson).
    pub gamma: f64,
    /// Least denominator, in units of the Hessian times `gamma`. Default 1e-12.
    pub eps: f64,
    /// Decoupled weight decay before the group's multiplier. Default 0.2.
    pub weight_decay: f64,
}

impl Default for SophiaConfig {
    fn default() -> Self {
        Self { beta1: 0.965, beta2: 0.99, gamma: 0.05, eps: 1e-12, weight_decay: 0.2 }
    }
}

/// Where an estimate of the Hessian's diagonal comes from, and what is still to be done to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HessianEstimate {
    /// Gauss-Newton-Bartlett (algorithm 2): the buffer is the gradient of the loss against labels
    /// drawn from the model's own predictions, and the estimate is `num_tokens * g^2` with
    /// `g = grad_scale * buffer` the gradient of the **mean** loss over `num_tokens` tokens of all
    /// ranks together. Average over ranks first, square after.
    GaussNewtonBartlett {
        /// Factor on the buffer before it is squared; no clip scale belongs in it, which would
        /// shrink the estimate.
        grad_scale: f64,
        /// Tokens that the mean is over.
        num_tokens: f64,
    },
    /// Hutchinson (algorithm 1): the buffer times `scale` is the estimate `u * (H u)` itself.
    Hutchinson {
        /// Factor on the buffer.
        scale: f64,
    },
}

/// Sophia with validated hyper-parameters.
///
/// With `g = grad_scale * grad` and learning rate `lr`, and `h` folded in every so many steps by
/// [`Sophia::fold_estimate`]:
///
/// ```text
/// m     <- beta1 m + (1 - beta1) g
/// theta <- (1 - lr weight_decay) theta - lr clip(m / max(gamma h, eps), -1, 1)
/// ```
///
/// This is the paper's form; its authors' code has `rho = gamma`, multiplies by the batch where
/// [`HessianEstimate`] does, and has `eps` 1e-15. Where `h` is zero or negative the step is that of
/// the momentum's sign, so before the first estimate all of it is. A step is never longer than
/// `lr`. Worked number: theta = 1, m = 0, h = 4, g = 1, lr = 0.1, defaults else: m = 0.035, the
/// ratio 0.035 / 0.2 = 0.175, theta becomes 0.98 - 0.0175 = 0.9625.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sophia {
    config: SophiaConfig,
}

impl Sophia {
    pub(crate) const NAME: &'static str = "sophia";
    pub(crate) const STATES: [StateSpec; 2] = [
        StateSpec::new(StateKind::FirstMoment, Storage::Accumulation),
        StateSpec::new(StateKind::Hessian, Storage::Accumulation),
    ];

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] with the key of the run's file.
    pub fn new(config: SophiaConfig) -> Result<Self> {
        let SophiaConfig { beta1, beta2, gamma, eps, weight_decay } = config;
        let fraction = 0.0..1.0;
        require(fraction.contains(&beta1), "optim.betas[0]", beta1, "0 <= betas[0] < 1", 0.965)?;
        require(fraction.contains(&beta2), "optim.betas[1]", beta2, "0 <= betas[1] < 1", 0.99)?;
        let positive = gamma > 0.0 && gamma.is_finite();
        require(positive, "optim.gamma", gamma, "0 < gamma < inf", 0.05)?;
        // Below 1e-30 it would soon be zero in f32, and an element without a gradient 0 / 0.
        require((1e-30..1.0).contains(&eps), "optim.eps", eps, "1e-30 <= eps < 1", 1e-12)?;
        require(
            weight_decay >= 0.0 && weight_decay.is_finite(),
            "optim.weight_decay",
            weight_decay,
            "0 <= weight_decay < inf",
            0.2,
        )?;
        Ok(Self { config })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &SophiaConfig {
        &self.config
    }

    /// Folds an estimate of the Hessian's diagonal into the state `hessian`, in one pass:
    /// `h <- beta2 h + (1 - beta2) estimate`.
    ///
    /// # Shapes
    /// `hessian`, `buffer`: `[n]`, one range of the state and of what `estimate` describes.
    ///
    /// # Errors
    /// [`Error::Length`], or [`Error::Scalar`] for numbers that would spoil every element, before
    /// anything is written.
    pub fn fold_estimate<T: Real>(
        &self,
        hessian: &mut [T],
        buffer: &[T],
        estimate: HessianEstimate,
    ) -> Result<()> {
        check_estimate(hessian.len(), buffer.len(), estimate)?;
        let beta2 = self.config.beta2;
        let decay = T::from_f64(beta2);
        let (weight, scale) = estimate.numbers();
        let (weight, scale) = (T::from_f64((1.0 - beta2) * weight), T::from_f64(scale));
        let squares = matches!(estimate, HessianEstimate::GaussNewtonBartlett { .. });
        SimdLevel::detect().run(Fold { hessian, buffer, decay, weight, scale, squares });
        Ok(())
    }

    /// [`Sophia::fold_estimate`] by in-place libtorch operations, for tensors of any device.
    ///
    /// # Errors
    /// As [`Sophia::fold_estimate`], and [`Error::Tensor`] if libtorch refuses an operation.
    pub fn fold_estimate_tensor(
        &self,
        hessian: &mut Tensor,
        buffer: &Tensor,
        estimate: HessianEstimate,
    ) -> Result<()> {
        check_estimate(hessian.numel(), buffer.numel(), estimate)?;
        let beta2 = self.config.beta2;
        let (weight, scale) = estimate.numbers();
        tch::no_grad(|| {
            let mut value = buffer.f_mul_scalar(scale)?;
            if let HessianEstimate::GaussNewtonBartlett { .. } = estimate {
                let _ = value.f_square_()?;
            }
            let _ = value.f_mul_scalar_((1.0 - beta2) * weight)?;
            let _ = hessian.f_mul_scalar_(beta2)?.f_add_(&value)?;
            Ok(())
        })
    }

    /// The numbers of one step, computed in `f64` and rounded once.
    pub(crate) fn step<T: Real>(&self, scalars: &Scalars) -> SophiaStep<T> {
        let SophiaConfig { beta1, gamma, eps, .. } = self.config;
        SophiaStep {
            grad_scale: T::from_f64(scalars.grad_scale),
            beta1: T::from_f64(beta1),
            one_minus_beta1: T::from_f64(1.0 - beta1),
            gamma: T::from_f64(gamma),
            eps: T::from_f64(eps),
            decay: T::from_f64(scalars.decay()),
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
        let [mut m, h] = tensors.load()?;
        let step = self.step::<f64>(scalars);
        let mut grad = tensors.grad.f_mul_scalar(step.grad_scale)?;
        let _ = m.f_mul_scalar_(step.beta1)?;
        let _ = m.f_add_(&grad.f_mul_scalar_(step.one_minus_beta1)?)?;
        drop(grad);
        let mut denominator = h.f_mul_scalar(step.gamma)?;
        let _ = denominator.f_clamp_min_(step.eps)?;
        let mut ratio = m.f_div(&denominator)?;
        let _ = ratio.f_clamp_(-1.0, 1.0)?;
        let _ = tensors.master.f_mul_scalar_(step.decay)?;
        let _ = tensors.master.f_sub_(&ratio.f_mul_scalar_(step.lr)?)?;
        tensors.finish(&[m, h])
    }
}

impl HessianEstimate {
    /// Weight of the estimate, and the factor on the buffer.
    fn numbers(self) -> (f64, f64) {
        match self {
            Self::GaussNewtonBartlett { grad_scale, num_tokens } => (num_tokens, grad_scale),
            Self::Hutchinson { scale } => (1.0, scale),
        }
    }
}

fn check_estimate(expected: usize, found: usize, estimate: HessianEstimate) -> Result<()> {
    if found != expected {
        return Err(Error::Length { buffer: "hessian estimate", expected, found });
    }
    let (num_tokens, scale) = estimate.numbers();
    let check = |holds, name, value, expected| {
        if holds { Ok(()) } else { Err(Error::Scalar { name, value, expected }) }
    };
    check(scale.is_finite(), "scale of a Hessian estimate", scale, "a finite number")?;
    let positive = num_tokens > 0.0 && num_tokens.is_finite();
    check(positive, "num_tokens of a Hessian estimate", num_tokens, "0 < num_tokens < inf")
}

/// The loop of [`Sophia::fold_estimate`].
struct Fold<'a, T> {
    hessian: &'a mut [T],
    buffer: &'a [T],
    decay: T,
    weight: T,
    scale: T,
    squares: bool,
}

impl<T: Real> Kernel for Fold<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { hessian, buffer, decay, weight, scale, squares } = self;
        for (h, &value) in hessian.iter_mut().zip(buffer) {
            let value = scale * value;
            let value = if squares { value * value } else { value };
            *h = decay * *h + weight * value;
        }
    }
}

/// The numbers of one Sophia step.
#[derive(Clone, Copy)]
pub(crate) struct SophiaStep<T> {
    grad_scale: T,
    beta1: T,
    one_minus_beta1: T,
    gamma: T,
    eps: T,
    decay: T,
    lr: T,
}

impl<T: Real> SophiaStep<T> {
    /// In the order of the CUDA kernel.
    pub(crate) fn numbers(self) -> [T; 7] {
        let Self { grad_scale, beta1, one_minus_beta1, gamma, eps, decay, lr } = self;
        [grad_scale, beta1, one_minus_beta1, gamma, eps, decay, lr]
    }
}

impl<T: Real> ElementRule<T, 2> for SophiaStep<T> {
    #[inline(always)]
    fn element(self, master: T, grad: T, [m, h]: [T; 2]) -> (T, [T; 2]) {
        let m = self.beta1 * m + self.one_minus_beta1 * (self.grad_scale * grad);
        let curvature = self.gamma * h;
        // A NaN is not below and passes through, here and in the clip.
        let denominator = if curvature < self.eps { self.eps } else { curvature };
        let ratio = m / denominator;
        let minus_one = T::ZERO - T::ONE;
        let above = if ratio < minus_one { minus_one } else { ratio };
        let clipped = if above > T::ONE { T::ONE } else { above };
        (master * self.decay - self.lr * clipped, [m, h])
    }
}

#[cfg(test)]
mod tests;
