//! Updates of parameters that their rule needs whole: gradients to the owner, updates back.
//!
//! Units follow each other as in a pipeline: while the gradients of one travel, owners compute the
//! updates of another, and those of a third are applied. Every rank makes the same calls in the
//! same order, whatever it owns.

use std::ops::Range;

use grove_optim::{Scalars, WholeRule, WholeTensors};
use grove_parallel::Handle;
use tch::{Device, Kind, Tensor};

use super::Update;
use crate::error::Error;
use crate::model::units::ParamSpec;
use crate::ownership::{Piece, WholeParam, WholeUnit};
use crate::sharding::{Placement, Sharding};
use crate::state::UnitState;

/// Units whose gradients travel while another's updates are computed.
pub(super) const GRADIENTS_AHEAD: usize = 1;
/// Units whose updates travel, or are still computed by some rank, while another's are computed: so
/// that a rank that owns nothing of a unit goes on to the next instead of waiting.
pub(super) const UPDATES_BEHIND: usize = 3;

/// The gradients of a unit on their way to the owners; nothing for a unit without such parameters.
#[derive(Debug, Default)]
pub(super) struct Gradients {
    grads: Option<Tensor>,
    /// Where the rule reads them.
    masters: Option<Tensor>,
    /// What is sent and received; nothing where this rank has all of it.
    bytes: u64,
    handles: Vec<Handle>,
}

/// The updates of a unit on their way back.
#[derive(Debug, Default)]
pub(super) struct Updates {
    /// `[W * part_numel]`: a part from each owner, in the order of ranks.
    values: Option<Tensor>,
    /// What is computed, sent and received.
    bytes: u64,
    handles: Vec<Handle>,
}

impl Gradients {
    /// Memory that they take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Updates {
    /// Memory that they take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of them, once they have come.
    ///
    /// # Errors
    /// If a collective failed.
    pub(super) fn wait(self) -> Result<Option<Tensor>, Error> {
        self.handles.into_iter().try_for_each(Handle::wait)?;
        Ok(self.values)
    }
}

/// Starts to send this rank's part of a unit's gradients, and of masters where the rule reads
/// them, to the owners of its shard group.
///
/// # Errors
/// If a collective cannot be started.
///
/// # Collectives
/// Over the shard group, where it has several ranks and the unit such parameters: one all-to-all of
/// gradients; one of masters where the rule reads them.
pub(super) fn send_gradients(
    unit: &UnitState,
    sharding: &Sharding<'_>,
    update: &Update<'_>,
) -> Result<Gradients, Error> {
    let Some(whole) = &update.rules.whole else { return Ok(Gradients::default()) };
    if unit.whole.params.is_empty() {
        return Ok(Gradients::default());
    }
    let home = unit.masters.device();
    let grads = unit.owned_grads().to_device(home);
    let masters = whole.rule.needs_master().then(|| unit.masters.shallow_clone());
    if sharding.placement.shard_degree == 1 {
        return Ok(Gradients { grads: Some(grads), masters, ..Gradients::default() });
    }
    let (mut handles, mut bytes) = (Vec::new(), 0);
    let mut exchange = |values: &Tensor, what: &str| -> Result<Tensor, Error> {
        let sent = pack_for_owners(&unit.whole, &sharding.placement, values);
        let received = sent.empty_like();
        bytes += 2 * bytes_of(&sent);
        let name = format!("{what} of {} to their owners", unit.spec.name);
        handles.push(sharding.shards().all_to_all(&sent, &received, &name)?);
        Ok(received)
    };
    let grads = Some(exchange(&grads, "gradients")?);
    let masters = masters.map(|masters| exchange(&masters, "masters")).transpose()?;
    Ok(Gradients { grads, masters, bytes, handles })
}

/// This shard's pieces of the parameters that its shard group owns, a part for each owner.
fn pack_for_owners(whole: &WholeUnit, place: &Placement, values: &Tensor) -> Tensor {
    let packed = parts(place.shard_degree, whole, (values.kind(), values.device()));
    for param in whole.params.iter().filter(|param| param.owner.replica == place.replica()) {
        if let Some(piece) = param.piece(place.coord()) {
            let start = param.owner.coord * whole.part_numel + piece.offset;
            let range = start..start + piece.shard_range.len();
            narrow(&packed, range).copy_(&narrow(values, piece.shard_range.clone()));
        }
    }
    packed
}

/// Computes the updates of what this rank owns of a unit, and starts to send them to all shards.
///
/// # Errors
/// If the gradients did not come, the rule refuses them, or a collective cannot be started.
///
/// # Collectives
/// Where the unit has such parameters: one all-to-all over the shard group, if it has several ranks;
/// then one all-gather over the replicas, if there are several.
pub(super) fn compute_updates(
    unit: &mut UnitState,
    sharding: &Sharding<'_>,
    update: &Update<'_>,
    coming: Gradients,
) -> Result<Updates, Error> {
    let Gradients { grads, masters, handles, .. } = coming;
    handles.into_iter().try_for_each(Handle::wait)?;
    let (Some(whole), Some(grads)) = (&update.rules.whole, grads) else {
        return Ok(Updates::default());
    };
    let (place, rule) = (&sharding.placement, &whole.rule);
    let UnitState { spec, whole, .. } = unit;
    let part_numel = whole.part_numel;
    let mut updates = parts(place.shard_degree, whole, (grads.kind(), grads.device()));
    let mut bytes = bytes_of(&updates);
    for param in whole.params.iter_mut().filter(|param| param.owner.is_here(place)) {
        let gathered = |values| gather(param, part_numel, place, values);
        let (grad, master) = (gathered(&grads), masters.as_ref().map(gathered));
        let scalars = update.whole_scalars(rule, &spec.params[param.param]);
        let change = update_one(rule, param, (&grad, master.as_ref()), &scalars)?;
        for piece in &param.pieces {
            let start = piece.shard * part_numel + piece.offset;
            let range = start..start + piece.param_range.len();
            narrow(&updates, range).copy_(&narrow(&change, piece.param_range.clone()));
        }
    }
    let name = format!("updates of {}", spec.name);
    let mut handles = Vec::new();
    if place.shard_degree > 1 {
        let received = updates.empty_like();
        bytes += bytes_of(&received);
        handles.push(sharding.shards().all_to_all(&updates, &received, &name)?);
        updates = received;
    }
    if place.num_replicas() > 1 {
        let all = parts(place.degree, whole, (updates.kind(), updates.device()));
        bytes += bytes_of(&all);
        handles.push(sharding.replicas().all_gather(&updates, &all, &name)?);
        updates = all;
    }
    Ok(Updates { values: Some(updates), bytes, handles })
}

/// A whole parameter's values, flat, from the parts that the shards sent, or from this rank's own.
fn gather(param: &WholeParam, part_numel: usize, place: &Placement, values: &Tensor) -> Tensor {
    if place.shard_degree == 1 {
        return narrow(values, param.pieces[0].shard_range.clone());
    }
    let piece = |piece: &Piece| {
        let start = piece.shard * part_numel + piece.offset;
        narrow(values, start..start + piece.param_range.len())
    };
    Tensor::cat(&param.pieces.iter().map(piece).collect::<Vec<_>>(), 0)
}

/// Advances the states of a parameter; what is to be subtracted from it, flat.
fn update_one(
    rule: &WholeRule,
    param: &mut WholeParam,
    (grad, master): (&Tensor, Option<&Tensor>),
    scalars: &Scalars,
) -> Result<Tensor, Error> {
    let mut states: Vec<Tensor> =
        param.states.iter().map(|state| state.values.shallow_clone()).collect();
    let tensors = WholeTensors { grad, master, state: &mut states };
    Ok(rule.update(tensors, &param.facts, scalars)?.reshape([-1]))
}

/// Where the update of this rank's piece of a parameter lies in [`Updates`].
pub(super) fn update_range(
    whole: &WholeParam,
    unit: &WholeUnit,
    place: &Placement,
) -> Range<usize> {
    let piece = whole.piece(place.coord()).expect("a segment is a piece of this shard");
    let start = whole.owner.rank(place) * unit.part_numel + piece.offset;
    start..start + piece.param_range.len()
}

impl Update<'_> {
    /// The numbers of one parameter that is taken whole.
    pub(super) fn whole_scalars(&self, rule: &WholeRule, param: &ParamSpec) -> Scalars {
        let group = self.groups.of(param.role);
        let mut scalars = rule.scalars(group, self.lr, self.grad_scale, self.step_of(param));
        scalars.weight_decay *= self.weight_decay;
        scalars
    }
}

/// `count` parts of arbitrary content: what no parameter fills is never read.
fn parts(count: usize, whole: &WholeUnit, (kind, device): (Kind, Device)) -> Tensor {
    Tensor::empty([(count * whole.part_numel) as i64], (kind, device))
}

fn bytes_of(values: &Tensor) -> u64 {
    (values.numel() * values.kind().elt_size_in_bytes()) as u64
}

fn narrow(flat: &Tensor, range: Range<usize>) -> Tensor {
    flat.narrow(0, range.start as i64, range.len() as i64)
}
