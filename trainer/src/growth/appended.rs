//! Models with neurons, heads and channels of the residual stream beside those they had: nothing of the
//! old ones changes, and the new ones are drawn as initial weights are. Under masks of 0 the function
//! stays (MSG, Yao et al. 2023, arXiv:2305.02869).

use grove_optim::StateKind;
use tch::{Kind, Tensor};

use super::anatomy::{Anatomy, At, Axis, Part};
use super::noise::normal;
use super::parts::{Nature, Parts, Plane};
use crate::model::config::{DecoderSpec, ModelConfig};

/// A model with more neurons, heads or channels than its source.
pub struct Appended<'a> {
    source: Box<dyn Parts + 'a>,
    old: DecoderSpec,
    new: DecoderSpec,
    config: ModelConfig,
    names: Anatomy,
    seed: u64,
}

impl<'a> Appended<'a> {
    /// `source` with the neurons, heads and channels of `config`. Old query heads must be the first ones of
    /// the same key heads; see [`keeps_groups`].
    pub fn new(source: Box<dyn Parts + 'a>, config: ModelConfig, seed: u64) -> Self {
        let (old, new) = (source.config().spec(), config.spec());
        Self { names: Anatomy::new(&config), source, old, new, config, seed }
    }

    /// Old and new length of an axis.
    fn lengths(&self, axis: Axis) -> (i64, i64) {
        (axis.len(&self.old) as i64, axis.len(&self.new) as i64)
    }

    /// The old value in the first corner of one of the new shape; `fill` makes what is added.
    fn extended(&self, at: At, value: &Tensor, fill: impl Fn(&[i64]) -> Tensor) -> Tensor {
        let (rows, columns) = at.part.axes();
        let shape: Vec<i64> =
            std::iter::once(rows).chain(columns).map(|axis| self.lengths(axis).1).collect();
        if shape == value.size() {
            return value.shallow_clone();
        }
        let extended = fill(&shape);
        let mut corner = extended.shallow_clone();
        for (dim, &len) in value.size().iter().enumerate() {
            corner = corner.narrow(dim as i64, 0, len);
        }
        corner.copy_(value);
        extended
    }
}

/// Whether heads can be added so that old ones keep their numbers and their key heads.
pub(super) fn keeps_groups(old: &DecoderSpec, new: &DecoderSpec) -> bool {
    let group = |spec: &DecoderSpec| spec.num_heads / spec.num_kv_heads;
    group(old) == group(new) || old.num_kv_heads == 1 && new.num_kv_heads == 1
}

impl Parts for Appended<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn value(&self, at: At, plane: Plane) -> Tensor {
        let value = self.source.value(at, plane);
        let constant = |constant: f64| {
            move |shape: &[i64]| Tensor::full(shape, constant, (Kind::Double, tch::Device::Cpu))
        };
        match (plane.nature(), at.part) {
            (Nature::Weights, Part::NormWeight(_)) => self.extended(at, &value, constant(1.0)),
            (Nature::Weights, Part::Weight(_) | Part::Embedding | Part::Head) => {
                let name = format!("{}/{:?}/appended", self.names.name(at), at.part);
                let std = self.new.initializer_range;
                self.extended(at, &value, |shape| normal(self.seed, &name, shape, std))
            }
            (Nature::Squares, _) => {
                // Never zero beside a counter that is not.
                let mean = value.mean(Kind::Double).double_value(&[]);
                self.extended(at, &value, constant(mean))
            }
            _ => self.extended(at, &value, constant(0.0)),
        }
    }

    fn steps(&self, at: At) -> u64 {
        self.source.steps(at)
    }

    fn states(&self) -> Vec<StateKind> {
        self.source.states()
    }

    fn describe(&self, at: At, notes: &mut Vec<String>) {
        self.source.describe(at, notes);
        let (rows, columns) = at.part.axes();
        for (what, axis) in [("rows", Some(rows)), ("columns", columns)] {
            let Some((old, new)) = axis.map(|axis| self.lengths(axis)) else { continue };
            let widens = !matches!(axis, Some(Axis::Vocabulary | Axis::Positions));
            if widens && old != new {
                let how = if columns.is_some() { "at random" } else { "as initial values" };
                notes.push(format!("{what} {old} -> {new} (added {how})"));
            }
        }
    }
}
