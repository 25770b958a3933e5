//! Short turns of a triad, a rule and its arithmetic, on all threads at once: what a rule reaches of
//! its bound, of moments that lie some hundred microseconds apart.
//!
//! A machine's bandwidth varies from second to second, and other load takes a processor away for
//! milliseconds. A turn is shorter than either, so of many turns the quickest quarter was left alone;
//! its slowest is the figure, of triad, rule and arithmetic alike.

use super::{Buffers, CACHED_PIECE, NUM_THREADS, again, elements, scalars, triad_part};
use grove_optim::Rule;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Elements of a turn: some tens of microseconds of memory, four times [`CACHED_PIECE`].
const WINDOW: usize = 1 << 16;
/// Times that each window is visited.
const ROUNDS: usize = 6;

/// What a turn does.
#[derive(Clone, Copy)]
enum Turn {
    Triad,
    Rule,
    Cached,
}

/// A thread's part of all elements.
pub(crate) struct Part {
    large: Buffers,
    small: Buffers,
}

/// Seconds an element and thread, by kind of turn.
#[derive(Default)]
struct Times {
    triad: Vec<f64>,
    rule: Vec<f64>,
    cached: Vec<f64>,
}

impl Part {
    /// One for each thread.
    pub(crate) fn all(numel: usize) -> Vec<Self> {
        let part = |_| Self {
            large: Buffers::new((numel / NUM_THREADS).next_multiple_of(WINDOW)),
            small: Buffers::new(CACHED_PIECE),
        };
        (0..NUM_THREADS).map(part).collect()
    }
}

/// Seconds for `numel` elements on all threads: of a triad, of the rule, and of its arithmetic alone.
pub(crate) fn measure(
    rule: &Rule,
    parts: &mut [Part],
    numel: usize,
) -> grove_optim::Result<[f64; 3]> {
    let arrived: Vec<AtomicUsize> = parts.iter().map(|_| AtomicUsize::new(0)).collect();
    let arrived = &arrived;
    let times = std::thread::scope(|scope| {
        let run = |(index, part)| scope.spawn(move || turns(rule, part, (arrived, index)));
        let threads: Vec<_> = parts.iter_mut().enumerate().map(run).collect();
        let times = threads.into_iter().map(|thread| thread.join().expect("an update returns"));
        times.collect::<grove_optim::Result<Vec<Times>>>()
    })?;
    let quartile = |of: fn(&Times) -> &[f64]| {
        let mut all: Vec<f64> = times.iter().flat_map(of).copied().collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 4] * numel as f64 / NUM_THREADS as f64
    };
    Ok([quartile(|it| &it.triad), quartile(|it| &it.rule), quartile(|it| &it.cached)])
}

/// One thread's turns.
fn turns(
    rule: &Rule,
    Part { large, small }: &mut Part,
    (arrived, index): (&[AtomicUsize], usize),
) -> grove_optim::Result<Times> {
    let (mut times, scalars) = (Times::default(), scalars(1));
    let num_windows = large.master.len() / WINDOW;
    for turn in 0..ROUNDS * num_windows {
        let (round, window) = (turn / num_windows, turn % num_windows);
        let range = window * WINDOW..(window + 1) * WINDOW;
        let kind = [Turn::Triad, Turn::Rule, Turn::Cached][(window + round) % 3];
        if matches!(kind, Turn::Cached) {
            again(rule, elements(rule, small, false), 1, &scalars)?;
        }
        meet(arrived, index, turn + 1);
        let start = Instant::now();
        let all = match kind {
            Turn::Triad => {
                triad_part(large, range);
                &mut times.triad
            }
            Turn::Rule => {
                let (head, _) = elements(rule, large, false).split_at(range.end);
                rule.update(head.split_at(range.start).1, &scalars)?;
                &mut times.rule
            }
            Turn::Cached => {
                let rounds = WINDOW / CACHED_PIECE;
                again(rule, elements(rule, small, false), rounds, &scalars)?;
                &mut times.cached
            }
        };
        all.push(start.elapsed().as_secs_f64() / WINDOW as f64);
    }
    Ok(times)
}

/// Waits until every thread has come this far, so that all do the same kind of turn.
fn meet(arrived: &[AtomicUsize], index: usize, turn: usize) {
    arrived[index].store(turn, Ordering::Release);
    for other in arrived {
        let mut spins = 0u32;
        while other.load(Ordering::Acquire) < turn {
            spins += 1;
            if spins.is_multiple_of(1 << 12) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}
