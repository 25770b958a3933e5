//! Whole working copies of units, there when a layer needs them.
//!
//! Where working copies are sharded, a unit is gathered before its forward, given up after it, and
//! gathered again for its backward; the gather of the units that come next runs behind the compute
//! of this one. Where they are not, this waits for what the last update still brings.

use grove_parallel::Handle;
use tch::Tensor;

use crate::sharding::Sharding;
use crate::spare::SpareBuffers;
use crate::state::UnitState;

/// Where the whole working copy of a unit is.
#[derive(Debug)]
enum Slot {
    /// In the unit's own buffer.
    Own,
    /// In the unit's own buffer, once the shards of other ranks have come.
    Refreshing(Handle),
    /// Nowhere.
    Away,
    /// On its way into a buffer.
    Coming(Tensor, Handle),
    /// In a buffer.
    Here(Tensor),
}

/// The whole working copies of a run's units.
#[derive(Debug)]
pub struct Residents {
    slots: Vec<Slot>,
    /// Buffers of units that were given up, for those that come next.
    spare: SpareBuffers,
    /// How many visits ahead of the one at hand gathers are started.
    ahead: usize,
}

impl Residents {
    /// For units as they are between steps.
    pub fn new(units: &[UnitState], ahead: usize) -> Self {
        let slot = |unit: &UnitState| match unit.holds_whole_working() {
            true => Slot::Own,
            false => Slot::Away,
        };
        let slots = units.iter().map(slot).collect();
        Self { slots, spare: SpareBuffers::new(units), ahead }
    }

    /// How many visits ahead gathers are started.
    pub fn ahead(&self) -> usize {
        self.ahead
    }

    /// The most bytes that gathered units have taken at one time.
    pub fn buffer_bytes(&self) -> u64 {
        self.spare.peak_bytes()
    }

    /// Whether [`Residents::whole`] would have to wait.
    pub fn is_awaited(&self, index: usize) -> bool {
        !matches!(self.slots[index], Slot::Own | Slot::Here(_))
    }

    /// Starts to bring unit `index`, unless it is here or on its way.
    ///
    /// # Errors
    /// If the gather cannot be started.
    ///
    /// # Collectives
    /// At most one all-gather over the shard group.
    pub fn prefetch(
        &mut self,
        units: &[UnitState],
        sharding: &Sharding<'_>,
        index: usize,
    ) -> Result<(), grove_parallel::Error> {
        if !matches!(self.slots[index], Slot::Away) {
            return Ok(());
        }
        let unit = &units[index];
        let (numel, kind) = (unit.layout.padded_numel(), unit.working.kind());
        let buffer = self.spare.take(numel, kind, unit.working.device());
        let handle = sharding.shards().all_gather(&unit.working, &buffer, &unit.spec.name)?;
        self.slots[index] = Slot::Coming(buffer, handle);
        Ok(())
    }

    /// The whole working copy of unit `index`, which must have been asked for.
    ///
    /// # Errors
    /// If the gather failed.
    pub fn whole(
        &mut self,
        units: &[UnitState],
        index: usize,
    ) -> Result<Tensor, grove_parallel::Error> {
        let slot = &mut self.slots[index];
        *slot = match std::mem::replace(slot, Slot::Away) {
            Slot::Refreshing(handle) => {
                handle.wait()?;
                Slot::Own
            }
            Slot::Coming(buffer, handle) => {
                handle.wait()?;
                Slot::Here(buffer)
            }
            settled => settled,
        };
        match slot {
            Slot::Own => Ok(units[index].working.shallow_clone()),
            Slot::Here(buffer) => Ok(buffer.shallow_clone()),
            _ => unreachable!("a unit is asked for before it is used"),
        }
    }

    /// Gives up unit `index` if it was gathered: its memory serves the next one.
    pub fn release(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        *slot = match std::mem::replace(slot, Slot::Away) {
            Slot::Here(buffer) => {
                self.spare.give(buffer);
                Slot::Away
            }
            other => other,
        };
    }

    /// Starts to bring the other ranks' shards of the working copy of unit `index`, once the own
    /// shard has been written. The next use of the unit waits for it.
    ///
    /// # Errors
    /// If the gather cannot be started.
    ///
    /// # Collectives
    /// One all-gather over the shard group where working copies are whole and masters sharded.
    pub fn refresh(
        &mut self,
        units: &[UnitState],
        sharding: &Sharding<'_>,
        index: usize,
    ) -> Result<(), grove_parallel::Error> {
        let unit = &units[index];
        if unit.holds_whole_working() && sharding.placement.shard_degree > 1 {
            let (own, name) = (unit.owned_working(), &unit.spec.name);
            let handle = sharding.shards().all_gather(&own, &unit.working, name)?;
            self.slots[index] = Slot::Refreshing(handle);
        }
        Ok(())
    }

    /// Waits for every refresh that is under way.
    ///
    /// # Errors
    /// If one failed.
    pub fn settle(&mut self) -> Result<(), grove_parallel::Error> {
        for slot in &mut self.slots {
            if matches!(slot, Slot::Refreshing(_))
                && let Slot::Refreshing(handle) = std::mem::replace(slot, Slot::Own)
            {
                handle.wait()?;
            }
        }
        Ok(())
    }
}
