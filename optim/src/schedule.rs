//! The learning rate as a pure function of the step, by steps or by tokens.

use crate::batch_ramp::BatchRamp;
use crate::error::{Error, Result, require};
use crate::phase::{Phase, PhaseMode};
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
    /// `sqrt(w / t)` after the warm-up (Vaswani et al. 2017, arXiv:1706.03762, equation 3): it
    /// needs no end.
    InverseSqrt,
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
            Self::Constant | Self::InverseSqrt => 1.0,
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
    phase: Phase,
    /// Where places in the schedule are counted by tokens: the micro-batches of every step.
    ramp: Option<BatchRamp>,
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
        if let Decay::Wsd { cooldown_fraction: fraction, .. } = config.decay {
            let expected = "0 < cooldown_fraction <= 1";
            let key = "schedule.cooldown_fraction";
            require(fraction > 0.0 && fraction <= 1.0, key, fraction, expected, 0.2)?;
        }
        let schedule = Self { config, steps, phase: Phase::WHOLE, ramp: None };
        schedule.check_length(steps as f64)?;
        Ok(schedule)
    }

    /// The same schedule with another last phase.
    ///
    /// # Errors
    /// [`Error::Phase`] unless `to_step <= from_step <= steps`; [`Error::ScheduleTooLong`] if
    /// warm-up and cooldown do not fit into the phase.
    pub fn with_phase(self, phase: Phase) -> Result<Self> {
        let to_step = match phase.mode {
            PhaseMode::Rewind { to_step } => to_step,
            PhaseMode::Continue | PhaseMode::Fresh => 0,
        };
        let (from_step, steps) = (phase.from_step, self.steps);
        if to_step > from_step || from_step > steps {
            return Err(Error::Phase { to_step, from_step, steps });
        }
        let schedule = Self { phase, ..self };
        schedule.check_length(schedule.length(from_step))?;
        Ok(schedule)
    }

    /// The same schedule by tokens: the place of a step is the number of tokens before it, in
    /// units of a full step's, so that steps of fewer micro-batches advance it by less.
    pub fn by_tokens(self, ramp: BatchRamp) -> Self {
        Self { ramp: Some(ramp), ..self }
    }

    /// The learning rate of a step, counted from **0**: the peak times [`Schedule::multiplier`].
    pub fn lr(&self, step: u64) -> f64 {
        self.config.lr * self.multiplier(step)
    }

    /// The share of the peak at `step`, counted from **0**; a number in `[0, 1]`.
    ///
    /// With place `t = step`, `w = warmup_steps`, `T = steps`, `r = final_ratio`,
    /// `c = cooldown_steps` (the fraction of `T`, rounded, at least 1), and progress `p` cut to
    /// `[0, 1]`:
    ///
    /// ```text
    /// t < w          (t + 1) / w
    /// constant       1
    /// cosine         r + (1 - r) (1 + cos(pi p)) / 2     p = (t - w) / (T - w)
    /// linear         r + (1 - r) (1 - p)                 p = (t - w) / (T - w)
    /// wsd            r + (1 - r) (1 - sqrt(p))           p = (t - (T - c)) / c
    /// inverse_sqrt   sqrt(max(w, 1) / (t + 1))
    /// ```
    ///
    /// The first step after the warm-up has the peak (`p = 0`), and `r` would be reached by step
    /// `T`, the one after the last: so with `r = 0` the last step still does something. Later
    /// steps get `r`.
    ///
    /// In a phase that starts at step `s` ([`Schedule::with_phase`]), `t` and `T` are less by `s`
    /// (fresh) or by `s - to_step` (rewind), and there may be a factor `(step - s + 1) / n`. By
    /// tokens, `t` and `T` are tokens over those of a full step, and the `1` of `t + 1` is the
    /// step's own share of a full one.
    ///
    /// Worked numbers, `T = 100`, `w = 10`: every kind has 0.1 at step 0 and 1 at steps 9 and 10,
    /// but for `inverse_sqrt`, with sqrt(10 / 11) at 10 and 0.5 at step 39. At step 55,
    /// `p = 45 / 90 = 0.5`: cosine with `r = 0.1` gives 0.1 + 0.9 * 0.5 = 0.55, linear with
    /// `r = 0` gives 0.5. `wsd` with fraction 0.2 gives 1 until step 80, and 0.5 at step 85, where
    /// `p = 5 / 20 = 0.25`.
    pub fn multiplier(&self, step: u64) -> f64 {
        self.shape(step) * self.phase.rewarm(step)
    }

    /// Weight `c` of the newest iterate in schedule-free's average at `step`, counted from **0**:
    /// `w_t / (w_1 + ... + w_t)` with `w` the square of the largest learning rate so far (Defazio et
    /// al. 2024, arXiv:2405.15682, section 2.1 and algorithm 1). In `(0, 1]`, 1 at step 0.
    ///
    /// By steps, with `w = warmup_steps` and `t = step + 1`:
    ///
    /// ```text
    /// t <= w   6 t / ((t + 1) (2 t + 1))                        squares 1, 4, 9, ... of the warm-up
    /// t > w    1 / ((w + 1) (2 w + 1) / (6 w) + t - w)          1 / t without a warm-up
    /// ```
    ///
    /// Whatever the decay does, the largest learning rate stays. Worked number: `w = 2`, step 2:
    /// squares 1/4, 1, 1 give 1 / 2.25. By tokens the squares are summed. A fresh phase starts a
    /// new average.
    pub fn averaging_weight(&self, step: u64) -> f64 {
        let fresh = self.phase.mode == PhaseMode::Fresh && step >= self.phase.from_step;
        let first = if fresh { self.phase.from_step } else { 0 };
        let (t, w) = ((step - first) as f64 + 1.0, self.config.warmup_steps as f64);
        if self.ramp.is_some() {
            return self.summed_averaging_weight(first, step);
        }
        if t <= w {
            return 6.0 * t / ((t + 1.0) * (2.0 * t + 1.0));
        }
        let warmup = if w > 0.0 { (w + 1.0) * (2.0 * w + 1.0) / (6.0 * w) } else { 0.0 };
        1.0 / (warmup + t - w)
    }

    /// The averaging weight from the squares of the steps from `first` on, one by one.
    fn summed_averaging_weight(&self, first: u64, step: u64) -> f64 {
        let (mut largest, mut sum) = (0.0f64, 0.0);
        for earlier in first..=step {
            largest = largest.max(self.shape(earlier));
            sum += largest * largest;
            if largest >= 1.0 {
                // Nothing is larger than the peak.
                return 1.0 / (sum + (step - earlier) as f64);
            }
        }
        largest * largest / sum
    }

    /// The multiplier without the re-warm-up.
    fn shape(&self, step: u64) -> f64 {
        let warmup = self.config.warmup_steps as f64;
        let place = self.place(step) + self.phase.shift(step, |step| self.place(step));
        let own = self.ramp.map_or(1.0, |ramp| ramp.count(step) as f64 / ramp.full() as f64);
        if place < warmup {
            return ((place + own) / warmup).min(1.0);
        }
        let ratio = self.config.decay.final_ratio();
        let length = self.length(step);
        let remaining = match self.config.decay {
            Decay::Constant => return 1.0,
            Decay::InverseSqrt => return (warmup.max(1.0) / (place + own)).sqrt().min(1.0),
            Decay::Cosine { .. } => 0.5 * (1.0 + (PI * progress(place, warmup, length)).cos()),
            Decay::Linear { .. } => 1.0 - progress(place, warmup, length),
            Decay::Wsd { .. } => {
                let first = length - self.cooldown_steps(length);
                1.0 - progress(place, first, length).sqrt()
            }
        };
        ratio + (1.0 - ratio) * remaining
    }

    /// The place of a step of a run without a break: steps, or tokens over those of a full step.
    fn place(&self, step: u64) -> f64 {
        match self.ramp {
            None => step as f64,
            Some(ramp) => ramp.before(step) as f64 / ramp.full() as f64,
        }
    }

    /// The place that the schedule of the phase of `step` ends at.
    fn length(&self, step: u64) -> f64 {
        self.place(self.steps) + self.phase.shift(step, |step| self.place(step))
    }

    /// Steps of the cooldown of a schedule of this length.
    fn cooldown_steps(&self, length: f64) -> f64 {
        match self.config.decay {
            Decay::Wsd { cooldown_fraction, .. } => (cooldown_fraction * length).round().max(1.0),
            _ => 0.0,
        }
    }

    /// Refuses warm-up and cooldown that do not fit into a schedule of this length.
    fn check_length(&self, length: f64) -> Result<()> {
        let (warmup_steps, cooldown) = (self.config.warmup_steps, self.cooldown_steps(length));
        if warmup_steps as f64 + cooldown > length {
            let (cooldown_steps, steps) = (cooldown as u64, length as u64);
            return Err(Error::ScheduleTooLong { warmup_steps, cooldown_steps, steps });
        }
        Ok(())
    }
}

/// How much of the way from `first` to `end` has passed at `place`, in `[0, 1]`.
fn progress(place: f64, first: f64, end: f64) -> f64 {
    if place >= end {
        return 1.0;
    }
    // Then `first < end`, or nothing has passed, so nothing is divided by zero.
    let passed = (place - first).max(0.0);
    if passed == 0.0 { 0.0 } else { passed / (end - first) }
}

#[cfg(test)]
mod tests;
