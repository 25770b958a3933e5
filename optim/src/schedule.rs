//! The learning rate as a pure function of the step.

use crate::error::{Error, Result, require};
use std::f64::consts::PI;

/// The peak, the warm-up, and what comes after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScheduleConfig {
    /// Peak learning rate: the step of an element in units of the parameter, for AdamW and Lion.
    pub lr: f64,
    /// Steps of linear warm-up; 0 starts at the peak.
    pub warmup_steps: u64,
    /// What follows the warm-up.
    pub decay: Decay,
}

/// How the learning rate falls after the warm-up. See [`Schedule::multiplier`] for the formulas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// Stays at the peak.
    Constant,
    /// Half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, one period).
    Cosine {
        /// Multiplier at the end; 0.1 is traditional, 0.01 often better.
        final_ratio: f64,
    },
    /// A straight line (to zero: Bergsma et al. 2025, arXiv:2502.15938).
    Linear {
        /// Multiplier at the end; 0 is usual.
        final_ratio: f64,
    },
    /// Warm-up, stable, decay: at the peak, then a `1 - sqrt` cooldown at the end (Hu et al. 2024,
    /// arXiv:2404.06395; the shape is Haegele et al. 2024, arXiv:2405.18392).
    Wsd {
        /// Share of all steps that the cooldown takes; 0.1 to 0.2 is usual.
        cooldown_fraction: f64,
        /// Multiplier at the end; 0 is usual.
        final_ratio: f64,
    },
}

impl Decay {
    /// The multiplier that a decay ends at.
    fn final_ratio(&self) -> f64 {
        match *self {
            Self::Constant => 1.0,
            Self::Cosine { final_ratio }
            | Self::Linear { final_ratio }
            | Self::Wsd { final_ratio, .. } => final_ratio,
        }
    }
}

/// A validated schedule for a run of a known number of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    config: ScheduleConfig,
    steps: u64,
    cooldown_steps: u64,
}

impl Schedule {
    /// Resolves a configuration for a run of `steps` steps.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] with the key of the run's file; [`Error::ScheduleTooLong`] unless
    /// `warmup_steps + cooldown_steps <= steps`.
    pub fn new(config: ScheduleConfig, steps: u64) -> Result<Self> {
        let lr = config.lr;
        require(lr > 0.0 && lr.is_finite(), "optim.lr", lr, "0 < lr < inf", 3e-4)?;
        let ratio = config.decay.final_ratio();
        let expected = "0 <= final_ratio <= 1";
        let key = "schedule.final_ratio";
        require((0.0..=1.0).contains(&ratio), key, ratio, expected, 0.1)?;
        let mut cooldown_steps = 0;
        if let Decay::Wsd { cooldown_fraction: fraction, .. } = config.decay {
            let expected = "0 < cooldown_fraction <= 1";
            let key = "schedule.cooldown_fraction";
            require(fraction > 0.0 && fraction <= 1.0, key, fraction, expected, 0.2)?;
            cooldown_steps = ((fraction * steps as f64).round() as u64).max(1);
        }
        let warmup_steps = config.warmup_steps;
        if warmup_steps.saturating_add(cooldown_steps) > steps {
            return Err(Error::ScheduleTooLong { warmup_steps, cooldown_steps, steps });
        }
        Ok(Self { config, steps, cooldown_steps })
    }

    /// The learning rate of a step, counted from **0**: the peak times [`Schedule::multiplier`].
    pub fn lr(&self, step: u64) -> f64 {
        self.config.lr * self.multiplier(step)
    }

    /// The share of the peak at `step`, counted from **0**; a number in `[0, 1]`.
    ///
    /// With `w = warmup_steps`, `T = steps`, `r = final_ratio`, `c = cooldown_steps` (the fraction
    /// of `T`, rounded, at least 1), and progress `p` cut to `[0, 1]`:
    ///
    /// ```text
    /// step < w   (step + 1) / w
    /// constant   1
    /// cosine     r + (1 - r) (1 + cos(pi p)) / 2     p = (step - w) / (T - w)
    /// linear     r + (1 - r) (1 - p)                 p = (step - w) / (T - w)
    /// wsd        r + (1 - r) (1 - sqrt(p))           p = (step - (T - c)) / c
    /// ```
    ///
    /// The first step after the warm-up has the peak (`p = 0`), and `r` would be reached by step
    /// `T`, the one after the last: so with `r = 0` the last step still does something. Later
    /// steps get `r`.
    ///
    /// Worked numbers, `T = 100`, `w = 10`: every kind has 0.1 at step 0 and 1 at steps 9 and 10.
    /// At step 55, `p = 45 / 90 = 0.5`: cosine with `r = 0.1` gives 0.1 + 0.9 * 0.5 = 0.55, linear
    /// with `r = 0` gives 0.5. `wsd` with fraction 0.2 gives 1 until step 80, and 0.5 at step 85,
    /// where `p = 5 / 20 = 0.25`.
    pub fn multiplier(&self, step: u64) -> f64 {
        let warmup = self.config.warmup_steps;
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let ratio = self.config.decay.final_ratio();
        let remaining = match self.config.decay {
            Decay::Constant => return 1.0,
            Decay::Cosine { .. } => 0.5 * (1.0 + (PI * self.progress(step, warmup)).cos()),
            Decay::Linear { .. } => 1.0 - self.progress(step, warmup),
            Decay::Wsd { .. } => 1.0 - self.progress(step, self.steps - self.cooldown_steps).sqrt(),
        };
        ratio + (1.0 - ratio) * remaining
    }

    /// Weight `c` of the newest iterate in schedule-free's average at `step`, counted from **0**:
    /// `w_t / (w_1 + ... + w_t)` with `w` the square of the largest learning rate so far (Defazio et
    /// al. 2024, arXiv:2405.15682, section 2.1 and algorithm 1). In `(0, 1]`, 1 at step 0.
    ///
    /// With `w = warmup_steps` and `t = step + 1`:
    ///
    /// ```text
    /// t <= w   6 t / ((t + 1) (2 t + 1))                        squares 1, 4, 9, ... of the warm-up
    /// t > w    1 / ((w + 1) (2 w + 1) / (6 w) + t - w)          1 / t without a warm-up
    /// ```
    ///
    /// Whatever the decay does, the largest learning rate stays. Worked number: `w = 2`, step 2:
    /// squares 1/4, 1, 1 give 1 / 2.25.
    pub fn averaging_weight(&self, step: u64) -> f64 {
        let (t, w) = (step as f64 + 1.0, self.config.warmup_steps as f64);
        if t <= w {
            return 6.0 * t / ((t + 1.0) * (2.0 * t + 1.0));
        }
        let warmup = if w > 0.0 { (w + 1.0) * (2.0 * w + 1.0) / (6.0 * w) } else { 0.0 };
        1.0 / (warmup + t - w)
    }

    /// How much of the steps from `first` to the end has passed at `step`, in `[0, 1]`.
    fn progress(&self, step: u64, first: u64) -> f64 {
        if step >= self.steps {
            return 1.0;
        }
        // Then `first < steps`, or the difference below is zero, so nothing is divided by zero.
        let passed = step.saturating_sub(first);
        if passed == 0 { 0.0 } else { passed as f64 / (self.steps - first) as f64 }
    }
}

#[cfg(test)]
mod tests;
