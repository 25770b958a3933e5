//! How long the CPU was at the two kinds of work that a step cannot do without.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time of matrix products and of attention, each with what is done to their rows on the way: q and k
/// are rotated in the product that makes them, and back where attention hands out their gradients.
#[derive(Debug, Default)]
pub struct Work {
    products: Cell<Duration>,
    attention: Cell<Duration>,
}

impl Work {
    /// Times a product for as long as the result lives.
    pub(super) fn product(&self) -> Stopwatch<'_> {
        Stopwatch { total: &self.products, started: Instant::now() }
    }

    /// Times attention likewise.
    pub(super) fn attention(&self) -> Stopwatch<'_> {
        Stopwatch { total: &self.attention, started: Instant::now() }
    }

    /// Seconds of products and of attention since this was last asked.
    pub fn take(&self) -> [f64; 2] {
        [&self.products, &self.attention].map(|total| total.take().as_secs_f64())
    }
}

/// Adds the time it has lived.
#[derive(Debug)]
pub(super) struct Stopwatch<'a> {
    total: &'a Cell<Duration>,
    started: Instant,
}

impl Drop for Stopwatch<'_> {
    fn drop(&mut self) {
        self.total.set(self.total.get() + self.started.elapsed());
    }
}
