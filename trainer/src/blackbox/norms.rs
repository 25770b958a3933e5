//! How large every parameter and its gradient are, and how much of them is not finite.

use grove_parallel::Reduction;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::sharding::Sharding;
use crate::state::UnitState;

/// Numbers of a parameter that ranks add up: squares and counts, of gradient and weight.
const NUMBERS: usize = 4;

/// The size of some values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// L2 norm of those that are finite.
    pub norm: f64,
    /// How many are not.
    pub not_finite: u64,
}

impl Size {
    /// Of a tensor's values.
    pub fn of(values: &Tensor) -> Self {
        let [squares, not_finite] = squares_and_count(values);
        Self { norm: squares.sqrt(), not_finite: not_finite as u64 }
    }
}

/// A parameter's sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamNorms {
    /// The unit.
    pub unit: String,
    /// The parameter.
    pub name: String,
    /// Of the gradient summed over all micro-batches and tokens, before it is divided by their
    /// number.
    pub gradient: Size,
    /// Of the master weights.
    pub weight: Size,
}

/// The sizes of all parameters, in the order of the units; the same on every rank, but that shard
/// groups may differ in the last bits.
///
/// # Errors
/// If the collective fails.
///
/// # Collectives
/// One all-reduce over the shard group, where there is more than one rank in it.
pub fn norms(
    units: &[UnitState],
    sharding: &Sharding<'_>,
) -> Result<Vec<ParamNorms>, grove_parallel::Error> {
    let mut sums: Vec<f64> = Vec::new();
    for unit in units {
        let first = sums.len();
        sums.resize(first + unit.spec.params.len() * NUMBERS, 0.0);
        let grads = unit.owned_grads();
        for segment in &unit.segments {
            let (start, len) = (segment.range.start as i64, segment.range.len() as i64);
            let part = |flat: &Tensor| squares_and_count(&flat.narrow(0, start, len));
            let numbers = [part(&grads), part(&unit.masters)].concat();
            let place = first + segment.param * NUMBERS;
            for (sum, number) in sums[place..place + NUMBERS].iter_mut().zip(numbers) {
                *sum += number;
            }
        }
    }
    if sharding.placement.shard_degree > 1 {
        let tensor = Tensor::from_slice(&sums);
        sharding.shards().all_reduce(&tensor, Reduction::Sum, "norms of parameters")?.wait()?;
        sums = Vec::try_from(tensor).expect("a vector of f64");
    }
    let params = units.iter().flat_map(|unit| unit.spec.params.iter().map(move |p| (unit, p)));
    let size = |numbers: &[f64]| Size { norm: numbers[0].sqrt(), not_finite: numbers[1] as u64 };
    let named = params.zip(sums.chunks(NUMBERS)).map(|((unit, param), numbers)| ParamNorms {
        unit: unit.spec.name.clone(),
        name: param.name.clone(),
        gradient: size(&numbers[..2]),
        weight: size(&numbers[2..]),
    });
    Ok(named.collect())
}

/// The parameter that went bad first: a weight that is not finite spoils all that follow, else the
/// first gradient in the order of the backward pass, which is that of the units backward.
pub fn first_not_finite(norms: &[ParamNorms]) -> Option<&ParamNorms> {
    let weight = norms.iter().find(|param| param.weight.not_finite > 0);
    weight.or_else(|| norms.iter().rev().find(|param| param.gradient.not_finite > 0))
}

/// The sum of squares of what is finite, and the number of what is not.
fn squares_and_count(values: &Tensor) -> [f64; 2] {
    let wide = values.to_kind(Kind::Double);
    let finite = wide.isfinite();
    let squares = wide.where_scalarother(&finite, 0.0).square().sum(Kind::Double);
    let count = finite.logical_not().sum(Kind::Double);
    [squares.double_value(&[]), count.double_value(&[])]
}
