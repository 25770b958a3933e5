//! Prefetched batches are the direct ones; errors arrive, and dropping ends the thread.

use super::*;
use crate::loader::tests::{counting_file, damaged_file, small_config};

#[test]
fn prefetched_batches_are_the_direct_ones() {
    let (_folder, file) = counting_file(2000);
    let loader = Loader::new(file, 0..2000, small_config()).unwrap();
    for depth in [1, 2, 7] {
        let prefetcher = Prefetcher::new(loader.clone(), 10, vec![3, 1], depth).unwrap();
        for step in 10..20 {
            for index in [3, 1] {
                assert_eq!(prefetcher.next().unwrap(), loader.micro_batch(step, index).unwrap());
            }
        }
    }
}

#[test]
fn a_data_error_arrives_in_its_place_and_then_nothing_hangs() {
    let (_folder, file) = damaged_file(2000, 1000);
    let loader = Loader::new(file, 0..2000, small_config()).unwrap();
    let first_bad = (0..).find(|&step| loader.micro_batch(step, 0).is_err()).unwrap();
    assert!(first_bad > 0, "some batches must be good for this test to mean something");
    let prefetcher = Prefetcher::new(loader.clone(), 0, vec![0], 3).unwrap();
    for step in 0..first_bad {
        assert_eq!(prefetcher.next().unwrap(), loader.micro_batch(step, 0).unwrap());
    }
    let message = prefetcher.next().unwrap_err().to_string();
    assert!(message.contains("byte 4064: token id"), "{message}");
    let message = prefetcher.next().unwrap_err().to_string();
    assert!(message.contains("the prefetch thread has ended"), "{message}");
}

#[test]
fn one_can_wait_for_a_while() {
    let (_folder, file) = counting_file(2000);
    let loader = Loader::new(file, 0..2000, small_config()).unwrap();
    let (let_go, gate) = std::sync::mpsc::channel();
    let places = std::iter::from_fn(move || gate.recv().ok());
    let prefetcher = Prefetcher::over(loader.clone(), places, 1).unwrap();
    assert_eq!(prefetcher.next_within(Duration::from_millis(10)).unwrap(), None);
    let_go.send((3, 1)).unwrap();
    let batch = prefetcher.next_within(Duration::from_secs(60)).unwrap();
    assert_eq!(batch, Some(loader.micro_batch(3, 1).unwrap()));
    drop(let_go);
    let message = prefetcher.next_within(Duration::from_secs(60)).unwrap_err().to_string();
    assert!(message.contains("the prefetch thread has ended"), "{message}");
}

#[test]
fn dropping_ends_the_thread() {
    let (_folder, file) = counting_file(2000);
    let loader = Loader::new(file.clone(), 0..2000, small_config()).unwrap();
    let prefetcher = Prefetcher::new(loader, 0, vec![0, 1], 2).unwrap();
    prefetcher.next().unwrap();
    assert!(std::sync::Arc::strong_count(&file) > 1);
    drop(prefetcher);
    assert_eq!(std::sync::Arc::strong_count(&file), 1, "the thread still holds its loader");
}

#[test]
fn a_list_that_cannot_be_is_refused() {
    let (_folder, file) = counting_file(2000);
    let loader = Loader::new(file, 0..2000, small_config()).unwrap();
    let refused = |indices, depth| {
        Prefetcher::new(loader.clone(), 0, indices, depth).unwrap_err().to_string()
    };
    assert!(refused(vec![], 2).contains("list of micro-batch indices is empty"));
    assert!(refused(vec![0, 4], 2).contains("micro-batch 4 was asked for, but there are 4"));
    assert_eq!(refused(vec![0], 0), "depth is 0, expected at least 1");
}
