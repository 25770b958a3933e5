//! Who owns a parameter that its rule needs whole, and how its pieces travel.
//!
//! Each such parameter has one owner among all `W` ranks, who keeps its optimizer state and
//! computes its updates (Liu et al. 2025, arXiv:2502.16982, section 2.3, spread over replicas too).
//! The ranks of the owner's shard group send it their pieces of the mean gradient; the update goes
//! back to them, and from each of them to its replicas. Pieces travel in parts of one size, a part
//! for each pair of owner and shard, so that plain collectives carry them.

use std::ops::Range;

use grove_optim::{ParamFacts, WholeStateSpec};
use grove_parallel::UnitLayout;
use tch::{Device, Kind, Tensor};

use crate::model::units::UnitSpec;
use crate::rules::Rules;
use crate::sharding::Placement;

/// The parameters of one unit that are taken whole.
#[derive(Debug, Default)]
pub struct WholeUnit {
    /// The parameters, in the unit's order.
    pub params: Vec<WholeParam>,
    /// Elements of a part: of the longest that some owner and some shard exchange.
    pub part_numel: usize,
}

/// A parameter that is taken whole.
#[derive(Debug)]
pub struct WholeParam {
    /// Its index in the unit.
    pub param: usize,
    /// What its rule must know of it.
    pub facts: ParamFacts,
    /// Where it is updated.
    pub owner: Owner,
    /// What each shard holds of it, in order.
    pub pieces: Vec<Piece>,
    /// What its rule keeps for it.
    pub specs: Vec<WholeStateSpec>,
    /// The states of `specs`, in order, on the owner; no others have any.
    pub states: Vec<WholeStateBuffer>,
}

/// A rank, by its place among replicas and shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Which shard group.
    pub replica: usize,
    /// Which rank of it.
    pub coord: usize,
}

/// What one shard holds of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The shard.
    pub shard: usize,
    /// The elements, counted from the parameter's first.
    pub param_range: Range<usize>,
    /// The same, counted from the shard's first.
    pub shard_range: Range<usize>,
    /// Where they begin in the part that owner and shard exchange.
    pub offset: usize,
}

/// One state of a whole parameter.
#[derive(Debug)]
pub struct WholeStateBuffer {
    /// What it holds.
    pub spec: WholeStateSpec,
    /// The values, accumulation dtype.
    pub values: Tensor,
}

impl Owner {
    /// The owner that is rank `rank` of all.
    fn new(rank: usize, place: &Placement) -> Self {
        Self { replica: rank / place.shard_degree, coord: rank % place.shard_degree }
    }

    /// Whether it is this rank.
    pub fn is_here(&self, place: &Placement) -> bool {
        (self.replica, self.coord) == (place.replica(), place.coord())
    }

    /// Its number among all ranks.
    pub fn rank(&self, place: &Placement) -> usize {
        self.replica * place.shard_degree + self.coord
    }
}

impl WholeParam {
    /// What the shard holds of it.
    pub fn piece(&self, shard: usize) -> Option<&Piece> {
        self.pieces.iter().find(|piece| piece.shard == shard)
    }
}

impl WholeUnit {
    /// The parameter with this index in the unit, if it is taken whole.
    pub fn get(&self, param: usize) -> Option<&WholeParam> {
        self.params.iter().find(|whole| whole.param == param)
    }
}

/// The owners of the parameters that are taken whole, in units' and parameters' order.
///
/// Unit after unit, and in each the most costly parameter first, each goes to the rank that has the
/// least to do so far, the first such one: so at any point of a step, ranks are at most one
/// parameter apart. It follows from rules and shapes alone, so all ranks find the same.
pub fn owners(units: &[UnitSpec], rules: &Rules, num_ranks: usize) -> Vec<Vec<usize>> {
    let mut loads = vec![0u128; num_ranks];
    let of_unit = |unit: &UnitSpec| {
        let taken = unit.params.iter().filter_map(|param| rules.taken_whole(param));
        let costs: Vec<u128> = taken.map(|(rule, facts)| rule.cost(facts)).collect();
        let mut order: Vec<usize> = (0..costs.len()).collect();
        order.sort_by_key(|&place| std::cmp::Reverse(costs[place]));
        let mut owners = vec![0; costs.len()];
        for place in order {
            let least = (0..num_ranks).min_by_key(|&rank| loads[rank]).expect("at least one rank");
            loads[least] += costs[place];
            owners[place] = least;
        }
        owners
    };
    units.iter().map(of_unit).collect()
}

/// The whole parameters of a unit, with states of zeros on `home` where this rank owns them.
/// `owners` are those of the unit's taken parameters.
pub fn whole_unit(
    (spec, layout): (&UnitSpec, &UnitLayout),
    rules: &Rules,
    owners: &[usize],
    place: &Placement,
    (accumulation, home): (Kind, Device),
) -> WholeUnit {
    let shard_numel = layout.padded_numel() / place.shard_degree;
    let mut filled = vec![0; place.degree * place.shard_degree];
    let mut owners = owners.iter();
    let mut params = Vec::new();
    for (param, described) in spec.params.iter().enumerate() {
        let Some((rule, facts)) = rules.taken_whole(described) else { continue };
        let rank = *owners.next().expect("every parameter that is taken has an owner");
        let owner = Owner::new(rank, place);
        let mut pieces = Vec::new();
        let whole = layout.params()[param].range();
        for shard in whole.start / shard_numel..=(whole.end - 1) / shard_numel {
            let first = shard * shard_numel;
            let held = whole.start.max(first)..whole.end.min(first + shard_numel);
            let part = &mut filled[rank * place.shard_degree + shard];
            pieces.push(Piece {
                shard,
                param_range: held.start - whole.start..held.end - whole.start,
                shard_range: held.start - first..held.end - first,
                offset: *part,
            });
            *part += held.len();
        }
        let specs = rule.state_specs(facts);
        let zeros = |spec: &WholeStateSpec| WholeStateBuffer {
            values: Tensor::zeros(&spec.shape, (accumulation, home)),
            spec: spec.clone(),
        };
        let owned = specs.iter().filter(|_| owner.is_here(place));
        let states = owned.map(zeros).collect();
        params.push(WholeParam { param, facts: facts.clone(), owner, pieces, specs, states });
    }
    WholeUnit { params, part_numel: filled.into_iter().max().unwrap_or(0) }
}

#[cfg(test)]
mod tests;
