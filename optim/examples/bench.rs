//! Memory throughput of the update rules beside a STREAM triad, on two threads.
//!
//! Usage: `cargo run --release -p grove-optim --example bench`. Prints the best of several rounds;
//! the rounds of all rows take turns, so that other load hits them alike.
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use grove_optim::{
    AdamWConfig, BLOCK_ELEMENTS, Elements, LionConfig, Rule, RuleConfig, Scalars, Working,
    block_squared_norms, num_blocks,
};
use half::bf16;
use std::time::Instant;

const NUM_PARAMS: usize = 34 << 20;
const NUM_THREADS: usize = 2;
const NUM_ROUNDS: usize = 12;
/// Cut where shards are.
const PIECE: usize = NUM_PARAMS / NUM_THREADS;

struct Buffers {
    master: Vec<f32>,
    grad: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    copy: Vec<bf16>,
}

fn main() -> grove_optim::Result<()> {
    let mut buffers = Buffers {
        master: (0..NUM_PARAMS).map(|i| (i % 977) as f32 * 1e-3).collect(),
        grad: (0..NUM_PARAMS).map(|i| (i % 1013) as f32 * 1e-3 - 0.5).collect(),
        first: vec![0.0; NUM_PARAMS],
        second: vec![0.0; NUM_PARAMS],
        copy: vec![bf16::ZERO; NUM_PARAMS],
    };
    let adamw = RuleConfig::AdamW(AdamWConfig::default()).build()?;
    let lion = RuleConfig::Lion(LionConfig::default()).build()?;
    // Name, bytes an element as the program sees them, seconds of the best round.
    let mut rows = [
        ("triad a = b + s c", 12, f64::INFINITY),
        ("adamw", 28, f64::INFINITY),
        ("adamw + bf16 copy", 30, f64::INFINITY),
        ("lion", 20, f64::INFINITY),
        ("lion + bf16 copy", 22, f64::INFINITY),
        ("squared norm", 4, f64::INFINITY),
    ];
    for round in 0..NUM_ROUNDS {
        for (row, (_, _, best)) in rows.iter_mut().enumerate() {
            let start = Instant::now();
            match row {
                0 => triad(&mut buffers),
                1 | 2 => update(&adamw, &mut buffers, row == 2, round as u64 + 1)?,
                3 | 4 => update(&lion, &mut buffers, row == 4, round as u64 + 1)?,
                _ => norm(&buffers)?,
            }
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let gigabytes = |bytes: usize, seconds: f64| (bytes * NUM_PARAMS) as f64 / seconds / 1e9;
    let triad_rate = gigabytes(rows[0].1, rows[0].2);
    println!("{:<20} {:>8} {:>8} {:>9}", "", "ms", "GB/s", "of triad");
    for (name, bytes, seconds) in rows {
        let rate = gigabytes(bytes, seconds);
        let share = 100.0 * rate / triad_rate;
        println!("{name:<20} {:>8.2} {rate:>8.1} {share:>8.0}%", seconds * 1e3);
    }
    Ok(())
}

fn triad(buffers: &mut Buffers) {
    std::thread::scope(|scope| {
        let b = buffers.grad.chunks(PIECE);
        let c = buffers.first.chunks(PIECE);
        for ((a, b), c) in buffers.second.chunks_mut(PIECE).zip(b).zip(c) {
            scope.spawn(move || {
                for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                    *a = b + 0.5 * c;
                }
            });
        }
    });
}

fn update(rule: &Rule, buffers: &mut Buffers, copies: bool, step: u64) -> grove_optim::Result<()> {
    let states = [&mut buffers.first[..], &mut buffers.second[..]];
    let elements = Elements {
        master: &mut buffers.master,
        grad: &buffers.grad,
        state: states.into_iter().take(rule.state_kinds().len()).collect(),
        working: if copies { Working::Bf16(&mut buffers.copy) } else { Working::None },
    };
    let scalars = Scalars { lr: 1e-4, weight_decay: 0.1, grad_scale: 0.5, step };
    let (head, tail) = elements.split_at(PIECE);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| rule.update(tail, &scalars));
        rule.update(head, &scalars)?;
        other.join().expect("an update does not panic")
    })
}

fn norm(buffers: &Buffers) -> grove_optim::Result<()> {
    let mut sums = vec![0.0; num_blocks(NUM_PARAMS, BLOCK_ELEMENTS)];
    let (head, tail) = sums.split_at_mut(PIECE / BLOCK_ELEMENTS);
    let (grad, grad_tail) = buffers.grad.split_at(PIECE);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| block_squared_norms(grad_tail, BLOCK_ELEMENTS, tail));
        block_squared_norms(grad, BLOCK_ELEMENTS, head)?;
        other.join().expect("a norm does not panic")
    })
}
