//! A run's teacher: when it is read and let go, and what it must share with the model.

use grove_parallel::Collective;
use sha2::{Digest, Sha256};
use tch::Device;

use super::Problem;
use super::start::other_tokenizer;
use crate::config::{DistillPlan, Plan};
use crate::error::Error;
use crate::kernel::view;
use crate::loaded::LoadedModel;
use crate::model::compute::Compute;
use crate::state::UnitState;
use crate::step::Recipe;
use crate::step_numbers::agree_on;
use crate::teacher::Teacher;

/// Reads the teacher before the first step in which it counts, and lets its memory go where it
/// does not: `step` steps are done. Returns what to say of it.
///
/// # Errors
/// If it cannot be read, does not fit the model, or differs between ranks.
///
/// # Collectives
/// One all-gather where it is read, the same on every rank.
pub fn teach(
    plan: &Plan,
    collective: &dyn Collective,
    recipe: &mut Recipe,
    step: u64,
) -> Result<Option<String>, Error> {
    let (Some(distillation), Some(wanted)) = (&mut recipe.distillation, &plan.distill) else {
        return Ok(None);
    };
    match (distillation.mixture(step), &distillation.teacher) {
        (None, Some(_)) => {
            distillation.teacher = None;
            Ok(Some(format!("the teacher no longer counts after step {step}")))
        }
        (Some(_), None) => {
            let teacher = open(plan, wanted, &recipe.compute)?;
            agree_on(collective, [("the teacher", fingerprint(&teacher.state.units))])?;
            let millions = teacher.model.spec.num_parameters() as f64 / 1e6;
            let (path, steps) = (wanted.teacher.display(), wanted.steps);
            distillation.teacher = Some(teacher);
            Ok(Some(format!(
                "teacher {path}, {millions:.2} M parameters, counts until step {steps}"
            )))
        }
        _ => Ok(None),
    }
}

fn open(plan: &Plan, wanted: &DistillPlan, compute: &Compute) -> Result<Teacher, Error> {
    let LoadedModel { decoder, state, folder, .. } = LoadedModel::open(&wanted.teacher, compute)?;
    let (found, expected) = (&decoder.spec, plan.model.spec());
    let refuse = |key, found: String, expected: String| {
        Err(Error::Teacher { path: wanted.teacher.clone(), key, found, expected })
    };
    if found.vocab_size != expected.vocab_size {
        let (found, expected) = (found.vocab_size.to_string(), expected.vocab_size.to_string());
        return refuse("vocab_size", found, expected);
    }
    let (longest, length) = (found.max_positions, plan.batch.sequence_length);
    if longest < length {
        let expected = format!("batch.sequence_length = {length} or more");
        return refuse("max_position_embeddings", longest.to_string(), expected);
    }
    if let Some(Problem::Tokenizer { target, found }) = other_tokenizer(&folder, plan)? {
        return refuse("tokenizer", found, target);
    }
    // Of three parts of a training step's FLOPs the forward is one.
    let flops_per_token = found.flops_per_token(length) / 3;
    Ok(Teacher { model: decoder, state, flops_per_token })
}

/// The weights as a number that ranks can compare.
fn fingerprint(units: &[UnitState]) -> i64 {
    let mut hash = Sha256::new();
    for unit in units {
        hash.update(view::bytes(&unit.working.to_device(Device::Cpu)));
    }
    let hash = hash.finalize();
    i64::from_le_bytes(std::array::from_fn(|i| hash[i]))
}
