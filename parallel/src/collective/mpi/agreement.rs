//! The optional check before each call: ranks exchange records of what they are calling.

use super::wire::Wire;
use crate::{
    collective::{Call, Dtype, Onto, Operation, Reduction},
    error::{Error, Result},
};

/// Words of a record: sequence, operation, detail (reduction, onto or root), dtype, count, hash of the
/// whole name, length of the kept part of the name, and that part.
const RECORD_WORDS: usize = 7 + NAME_WORDS;

/// Words of the part of the name that a message can show; the hash tells longer ones apart.
const NAME_WORDS: usize = 12;

const WORD_BYTES: usize = size_of::<u64>();

const REDUCTIONS: [Reduction; 4] =
    [Reduction::Sum, Reduction::TreeSum, Reduction::Max, Reduction::Min];

const ONTO: [Onto; 2] = [Onto::Nothing, Onto::Output];

/// Compares `call` with what every other rank of the wire is in. All but the sequence counts: the
/// calls of one wire are compared one after another, and those of other groups are none of its.
///
/// # Errors
/// [`Error::CallsDiffer`], on all ranks alike, with the first rank and the first that differs.
pub(super) fn agree(wire: &Wire, call: &Call) -> Result<()> {
    let records = wire.all_gather_words(encode(call).to_vec())?;
    let (first, rest) = records.split_at(RECORD_WORDS);
    let differs = |record: &[u64]| record[1..] != first[1..];
    let differing = rest.chunks(RECORD_WORDS).enumerate().find(|(_, record)| differs(record));
    match differing {
        None => Ok(()),
        Some((index, record)) => Err(Error::CallsDiffer {
            first_rank: wire.rank_in_run(0),
            first: Box::new(decode(first)),
            second_rank: wire.rank_in_run(index + 1),
            second: Box::new(decode(record)),
        }),
    }
}

fn encode(call: &Call) -> [u64; RECORD_WORDS] {
    let (operation, detail) = match call.operation {
        Operation::AllReduce(reduction) => (0, place_in(&REDUCTIONS, reduction)),
        Operation::AllGather => (1, 0),
        Operation::ReduceScatter(reduction) => (2, place_in(&REDUCTIONS, reduction)),
        Operation::Broadcast { root } => (3, root as u64),
        Operation::AllToAll => (4, 0),
        Operation::Barrier => (5, 0),
        Operation::OrderedReduceScatter(onto) => (6, place_in(&ONTO, onto)),
    };
    // A barrier's dtype is one past the codes of those there are.
    let dtype = call.dtype.map_or(Dtype::ALL.len() as u64, |dtype| place_in(&Dtype::ALL, dtype));
    let name = &call.name.as_bytes()[..call.name.len().min(NAME_WORDS * WORD_BYTES)];
    let mut record = [0; RECORD_WORDS];
    record[..7].copy_from_slice(&[
        call.sequence,
        operation,
        detail,
        dtype,
        call.count as u64,
        fnv1a(call.name.as_bytes()),
        name.len() as u64,
    ]);
    for (word, bytes) in record[7..].iter_mut().zip(name.chunks(WORD_BYTES)) {
        let mut padded = [0; WORD_BYTES];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(padded);
    }
    record
}

/// The inverse of [`encode`], with a long name cut off.
fn decode(record: &[u64]) -> Call {
    let detail = record[2] as usize;
    let reduction = || REDUCTIONS[detail.min(REDUCTIONS.len() - 1)];
    let operation = match record[1] {
        0 => Operation::AllReduce(reduction()),
        1 => Operation::AllGather,
        2 => Operation::ReduceScatter(reduction()),
        3 => Operation::Broadcast { root: detail },
        4 => Operation::AllToAll,
        6 => Operation::OrderedReduceScatter(ONTO[detail.min(ONTO.len() - 1)]),
        _ => Operation::Barrier,
    };
    let mut name: Vec<u8> = record[7..].iter().flat_map(|word| word.to_le_bytes()).collect();
    name.truncate(record[6] as usize);
    Call {
        sequence: record[0],
        operation,
        name: String::from_utf8_lossy(&name).into_owned(),
        dtype: Dtype::ALL.get(record[3] as usize).copied(),
        count: record[4] as usize,
    }
}

fn place_in<T: PartialEq>(all: &[T], one: T) -> u64 {
    all.iter().position(|other| *other == one).expect("the table lists all values") as u64
}

/// The 64-bit FNV-1a hash (Fowler, Noll and Vo), which is the same in every build.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
