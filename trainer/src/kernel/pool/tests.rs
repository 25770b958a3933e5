//! Every chunk runs once, on whatever threads there are, and a panic reaches the caller.

use super::{DisjointMut, Pool};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn each_chunk_runs_exactly_once() {
    for num_threads in [0, 1, 2, 5] {
        for num_chunks in [0, 1, 2, 3, 1000] {
            let counts: Vec<AtomicUsize> = (0..num_chunks).map(|_| AtomicUsize::new(0)).collect();
            Pool::new(num_threads).for_each(num_chunks, |chunk| {
                counts[chunk].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn two_threads_run_at_once() {
    // Each chunk waits for the other one, so this hangs (and the wait below gives up) unless two
    // threads take part.
    let arrived = AtomicUsize::new(0);
    Pool::new(2).for_each(2, |_| {
        arrived.fetch_add(1, Ordering::SeqCst);
        let start = std::time::Instant::now();
        while arrived.load(Ordering::SeqCst) < 2 {
            assert!(start.elapsed().as_secs() < 20, "the second thread never came");
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_panic_is_resumed_on_the_caller() {
    for num_threads in [1, 2] {
        let result = catch_unwind(|| {
            Pool::new(num_threads).for_each(100, |chunk| assert!(chunk != 7, "chunk seven"));
        });
        let payload = result.expect_err("the panic of chunk 7 arrives");
        assert!(payload.downcast_ref::<&str>().is_some_and(|text| text.contains("chunk seven")));
    }
    let done = AtomicUsize::new(0);
    Pool::new(2).for_each(10, |_| {
        done.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(done.load(Ordering::Relaxed), 10, "the pool still works after a panic");
}

#[test]
fn scratch_is_held_by_one_chunk_at_a_time() {
    let mut scratch = vec![0_usize; 3];
    let pool = Pool::new(3);
    pool.for_each_with(&mut scratch, 999, |count, _| *count += 1);
    assert_eq!(scratch.iter().sum::<usize>(), 999);
    let too_few = catch_unwind(AssertUnwindSafe(|| {
        pool.for_each_with(&mut scratch[..2], 9, |_, _| {});
    }));
    assert!(too_few.is_err());
}

#[test]
fn chunks_of_a_slice_cover_it() {
    let mut items = vec![0_usize; 103];
    Pool::new(2).for_each_chunk_mut(&mut items, 10, |chunk, part| {
        assert_eq!(part.len(), if chunk == 10 { 3 } else { 10 });
        part.iter_mut().enumerate().for_each(|(at, item)| *item += chunk * 10 + at);
    });
    assert!(items.iter().enumerate().all(|(at, &item)| at == item));
}

#[test]
fn a_region_inside_a_region_runs_too() {
    let seen = Mutex::new(Vec::new());
    Pool::new(2).for_each(2, |outer| {
        Pool::new(2).for_each(2, |inner| {
            seen.lock().expect("no panic").push(2 * outer + inner);
        });
    });
    let mut seen = seen.into_inner().expect("no panic");
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3]);
}

#[test]
fn parts_outside_the_slice_are_refused() {
    let mut items = [0_u8; 4];
    let parts = DisjointMut::new(&mut items);
    for (start, len) in [(0, 5), (5, 0), (3, 2), (usize::MAX, 2)] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: no other part is in use.
            unsafe { parts.slice(start, len) }.len()
        }));
        assert!(result.is_err(), "{start}..+{len}");
    }
}
