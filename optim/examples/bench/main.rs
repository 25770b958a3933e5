//! Memory throughput of the update rules beside a STREAM triad, on two threads.
//!
//! Usage: `cargo run --release -p grove-optim --example bench`. Prints the best of several rounds;
//! the rounds of all rows take turns, so that other load hits them alike.
//!
//! With a number of parameters as its argument it is the one half of `scripts/bench-optim`: for each
//! line of its input, which names a row, it does that work once and prints the seconds and the bytes a
//! parameter. `windows ROW` prints the seconds of a triad, of the rule and of its arithmetic alone, on
//! a part that stays in the nearest caches, as `windows.rs` measures them.
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

mod windows;

use grove_optim::{
    AdamW8bitConfig, AdamWConfig, BLOCK_ELEMENTS, Elements, Lion8bitConfig, LionConfig, Rule,
    RuleConfig, Scalars, ScheduleFreeConfig, SophiaConfig, StateDtype, StateSlice, StateSpec,
    Storage, Working, block_squared_norms, num_blocks,
};
use half::bf16;
use std::io::Write;
use std::ops::Range;
use std::time::Instant;

const NUM_PARAMS: usize = 34 << 20;
const NUM_THREADS: usize = 2;
const NUM_ROUNDS: usize = 8;
/// Elements whose buffers stay in the second cache of a core, a multiple of the blocks.
const CACHED_PIECE: usize = 1 << 14;

struct Buffers {
    master: Vec<f32>,
    grad: Vec<f32>,
    values: [Vec<f32>; 2],
    halves: [Vec<bf16>; 2],
    codes: [Vec<u8>; 2],
    scales: [Vec<f32>; 2],
    copy: Vec<bf16>,
}

/// A row of the table.
enum Work {
    Triad,
    Update { rule: Rule, copies: bool },
    Norm,
}

fn main() -> grove_optim::Result<()> {
    match std::env::args().nth(1).and_then(|numel| numel.parse().ok()) {
        Some(numel) => serve(numel),
        None => table(),
    }
}

impl Buffers {
    fn new(numel: usize) -> Self {
        let num_scales = Storage::BlockScale.num_elements(numel);
        Self {
            master: (0..numel).map(|i| (i % 977) as f32 * 1e-3).collect(),
            grad: (0..numel).map(|i| (i % 1013) as f32 * 1e-3 - 0.5).collect(),
            values: [vec![0.0; numel], vec![0.0; numel]],
            halves: [vec![bf16::ZERO; numel], vec![bf16::ZERO; numel]],
            codes: [vec![0; numel], vec![0; numel]],
            scales: [vec![0.0; num_scales], vec![0.0; num_scales]],
            copy: vec![bf16::ZERO; numel],
        }
    }

    /// What each thread takes, cut where shards are.
    fn piece(&self) -> usize {
        (self.master.len() / NUM_THREADS).next_multiple_of(256)
    }
}

/// Does the work once and returns its seconds.
fn seconds(work: &Work, buffers: &mut Buffers, step: u64) -> grove_optim::Result<f64> {
    let start = Instant::now();
    match work {
        Work::Triad => triad(buffers),
        Work::Update { rule, copies } => update(rule, buffers, *copies, step)?,
        Work::Norm => norm(buffers)?,
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Answers the script's lines.
fn serve(numel: usize) -> grove_optim::Result<()> {
    let (rows, mut buffers) = (rows()?, Buffers::new(numel));
    let mut parts = Vec::new();
    for (index, line) in std::io::stdin().lines().map_while(Result::ok).enumerate() {
        let of_windows = line.strip_prefix("windows ");
        let name = of_windows.unwrap_or(&line);
        let row = rows.iter().find(|(row, _)| *row == name);
        let work = &row.expect("the script names the table's rows").1;
        match (of_windows, work) {
            (Some(_), Work::Update { rule, .. }) => {
                if parts.is_empty() {
                    parts = windows::Part::all(numel);
                }
                let [triad, own, cached] = windows::measure(rule, &mut parts, numel)?;
                println!("{triad} {own} {cached}");
            }
            _ => println!("{} {}", seconds(work, &mut buffers, index as u64 + 1)?, bytes(work)),
        }
        std::io::stdout().flush().expect("the script reads");
    }
    Ok(())
}

/// Updates the same elements again and again.
fn again(
    rule: &Rule,
    mut elements: Elements<f32>,
    rounds: usize,
    scalars: &Scalars,
) -> grove_optim::Result<()> {
    for _ in 0..rounds {
        let state = elements.state.iter_mut().map(|state| match state {
            StateSlice::Values(values) => StateSlice::Values(values),
            StateSlice::Bf16(values) => StateSlice::Bf16(values),
            StateSlice::Codes(codes) => StateSlice::Codes(codes),
            StateSlice::BlockScale(scales) => StateSlice::BlockScale(scales),
        });
        let round = Elements {
            master: &mut *elements.master,
            grad: elements.grad,
            state: state.collect(),
            working: Working::None,
            first: 0,
        };
        rule.update(round, scalars)?;
    }
    Ok(())
}

fn table() -> grove_optim::Result<()> {
    let (rows, mut buffers) = (rows()?, Buffers::new(NUM_PARAMS));
    let mut best = vec![f64::INFINITY; rows.len()];
    for round in 0..NUM_ROUNDS {
        for ((_, work), best) in rows.iter().zip(&mut best) {
            *best = best.min(seconds(work, &mut buffers, round as u64 + 1)?);
        }
    }
    let rate = |work: &Work, seconds: f64| bytes(work) * NUM_PARAMS as f64 / seconds / 1e9;
    let triad_rate = rate(&rows[0].1, best[0]);
    println!("{:<20} {:>7} {:>8} {:>8} {:>9}", "", "B/param", "ms", "GB/s", "of triad");
    for ((name, work), seconds) in rows.iter().zip(best) {
        let (bytes, rate) = (bytes(work), rate(work, seconds));
        let share = 100.0 * rate / triad_rate;
        println!("{name:<20} {bytes:>7.2} {:>8.2} {rate:>8.1} {share:>8.0}%", seconds * 1e3);
    }
    Ok(())
}

fn rows() -> grove_optim::Result<Vec<(&'static str, Work)>> {
    let state_dtype = StateDtype::Bf16;
    let adamw = RuleConfig::AdamW(AdamWConfig::default());
    let lion = RuleConfig::Lion(LionConfig::default());
    let configs = [
        ("adamw", adamw, false),
        ("adamw + bf16 copy", adamw, true),
        (
            "adamw, bf16 states",
            RuleConfig::AdamW(AdamWConfig { state_dtype, ..AdamWConfig::default() }),
            false,
        ),
        ("adamw_8bit", RuleConfig::AdamW8bit(AdamW8bitConfig::default()), false),
        ("lion", lion, false),
        ("lion + bf16 copy", lion, true),
        (
            "lion, bf16 states",
            RuleConfig::Lion(LionConfig { state_dtype, ..LionConfig::default() }),
            false,
        ),
        ("lion_8bit", RuleConfig::Lion8bit(Lion8bitConfig::default()), false),
        ("sophia", RuleConfig::Sophia(SophiaConfig::default()), false),
        ("schedule_free", RuleConfig::ScheduleFree(ScheduleFreeConfig::default()), false),
    ];
    let mut rows = vec![("triad", Work::Triad)];
    for (name, config, copies) in configs {
        rows.push((name, Work::Update { rule: config.build()?, copies }));
    }
    rows.push(("squared norm", Work::Norm));
    Ok(rows)
}

/// Bytes a parameter, as the program sees them: the master and the states are read and written.
fn bytes(work: &Work) -> f64 {
    match work {
        Work::Triad => 12.0,
        Work::Norm => 4.0,
        Work::Update { rule, copies } => {
            let size = |spec: &StateSpec| match spec.storage {
                Storage::Accumulation => 4.0,
                Storage::Bf16 => 2.0,
                Storage::Codes => 1.0,
                Storage::BlockScale => 4.0 / 256.0,
            };
            let states: f64 = rule.state_specs(NUM_PARAMS).iter().map(size).sum();
            12.0 + 2.0 * states + if *copies { 2.0 } else { 0.0 }
        }
    }
}

fn triad(buffers: &mut Buffers) {
    let piece = buffers.piece();
    std::thread::scope(|scope| {
        let [a, c] = &mut buffers.values;
        let (b, c) = (buffers.grad.chunks(piece), c.chunks(piece));
        for ((a, b), c) in a.chunks_mut(piece).zip(b).zip(c) {
            scope.spawn(move || triad_of(a, b, c));
        }
    });
}

fn triad_of(a: &mut [f32], b: &[f32], c: &[f32]) {
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a = b + 0.5 * c;
    }
}

/// A triad of some elements, on this thread.
fn triad_part(buffers: &mut Buffers, range: Range<usize>) {
    let [a, c] = &mut buffers.values;
    triad_of(&mut a[range.clone()], &buffers.grad[range.clone()], &c[range]);
}

fn update(rule: &Rule, buffers: &mut Buffers, copies: bool, step: u64) -> grove_optim::Result<()> {
    let (piece, scalars) = (buffers.piece(), scalars(step));
    let (head, tail) = elements(rule, buffers, copies).split_at(piece);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| rule.update(tail, &scalars));
        rule.update(head, &scalars)?;
        other.join().expect("an update does not panic")
    })
}

fn elements<'a>(rule: &Rule, buffers: &'a mut Buffers, copies: bool) -> Elements<'a, f32> {
    let mut values = buffers.values.iter_mut();
    let mut halves = buffers.halves.iter_mut();
    let mut codes = buffers.codes.iter_mut();
    let mut scales = buffers.scales.iter_mut();
    let two = "a rule has at most two states";
    let slice = |spec: &StateSpec| match spec.storage {
        Storage::Accumulation => StateSlice::Values(values.next().expect(two)),
        Storage::Bf16 => StateSlice::Bf16(halves.next().expect(two)),
        Storage::Codes => StateSlice::Codes(codes.next().expect(two)),
        Storage::BlockScale => StateSlice::BlockScale(scales.next().expect(two)),
    };
    Elements {
        master: &mut buffers.master,
        grad: &buffers.grad,
        state: rule.state_specs(NUM_PARAMS).iter().map(slice).collect(),
        working: if copies { Working::Bf16(&mut buffers.copy) } else { Working::None },
        first: 0,
    }
}

fn scalars(step: u64) -> Scalars {
    Scalars {
        lr: 1e-4,
        weight_decay: 0.1,
        grad_scale: 0.5,
        step,
        averaging_weight: 1.0 / step as f64,
        rounding_seed: 1,
    }
}

fn norm(buffers: &Buffers) -> grove_optim::Result<()> {
    let mut sums = vec![0.0; num_blocks(buffers.grad.len(), BLOCK_ELEMENTS)];
    let piece = buffers.grad.len() / NUM_THREADS / BLOCK_ELEMENTS * BLOCK_ELEMENTS;
    let (head, tail) = sums.split_at_mut(piece / BLOCK_ELEMENTS);
    let (grad, grad_tail) = buffers.grad.split_at(piece);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| block_squared_norms(grad_tail, BLOCK_ELEMENTS, tail));
        block_squared_norms(grad, BLOCK_ELEMENTS, head)?;
        other.join().expect("a norm does not panic")
    })
}
