//! GELU in the tanh approximation that GPT-2 uses: `gelu_new` and `gelu_pytorch_tanh` of Hugging Face.
//!
//! The Gaussian error linear unit is `x * P(z <= x)` for a standard normal `z` (Hendrycks and Gimpel
//! 2016, arXiv:1606.08415, section 2), with the probability here as
//! `(1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.

use super::super::block::{Blocks, block, rows_per_block};
use super::super::dispatch::{Body, Level};
use super::super::element::Element;
use super::super::pool::Pool;
use super::sigmoid_pair;

/// The coefficient of `x^3` in the tanh approximation.
const CUBE: f32 = 0.044_715;
/// `sqrt(8 / pi)`: `(1 + tanh(u)) / 2` is the logistic function of `2 u`.
const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;

/// Writes the activation of each element of `x` to `y`.
///
/// # Panics
/// If the lengths differ.
pub fn forward<E: Element>(pool: &Pool, x: &[E], y: &mut [E]) {
    assert_eq!(x.len(), y.len(), "y has the shape of x");
    let len = rows_per_block(1);
    let y = Blocks::new(y, len);
    let level = Level::detect();
    pool.for_each(y.num_blocks(), |index| {
        level.run(GeluForward { x: block(x, index, len), y: y.take(index) });
    });
}

/// The gradient of [`forward`], in place of the forward pass's input `x`, from the gradient `dy` of
/// its output.
///
/// # Panics
/// If the lengths differ.
pub fn backward<E: Element>(pool: &Pool, x: &mut [E], dy: &[E]) {
    assert_eq!(x.len(), dy.len(), "dy has the shape of x");
    let len = rows_per_block(1);
    let x = Blocks::new(x, len);
    let level = Level::detect();
    pool.for_each(x.num_blocks(), |index| {
        level.run(GeluBackward { x: x.take(index), dy: block(dy, index, len) });
    });
}

/// Value and derivative of each element at `level`, one list after the other.
#[cfg(test)]
pub(super) fn blocks_at<E: Element>(level: Level, x: &[E]) -> Vec<E> {
    let (mut y, mut dx) = (x.to_vec(), x.to_vec());
    level.run(GeluForward { x, y: &mut y });
    level.run(GeluBackward { x: &mut dx, dy: x });
    [y, dx].concat()
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

/// A block of the forward pass.
struct GeluForward<'a, E> {
    x: &'a [E],
    y: &'a mut [E],
}

impl<E: Element> Body for GeluForward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = E::from_f32(tanh_value(x.to_f32()));
        }
    }
}

/// A block of the backward pass.
struct GeluBackward<'a, E> {
    x: &'a mut [E],
    dy: &'a [E],
}

impl<E: Element> Body for GeluBackward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        for (x, dy) in self.x.iter_mut().zip(self.dy) {
            *x = E::from_f32(dy.to_f32() * tanh_derivative(x.to_f32()));
        }
    }
}
