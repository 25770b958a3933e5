//! Ranks as threads of one process: for tests of everything that is built on collectives.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tch::{TchError, Tensor};

use super::{
    Collective, Handle, Ledger, Operation, Reduction,
    call::{Buffers, Call, Request},
    handle::Completion,
};
use crate::error::{Error, Result};

/// Makes groups of thread ranks.
#[derive(Debug)]
pub struct ThreadGroup;

impl ThreadGroup {
    /// One collective for each of `degree` ranks, in rank order; move each into its thread.
    ///
    /// # Panics
    /// If `degree` is 0.
    #[expect(clippy::new_ret_no_self, reason = "the group exists only as its ranks")]
    pub fn new(degree: usize) -> Vec<ThreadCollective> {
        assert!(degree > 0, "a group has at least one rank");
        let group = Arc::new(Mutex::new(Group {
            next_sequences: vec![0; degree],
            left: vec![false; degree],
            pending: BTreeMap::new(),
            failure: None,
        }));
        let rank = |rank| ThreadCollective {
            rank,
            degree,
            ledger: Ledger::default(),
            group: Arc::clone(&group),
        };
        (0..degree).map(rank).collect()
    }
}

/// One rank among threads. The last rank to join a call carries it out for all of them, with
/// libtorch's own operations, so it also serves as an independent check of the MPI path.
///
/// Ranks that are not in the same call all get [`Error::CallsDiffer`]; a rank that is dropped
/// early makes the calls it is missing in fail with [`Error::PeerLeft`].
#[derive(Debug)]
pub struct ThreadCollective {
    rank: usize,
    degree: usize,
    ledger: Ledger,
    group: Arc<Mutex<Group>>,
}

/// What one rank brought to a call.
#[derive(Debug)]
struct Arrival {
    call: Call,
    buffers: Buffers,
    completion: Arc<Completion>,
    ledger: Ledger,
}

#[derive(Debug)]
struct Group {
    /// The number of each rank's next call.
    next_sequences: Vec<u64>,
    /// The ranks that are gone.
    left: Vec<bool>,
    /// By sequence, then rank: who has arrived at the calls that are not complete.
    pending: BTreeMap<u64, BTreeMap<usize, Arrival>>,
    /// What went wrong first; the outcome of every call thereafter.
    failure: Option<Error>,
}

impl Group {
    /// Ends a call on all ranks that are in it.
    fn finish(&mut self, arrivals: BTreeMap<usize, Arrival>, outcome: &Result<()>, seconds: f64) {
        if let Err(error) = outcome {
            self.failure.get_or_insert_with(|| error.clone());
        }
        for arrival in arrivals.into_values() {
            arrival.ledger.close(&arrival.call, seconds);
            arrival.completion.finish(outcome.clone());
        }
    }

    /// A rank that has left and will never join the call numbered `sequence`.
    fn missing(&self, sequence: u64) -> Option<usize> {
        (0..self.left.len()).find(|&rank| self.left[rank] && self.next_sequences[rank] <= sequence)
    }

    /// Fails the calls that wait for `rank`.
    fn leave(&mut self, rank: usize) {
        self.left[rank] = true;
        for (_, arrivals) in self.pending.split_off(&self.next_sequences[rank]) {
            let first = arrivals.values().next().expect("a pending call has an arrival");
            let call = Box::new(first.call.clone());
            self.finish(arrivals, &Err(Error::PeerLeft { rank, call }), 0.0);
        }
    }
}

impl ThreadCollective {
    fn lock(&self) -> MutexGuard<'_, Group> {
        // A rank that panicked leaves no call half recorded: each is changed by one insertion.
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collective for ThreadCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn degree(&self) -> usize {
        self.degree
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn submit(&self, request: Request) -> Result<Handle> {
        let mut group = self.lock();
        if let Some(failure) = &group.failure {
            return Err(failure.clone());
        }
        let call = self.ledger.open(&request);
        let sequence = call.sequence;
        group.next_sequences[self.rank] = sequence + 1;
        if let Some(rank) = group.missing(sequence) {
            self.ledger.close(&call, 0.0);
            return Err(Error::PeerLeft { rank, call: Box::new(call) });
        }
        let completion = Arc::new(Completion::default());
        let arrival = Arrival {
            call,
            buffers: request.buffers,
            completion: Arc::clone(&completion),
            ledger: self.ledger.clone(),
        };
        let arrivals = group.pending.entry(sequence).or_default();
        arrivals.insert(self.rank, arrival);
        if arrivals.len() == self.degree {
            let arrivals = group.pending.remove(&sequence).expect("inserted above");
            let start = Instant::now();
            let outcome = agree(&arrivals).and_then(|()| carry_out(&arrivals));
            group.finish(arrivals, &outcome, start.elapsed().as_secs_f64());
        }
        Ok(Handle::pending(completion, self.ledger.clone()))
    }

    fn abort(&self, _code: i32) {
        self.lock().leave(self.rank);
    }
}

impl Drop for ThreadCollective {
    fn drop(&mut self) {
        self.lock().leave(self.rank);
    }
}

/// Checks that all ranks are in the same call.
fn agree(arrivals: &BTreeMap<usize, Arrival>) -> Result<()> {
    let first = &arrivals[&0].call;
    match arrivals.iter().find(|(_, arrival)| arrival.call != *first) {
        None => Ok(()),
        Some((&second_rank, arrival)) => Err(Error::CallsDiffer {
            first_rank: 0,
            first: Box::new(first.clone()),
            second_rank,
            second: Box::new(arrival.call.clone()),
        }),
    }
}

/// Does the operation on the tensors of all ranks.
fn carry_out(arrivals: &BTreeMap<usize, Arrival>) -> Result<()> {
    let Call { operation, name, .. } = &arrivals[&0].call;
    tch::no_grad(|| exchange(*operation, arrivals)).map_err(|error| Error::Tensor {
        operation: *operation,
        name: name.clone(),
        message: error.to_string(),
    })
}

fn exchange(
    operation: Operation,
    arrivals: &BTreeMap<usize, Arrival>,
) -> std::result::Result<(), TchError> {
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for arrival in arrivals.values() {
        match &arrival.buffers {
            Buffers::None => {}
            Buffers::InPlace(tensor) => {
                inputs.push(tensor.f_view(-1)?);
                outputs.push(tensor.f_view(-1)?);
            }
            Buffers::Between { input, output } => {
                inputs.push(input.f_view(-1)?);
                outputs.push(output.f_view(-1)?);
            }
        }
    }
    let part = |tensor: &Tensor, index: usize, count: i64| {
        let start = i64::try_from(index).expect("ranks are few") * count;
        tensor.f_narrow(0, start, count)
    };
    let ranks = 0..inputs.len();
    // All results are made before the first is written, as outputs may lie inside inputs.
    let results: Vec<Tensor> = match operation {
        Operation::Barrier => Vec::new(),
        Operation::AllReduce(reduction) => {
            let reduced = reduce(reduction, &inputs)?;
            ranks.map(|_| reduced.shallow_clone()).collect()
        }
        Operation::Broadcast { root } => {
            let given = inputs[root].copy();
            ranks.map(|_| given.shallow_clone()).collect()
        }
        Operation::AllGather => {
            let gathered = Tensor::f_cat(&inputs, 0)?;
            ranks.map(|_| gathered.shallow_clone()).collect()
        }
        Operation::ReduceScatter(reduction) => ranks
            .map(|rank| {
                let count = outputs[rank].size()[0];
                let parts = inputs.iter().map(|input| part(input, rank, count));
                reduce(reduction, &parts.collect::<std::result::Result<Vec<_>, _>>()?)
            })
            .collect::<std::result::Result<_, _>>()?,
        Operation::AllToAll => ranks
            .map(|rank| {
                let count = inputs[rank].size()[0] / inputs.len() as i64;
                let parts = inputs.iter().map(|input| part(input, rank, count));
                Tensor::f_cat(&parts.collect::<std::result::Result<Vec<_>, _>>()?, 0)
            })
            .collect::<std::result::Result<_, _>>()?,
    };
    outputs.iter_mut().zip(&results).try_for_each(|(output, result)| output.f_copy_(result))
}

/// Reduces tensors of one shape, given in rank order, to a new one.
fn reduce(reduction: Reduction, inputs: &[Tensor]) -> std::result::Result<Tensor, TchError> {
    let fold = |pair: fn(&Tensor, &Tensor) -> std::result::Result<Tensor, TchError>| {
        let mut result = inputs[0].copy();
        for input in &inputs[1..] {
            result = pair(&result, input)?;
        }
        Ok(result)
    };
    match reduction {
        Reduction::Sum => fold(Tensor::f_add),
        Reduction::Max => fold(Tensor::f_maximum),
        Reduction::Min => fold(Tensor::f_minimum),
        Reduction::TreeSum => {
            let mut level: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
            while level.len() > 1 {
                let pairs = level.chunks(2).map(|pair| match pair {
                    [left, right] => left.f_add(right),
                    odd => Ok(odd[0].shallow_clone()),
                });
                level = pairs.collect::<std::result::Result<_, _>>()?;
            }
            Ok(level[0].copy())
        }
    }
}
