//! Who is refused, with which words, and that records survive the way.

use std::thread;

use super::{ID_BYTES, Ready, check, decode, encode, meet, share_id};
use crate::{
    collective::{ThreadGroup, nccl::library::Version},
    error::{Error, GpuError},
};

fn ready(gpu: u8) -> Ready {
    let mut uuid = [0xf0; 16];
    uuid[15] = gpu;
    Ready { uuid, version: Version(22_809) }
}

#[test]
fn records_survive_the_way() {
    for own in [None, Some(ready(0)), Some(Ready { uuid: [0xff; 16], version: Version(1) })] {
        assert_eq!(decode(&encode(own)), own);
    }
}

#[test]
fn a_rank_that_is_not_ready_is_named() {
    let error = check(&[Some(ready(0)), None, None]).unwrap_err();
    assert_eq!(error.to_string(), "rank 1 cannot use NCCL; look for its own error");
}

#[test]
fn two_ranks_on_one_gpu_are_named_with_it() {
    let ranks = [0, 1, 2, 1].map(|gpu| Some(ready(gpu)));
    let message = check(&ranks).unwrap_err().to_string();
    let expected = "rank 1 and rank 3 both use GPU-f0f0f0f0-f0f0-f0f0-f0f0-f0f0f0f0f001; ";
    assert!(message.starts_with(expected), "{message}");
    assert!(message.contains("one rank a GPU") && message.contains("backend = \"mpi\""));
    assert_eq!(check(&[0, 1, 2, 3].map(|gpu| Some(ready(gpu)))), Ok(()));
}

#[test]
fn versions_must_be_the_same() {
    let newer = Ready { version: Version(22_900), ..ready(1) };
    let message = check(&[Some(ready(0)), Some(newer)]).unwrap_err().to_string();
    assert!(message.contains("rank 0 has NCCL 2.28.9 and rank 1 has 2.29.0"), "{message}");
}

#[test]
fn all_ranks_are_told_alike() {
    let threads: Vec<_> = ThreadGroup::new(3)
        .into_iter()
        .enumerate()
        .map(|(rank, ranks)| {
            thread::spawn(move || {
                let all = meet(&ranks, Some(ready(rank as u8)));
                let shared = meet(&ranks, Some(ready(if rank == 2 { 0 } else { rank as u8 })));
                let missing = meet(&ranks, (rank != 1).then(|| ready(rank as u8)));
                let id = share_id(&ranks, (rank == 0).then_some([7; ID_BYTES]));
                let no_id = share_id(&ranks, None);
                (all, shared, missing, id, no_id)
            })
        })
        .collect();
    for thread in threads {
        let (all, shared, missing, id, no_id) = thread.join().unwrap();
        assert_eq!(all, Ok(()));
        assert!(
            matches!(
                shared,
                Err(Error::Gpu(GpuError::Shared { first_rank: 0, second_rank: 2, .. }))
            ),
            "{shared:?}"
        );
        assert_eq!(missing, Err(GpuError::Peer { rank: 1 }.into()));
        assert_eq!(id, Ok([7; ID_BYTES]));
        assert_eq!(no_id, Err(GpuError::Peer { rank: 0 }.into()));
    }
}
