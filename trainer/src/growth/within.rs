//! The certificate of a growth that a run makes: as it starts, or where a stage begins. The models
//! are read and grown once more for it, by one rank, apart from the run's own state.

use std::fs;

use grove_data::Validation;
use tch::Tensor;

use super::certificate::{Certificate, EXACT_IN_FP32, claims_function, is_exact, measure};
use super::compared;
use super::compose::grow;
use super::parts::Parts;
use super::start::grown_source;
use super::stored::StoredModel;
use crate::checkpoint::Checkpoint;
use crate::config::{GrowthPlan, Plan};
use crate::error::Error;

/// Where a run has grown.
#[derive(Debug)]
pub struct Grown<'a> {
    /// The plan that the run began with, and that of the stage that begins.
    pub plans: [&'a Plan; 2],
    /// How many stages were entered before, and are now.
    pub stages: [usize; 2],
    /// What the run goes on from; none as it starts.
    pub from: Option<&'a Checkpoint>,
    /// What was held out.
    pub held_out: Option<&'a Validation>,
}

impl Grown<'_> {
    /// Measures what has grown and writes it to the run's folder, `growth-STEP.json`; none if nothing
    /// has.
    ///
    /// # Errors
    /// If the model before cannot be read, or nothing can be written.
    pub fn certify(&self) -> Result<Option<Certificate>, Error> {
        let _no_graph = tch::no_grad_guard();
        let (certificate, step) = match self.from {
            None => (self.of_start()?, 0),
            Some(checkpoint) => (self.of_stages(checkpoint)?, checkpoint.run_state().step),
        };
        if let Some(certificate) = &certificate {
            let text = serde_json::to_string_pretty(certificate).expect("a certificate is JSON");
            let path = self.plans[1].run.dir.join(format!("growth-{step:08}.json"));
            fs::write(&path, text + "\n").map_err(|source| Error::Io {
                action: "write",
                path,
                source,
            })?;
        }
        Ok(certificate)
    }

    fn of_start(&self) -> Result<Option<Certificate>, Error> {
        let plan = self.plans[1];
        let (Some(from), Some(growth)) = (&plan.init.from, plan.init.growth) else {
            return Ok(None);
        };
        let source = StoredModel::open(from)?;
        let grown = grown_source(Box::new(StoredModel::open(from)?), plan, (from, &growth))?;
        let claims = claims_function(source.config(), &plan.model, &growth);
        let name = from.display().to_string();
        self.measured((&source, name), &*grown, (growth, claims), 0).map(Some)
    }

    fn of_stages(&self, checkpoint: &Checkpoint) -> Result<Option<Certificate>, Error> {
        let [first, plan] = self.plans;
        let [before, after] = self.stages;
        let Some(entered) = first.growth.get(before..after).filter(|it| !it.is_empty()) else {
            return Ok(None);
        };
        let source = StoredModel::open(checkpoint.folder())?;
        let mut grown: Box<dyn Parts> = Box::new(StoredModel::open(checkpoint.folder())?);
        let mut claims = true;
        for stage in entered {
            claims &= claims_function(grown.config(), &stage.model, &stage.growth);
            let name = format!("the model of step {}", stage.at_step);
            grown = grow(grown, &stage.model, &stage.growth, (&name, plan.seed))?;
        }
        let step = checkpoint.run_state().step;
        let name = checkpoint.folder().display().to_string();
        let operators = entered[entered.len() - 1].growth;
        self.measured((&source, name), &*grown, (operators, claims), step).map(Some)
    }

    fn measured(
        &self,
        (source, name): (&StoredModel, String),
        grown: &dyn Parts,
        (operators, claims_function): (GrowthPlan, bool),
        step: u64,
    ) -> Result<Certificate, Error> {
        let plan = self.plans[1];
        let (tokens, described) = self.tokens(source)?;
        let measured = measure(source, (grown, plan.folding(step).as_ref()), &tokens);
        Ok(Certificate {
            source: name,
            source_hash: source.hash()?,
            grown_hash: None,
            operators,
            seed: plan.seed,
            claims_function,
            tolerance: EXACT_IN_FP32,
            is_exact: claims_function && is_exact(&measured),
            tokens: described,
            measured,
            learned: None,
        })
    }

    /// Held-out sequences, or made up ones where the source does not know them all.
    fn tokens(&self, source: &StoredModel) -> Result<(Tensor, String), Error> {
        let (spec, plan) = (source.config().spec(), self.plans[1]);
        let known = self
            .held_out
            .map(|windows| compared::held_out((windows, "the validation data"), &spec, plan));
        match known {
            Some(Err(Error::Growth(super::Error::NewTokens { .. }))) | None => {
                Ok(compared::made_up(&spec, plan))
            }
            Some(found) => found,
        }
    }
}
