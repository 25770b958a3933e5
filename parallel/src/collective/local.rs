//! One rank: every operation is the identity, carried out at once and without MPI.

use std::time::Instant;

use tch::Tensor;

use super::{
    Collective, Handle, Ledger, Operation,
    call::{Buffers, Request},
};
use crate::error::{Error, Result};

/// The collective of a run with one rank. Checks and counts as the others do.
#[derive(Debug, Default)]
pub struct LocalCollective {
    ledger: Ledger,
}

impl LocalCollective {
    /// A group of one.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Collective for LocalCollective {
    fn rank(&self) -> usize {
        0
    }

    fn degree(&self) -> usize {
        1
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn submit(&self, request: Request) -> Result<Handle> {
        let call = self.ledger.open(&request);
        let start = Instant::now();
        let outcome = match &request.buffers {
            Buffers::None | Buffers::InPlace(_) => Ok(()),
            Buffers::Between { input, output } => {
                copy(request.operation, &request.name, &output.view(-1), &input.view(-1))
            }
        };
        self.ledger.close(&call, start.elapsed().as_secs_f64());
        outcome.map(|()| Handle::ready(self.ledger.clone()))
    }

    fn abort(&self, _code: i32) {}
}

/// Copies `from` over `to`, two views of one shape, outside of autograd.
pub(super) fn copy(operation: Operation, name: &str, to: &Tensor, from: &Tensor) -> Result<()> {
    if to.data_ptr() == from.data_ptr() {
        return Ok(());
    }
    tch::no_grad(|| to.shallow_clone().f_copy_(from)).map_err(|error| Error::Tensor {
        operation,
        name: name.to_owned(),
        message: error.to_string(),
    })
}
