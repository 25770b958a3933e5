//! Ranks as threads of one process: for tests of everything that is built on collectives.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tch::{TchError, Tensor};

use super::{
    Collective, Handle, Ledger, Onto, Operation, Reduction,
    call::{Buffers, Call, Request},
    group,
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
        let run = Arc::new(Mutex::new(Run {
            queues: (0..degree).map(|_| VecDeque::new()).collect(),
            left: vec![false; degree],
            failure: None,
        }));
        let members: Arc<[usize]> = (0..degree).collect();
        let rank = |rank| ThreadCollective {
            rank,
            members: Arc::clone(&members),
            seat: Arc::new(Seat { rank, ledger: Ledger::default(), run: Arc::clone(&run) }),
        };
        (0..degree).map(rank).collect()
    }
}

/// One rank among threads. The last rank to join a call carries it out for all of them, with
/// libtorch's own operations, so it also serves as an independent check of the MPI path.
///
/// Ranks that are not in the same call all get [`Error::CallsDiffer`]; a rank that is dropped
/// early, with all its groups, makes the calls it is missing in fail with [`Error::PeerLeft`].
#[derive(Debug)]
pub struct ThreadCollective {
    rank: usize,
    /// The ranks in the whole run of those in this collective, ascending.
    members: Arc<[usize]>,
    seat: Arc<Seat>,
}

/// A rank's place in the run, shared by its groups.
#[derive(Debug)]
struct Seat {
    rank: usize,
    ledger: Ledger,
    run: Arc<Mutex<Run>>,
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, Run> {
        // A rank that panicked leaves no call half recorded: each is changed by one insertion.
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lock().leave(self.rank);
    }
}

/// What one rank brought to a call.
#[derive(Debug)]
struct Arrival {
    /// Who takes part, by rank in the whole run.
    members: Arc<[usize]>,
    call: Call,
    buffers: Buffers,
    completion: Arc<Completion>,
    ledger: Ledger,
}

impl Arrival {
    fn finish(self, outcome: Result<()>, seconds: f64) {
        self.ledger.close(&self.call, seconds);
        self.completion.finish(outcome);
    }
}

/// All ranks, by their rank in the whole run.
#[derive(Debug)]
struct Run {
    /// The calls of each rank that are not complete, in the order in which it made them. Only
    /// the first of a rank can be carried out, as a later one may need what it brings.
    queues: Vec<VecDeque<Arrival>>,
    /// The ranks that are gone.
    left: Vec<bool>,
    /// What went wrong first; the outcome of every call thereafter.
    failure: Option<Error>,
}

impl Run {
    /// Carries out the calls that all their members are in, beginning with those of `ranks`.
    fn advance(&mut self, ranks: &[usize]) {
        for &rank in ranks {
            while let Some(members) = self.ready(rank) {
                let arrivals: Vec<Arrival> = members
                    .iter()
                    .map(|&member| self.queues[member].pop_front().expect("ready means queued"))
                    .collect();
                let start = Instant::now();
                let outcome = agree(&arrivals).and_then(|()| carry_out(&arrivals));
                let seconds = start.elapsed().as_secs_f64();
                arrivals.into_iter().for_each(|arrival| arrival.finish(outcome.clone(), seconds));
                match outcome {
                    // A member's next call may be of another group, whose turn this makes.
                    Ok(()) => self.advance(&members),
                    Err(error) => self.fail(&error),
                }
            }
        }
    }

    /// The members of the call that `rank` is in, if it is the one that all of them are in.
    fn ready(&self, rank: usize) -> Option<Arc<[usize]>> {
        let members = &self.queues[rank].front()?.members;
        let is_in =
            |&member: &usize| self.queues[member].front().is_some_and(|a| a.members == *members);
        members.iter().all(is_in).then(|| Arc::clone(members))
    }

    /// Two ranks in calls of different groups, of which each waits for the other.
    fn crossed(&self, rank: usize) -> Option<Error> {
        let own = self.queues[rank].front()?;
        let crosses = |member: usize| {
            let other = self.queues[member].front()?;
            let differ = other.members != own.members && other.members.contains(&rank);
            differ.then(|| calls_differ((rank, &own.call), (member, &other.call)))
        };
        own.members.iter().find_map(|&member| crosses(member))
    }

    /// A rank that has left and will never join the call number `index` of its members.
    fn missing(&self, members: &[usize], index: usize) -> Option<usize> {
        members
            .iter()
            .copied()
            .find(|&rank| self.left[rank] && self.waiting(rank, members) <= index)
    }

    /// How many calls of `members` wait in the queue of `rank`.
    fn waiting(&self, rank: usize, members: &[usize]) -> usize {
        self.queues[rank].iter().filter(|arrival| *arrival.members == *members).count()
    }

    /// Marks `rank` as gone, and fails if a call waits for it.
    fn leave(&mut self, rank: usize) {
        self.left[rank] = true;
        let waits = |arrival: &&Arrival| {
            arrival.members.contains(&rank)
                && self.waiting(rank, &arrival.members) < self.most_waiting(&arrival.members)
        };
        if let Some(arrival) = self.queues.iter().flatten().find(waits) {
            let call = Box::new(arrival.call.clone());
            self.fail(&Error::PeerLeft { rank, call });
        }
    }

    fn most_waiting(&self, members: &[usize]) -> usize {
        members.iter().map(|&rank| self.waiting(rank, members)).max().unwrap_or(0)
    }

    /// Ends all calls of all ranks.
    fn fail(&mut self, error: &Error) {
        self.failure.get_or_insert_with(|| error.clone());
        for arrival in self.queues.iter_mut().flat_map(|queue| queue.drain(..)) {
            arrival.finish(Err(error.clone()), 0.0);
        }
    }
}

impl Collective for ThreadCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn degree(&self) -> usize {
        self.members.len()
    }

    fn ledger(&self) -> &Ledger {
        &self.seat.ledger
    }

    fn submit(&self, request: Request) -> Result<Handle> {
        let Seat { rank, ledger, .. } = &*self.seat;
        let mut run = self.seat.lock();
        if let Some(failure) = &run.failure {
            return Err(failure.clone());
        }
        let call = ledger.open(&request);
        if let Some(rank) = run.missing(&self.members, run.waiting(*rank, &self.members)) {
            ledger.close(&call, 0.0);
            // The rank that gets this leaves in its turn; those after it must hear of the first.
            let error = Error::PeerLeft { rank, call: Box::new(call) };
            run.fail(&error);
            return Err(error);
        }
        let completion = Arc::new(Completion::default());
        run.queues[*rank].push_back(Arrival {
            members: Arc::clone(&self.members),
            call,
            buffers: request.buffers,
            completion: Arc::clone(&completion),
            ledger: ledger.clone(),
        });
        run.advance(&[*rank]);
        if let Some(error) = (0..run.queues.len()).find_map(|rank| run.crossed(rank)) {
            run.fail(&error);
        }
        Ok(Handle::pending(completion, ledger.clone()))
    }

    fn abort(&self, _code: i32) {
        self.seat.lock().leave(self.seat.rank);
    }

    fn group(&self, ranks: &[usize], name: &str) -> Result<Box<dyn Collective>> {
        group::agree(self, ranks, name)?;
        let rank = ranks.iter().position(|&rank| rank == self.rank).expect("checked above");
        let members = ranks.iter().map(|&rank| self.members[rank]).collect();
        Ok(Box::new(Self { rank, members, seat: Arc::clone(&self.seat) }))
    }
}

/// Checks that all members, whose arrivals these are, are in the same call.
fn agree(arrivals: &[Arrival]) -> Result<()> {
    let Arrival { members, call: first, .. } = &arrivals[0];
    match arrivals.iter().position(|arrival| !arrival.call.is_same(first)) {
        None => Ok(()),
        Some(second) => {
            Err(calls_differ((members[0], first), (members[second], &arrivals[second].call)))
        }
    }
}

fn calls_differ(first: (usize, &Call), second: (usize, &Call)) -> Error {
    let ((first_rank, first), (second_rank, second)) = (first, second);
    let (first, second) = (Box::new(first.clone()), Box::new(second.clone()));
    Error::CallsDiffer { first_rank, first, second_rank, second }
}

/// Does the operation on the tensors of all members.
fn carry_out(arrivals: &[Arrival]) -> Result<()> {
    let Call { operation, name, .. } = &arrivals[0].call;
    tch::no_grad(|| exchange(*operation, arrivals)).map_err(|error| Error::Tensor {
        operation: *operation,
        name: name.clone(),
        message: error.to_string(),
    })
}

fn exchange(operation: Operation, arrivals: &[Arrival]) -> std::result::Result<(), TchError> {
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for arrival in arrivals {
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
        Operation::OrderedReduceScatter(onto) => ranks
            .map(|rank| {
                let output = &outputs[rank];
                let parts = inputs.iter().map(|input| part(input, rank, output.size()[0]));
                let parts = parts.collect::<std::result::Result<Vec<_>, _>>()?;
                add_in_order(onto, output, &parts)
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

/// Adds terms, given in rank order, to `output`'s content or to nothing; the sum is a new tensor.
fn add_in_order(
    onto: Onto,
    output: &Tensor,
    terms: &[Tensor],
) -> std::result::Result<Tensor, TchError> {
    let (mut sum, rest) = match onto {
        Onto::Nothing => (terms[0].f_to_dtype(output.kind(), false, true)?, &terms[1..]),
        Onto::Output => (output.copy(), terms),
    };
    for term in rest {
        sum = sum.f_add(&term.f_to_kind(output.kind())?)?;
    }
    Ok(sum)
}
