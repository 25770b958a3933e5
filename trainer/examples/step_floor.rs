//! What a training step of a configuration cannot do without: its matrix products and its
//! attention, timed alone at the same shapes and threads. The rest of a measured step is overhead.
//!
//! Usage: `cargo run --release -p grove --example step_floor CONFIG [THREADS]`.
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::path::Path;
use std::time::Instant;

use grove::config;
use grove::model::attention::Attention;
use grove::model::compute::Compute;
use grove::model::config::Mlp;
use grove::peak;
use tch::{Device, Kind, Tensor};

const ROUNDS: usize = 5;

fn main() {
    let mut words = std::env::args().skip(1);
    let file = words.next().expect("a configuration file");
    let threads = words.next().map_or(2, |text| text.parse().expect("a thread count"));
    let plan = config::load(Path::new(&file), &[]).expect("a valid configuration");
    tch::set_num_threads(threads as i32);
    let compute = Compute::new(Device::Cpu, Kind::BFloat16, threads);
    let (spec, batch) = (plan.model.spec(), &plan.batch);
    let rows = (batch.micro_batch_size * batch.sequence_length) as i64;
    let (d, f) = (spec.hidden_size as i64, spec.intermediate_size as i64);
    let kv = ((spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim) as i64;
    let out = (spec.num_heads * spec.head_dim) as i64;
    let up = if matches!(spec.mlp, Mlp::SwiGlu) { 2 * f } else { f };
    let layers = spec.num_layers as f64;
    let products: f64 = [(d, kv), (out, d), (d, up), (f, d)]
        .into_iter()
        .map(|(input, output)| layers * linear(&compute, rows, (input, output)))
        .sum();
    let chunk = plan.memory.logits_rows as i64;
    let chunks = rows as f64 / chunk as f64;
    let head = chunks * linear(&compute, chunk, (d, spec.vocab_size as i64));
    let sizes = (batch.micro_batch_size as i64, batch.sequence_length as i64);
    let attention = Attention::new(&spec, sizes, None);
    let attention = layers * attention_seconds(&compute, &attention, (rows, kv, out));
    let peak = peak::measure(&compute);
    println!("products of blocks  {:8.1} ms", products * 1e3);
    println!("products of head    {:8.1} ms", head * 1e3);
    println!("attention           {:8.1} ms", attention * 1e3);
    println!("together            {:8.1} ms a micro-batch", (products + head + attention) * 1e3);
    let flops = plan.derived.flops_per_token as f64 * rows as f64;
    println!("at the peak of {:.0} GFLOP/s {:8.1} ms", peak / 1e9, flops / peak * 1e3);
}

/// Seconds of a linear map forward, and both products of its backward.
fn linear(compute: &Compute, rows: i64, (input, output): (i64, i64)) -> f64 {
    let random =
        |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(compute.kind);
    let (x, dy, weight) = (random([rows, input]), random([rows, output]), random([output, input]));
    median(|| {
        let _y = compute.product(&x, &weight.tr());
        let _dx = compute.product(&dy, &weight);
        let _dw = compute.product(&dy.tr(), &x);
    })
}

fn attention_seconds(
    compute: &Compute,
    attention: &Attention,
    (rows, kv, out): (i64, i64, i64),
) -> f64 {
    let random =
        |width: i64| Tensor::randn([rows, width], (Kind::Float, Device::Cpu)).to_kind(compute.kind);
    let (qkv, d_out) = (random(kv), random(out));
    median(|| {
        let output = attention.forward(compute, &qkv);
        let _d_qkv = attention.backward((compute, None), &qkv, &output, &d_out);
    })
}

/// The median of several, after one that warms up.
fn median(mut work: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..=ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
