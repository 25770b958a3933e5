//! Rules that need a parameter whole: second moments of rows and columns, orthogonal updates,
//! singular directions.
//!
//! A flat shard cannot compute them. The owner of a parameter, one rank, receives its whole
//! gradient, keeps the rule's state for it, and calls [`WholeRule::update`]; the shards then
//! subtract the update as [`WholeRule::decay_order`] says. So cutting masters into shards changes
//! no bit.

mod adafactor;
mod adam_mini;
mod apply;
mod came;
mod cost;
mod factored;
mod facts;
mod galore;
mod muon;
mod ranges;
mod soap;
mod state;
mod subspace;

use tch::{Kind, Tensor};

pub use adafactor::{Adafactor, AdafactorConfig, StepScale};
pub use adam_mini::{AdamMini, AdamMiniConfig};
pub use apply::DecayOrder;
pub use came::{Came, CameConfig};
pub use facts::{Orientation, ParamFacts, Part};
pub use galore::{Galore, GaloreConfig};
pub use muon::{Muon, MuonConfig, MuonPrecision, MuonScale};
pub use soap::{Soap, SoapConfig};
pub use state::{WholeStateKind, WholeStateSpec};

use crate::elements::Scalars;
use crate::error::{Error, Result};
use crate::group::{Group, Role};

/// Which whole-matrix rule, with its hyper-parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WholeRuleConfig {
    /// See [`Adafactor`].
    Adafactor(AdafactorConfig),
    /// See [`Came`].
    Came(CameConfig),
    /// See [`AdamMini`].
    AdamMini(AdamMiniConfig),
    /// See [`Muon`].
    Muon(MuonConfig),
    /// See [`Galore`].
    Galore(GaloreConfig),
    /// See [`Soap`].
    Soap(SoapConfig),
}

impl WholeRuleConfig {
    /// The rule, once every hyper-parameter is in its range.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], naming the key, the value and the range.
    pub fn build(&self) -> Result<WholeRule> {
        Ok(match *self {
            Self::Adafactor(config) => WholeRule::Adafactor(Adafactor::new(config)?),
            Self::Came(config) => WholeRule::Came(Came::new(config)?),
            Self::AdamMini(config) => WholeRule::AdamMini(AdamMini::new(config)?),
            Self::Muon(config) => WholeRule::Muon(Muon::new(config)?),
            Self::Galore(config) => WholeRule::Galore(Galore::new(config)?),
            Self::Soap(config) => WholeRule::Soap(Soap::new(config)?),
        })
    }
}

/// A rule for whole parameters with validated hyper-parameters; see each for its formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WholeRule {
    /// Shazeer and Stern 2018.
    Adafactor(Adafactor),
    /// Luo et al. 2023.
    Came(Came),
    /// Zhang et al. 2024.
    AdamMini(AdamMini),
    /// Jordan et al. 2024.
    Muon(Muon),
    /// Zhao et al. 2024.
    Galore(Galore),
    /// Vyas et al. 2024.
    Soap(Soap),
}

/// What an update of one whole parameter reads and writes; all tensors of one device.
#[derive(Debug)]
pub struct WholeTensors<'a> {
    /// The gradient before `grad_scale`, f32 or f64, of the parameter's shape or flat; read only.
    pub grad: &'a Tensor,
    /// The master before this step, shaped and typed as the gradient; read only, and needed only
    /// if [`WholeRule::needs_master`].
    pub master: Option<&'a Tensor>,
    /// One tensor for each of [`WholeRule::state_specs`], in that order; written in place, so
    /// they may be views of a larger buffer.
    pub state: &'a mut [Tensor],
}

impl WholeRule {
    /// The name in configurations and checkpoints, which never changes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Adafactor(_) => Adafactor::NAME,
            Self::Came(_) => Came::NAME,
            Self::AdamMini(_) => AdamMini::NAME,
            Self::Muon(_) => Muon::NAME,
            Self::Galore(_) => Galore::NAME,
            Self::Soap(_) => Soap::NAME,
        }
    }

    /// Whether the rule is for this parameter: Muon, `GaLore` and SOAP take matrices of
    /// [`Role::Matrix`] only, the others everything. What a rule does not take goes to `AdamW`.
    pub fn takes(&self, facts: &ParamFacts) -> bool {
        match self {
            Self::Adafactor(_) | Self::Came(_) | Self::AdamMini(_) => true,
            Self::Muon(_) | Self::Galore(_) | Self::Soap(_) => {
                facts.role == Role::Matrix && facts.matrix().is_some()
            }
        }
    }

    /// The state tensors of a parameter, in the order that an update takes them; all zeros before
    /// the first, in the gradient's dtype. None for a parameter that the rule does not take.
    pub fn state_specs(&self, facts: &ParamFacts) -> Vec<WholeStateSpec> {
        if !self.takes(facts) {
            return Vec::new();
        }
        match self {
            Self::Adafactor(_) => Adafactor::state_specs(facts),
            Self::Came(_) => Came::state_specs(facts),
            Self::AdamMini(_) => AdamMini::state_specs(facts),
            Self::Muon(_) => Muon::state_specs(facts),
            Self::Galore(rule) => rule.state_specs(facts),
            Self::Soap(rule) => rule.state_specs(facts),
        }
    }

    /// Whether an update reads the master: only Adafactor's with [`StepScale::Relative`].
    pub fn needs_master(&self) -> bool {
        match self {
            Self::Adafactor(rule) => rule.config().step_scale == StepScale::Relative,
            _ => false,
        }
    }

    /// How the update and the weight decay meet, as in each rule's reference code.
    pub fn decay_order(&self) -> DecayOrder {
        match self {
            Self::Adafactor(_) | Self::Came(_) | Self::AdamMini(_) | Self::Muon(_) => {
                DecayOrder::Before
            }
            Self::Galore(_) | Self::Soap(_) => DecayOrder::After,
        }
    }

    /// Decoupled weight decay before a group's multiplier.
    pub fn weight_decay(&self) -> f64 {
        match self {
            Self::Adafactor(rule) => rule.config().weight_decay,
            Self::Came(rule) => rule.config().weight_decay,
            Self::AdamMini(rule) => rule.config().weight_decay,
            Self::Muon(rule) => rule.config().weight_decay,
            Self::Galore(rule) => rule.config().weight_decay,
            Self::Soap(rule) => rule.config().weight_decay,
        }
    }

    /// The numbers of update number `step` (from **1**) for one group; `lr` is the schedule's.
    pub fn scalars(&self, group: &Group, lr: f64, grad_scale: f64, step: u64) -> Scalars {
        Scalars {
            lr: lr * group.lr_multiplier,
            weight_decay: self.weight_decay() * group.weight_decay_multiplier,
            grad_scale,
            step,
            averaging_weight: 1.0,
            rounding_seed: 0,
        }
    }

    /// Advances the state of one parameter and returns what is to be subtracted from its master,
    /// learning rate included, decay not: hand it to [`DecayOrder::apply`].
    ///
    /// Runs on the tensors' device, CPU or CUDA, in the gradient's dtype. On the CPU the bits
    /// depend on nothing but the inputs, the number of libtorch's threads, and the processor.
    /// Nothing is recorded for autograd. A non-finite gradient spoils the whole parameter, or is
    /// refused by a decomposition: look at the gradient norm first.
    ///
    /// # Shapes
    /// As [`WholeTensors`]; returns `facts.shape`, dtype of the gradient, a new tensor.
    ///
    /// # Errors
    /// Before anything is written: [`Error::Scalar`], [`Error::WholeShape`],
    /// [`Error::WholeParts`], [`Error::WholeRole`], [`Error::WholeState`], [`Error::WholeTensor`],
    /// [`Error::WholeMaster`]. [`Error::Tensor`] if libtorch refuses an operation, after which the
    /// state is not defined.
    pub fn update(
        &self,
        tensors: WholeTensors,
        facts: &ParamFacts,
        scalars: &Scalars,
    ) -> Result<Tensor> {
        scalars.validate()?;
        self.check(&tensors, facts)?;
        let WholeTensors { grad, master, state } = tensors;
        tch::no_grad(|| {
            let grad = grad.f_reshape(&facts.shape)?.f_mul_scalar(scalars.grad_scale)?;
            match self {
                Self::Adafactor(rule) => rule.update(&grad, master, state, scalars),
                Self::Came(rule) => rule.update(grad, state, scalars),
                Self::AdamMini(rule) => rule.update(&grad, state, facts, scalars),
                Self::Muon(rule) => rule.update(grad, state, facts, scalars),
                Self::Galore(rule) => rule.update(&grad, state, scalars),
                Self::Soap(rule) => rule.update(&grad, state, scalars),
            }
        })
    }

    /// Refuses a parameter that the rule does not take, and tensors that do not fit it.
    fn check(&self, tensors: &WholeTensors, facts: &ParamFacts) -> Result<()> {
        facts.validate()?;
        let (rule, kind) = (self.name(), tensors.grad.kind());
        if !self.takes(facts) {
            return Err(Error::WholeRole { rule, shape: facts.shape.clone(), role: facts.role });
        }
        let check = |name, tensor: &Tensor, shape: &[i64], may_be_flat| {
            let found = tensor.size();
            let is_flat = may_be_flat && found == [shape.iter().product::<i64>()];
            let fits = (found == shape || is_flat) && tensor.kind() == kind;
            if fits && matches!(kind, Kind::Float | Kind::Double) {
                return Ok(());
            }
            Err(Error::WholeTensor {
                tensor: name,
                expected: shape.to_vec(),
                found,
                dtype: tensor.kind(),
                grad_dtype: kind,
            })
        };
        check("grad", tensors.grad, &facts.shape, true)?;
        match tensors.master {
            Some(master) => check("master", master, &facts.shape, true)?,
            None if self.needs_master() => return Err(Error::WholeMaster { rule }),
            None => {}
        }
        let specs = self.state_specs(facts);
        let (expected, found) = (specs.len(), tensors.state.len());
        if expected != found {
            return Err(Error::WholeState { rule, expected, found });
        }
        for (spec, state) in specs.iter().zip(&*tensors.state) {
            check(spec.kind.name(), state, &spec.shape, false)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
