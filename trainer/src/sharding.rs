//! How a run's state and the sums of its gradients are spread over the ranks: ZeRO stages 0 to 3
//! (Rajbhandari et al. 2020, arXiv:1910.02054), over all ranks or within groups of them (MiCS,
//! Zhang et al. 2022, arXiv:2205.00119).
//!
//! Of `W` ranks, `S` neighbors hold one copy of the sharded state together (a shard group), and the
//! `R = W / S` ranks of equal coordinate hold the same shard (replicas). Stage 0 is `S = 1`.

use std::ops::Range;

use grove_parallel::{Collective, UnitLayout};

/// What is sharded, each stage with all of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing: every rank holds everything.
    Nothing,
    /// Master weights and optimizer state.
    Optimizer,
    /// Gradient accumulators.
    Gradients,
    /// Working copies.
    Parameters,
}

/// In which order gradients of micro-batches are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// One chain over the global numbers of micro-batches: equal bits at any number of ranks.
    Exact,
    /// At stages 0 and 1 each rank's micro-batches first, then over ranks: one reduction a step.
    Fast,
}

/// Where this rank stands, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// What is sharded.
    pub stage: Stage,
    /// How gradients are summed.
    pub sums: Sums,
    /// All ranks, `W`.
    pub degree: usize,
    /// This rank, below `degree`.
    pub rank: usize,
    /// Ranks of a shard group, `S`: divides `degree`; 1 at stage 0.
    pub shard_degree: usize,
    /// Units of at most this many elements are not sharded at [`Stage::Parameters`] but kept
    /// whole, as their gathers would cost more than their memory.
    pub keep_numel: usize,
}

impl Placement {
    /// One rank that holds everything.
    pub fn alone() -> Self {
        let (stage, sums) = (Stage::Nothing, Sums::Exact);
        Self { stage, sums, degree: 1, rank: 0, shard_degree: 1, keep_numel: 0 }
    }

    /// This rank's place in its shard group.
    pub fn coord(&self) -> usize {
        self.rank % self.shard_degree
    }

    /// Which copy of the sharded state this rank holds a part of.
    pub fn replica(&self) -> usize {
        self.rank / self.shard_degree
    }

    /// Copies of the sharded state, `R`.
    pub fn num_replicas(&self) -> usize {
        self.degree / self.shard_degree
    }

    /// The elements of a unit whose masters and optimizer state are here.
    pub fn owned(&self, layout: &UnitLayout) -> Range<usize> {
        let numel = layout.padded_numel() / self.shard_degree;
        self.coord() * numel..(self.coord() + 1) * numel
    }

    /// The part of [`Placement::owned`] in which this rank adds up gradients under [`Sums::Exact`],
    /// for all ranks: a `W`th of the unit.
    pub fn summed(&self, layout: &UnitLayout) -> Range<usize> {
        let numel = layout.shard_numel();
        let start = self.owned(layout).start + self.replica() * numel;
        start..start + numel
    }

    /// Whether the working copies of a unit are sharded.
    pub fn shards_working(&self, layout: &UnitLayout) -> bool {
        self.stage == Stage::Parameters && self.shard_degree > 1 && layout.numel() > self.keep_numel
    }

    /// Whether accumulators are whole on every rank: each adds up its own micro-batches.
    pub fn accumulates_whole(&self) -> bool {
        self.degree == 1 || (self.sums == Sums::Fast && self.stage <= Stage::Optimizer)
    }
}

/// A placement with the collectives of its groups.
pub struct Sharding<'a> {
    /// The numbers.
    pub placement: Placement,
    world: &'a dyn Collective,
    shards: Ranks<'a>,
    replicas: Ranks<'a>,
}

enum Ranks<'a> {
    All(&'a dyn Collective),
    Group(Box<dyn Collective>),
}

impl Ranks<'_> {
    fn get(&self) -> &dyn Collective {
        match self {
            Self::All(world) => *world,
            Self::Group(group) => &**group,
        }
    }
}

impl<'a> Sharding<'a> {
    /// Makes the groups of a placement whose degree and rank are the world's.
    ///
    /// # Errors
    /// If a group cannot be made.
    ///
    /// # Collectives
    /// Every rank must call it with the same stage and degrees.
    pub fn new(
        placement: Placement,
        world: &'a dyn Collective,
    ) -> Result<Self, grove_parallel::Error> {
        let (first, size) = (placement.replica() * placement.shard_degree, placement.shard_degree);
        let shards: Vec<usize> = (first..first + size).collect();
        let replicas: Vec<usize> = (placement.coord()..placement.degree).step_by(size).collect();
        let group = |ranks: &[usize], name| {
            if ranks.len() == placement.degree {
                return Ok(Ranks::All(world));
            }
            world.group(ranks, name).map(Ranks::Group)
        };
        let (shards, replicas) = (group(&shards, "shards")?, group(&replicas, "replicas")?);
        Ok(Self { placement, world, shards, replicas })
    }

    /// All ranks.
    pub fn world(&self) -> &'a dyn Collective {
        self.world
    }

    /// The ranks that hold one copy of the sharded state together.
    pub fn shards(&self) -> &dyn Collective {
        self.shards.get()
    }

    /// The ranks that hold the same shard.
    pub fn replicas(&self) -> &dyn Collective {
        self.replicas.get()
    }
}

#[cfg(test)]
mod tests;
