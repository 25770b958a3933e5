//! One rank: every operation is a copy or a sum of two, carried out at once and without MPI.

use std::time::Instant;

use tch::Tensor;

use super::{
    Collective, Handle, Ledger, Onto, Operation,
    call::{Buffers, Request},
    group,
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
                carry_out(request.operation, &request.name, &output.view(-1), &input.view(-1))
            }
        };
        self.ledger.close(&call, start.elapsed().as_secs_f64());
        outcome.map(|()| Handle::ready(self.ledger.clone()))
    }

    fn abort(&self, _code: i32) {}

    fn group(&self, ranks: &[usize], name: &str) -> Result<Box<dyn Collective>> {
        group::agree(self, ranks, name)?;
        Ok(Box::new(Self { ledger: self.ledger.clone() }))
    }
}

/// Copies `from` over `to`, or adds it, outside of autograd; two views of one shape.
fn carry_out(operation: Operation, name: &str, to: &Tensor, from: &Tensor) -> Result<()> {
    if to.data_ptr() == from.data_ptr() {
        return Ok(());
    }
    let mut to = to.shallow_clone();
    tch::no_grad(|| match operation {
        // Widens bf16 before it adds.
        Operation::OrderedReduceScatter(Onto::Output) => to.f_add_(from).map(drop),
        _ => to.f_copy_(from),
    })
    .map_err(|error| Error::Tensor {
        operation,
        name: name.to_owned(),
        message: error.to_string(),
    })
}
