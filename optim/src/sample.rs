//! Buffers for tests: every rule in every form of its states, over values of many magnitudes.

use crate::{
    AdamW8bitConfig, AdamWConfig, Elements, Lion8bitConfig, LionConfig, Real, Rule, RuleConfig,
    Scalars, ScheduleFreeConfig, SophiaConfig, Start, StateDtype, StateSlice, StateSpec, Storage,
    Working,
};
use half::bf16;

/// Numbers of a step in the middle of a run.
pub(crate) const SCALARS: Scalars = Scalars {
    lr: 1e-3,
    weight_decay: 0.1,
    grad_scale: 0.37,
    step: 3,
    averaging_weight: 0.3,
    rounding_seed: 7,
};

/// Every rule, and those with a choice of storage once for each.
pub(crate) fn rules() -> Vec<Rule> {
    let state_dtype = StateDtype::Bf16;
    let configs = [
        RuleConfig::AdamW(AdamWConfig::default()),
        RuleConfig::AdamW(AdamWConfig { state_dtype, ..AdamWConfig::default() }),
        RuleConfig::Lion(LionConfig::default()),
        RuleConfig::Lion(LionConfig { state_dtype, ..LionConfig::default() }),
        RuleConfig::Sophia(SophiaConfig::default()),
        RuleConfig::ScheduleFree(ScheduleFreeConfig::default()),
        RuleConfig::AdamW8bit(AdamW8bitConfig::default()),
        RuleConfig::Lion8bit(Lion8bitConfig::default()),
    ];
    configs.iter().map(|config| config.build().unwrap()).collect()
}

/// One f64 element with full states through a rule; returns the parameter and the states.
pub(crate) fn one_step<const STATES: usize>(
    rule: &Rule,
    theta: f64,
    grad: f64,
    mut state: [f64; STATES],
    scalars: &Scalars,
) -> (f64, [f64; STATES]) {
    let mut master = [theta];
    let slices = state.iter_mut().map(|s| StateSlice::Values(std::slice::from_mut(s)));
    let elements = Elements {
        master: &mut master,
        grad: &[grad],
        state: slices.collect(),
        working: Working::None,
        first: 0,
    };
    rule.update(elements, scalars).unwrap();
    (master[0], state)
}

/// A state buffer that owns its memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stored<T> {
    Values(Vec<T>),
    Bf16(Vec<bf16>),
    Codes(Vec<u8>),
    BlockScale(Vec<f32>),
}

impl<T: Real> Stored<T> {
    pub(crate) fn zeros(storage: Storage, numel: usize) -> Self {
        let len = storage.num_elements(numel);
        match storage {
            Storage::Accumulation => Self::Values(vec![T::ZERO; len]),
            Storage::Bf16 => Self::Bf16(vec![bf16::ZERO; len]),
            Storage::Codes => Self::Codes(vec![0; len]),
            Storage::BlockScale => Self::BlockScale(vec![0.0; len]),
        }
    }

    pub(crate) fn slice(&mut self) -> StateSlice<'_, T> {
        match self {
            Self::Values(values) => StateSlice::Values(values),
            Self::Bf16(values) => StateSlice::Bf16(values),
            Self::Codes(codes) => StateSlice::Codes(codes),
            Self::BlockScale(scales) => StateSlice::BlockScale(scales),
        }
    }

    /// Each number as f64: bf16 widened, codes as they are.
    pub(crate) fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::Values(values) => values.iter().map(|v| v.to_f64()).collect(),
            Self::Bf16(values) => values.iter().map(|v| v.to_f64()).collect(),
            Self::Codes(codes) => codes.iter().map(|&c| f64::from(c)).collect(),
            Self::BlockScale(scales) => scales.iter().map(|&s| f64::from(s)).collect(),
        }
    }
}

/// Buffers of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Buffers<T> {
    pub(crate) master: Vec<T>,
    pub(crate) grad: Vec<T>,
    pub(crate) state: Vec<Stored<T>>,
    pub(crate) copy: Vec<bf16>,
}

/// Values over many magnitudes and zeros of both signs. No NaN: its payload may differ.
pub(crate) fn values<T: Real>(n: usize, seed: u64) -> Vec<T> {
    let mut bits = seed.wrapping_mul(2) + 1;
    let mut next = || {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        let value = f64::from((bits >> 33) as u32) / f64::from(1_u32 << 30) - 1.0;
        match (bits >> 20) % 31 {
            0 => 0.0,
            1 => -0.0,
            2 => value * 1e-30,
            3 => value * 1e9,
            _ => value,
        }
    };
    (0..n).map(|_| T::from_f64(next())).collect()
}

impl<T: Real> Buffers<T> {
    /// A parameter of `n` elements before its first step, with states in the form of `specs`.
    pub(crate) fn new(specs: &[StateSpec], n: usize, seed: u64) -> Self {
        let master = values(n, seed);
        let state = specs.iter().map(|spec| match spec.kind.start() {
            Start::Zero => Stored::zeros(spec.storage, n),
            Start::Master => Stored::Values(master.clone()),
        });
        let (state, copy) = (state.collect(), vec![bf16::ZERO; n]);
        Self { master, grad: values(n, seed + 1), state, copy }
    }

    pub(crate) fn elements(&mut self, copies: bool) -> Elements<'_, T> {
        Elements {
            master: &mut self.master,
            grad: &self.grad,
            state: self.state.iter_mut().map(Stored::slice).collect(),
            working: if copies { Working::Bf16(&mut self.copy) } else { Working::None },
            first: 0,
        }
    }

    /// The bits of everything that an update writes.
    pub(crate) fn bits(&self) -> Vec<u64> {
        let bits =
            |values: &[T]| -> Vec<u64> { values.iter().map(|v| v.to_f64().to_bits()).collect() };
        let mut all = bits(&self.master);
        for state in &self.state {
            match state {
                Stored::Values(values) => all.extend(bits(values)),
                Stored::Bf16(values) => all.extend(values.iter().map(|v| u64::from(v.to_bits()))),
                Stored::Codes(codes) => all.extend(codes.iter().map(|&c| u64::from(c))),
                Stored::BlockScale(s) => all.extend(s.iter().map(|v| u64::from(v.to_bits()))),
            }
        }
        all.extend(self.copy.iter().map(|c| u64::from(c.to_bits())));
        all
    }
}
