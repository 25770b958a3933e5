//! What a host without CUDA gets: an error on every rank, and its parent back.

use std::{path::PathBuf, thread};

use tch::{Device, Kind, Tensor};

use super::{NcclCollective, library::Search};
use crate::{
    Reduction,
    collective::{Collective, ThreadGroup},
    error::{Error, GpuError},
};

#[test]
fn a_host_without_cuda_is_refused_on_all_ranks_and_keeps_its_parent() {
    let threads = ThreadGroup::new(2).into_iter().map(|parent| {
        thread::spawn(move || {
            let rank = parent.rank();
            let nowhere = Search::only(PathBuf::from("/nonexistent"));
            let Err(refused) = NcclCollective::connect_with(Box::new(parent), &nowhere, rank)
            else {
                panic!("there is no driver in a folder that is not there");
            };
            let library = matches!(
                refused.error,
                Error::Gpu(GpuError::Library { library: "CUDA's driver", .. })
            );
            assert!(library, "{refused:?}");
            let ones = Tensor::ones([3], (Kind::Float, Device::Cpu));
            refused.parent.all_reduce(&ones, Reduction::Sum, "after").unwrap().wait().unwrap();
            f64::try_from(ones.sum(Kind::Double)).unwrap()
        })
    });
    for sum in threads.collect::<Vec<_>>() {
        assert_eq!(sum.join().unwrap(), 6.0);
    }
}
