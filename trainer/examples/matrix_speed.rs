//! The bf16 products of a linear map's forward and backward, this crate's beside libtorch's, in turns.
//!
//! Usage: `cargo run --release -p grove --example matrix_speed ROWS IN OUT [THREADS]`. With one thread
//! times are means of what the processor worked, to which other work on the machine adds little; with
//! more they are the shortest of several.
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::time::Instant;

use grove::model::compute::{Compute, Products};
use tch::{Device, Kind, Tensor};

const ROUNDS: usize = 9;
/// Products that are timed together where the system counts time in ticks of milliseconds.
const TOGETHER: usize = 10;

fn main() {
    let numbers: Vec<i64> =
        std::env::args().skip(1).map(|word| word.parse().expect("a number")).collect();
    let [rows, input, output] = numbers[..3] else { panic!("ROWS IN OUT [THREADS]") };
    let threads = numbers.get(3).map_or(1, |&threads| threads as usize);
    tch::set_num_threads(threads as i32);
    let ours = Compute::new(Device::Cpu, Kind::BFloat16, threads);
    let mut theirs = Compute::new(Device::Cpu, Kind::BFloat16, threads);
    theirs.products = Products::Native;
    let random =
        |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    let (x, dy, weight) = (random([rows, input]), random([rows, output]), random([output, input]));
    let flops = 2.0 * (rows * input * output) as f64;
    println!("{rows} rows, {input} to {output}, {threads} thread(s); {:?}", ours.products);
    let operands =
        [("forward", x.copy(), weight.tr()), ("dx", dy.copy(), weight.copy()), ("dw", dy.tr(), x)];
    for (name, a, b) in operands {
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            own.push(seconds(threads, || ours.product(&a, &b)));
            other.push(seconds(threads, || theirs.product(&a, &b)));
        }
        let typical = |seconds: &[f64]| match threads {
            1 => seconds.iter().sum::<f64>() / ROUNDS as f64,
            _ => seconds.iter().copied().fold(f64::INFINITY, f64::min),
        };
        let (own, other) = (typical(&own), typical(&other));
        let (own_rate, other_rate) = (flops / own / 1e9, flops / other / 1e9);
        println!("{name:8} {own_rate:6.0} GFLOP/s, libtorch {other_rate:6.0}: {:.2}", other / own);
    }
}

/// Seconds of one product.
fn seconds(threads: usize, product: impl Fn() -> Tensor) -> f64 {
    let start = Instant::now();
    if threads > 1 {
        let _product = product();
        return start.elapsed().as_secs_f64();
    }
    let at = on_processor().expect("the system says how long a thread has run");
    (0..TOGETHER).for_each(|_| drop(product()));
    (on_processor().expect("as before") - at) / TOGETHER as f64
}

/// Seconds that this thread has run.
fn on_processor() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? * 1e-9)
}
