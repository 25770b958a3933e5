//! The collective algorithms over messages between pairs of ranks.
//!
//! Data go in pieces with several under way, so that a piece is reduced while the next ones
//! travel and all of it stays in cache. A reduction cuts the buffer into one share a rank; each
//! rank collects all contributions to its share and adds them in rank order. An all-reduce then
//! gives every finished piece to everyone. Each rank sends and receives `2 (N-1)/N` of the
//! buffer, the least there is (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
#![allow(unsafe_code, reason = "tensor memory is viewed as raw regions and typed slices")]

mod ordered;

use std::{collections::VecDeque, ops::Range};

use tch::Tensor;

use super::{
    agreement,
    element::{self, Element},
    region::Region,
    wire::{Messages, Tag, Wire},
};
use crate::{
    collective::{Call, Dtype, Operation, Reduction, call::Buffers},
    error::Result,
};

/// Pieces under way at once.
const DEPTH: usize = 4;

/// Bytes of a piece between two ranks; fastest of 64 KiB to 32 MiB between processes of one
/// host. Shrinks with the number of peers, whose pieces are in scratch memory together.
const MAX_PIECE_BYTES: usize = 256 << 10;
const MIN_PIECE_BYTES: usize = 16 << 10;

/// Up to this many bytes an all-reduce gathers everything everywhere and each rank reduces it
/// all: one round instead of two.
const SMALL_BYTES: usize = 8 << 10;

/// Shares begin at multiples of this, so that no element is cut.
const SHARE_ALIGNMENT_BYTES: usize = 64;

/// Carries out calls on host memory, one after another.
pub(super) struct Exchange {
    wire: Wire,
    check: bool,
    /// Memory for contributions of peers, aligned for every element; grows to what is needed.
    scratch: Vec<u64>,
}

/// One reduction, by region.
struct Reducing {
    dtype: Dtype,
    reduction: Reduction,
    /// By rank: this rank's contribution to that rank's share. The own entry is not read.
    contributions: Vec<Region>,
    /// This rank's share: holds its contribution, then the result.
    own: Region,
    /// By rank: where that rank's result goes, or empty if only the owner wants it.
    results: Vec<Region>,
}

/// One piece of this rank's share, of which all contributions are here.
struct Piece {
    /// Its number, from 0.
    step: usize,
    /// Bytes of all pieces but the last.
    piece_bytes: usize,
    /// This rank's contribution.
    own: Region,
    /// Those of the peers, in rank order.
    peers: Vec<Region>,
}

impl Exchange {
    pub(super) fn new(wire: Wire, check: bool) -> Self {
        Self { wire, check, scratch: Vec::new() }
    }

    /// The exchange of a group, `members`; see [`Wire::split`].
    pub(super) fn split(&self, members: &[usize]) -> Result<Self> {
        Ok(Self::new(self.wire.split(members)?, self.check))
    }

    /// Carries out one call. On an error, messages may still be under way.
    pub(super) fn run(&mut self, call: &Call, buffers: &Buffers) -> Result<()> {
        if self.check {
            agreement::agree(&self.wire, call)?;
        }
        let (input, output) = match buffers {
            Buffers::None => return self.wire.barrier(),
            Buffers::InPlace(tensor) => (region(tensor), region(tensor)),
            Buffers::Between { input, output } => (region(input), region(output)),
        };
        let dtype = call.dtype.expect("only a barrier has no dtype");
        let (rank, degree) = (self.wire.rank(), self.wire.degree());
        match call.operation {
            Operation::Barrier => self.wire.barrier(),
            Operation::Broadcast { root } => self.wire.broadcast(input, root),
            Operation::AllReduce(reduction) if input.bytes() <= SMALL_BYTES => {
                self.all_reduce_small(dtype, reduction, input)
            }
            Operation::AllReduce(reduction) => {
                let contributions = shares(input, degree);
                let (own, results) = (contributions[rank], contributions.clone());
                self.reduce(&Reducing { dtype, reduction, contributions, own, results })
            }
            Operation::ReduceScatter(reduction) => {
                let contributions = equal_parts(input, degree);
                output.copy_from(contributions[rank]);
                let (own, results) = (output, Vec::new());
                self.reduce(&Reducing { dtype, reduction, contributions, own, results })
            }
            Operation::OrderedReduceScatter(onto) => {
                self.add_in_order(dtype, onto, &equal_parts(input, degree), output)
            }
            Operation::AllGather => {
                let parts = equal_parts(output, degree);
                parts[rank].copy_from(input);
                self.swap(&vec![input; degree], &parts)
            }
            Operation::AllToAll => {
                let (gives, takes) = (equal_parts(input, degree), equal_parts(output, degree));
                takes[rank].copy_from(gives[rank]);
                self.swap(&gives, &takes)
            }
        }
    }

    /// Gathers every rank's whole buffer and reduces it here, as everywhere else.
    fn all_reduce_small(&mut self, dtype: Dtype, reduction: Reduction, own: Region) -> Result<()> {
        let (rank, degree) = (self.wire.rank(), self.wire.degree());
        let gathered = self.scratch(own.bytes() * degree);
        self.wire.all_gather_small(own, gathered)?;
        let mut peers = equal_parts(gathered, degree);
        peers.remove(rank);
        reduce_region(dtype, reduction, own, rank, &peers);
        Ok(())
    }

    /// Reduces the own share piece by piece, and passes the pieces on if anyone wants them.
    fn reduce(&mut self, reducing: &Reducing) -> Result<()> {
        let Reducing { dtype, reduction, contributions, own, results } = reducing;
        let mut passing = VecDeque::new();
        self.each_piece(contributions, *own, |exchange, piece| {
            let Piece { step, piece_bytes, own, peers } = piece;
            reduce_region(*dtype, *reduction, own, exchange.wire.rank(), &peers);
            if !results.is_empty() {
                passing.push_back(exchange.pass_on(results, own, step, piece_bytes)?);
            }
            if passing.len() > DEPTH
                && let Some(mut oldest) = passing.pop_front()
            {
                exchange.wire.wait(&mut oldest)?;
            }
            Ok(())
        })?;
        passing.iter_mut().try_for_each(|messages| self.wire.wait(messages))
    }

    /// Collects the contributions to the own share piece by piece, with several under way, and
    /// calls `finish` with each. Gives this rank's `contributions` to the peers' shares meanwhile.
    fn each_piece(
        &mut self,
        contributions: &[Region],
        own: Region,
        mut finish: impl FnMut(&Self, Piece) -> Result<()>,
    ) -> Result<()> {
        let num_peers = self.wire.degree() - 1;
        let piece_bytes = (2 * MAX_PIECE_BYTES / num_peers.max(1))
            .next_power_of_two()
            .clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES);
        let scratch = self.scratch(DEPTH * num_peers * piece_bytes);
        let longest = contributions.iter().map(|region| region.bytes()).max().unwrap_or(0);
        let num_steps = longest.div_ceil(piece_bytes);
        let arriving = |step: usize| -> Piece {
            let own = piece(own, step, piece_bytes);
            let waits = |peer| scratch_piece(scratch, (step, peer, num_peers), piece_bytes, own);
            Piece { step, piece_bytes, own, peers: (0..num_peers).map(waits).collect() }
        };
        let mut slots: [Messages; DEPTH] = Default::default();
        for (step, slot) in slots.iter_mut().enumerate().take(num_steps) {
            self.collect(contributions, &arriving(step), slot)?;
        }
        for step in 0..num_steps {
            let slot = &mut slots[step % DEPTH];
            self.wire.wait(slot)?;
            finish(self, arriving(step))?;
            if step + DEPTH < num_steps {
                self.collect(contributions, &arriving(step + DEPTH), slot)?;
            }
        }
        Ok(())
    }

    /// Starts to collect the contributions to one piece of the own share, and to give those of
    /// this rank to the owners of the others.
    fn collect(
        &self,
        contributions: &[Region],
        arriving: &Piece,
        messages: &mut Messages,
    ) -> Result<()> {
        for (peer, &from_peer) in self.wire.peers().zip(&arriving.peers) {
            let to_peer = piece(contributions[peer], arriving.step, arriving.piece_bytes);
            self.wire.receive(messages, from_peer, peer, Tag::Contribution)?;
            self.wire.send(messages, to_peer, peer, Tag::Contribution)?;
        }
        Ok(())
    }

    /// Starts to give one finished piece to all peers, and to take theirs.
    fn pass_on(
        &self,
        results: &[Region],
        own: Region,
        step: usize,
        piece_bytes: usize,
    ) -> Result<Messages> {
        let mut messages = Messages::default();
        for peer in self.wire.peers() {
            let from_peer = piece(results[peer], step, piece_bytes);
            self.wire.receive(&mut messages, from_peer, peer, Tag::Result)?;
            self.wire.send(&mut messages, own, peer, Tag::Result)?;
        }
        Ok(messages)
    }

    /// Sends `gives[peer]` to each peer and fills `takes[peer]` from it; all of one length.
    fn swap(&self, gives: &[Region], takes: &[Region]) -> Result<()> {
        let mut window = VecDeque::new();
        for step in 0..gives[0].bytes().div_ceil(MAX_PIECE_BYTES) {
            let mut messages = Messages::default();
            for peer in self.wire.peers() {
                let from_peer = piece(takes[peer], step, MAX_PIECE_BYTES);
                let to_peer = piece(gives[peer], step, MAX_PIECE_BYTES);
                self.wire.receive(&mut messages, from_peer, peer, Tag::Contribution)?;
                self.wire.send(&mut messages, to_peer, peer, Tag::Contribution)?;
            }
            window.push_back(messages);
            if window.len() == DEPTH
                && let Some(mut oldest) = window.pop_front()
            {
                self.wire.wait(&mut oldest)?;
            }
        }
        window.iter_mut().try_for_each(|messages| self.wire.wait(messages))
    }

    /// Scratch memory of at least `bytes`.
    fn scratch(&mut self, bytes: usize) -> Region {
        let words = bytes.div_ceil(size_of::<u64>());
        if self.scratch.len() < words {
            self.scratch.resize(words, 0);
        }
        // SAFETY: the vector changes only here, at the beginning of a call, when the messages
        // of the call before have all been waited for (a failed call is never followed by
        // another), and it lives as long as the exchange.
        unsafe { Region::of_scratch(&mut self.scratch) }.cut(0..bytes)
    }
}

/// The memory of a tensor for the time of one call.
fn region(tensor: &Tensor) -> Region {
    // SAFETY: the queue owns a reference to the storage until the call is over, and keeps it
    // forever if the call fails; the trait's contract keeps the caller away until then.
    unsafe { Region::of_tensor(tensor) }
}

/// Piece number `step`; empty past the end.
fn piece(region: Region, step: usize, piece_bytes: usize) -> Region {
    let start = (step * piece_bytes).min(region.bytes());
    region.cut(start..(start + piece_bytes).min(region.bytes()))
}

/// Where the contribution of peer `index` of `num_peers` to the piece `own` of a step waits.
fn scratch_piece(
    scratch: Region,
    (step, index, num_peers): (usize, usize, usize),
    piece_bytes: usize,
    own: Region,
) -> Region {
    let start = (step % DEPTH * num_peers + index) * piece_bytes;
    scratch.cut(start..start + own.bytes())
}

/// `region` in `degree` parts of one length.
fn equal_parts(region: Region, degree: usize) -> Vec<Region> {
    let part_bytes = region.bytes() / degree;
    (0..degree).map(|rank| region.cut(rank * part_bytes..(rank + 1) * part_bytes)).collect()
}

/// `region` in `degree` aligned shares, of which the last ones may be shorter or empty.
fn shares(region: Region, degree: usize) -> Vec<Region> {
    let share_bytes = region.bytes().div_ceil(degree).next_multiple_of(SHARE_ALIGNMENT_BYTES);
    let range = |rank: usize| -> Range<usize> {
        (rank * share_bytes).min(region.bytes())..((rank + 1) * share_bytes).min(region.bytes())
    };
    (0..degree).map(|rank| region.cut(range(rank))).collect()
}

/// Reduces the contributions of `peers` (in rank order) and `own` into `own`.
fn reduce_region(dtype: Dtype, reduction: Reduction, own: Region, rank: usize, peers: &[Region]) {
    fn typed<T: Element>(reduction: Reduction, own: Region, rank: usize, peers: &[Region]) {
        // SAFETY: all messages that touch these pieces have been waited for; the own piece is
        // tensor memory and the others are distinct pieces of scratch.
        let (own, peers) = unsafe {
            let peers: Vec<&[T]> = peers.iter().map(|peer| peer.elements()).collect();
            (own.elements_mut::<T>(), peers)
        };
        element::reduce(reduction, own, rank, &peers);
    }
    match dtype {
        Dtype::F32 => typed::<f32>(reduction, own, rank, peers),
        Dtype::F64 => typed::<f64>(reduction, own, rank, peers),
        Dtype::I32 => typed::<i32>(reduction, own, rank, peers),
        Dtype::I64 => typed::<i64>(reduction, own, rank, peers),
        Dtype::Bf16 | Dtype::U8 => unreachable!("such requests are refused when they are made"),
    }
}
