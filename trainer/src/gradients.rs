//! The sums of gradients over micro-batches and ranks.
//!
//! A unit's gradient of one micro-batch is computed whole, in a buffer that the next units use
//! again. Under [`Sums::Exact`] it then joins a chain over the global numbers of micro-batches:
//! in each round every rank brings one, and the owner of a slice adds them in rank order. So the
//! sum does not depend on the number of ranks, nor on who owns what.

use std::collections::VecDeque;

use grove_parallel::collective::Onto;
use grove_parallel::{Handle, Reduction};
use tch::{Kind, Tensor};

use crate::kernel::{accumulate, view};
use crate::model::compute::{Compute, Products};
use crate::model::views::{Accumulate, Grads, Joining};
use crate::sharding::{Placement, Sharding, Sums};
use crate::spare::SpareBuffers;
use crate::state::UnitState;

/// Units whose gradients may be under way at once; each holds a buffer.
const IN_FLIGHT: usize = 2;

/// Which of a step's rounds of one micro-batch a rank it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// The first: accumulators are overwritten, so they need no zeroing.
    pub first: bool,
    /// The last: sums become complete.
    pub last: bool,
    /// Whether this rank has a micro-batch in it. One that has none goes through the motions with
    /// some other micro-batch, and adds nothing.
    pub contributes: bool,
}

impl Round {
    /// The only round of a step.
    pub fn only() -> Self {
        Self { first: true, last: true, contributes: true }
    }
}

/// A unit's gradient of one micro-batch, while layers compute it.
#[derive(Debug)]
pub struct Gradient {
    /// Where it goes, in the unit's layout.
    pub flat: Tensor,
    /// Whether that is the unit's accumulators, and how it joins what they hold; else a buffer of its
    /// own, whose content is arbitrary.
    within: Option<Accumulate>,
}

impl Gradient {
    /// As layers take it.
    pub fn views<'a>(&'a self, compute: &Compute, unit: &'a UnitState) -> Grads<'a> {
        let is_narrow = compute.kind != compute.accumulation() && !unit.spec.gradient_in_parts;
        let joining = Joining {
            accumulate: self.within.unwrap_or(Accumulate::Overwrite),
            rounds: self.within.is_some() && is_narrow,
        };
        Grads { layout: &unit.layout, flat: &self.flat, joining }
    }
}

/// The reductions under way, and the buffers of micro-batches' gradients.
#[derive(Debug)]
pub struct GradientSums {
    pending: VecDeque<Pending>,
    spare: SpareBuffers,
}

#[derive(Debug)]
struct Pending {
    /// What becomes spare once the reductions are done.
    buffer: Option<Tensor>,
    handles: Vec<Handle>,
}

impl GradientSums {
    /// None under way.
    pub fn new(units: &[UnitState]) -> Self {
        Self { pending: VecDeque::new(), spare: SpareBuffers::new(units) }
    }

    /// The most bytes that buffers have taken at one time.
    pub fn buffer_bytes(&self) -> u64 {
        self.spare.peak_bytes()
    }

    /// Whether [`GradientSums::apart`] would have to wait for a reduction.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= IN_FLIGHT
    }

    /// Where layers put one micro-batch's gradient of a unit: into the accumulators, where that gives
    /// the bits of a buffer which is then added.
    ///
    /// # Errors
    /// As [`GradientSums::apart`].
    pub fn gradient(
        &mut self,
        compute: &Compute,
        sharding: &Sharding<'_>,
        unit: &UnitState,
        round: Round,
    ) -> Result<Gradient, grove_parallel::Error> {
        // Parts are summed before they are added, and so is what a product of libtorch's sums.
        let adds = compute.products == Products::Kernel && !unit.spec.gradient_in_parts;
        let whole = sharding.placement.accumulates_whole() && round.contributes;
        if !(whole && compute.has_kernels() && (round.first || adds)) {
            return self.apart(compute, unit);
        }
        let accumulate = if round.first { Accumulate::Overwrite } else { Accumulate::Add };
        Ok(Gradient { flat: unit.grads.shallow_clone(), within: Some(accumulate) })
    }

    /// A whole buffer for one micro-batch's gradient of a unit.
    ///
    /// # Errors
    /// If a reduction that had to be waited for failed.
    pub fn apart(
        &mut self,
        compute: &Compute,
        unit: &UnitState,
    ) -> Result<Gradient, grove_parallel::Error> {
        while self.is_full() {
            self.wait_for_oldest()?;
        }
        let kind = match unit.spec.gradient_in_parts {
            true => compute.accumulation(),
            false => compute.kind,
        };
        let flat = self.spare.take(unit.layout.padded_numel(), kind, compute.device);
        Ok(Gradient { flat, within: None })
    }

    /// Adds a unit's gradient of this round to its accumulators, unless it is there already, behind
    /// the compute that follows.
    ///
    /// # Errors
    /// If a reduction cannot be started.
    ///
    /// # Collectives
    /// Every round under [`Sums::Exact`], and at stages 2 and 3: one ordered reduce-scatter. In the
    /// last round, between replicas: an all-gather (exact) or an all-reduce (fast). Under
    /// [`Sums::Fast`] at stages 0 and 1: a reduce-scatter and an all-reduce, in the last round.
    pub fn add(
        &mut self,
        compute: &Compute,
        sharding: &Sharding<'_>,
        unit: &UnitState,
        gradient: Gradient,
        round: Round,
    ) -> Result<(), grove_parallel::Error> {
        let Gradient { flat: mut buffer, within } = gradient;
        if !round.contributes {
            // x + -0.0 is x for every x, even -0.0.
            let _ = buffer.fill_(-0.0);
        }
        let place = &sharding.placement;
        if place.accumulates_whole() {
            if within.is_none() {
                accumulate_here(compute, &unit.grads, &buffer, round.first);
                self.spare.give(buffer);
            }
            if round.last && place.degree > 1 {
                let handles = reduce_whole(sharding, unit)?;
                self.pending.push_back(Pending { buffer: None, handles });
            }
            return Ok(());
        }
        let handles = match place.sums {
            Sums::Exact => add_in_order(sharding, unit, &buffer, round)?,
            Sums::Fast => add_by_shard(sharding, unit, &buffer, round)?,
        };
        self.pending.push_back(Pending { buffer: Some(buffer), handles });
        Ok(())
    }

    /// Waits for everything under way.
    ///
    /// # Errors
    /// If a reduction failed.
    pub fn finish(&mut self) -> Result<(), grove_parallel::Error> {
        while !self.pending.is_empty() {
            self.wait_for_oldest()?;
        }
        Ok(())
    }

    fn wait_for_oldest(&mut self) -> Result<(), grove_parallel::Error> {
        let Some(Pending { buffer, handles }) = self.pending.pop_front() else { return Ok(()) };
        handles.into_iter().try_for_each(Handle::wait)?;
        if let Some(buffer) = buffer {
            self.spare.give(buffer);
        }
        Ok(())
    }
}

/// One link of the chain over all micro-batches; in the last round the replicas then share what
/// each of them has added up.
fn add_in_order(
    sharding: &Sharding<'_>,
    unit: &UnitState,
    buffer: &Tensor,
    round: Round,
) -> Result<Vec<Handle>, grove_parallel::Error> {
    let (place, name) = (&sharding.placement, &unit.spec.name);
    let summed = place.summed(&unit.layout);
    let start = (summed.start - unit.owned.start) as i64;
    let sums = unit.grads.narrow(0, start, summed.len() as i64);
    let parts = by_rank(place, buffer);
    let mut handles =
        vec![sharding.world().ordered_reduce_scatter(&parts, &sums, onto(round), name)?];
    if round.last && place.num_replicas() > 1 {
        handles.push(sharding.replicas().all_gather(&sums, &unit.grads, name)?);
    }
    Ok(handles)
}

/// The same within each shard group, each replica for its own micro-batches.
fn add_by_shard(
    sharding: &Sharding<'_>,
    unit: &UnitState,
    buffer: &Tensor,
    round: Round,
) -> Result<Vec<Handle>, grove_parallel::Error> {
    let (shards, name) = (sharding.shards(), &unit.spec.name);
    let mut handles =
        vec![shards.ordered_reduce_scatter(buffer, &unit.grads, onto(round), name)?];
    if round.last && sharding.placement.num_replicas() > 1 {
        handles.push(sharding.replicas().all_reduce(&unit.grads, Reduction::Sum, name)?);
    }
    Ok(handles)
}

/// Reduces accumulators that are whole on every rank to the sums of what each rank owns.
fn reduce_whole(
    sharding: &Sharding<'_>,
    unit: &UnitState,
) -> Result<Vec<Handle>, grove_parallel::Error> {
    let (own, name) = (unit.owned_grads(), &unit.spec.name);
    let mut handles = Vec::new();
    if sharding.placement.shard_degree > 1 {
        let shards = sharding.shards();
        handles.push(shards.reduce_scatter(&unit.grads, &own, Reduction::Sum, name)?);
    }
    if sharding.placement.num_replicas() > 1 {
        handles.push(sharding.replicas().all_reduce(&own, Reduction::Sum, name)?);
    }
    Ok(handles)
}

fn onto(round: Round) -> Onto {
    if round.first { Onto::Nothing } else { Onto::Output }
}

/// A whole unit with its slices in the order of the ranks that sum them: a copy where replicas
/// share the slices of a shard, which lie side by side.
fn by_rank(place: &Placement, buffer: &Tensor) -> Tensor {
    let (shards, replicas) = (place.shard_degree as i64, place.num_replicas() as i64);
    if shards == 1 || replicas == 1 {
        return buffer.shallow_clone();
    }
    buffer.view([shards, replicas, -1]).transpose(0, 1).contiguous().view(-1)
}

/// `sums (+)= gradient` on this rank's threads.
fn accumulate_here(compute: &Compute, sums: &Tensor, gradient: &Tensor, overwrite: bool) {
    let mut sums = sums.shallow_clone();
    if !compute.has_kernels() {
        match overwrite {
            true => sums.copy_(gradient),
            false => drop(sums.g_add_(gradient)),
        }
        return;
    }
    let sums = view::slice_mut::<f32>(&mut sums);
    match gradient.kind() {
        Kind::BFloat16 => {
            accumulate_slice(compute, sums, view::slice::<half::bf16>(gradient), overwrite);
        }
        _ => accumulate_slice(compute, sums, view::slice::<f32>(gradient), overwrite),
    }
}

fn accumulate_slice<T: crate::kernel::element::Element>(
    compute: &Compute,
    sums: &mut [f32],
    gradient: &[T],
    overwrite: bool,
) {
    match overwrite {
        true => accumulate::cast(&compute.pool, gradient, sums),
        false => accumulate::add_assign(&compute.pool, sums, gradient),
    }
}
