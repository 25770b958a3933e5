//! Which lists of ranks make groups: checked here once for every implementation.

use tch::{Device, Kind, Tensor};

use super::Collective;
use crate::error::{Error, Result};

/// Checks `ranks` on this rank, then gathers everyone's and checks that they are a partition.
///
/// # Collectives
/// Every rank of `parent` must call it.
pub(super) fn agree(parent: &dyn Collective, ranks: &[usize], name: &str) -> Result<()> {
    let (rank, degree) = (parent.rank(), parent.degree());
    let ascending = ranks.is_sorted_by(|a, b| a < b);
    if !ascending || !ranks.contains(&rank) || ranks.iter().any(|&member| member >= degree) {
        let (name, ranks) = (name.to_owned(), ranks.to_vec());
        return Err(Error::Group { name, ranks, rank, degree });
    }
    // A byte for each rank: whether it is a member.
    let members: Vec<u8> = (0..degree).map(|rank| u8::from(ranks.contains(&rank))).collect();
    let input = Tensor::from_slice(&members);
    let output = Tensor::zeros([(degree * degree) as i64], (Kind::Uint8, Device::Cpu));
    parent.all_gather(&input, &output, name)?.wait()?;
    let gathered = Vec::<u8>::try_from(&output).expect("a flat host tensor of bytes");
    match differing(&gathered, degree) {
        None => Ok(()),
        Some((first_rank, second_rank)) => Err(Error::GroupsDiffer {
            name: name.to_owned(),
            first_rank,
            first: group_of(&gathered, first_rank, degree),
            second_rank,
            second: group_of(&gathered, second_rank, degree),
        }),
    }
}

/// The first rank with a member that gives other ranks than it does, and the first such member.
/// Without one, and with everyone in its own group, the groups are a partition.
fn differing(gathered: &[u8], degree: usize) -> Option<(usize, usize)> {
    let row = |rank: usize| &gathered[rank * degree..(rank + 1) * degree];
    (0..degree).find_map(|rank| {
        let mut members = group_of(gathered, rank, degree).into_iter();
        members.find(|&member| row(member) != row(rank)).map(|member| (rank, member))
    })
}

fn group_of(gathered: &[u8], rank: usize, degree: usize) -> Vec<usize> {
    (0..degree).filter(|member| gathered[rank * degree + member] != 0).collect()
}
