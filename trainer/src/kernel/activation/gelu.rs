//! GELU, exact and in the tanh approximation that GPT-2 uses.

use super::super::block::{Blocks, block, rows_per_block};
use super::super::dispatch::{Body, Level};
use super::super::element::Element;
use super::super::exp::exp;
use super::super::pool::Pool;
use super::sigmoid_pair;

/// The Gaussian error linear unit, `x * P(z <= x)` for a standard normal `z`.
///
/// # References
/// Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// `gelu` of Hugging Face: the probability by the error function.
    Exact,
    /// `gelu_new` and `gelu_pytorch_tanh` of Hugging Face: the probability as
    /// `(1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
    Tanh,
}

/// The coefficient of `x^3` in the tanh approximation.
const CUBE: f32 = 0.044_715;
/// `sqrt(8 / pi)`: `(1 + tanh(u)) / 2` is the logistic function of `2 u`.
const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
/// `1 / sqrt(2 pi)`, the height of the normal density.
const DENSITY_AT_0: f32 = 0.398_942_3;

impl Gelu {
    /// Writes the activation of each element of `x` to `y`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn forward<E: Element>(self, pool: &Pool, x: &[E], y: &mut [E]) {
        assert_eq!(x.len(), y.len(), "y has the shape of x");
        let len = rows_per_block(1);
        let y = Blocks::new(y, len);
        let level = Level::detect();
        pool.for_each(y.num_blocks(), |index| {
            level.run(GeluForward { gelu: self, x: block(x, index, len), y: y.take(index) });
        });
    }

    /// The gradient of [`Gelu::forward`]: writes to `dx`, from the forward pass's input `x` and the
    /// gradient `dy` of its output.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn backward<E: Element>(self, pool: &Pool, x: &[E], dy: &[E], dx: &mut [E]) {
        assert_eq!(x.len(), dy.len(), "dy has the shape of x");
        assert_eq!(x.len(), dx.len(), "dx has the shape of x");
        let len = rows_per_block(1);
        let dx = Blocks::new(dx, len);
        let level = Level::detect();
        pool.for_each(dx.num_blocks(), |index| {
            level.run(GeluBackward {
                gelu: self,
                x: block(x, index, len),
                dy: block(dy, index, len),
                dx: dx.take(index),
            });
        });
    }
}

#[cfg(test)]
impl Gelu {
    /// Value and derivative of each element at `level`, one list after the other.
    pub(super) fn blocks_at<E: Element>(self, level: Level, x: &[E]) -> Vec<E> {
        let (mut y, mut dx) = (x.to_vec(), x.to_vec());
        level.run(GeluForward { gelu: self, x, y: &mut y });
        level.run(GeluBackward { gelu: self, x, dy: x, dx: &mut dx });
        [y, dx].concat()
    }
}

/// The derivative of the tanh approximation at `x`.
#[inline(always)]
fn tanh_derivative(x: f32) -> f32 {
    let (probability, complement) = sigmoid_pair(TWICE_SQRT_2_OVER_PI * (x + CUBE * x * x * x));
    let inner = TWICE_SQRT_2_OVER_PI * (1.0 + 3.0 * CUBE * x * x);
    probability + x * probability * complement * inner
}

/// The tanh approximation at `x`.
#[inline(always)]
fn tanh_value(x: f32) -> f32 {
    x * sigmoid_pair(TWICE_SQRT_2_OVER_PI * (x + CUBE * x * x * x)).0
}

/// The probability that a standard normal is at most `x`, with an error of 1.2e-7 at most.
///
/// By the two polynomials of Njuffa's `erff` (NVIDIA forum, 2016), whose second gives the logarithm
/// of the tail, so that far negative `x` keep their relative accuracy.
#[inline(always)]
fn normal_probability(x: f32) -> f32 {
    let t = (x * std::f32::consts::FRAC_1_SQRT_2).abs();
    let s = t * t;
    let mut log_tail = (-1.728_534_7e-5 * t + 3.831_971_3e-4) * s;
    log_tail += -3.883_964_4e-3 * t + 2.425_462_2e-2;
    log_tail = log_tail * t - 0.106_777_88;
    log_tail = log_tail * t - 0.634_846_7;
    log_tail = log_tail * t - 0.128_717_51;
    log_tail = log_tail * t - t;
    let mut near = -5.967_617e-4;
    near = near * s + 4.991_194_2e-3;
    near = near * s - 2.676_813_5e-2;
    near = near * s + 0.112_819_925;
    near = near * s - 0.376_125_34;
    near = near * s + 0.128_379_17;
    // The complementary error function of t: twice the tail beyond |x|.
    let (far_tails, near_tails) = (exp(log_tail), 1.0 - (near * t + t));
    let both_tails = if t > 0.927_734_4 { far_tails } else { near_tails };
    if x < 0.0 { 0.5 * both_tails } else { 1.0 - 0.5 * both_tails }
}

/// A block of the forward pass.
struct GeluForward<'a, E> {
    gelu: Gelu,
    x: &'a [E],
    y: &'a mut [E],
}

impl<E: Element> Body for GeluForward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let elements = self.y.iter_mut().zip(self.x);
        match self.gelu {
            Gelu::Exact => {
                for (y, x) in elements {
                    let x = x.to_f32();
                    *y = E::from_f32(x * normal_probability(x));
                }
            }
            Gelu::Tanh => {
                for (y, x) in elements {
                    *y = E::from_f32(tanh_value(x.to_f32()));
                }
            }
        }
    }
}

/// A block of the backward pass.
struct GeluBackward<'a, E> {
    gelu: Gelu,
    x: &'a [E],
    dy: &'a [E],
    dx: &'a mut [E],
}

impl<E: Element> Body for GeluBackward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let elements = self.dx.iter_mut().zip(self.x.iter().zip(self.dy));
        match self.gelu {
            Gelu::Exact => {
                for (dx, (x, dy)) in elements {
                    let x = x.to_f32();
                    let density = DENSITY_AT_0 * exp(-0.5 * x * x);
                    *dx = E::from_f32(dy.to_f32() * (normal_probability(x) + x * density));
                }
            }
            Gelu::Tanh => {
                for (dx, (x, dy)) in elements {
                    *dx = E::from_f32(dy.to_f32() * tanh_derivative(x.to_f32()));
                }
            }
        }
    }
}
