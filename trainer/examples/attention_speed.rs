//! The attention kernel beside libtorch's own, forward and backward, in one alternating run.
//!
//! Usage: `cargo run --release -p grove --example attention_speed [THREADS]`. Prints the median of
//! several rounds, what part of the bf16 product rate of the same run each reaches (causal FLOPs:
//! half of the full square), and what ours takes where rows are cut into documents of 200 positions.
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::time::Instant;

use grove::kernel::attention::{self, AttentionShape, Level, Saved, Segments, Workspace};
use grove::kernel::pool::Pool;
use grove::model::compute::Compute;
use grove::peak;
use half::bf16;
use tch::{Device, Kind, Tensor};

const ROUNDS: usize = 5;
const LENGTHS: [usize; 5] = [256, 512, 1024, 2048, 4096];
const HEAD_DIMS: [usize; 2] = [64, 128];
/// Positions of one call, so that each takes about as long at the shorter lengths.
const POSITIONS: usize = 2048;
const WIDTH: usize = 512;
/// Positions of a document where rows are cut; neither blocks nor rows are multiples of it.
const DOCUMENT: usize = 200;

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |text| text.parse().expect("a thread count"));
    tch::set_num_threads(threads as i32);
    let compute = Compute::new(Device::Cpu, Kind::BFloat16, threads);
    let peak = peak::measure(&compute);
    println!("{threads} threads, {:?}, products {:.0} GFLOP/s\n", Level::detect(), peak / 1e9);
    println!(
        "| head | T | batch | ours ms | libtorch ms | ratio (by round) | ours of the product rate | in \
         documents ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for head_dim in HEAD_DIMS {
        for length in LENGTHS {
            row(&compute, (head_dim, length), peak);
        }
    }
}

fn row(compute: &Compute, (head_dim, length): (usize, usize), peak: f64) {
    let batch = (POSITIONS / length).max(1);
    let num_heads = WIDTH / head_dim;
    let shape = AttentionShape {
        batch,
        sequence_length: length,
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
    };
    let mut ours = Ours::new(compute, shape);
    let theirs = Theirs::new(shape);
    let starts: Vec<u32> = (0..(batch * length) as u32).step_by(DOCUMENT).collect();
    let segments = Segments::new(batch, length, &starts);
    let (mut own, mut other, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut in_documents = Vec::new();
    for round in 0..=ROUNDS {
        let (a, b) = (seconds(|| ours.run(None)), seconds(|| theirs.run()));
        let cut = seconds(|| ours.run(Some(&segments)));
        // The first round warms up.
        if round > 0 {
            own.push(a);
            in_documents.push(cut);
            other.push(b);
            ratios.push(b / a);
        }
    }
    let (own, other) = (median(&mut own), median(&mut other));
    let ratio = median(&mut ratios);
    // Forward 2 products, backward 5, each of 2 B N T^2 H, half of it masked.
    let flops = 7.0 * (batch * num_heads * length * length * head_dim) as f64;
    println!(
        "| {head_dim} | {length} | {batch} | {:.2} | {:.2} | {ratio:.2} ({:.2} to {:.2}) | {:.0} % | {:.2} |",
        own * 1e3,
        other * 1e3,
        ratios[0],
        ratios[ratios.len() - 1],
        100.0 * flops / own / peak,
        median(&mut in_documents) * 1e3,
    );
}

struct Ours {
    workspace: Workspace,
    shape: AttentionShape,
    qkv: Vec<bf16>,
    out: Vec<bf16>,
    lse: Vec<f32>,
    d_out: Vec<bf16>,
    d_qkv: Vec<bf16>,
}

impl Ours {
    fn new(compute: &Compute, shape: AttentionShape) -> Self {
        let values = |len: usize| {
            let wave = |i: usize| bf16::from_f32((i % 1009) as f32 / 504.5 - 1.0);
            (0..len).map(wave).collect::<Vec<_>>()
        };
        Self {
            workspace: Workspace::new(Pool::new(compute.num_threads()), Level::detect()),
            shape,
            qkv: values(shape.qkv_len()),
            out: values(shape.out_len()),
            lse: vec![0.0; shape.lse_len()],
            d_out: values(shape.out_len()),
            d_qkv: values(shape.qkv_len()),
        }
    }

    fn run(&mut self, segments: Option<&Segments>) {
        let Self { workspace, shape, qkv, out, lse, d_out, d_qkv } = self;
        let shape = (&*shape, segments);
        attention::forward(workspace, shape, qkv, out, lse);
        attention::backward(workspace, shape, Saved { qkv, out, lse }, d_out, (d_qkv, None));
    }
}

struct Theirs {
    heads: [Tensor; 3],
    d_out: Tensor,
}

impl Theirs {
    /// Contiguous `[B, N, T, H]`, the layout that libtorch likes best.
    fn new(shape: AttentionShape) -> Self {
        let size = [shape.batch, shape.num_heads, shape.sequence_length, shape.head_dim];
        let size = size.map(|n| n as i64);
        let random = || Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let heads = [random(), random(), random()].map(|head| head.set_requires_grad(true));
        Self { heads, d_out: random() }
    }

    fn run(&self) {
        let [q, k, v] = &self.heads;
        let out =
            Tensor::scaled_dot_product_attention::<Tensor>(q, k, v, None, 0.0, true, None, false);
        let pairing = (out * &self.d_out).sum(Kind::Float);
        let _grads = Tensor::run_backward(&[pairing], &self.heads, false, false);
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// The median; leaves the values sorted.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
