//! How ranks talk: one trait, and an implementation for each way of being several.

mod call;
mod group;
mod handle;
mod ledger;
pub mod local;
pub mod mpi;
pub mod nccl;
pub mod threads;

use tch::Tensor;

pub use call::{Call, Dtype, Onto, Operation, Reduction, Request};
pub use handle::Handle;
pub use ledger::{CallProgress, CompletedCall, InFlightCall, Ledger, OperationTotals, StepTotals};
pub use local::LocalCollective;
pub use mpi::MpiCollective;
pub use nccl::NcclCollective;
pub use threads::{ThreadCollective, ThreadGroup};

use crate::error::Result;

/// The ranks of a run as one of them sees them.
///
/// Every call is asynchronous: it checks its tensors, starts, and returns a [`Handle`]; the
/// result is there once [`Handle::wait`] returned. Until then nobody may read or write the
/// memory of the tensors. Calls run in the order in which they were made, so a call may take
/// what the one before it (not yet waited for) brings. Every rank must make the same calls with
/// the same `name`, dtype and counts in the same order.
///
/// # Shapes
/// Tensors may have any shape; their elements are taken in memory order, and they must be
/// contiguous (a narrow of a flat buffer is). Input and output have one device.
///
/// # Dtypes
/// f32, f64, i32 and i64 for everything; bf16 and u8 are moved but not reduced. Input and output
/// have one dtype. [`Collective::ordered_reduce_scatter`] has dtypes of its own.
///
/// # Errors
/// Each call returns at once an error for tensors that do not fit ([`Error::NotContiguous`],
/// [`Error::UnsupportedDtype`], [`Error::UnsupportedReduction`], [`Error::CountsDiffer`] and
/// the like), so that it is refused on every rank alike and on 1 rank as on many. What goes
/// wrong between ranks comes from [`Handle::wait`], and from every call thereafter.
///
/// [`Error::NotContiguous`]: crate::Error::NotContiguous
/// [`Error::UnsupportedDtype`]: crate::Error::UnsupportedDtype
/// [`Error::UnsupportedReduction`]: crate::Error::UnsupportedReduction
/// [`Error::CountsDiffer`]: crate::Error::CountsDiffer
pub trait Collective: Send {
    /// This rank, below [`Collective::degree`].
    fn rank(&self) -> usize;

    /// The number of ranks, at least 1.
    fn degree(&self) -> usize;

    /// What was called, how much it moved and how long it took.
    fn ledger(&self) -> &Ledger;

    /// Starts a checked request; the calls below are built on it.
    ///
    /// # Errors
    /// The failure of an earlier call, if there was one.
    fn submit(&self, request: Request) -> Result<Handle>;

    /// Tells the peers that this rank cannot go on, so that they end instead of waiting for it.
    ///
    /// Over MPI it ends this process too, with exit status `code`, and all peers within
    /// seconds: print the reason first. In a thread group the peers' calls fail. With one rank
    /// there is nobody to tell, and it returns.
    fn abort(&self, code: i32);

    /// Replaces `tensor` on every rank by the reduction over all ranks; the same bits on all.
    ///
    /// # Errors
    /// See the trait.
    fn all_reduce(&self, tensor: &Tensor, reduction: Reduction, name: &str) -> Result<Handle> {
        self.submit(Request::in_place(
            Operation::AllReduce(reduction),
            tensor,
            name,
            self.degree(),
        )?)
    }

    /// Fills `output` (`degree * n` elements) on every rank with every rank's `input` (`n`), in
    /// rank order. `input` may be this rank's share of `output` itself.
    ///
    /// # Errors
    /// See the trait.
    fn all_gather(&self, input: &Tensor, output: &Tensor, name: &str) -> Result<Handle> {
        let place = (self.rank(), self.degree());
        self.submit(Request::between(Operation::AllGather, input, output, name, place)?)
    }

    /// Fills `output` (`n` elements) on rank `r` with the reduction over all ranks of the `r`th
    /// of the `degree` equal parts of `input` (`degree * n`). `output` may be this rank's part
    /// of `input` itself; otherwise `input` is left as it was.
    ///
    /// # Errors
    /// See the trait.
    fn reduce_scatter(
        &self,
        input: &Tensor,
        output: &Tensor,
        reduction: Reduction,
        name: &str,
    ) -> Result<Handle> {
        let place = (self.rank(), self.degree());
        self.submit(Request::between(
            Operation::ReduceScatter(reduction),
            input,
            output,
            name,
            place,
        )?)
    }

    /// Fills `output` (`n` elements) on rank `r` with `((base + c_0) + c_1) + ...`, where `c_i`
    /// is the `r`th of the `degree` equal parts of rank `i`'s `input` (`degree * n`) and `base`
    /// is `output`'s content, or nothing. One chain in rank order, each addition rounded to
    /// `output`'s dtype. They share no memory; `input` is left as it was.
    ///
    /// Called once a round with rank `r` of `N` bringing term `j * N + r` in round `j`, it adds
    /// all terms in one chain whatever `N` is, so every number of ranks gets the same bits (but
    /// for the payload of a NaN). A rank without a term brings -0.0, which changes no number.
    ///
    /// # Dtypes
    /// bf16 or f32 input with f32 output, or f64 with f64. bf16 travels as such and is widened
    /// where it is added, which loses nothing.
    ///
    /// # Errors
    /// See the trait; [`Error::OrderedDtypes`](crate::Error::OrderedDtypes) for other dtypes.
    fn ordered_reduce_scatter(
        &self,
        input: &Tensor,
        output: &Tensor,
        onto: Onto,
        name: &str,
    ) -> Result<Handle> {
        let place = (self.rank(), self.degree());
        let operation = Operation::OrderedReduceScatter(onto);
        self.submit(Request::between(operation, input, output, name, place)?)
    }

    /// The collective of some of these ranks: `ranks` ascending, this rank among them, the
    /// groups of all ranks a partition.
    ///
    /// Calls of a group run in one queue with those of the whole, so ranks that share several
    /// groups must make the calls of all of them in one order. Ranks are renumbered by their
    /// place in `ranks`; errors name them by their rank in the whole run. The ledger is shared
    /// with the parent; making a group counts there as an all-gather of `degree * degree` bytes.
    /// [`Collective::abort`] of a group ends the whole run. A group may be dropped before its
    /// parent or after. Make groups once: over MPI one holds a communicator until the run ends.
    ///
    /// # Collectives
    /// Every rank of the parent must call it at the same point, each with its own group.
    ///
    /// # Errors
    /// [`Error::Group`](crate::Error::Group) at once if `ranks` is not ascending or without this
    /// rank; [`Error::GroupsDiffer`](crate::Error::GroupsDiffer) on every rank if members of a
    /// group do not give the same ranks; those of an all-gather.
    fn group(&self, ranks: &[usize], name: &str) -> Result<Box<dyn Collective>>;

    /// Replaces `tensor` on every rank by the one of rank `root`.
    ///
    /// # Errors
    /// See the trait; [`Error::Root`](crate::Error::Root) if there is no such rank.
    fn broadcast(&self, tensor: &Tensor, root: usize, name: &str) -> Result<Handle> {
        self.submit(Request::in_place(Operation::Broadcast { root }, tensor, name, self.degree())?)
    }

    /// Sends the `j`th of the `degree` equal parts of `input` to rank `j`, whose `output` takes
    /// it as its part number [`Collective::rank`] of the sender. Both have `degree * n`
    /// elements and share no memory.
    ///
    /// # Errors
    /// See the trait.
    fn all_to_all(&self, input: &Tensor, output: &Tensor, name: &str) -> Result<Handle> {
        let place = (self.rank(), self.degree());
        self.submit(Request::between(Operation::AllToAll, input, output, name, place)?)
    }

    /// Finishes once every rank has made the call.
    ///
    /// # Errors
    /// See the trait.
    fn barrier(&self, name: &str) -> Result<Handle> {
        self.submit(Request::barrier(name))
    }
}

#[cfg(test)]
mod tests;
