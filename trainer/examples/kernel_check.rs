//! The layers' CUDA kernels, attention's kernels and 8-bit products on a GPU: how far they are from
//! exact numbers, and how fast against what the GPU can do, all measured in one run.
//!
//! Usage: `kernel_check`, on a machine with a GPU. Prints tables in Markdown; exit code 1 if some
//! result is too far off. `scripts/gpu-check` runs it.
#![allow(clippy::print_stdout, reason = "a check prints its tables")]

use std::process::ExitCode;
use std::time::Instant;

use grove::cuda::attention::{Backend, Shape, allow, choose_fastest};
use grove::cuda::{Fused, Kernels, NormInput};
use grove::device::open_cuda;
use grove::model::fp8::{self, Content, Fp8};
use tch::{Cuda, Device, Kind, Tensor};

const GPU: Device = Device::Cuda(0);
/// One rounding to bf16 that falls the other way.
const BF16_TOLERANCE: f64 = 1.0 / 128.0;
/// Sums over thousands of rows in f32.
const SUM_TOLERANCE: f64 = 1e-2;
const ROWS: i64 = 8192;
const WIDTH: i64 = 2048;
const MLP: i64 = 5632;
const VOCAB: i64 = 50257;
/// Rows of logits at once.
const CHUNK: i64 = 1024;

/// What the run has found.
struct Report {
    copy_rate: f64,
    failed: bool,
}

fn main() -> ExitCode {
    let _no_graph = tch::no_grad_guard();
    if let Err(reason) = open_cuda() {
        println!("{reason}");
        return ExitCode::from(77);
    }
    if Cuda::device_count() == 0 {
        println!("libtorch sees no GPU");
        return ExitCode::from(77);
    }
    let kernels = Kernels::load(0).expect("NVRTC and the driver take the kernels");
    let fused = Fused::new(kernels, Kind::BFloat16).expect("there are kernels for bf16");
    tch::manual_seed(1);
    let mut report = Report { copy_rate: copy_rate(), failed: false };
    println!("copy on the device: {:.0} GB/s read and written\n", report.copy_rate / 1e9);
    println!("| kernel, bf16 | farthest off | GB/s | of a copy |\n| --- | --- | --- | --- |");
    norm(&fused, &mut report);
    activation(&fused, &mut report);
    rotary(&fused, &mut report);
    cross_entropy(&fused, &mut report);
    embedding(&fused, &mut report);
    println!();
    attention();
    println!();
    products(&mut report);
    if report.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Report {
    /// A row: the error relative to `1 + |expected|`, and the rate of `bytes`.
    fn row(&mut self, name: &str, (found, expected): (&Tensor, &Tensor), bytes: i64, seconds: f64) {
        self.row_within(name, BF16_TOLERANCE, (found, expected), (bytes, seconds));
    }

    fn row_within(
        &mut self,
        name: &str,
        tolerance: f64,
        (found, expected): (&Tensor, &Tensor),
        (bytes, seconds): (i64, f64),
    ) {
        let (found, expected) = (wide(found), wide(expected));
        let off = ((found - &expected).abs() / (expected.abs() + 1.0)).max().double_value(&[]);
        let verdict = if off <= tolerance { "" } else { " FAILED" };
        self.failed |= !verdict.is_empty();
        let rate = bytes as f64 / seconds;
        let share = 100.0 * rate / self.copy_rate;
        println!("| {name} | {off:.1e}{verdict} | {:.0} | {share:.0} % |", rate / 1e9);
    }
}

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::BFloat16, GPU))
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Double)
}

/// Seconds of one call, the mean of some after others that warm up.
fn time(mut run: impl FnMut()) -> f64 {
    const CALLS: u32 = 20;
    (0..3).for_each(|_| run());
    Cuda::synchronize(0);
    let started = Instant::now();
    (0..CALLS).for_each(|_| run());
    Cuda::synchronize(0);
    started.elapsed().as_secs_f64() / f64::from(CALLS)
}

fn copy_rate() -> f64 {
    let from = random(&[1 << 29]);
    let mut to = from.empty_like();
    2.0 * (2u64 << 29) as f64 / time(|| to.copy_(&from))
}

fn norm(fused: &Fused, report: &mut Report) {
    let [x, dy, residual] = [(); 3].map(|()| random(&[ROWS, WIDTH]));
    let weight = random(&[WIDTH]);
    let bytes = ROWS * WIDTH * 2;
    let (y, _, rstd) = fused.norm_forward(&x, (&weight, None), 1e-5);
    let mean_square = wide(&x).square().mean_dim([-1i64].as_slice(), true, Kind::Double);
    let normalized = wide(&x) * (mean_square + 1e-5).rsqrt();
    let forward = time(|| drop(fused.norm_forward(&x, (&weight, None), 1e-5)));
    report.row("RMSNorm [8192, 2048]", (&y, &(&normalized * wide(&weight))), 2 * bytes, forward);

    let input = NormInput { x: &x, weight: &weight, mean: None, rstd: &rstd };
    let found = fused.norm_backward(input, &dy, Some(&residual));
    let scaled = wide(&dy) * wide(&weight);
    let along = (&scaled * &normalized).mean_dim([-1i64].as_slice(), true, Kind::Double);
    let dx = (scaled - &normalized * along) * wide(&rstd).unsqueeze(-1) + wide(&residual);
    let backward = time(|| drop(fused.norm_backward(input, &dy, Some(&residual))));
    // x and dy are read twice: for dx, and for the weight.
    report.row("RMSNorm backward, with residual", (&found.dx, &dx), 6 * bytes, backward);
    let d_weight = (wide(&dy) * normalized).sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
    let sums = (&found.d_weight, &d_weight);
    report.row_within("... its weight", SUM_TOLERANCE, sums, (6 * bytes, backward));
}

fn activation(fused: &Fused, report: &mut Report) {
    let (gate_up, d_act) = (random(&[ROWS, 2 * MLP]), random(&[ROWS, MLP]));
    let bytes = ROWS * MLP * 2;
    let halves = wide(&gate_up).chunk(2, 1);
    let (gate, up) = (&halves[0], &halves[1]);
    let sigmoid = gate.sigmoid();
    let seconds = time(|| drop(fused.swiglu_forward(&gate_up)));
    let expected = gate * &sigmoid * up;
    report.row(
        "SwiGLU [8192, 5632]",
        (&fused.swiglu_forward(&gate_up), &expected),
        3 * bytes,
        seconds,
    );
    let slope = &sigmoid * (1.0 + gate * (1.0 - &sigmoid));
    let d = wide(&d_act);
    let expected = Tensor::cat(&[&d * up * slope, &d * gate * &sigmoid], 1);
    let found = fused.swiglu_backward(&gate_up, &d_act);
    let seconds = time(|| drop(fused.swiglu_backward(&gate_up, &d_act)));
    report.row("SwiGLU backward", (&found, &expected), 5 * bytes, seconds);
    let seconds = time(|| drop(fused.gelu_forward(&gate_up)));
    let expected = wide(&gate_up).gelu("tanh");
    report.row(
        "GELU [8192, 11264]",
        (&fused.gelu_forward(&gate_up), &expected),
        4 * bytes,
        seconds,
    );
}

fn rotary(fused: &Fused, report: &mut Report) {
    let (heads, half) = (40, 32);
    let qkv = random(&[ROWS, 48 * 2 * half]);
    let angles = Tensor::randn([2048, half], (Kind::Float, GPU));
    let tables = (angles.cos(), angles.sin());
    let turned = qkv.copy();
    fused.rotate(&turned, (heads, 1.0), (&tables.0, &tables.1), (2048, None));
    fused.rotate(&turned, (heads, -1.0), (&tables.0, &tables.1), (2048, None));
    let seconds =
        time(|| fused.rotate(&turned.copy(), (heads, 1.0), (&tables.0, &tables.1), (2048, None)));
    let copying = time(|| drop(turned.copy()));
    let bytes = 2 * 2 * ROWS * heads * 2 * half;
    let name = "rotary, there and back, 40 heads";
    // Two roundings, of numbers up to about 6.
    let back = (&turned, &wide(&qkv));
    report.row_within(name, 2.0 * BF16_TOLERANCE, back, (bytes, seconds - copying));
}

fn cross_entropy(fused: &Fused, report: &mut Report) {
    let logits = random(&[CHUNK, VOCAB]) * 4.0;
    let targets = Tensor::randint(VOCAB, [CHUNK], (Kind::Int64, GPU));
    let mut grad = logits.copy();
    let loss = fused.loss_and_grad(&mut grad, &targets);
    let exact = wide(&logits).log_softmax(-1, Kind::Double);
    let chosen = exact.gather(1, &targets.unsqueeze(1), false);
    let expected = -chosen.sum(Kind::Double) / CHUNK;
    let bytes = CHUNK * VOCAB * 2;
    let seconds = time(|| drop(fused.loss_and_grad(&mut grad, &targets)));
    let name = "cross-entropy, gradient in place [1024, 50257]";
    report.row_within(name, 1e-5, (&(loss / CHUNK), &expected), (2 * bytes, seconds));
    let seconds = time(|| drop(fused.loss_only(&logits, &targets)));
    let only = fused.loss_only(&logits, &targets) / CHUNK;
    report.row_within("cross-entropy, loss alone", 1e-5, (&only, &expected), (bytes, seconds));
}

fn embedding(fused: &Fused, report: &mut Report) {
    // A quarter of the tokens are one: about what the commonest word of a text is at most.
    let ids = Tensor::randint(VOCAB, [ROWS], (Kind::Int64, GPU));
    let _ = ids.narrow(0, 0, ROWS / 4).fill_(7);
    let ids = ids.index_select(0, &Tensor::randperm(ROWS, (Kind::Int64, GPU)));
    let dx = random(&[ROWS, WIDTH]);
    let mut table = Tensor::zeros([VOCAB, WIDTH], (Kind::Float, GPU));
    fused.add_rows(&mut table, &ids, &dx);
    let zeros = Tensor::zeros([VOCAB, WIDTH], (Kind::Double, GPU));
    let expected = zeros.index_add(0, &ids, &wide(&dx));
    let again = Tensor::zeros([VOCAB, WIDTH], (Kind::Float, GPU));
    let mut again = again;
    fused.add_rows(&mut again, &ids, &dx);
    report.failed |= again != table;
    let mut scratch = table.copy();
    let seconds = time(|| fused.add_rows(&mut scratch, &ids, &dx));
    let name = "embedding's gradient [8192, 2048], sort and all";
    // Each row of dx, and at most a row of the table read and written for it.
    report.row_within(name, 1e-4, (&table, &expected), (ROWS * WIDTH * 10, seconds));
}

/// Forward and backward of each kernel, causal FLOPs.
fn attention() {
    println!("| attention, causal, bf16, 16 heads of 128 | flash | efficient | cudnn | chosen |");
    println!("| --- | --- | --- | --- | --- |");
    for sequence_length in [1024, 2048, 4096] {
        let batch_size = 16384 / sequence_length;
        let (num_heads, head_dim) = (16, 128);
        let shape = Shape {
            batch_size,
            sequence_length,
            num_heads,
            num_kv_heads: num_heads,
            head_dim,
            masked: false,
        };
        let flops = 7 * batch_size * num_heads * sequence_length * sequence_length * head_dim;
        let rate = |backend| {
            allow(backend).expect("the switches");
            let seconds = pass_seconds(shape);
            seconds.map_or("none".to_owned(), |s| format!("{:.0} TFLOP/s", flops as f64 / s / 1e12))
        };
        let rates = [Backend::Flash, Backend::Efficient, Backend::Cudnn].map(rate);
        let chosen = choose_fastest(GPU, Kind::BFloat16, shape).expect("the switches");
        println!("| T {sequence_length} | {} | {chosen:?} |", rates.join(" | "));
    }
}

fn pass_seconds(shape: Shape) -> Option<f64> {
    let Shape { batch_size, sequence_length, num_heads, head_dim, .. } = shape;
    let size = [batch_size, sequence_length, num_heads, head_dim];
    let inputs = [(); 3].map(|()| random(&size).transpose(1, 2).set_requires_grad(true));
    let [q, k, v] = &inputs;
    let pass = || {
        tch::with_grad(|| {
            let none = None::<&Tensor>;
            let out = Tensor::f_scaled_dot_product_attention(q, k, v, none, 0.0, true, None, false);
            let out = out.ok()?.sum(Kind::Float);
            Tensor::f_run_backward(&[out], &inputs, false, false).ok()
        })
    };
    pass()?;
    Some(time(|| drop(pass())))
}

fn products(report: &mut Report) {
    println!(
        "| product [8192, 4096] by [4096, 4096] | TFLOP/s | mean error, of the mean magnitude |"
    );
    println!("| --- | --- | --- |");
    let (a, b) = (random(&[8192, 4096]), random(&[4096, 4096]));
    let exact = a.to_kind(Kind::Float).mm(&b.to_kind(Kind::Float));
    let flops = 2.0 * 8192.0 * 4096.0 * 4096.0;
    let mut row = |name: &str, product: &dyn Fn() -> Tensor, tolerance: f64| {
        let error = (product().to_kind(Kind::Float) - &exact).abs().mean(Kind::Double);
        let error = error.double_value(&[]) / exact.abs().mean(Kind::Double).double_value(&[]);
        let verdict = if error <= tolerance { "" } else { " FAILED" };
        report.failed |= !verdict.is_empty();
        let rate = flops / time(|| drop(product())) / 1e12;
        println!("| {name} | {rate:.0} | {error:.1e}{verdict} |");
    };
    row("bf16", &|| a.mm(&b), 0.01);
    let (values, gradients) = (Content::Values, Content::Gradients);
    for (name, kind, left, tolerance) in [
        ("a scale a matrix", Fp8::Tensor, values, 0.08),
        ("a scale a matrix, the left one of gradients", Fp8::Tensor, gradients, 0.12),
        ("a scale a row", Fp8::Row, values, 0.08),
    ] {
        let name = format!("fp8, {name}, with its scaling");
        row(&name, &|| fp8::product(kind, (&a, left), (&b, values)), tolerance);
    }
}
