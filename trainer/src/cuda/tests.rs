//! The kernels' source, without a GPU: compiled for the host it agrees with exact formulas and with
//! the CPU's kernels, layer by layer, and NVRTC takes it. What a host lacks is said, and the
//! test passes.
#![allow(clippy::print_stderr, reason = "a test says what it skips")]

mod host;

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::attention::{Backend, Shape, allow, choose_fastest};
use super::source::SOURCES;
use super::{CudaError, Form, Fused, NormInput, launch};
use crate::kernel::activation::{self, gelu};
use crate::kernel::cross_entropy::IGNORED_TARGET;
use crate::kernel::element::Element;
use crate::kernel::pool::Pool;
use crate::kernel::view;

/// Sums of a thousand terms in another order, and another exp: some ulps of f32.
const F32_TOLERANCE: f64 = 2e-5;
/// One rounding to bf16 that falls the other way.
const BF16_TOLERANCE: f64 = 1.0 / 128.0;
/// The shim's block numbers are one place for all threads of this process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `test` with the kernels of each dtype, and a tolerance.
fn with_kernels(test: impl Fn(&Fused, Kind, f64)) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(7);
    for (kind, tolerance) in [(Kind::Float, F32_TOLERANCE), (Kind::BFloat16, BF16_TOLERANCE)] {
        let Some(fused) = host::fused(kind) else { return };
        test(&fused, kind, tolerance);
    }
}

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Double)
}

/// Both in f64, relative to the size of the elements.
fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let (found, expected) = (wide(found), wide(expected));
    let allowed = tolerance * (expected.abs() + 1.0);
    let excess = ((&found - &expected).abs() - allowed).max().double_value(&[]);
    assert!(excess <= 0.0, "{what}: {excess} too far");
}

/// Rows that do not fill a round of blocks, and columns of fewer packs than threads and of more.
const SHAPES: [(i64, i64); 3] = [(5, 8), (37, 264), (70, 4096 + 8)];

#[test]
fn norms_agree_with_their_formulas() {
    with_kernels(|fused, kind, tolerance| {
        for (rows, columns) in SHAPES {
            for centered in [false, true] {
                let [x, dy, residual] = [(); 3].map(|()| random(&[rows, columns], kind) + 0.5);
                let [weight, bias] = [(); 2].map(|()| random(&[columns], kind));
                let what = format!("{kind:?} [{rows}, {columns}], centered {centered}");
                let bias = centered.then_some(&bias);
                let (y, mean, rstd) = fused.norm_forward(&x, (&weight, bias), 1e-5);
                let input = NormInput { x: &x, weight: &weight, mean: mean.as_ref(), rstd: &rstd };
                let found = fused.norm_backward(input, &dy, Some(&residual));

                let [leaf, scale] = [&x, &weight].map(|t| wide(t).detach().set_requires_grad(true));
                let shift = bias.map(|bias| wide(bias).set_requires_grad(true));
                let centered_x = match &shift {
                    Some(_) => &leaf - leaf.mean_dim([-1i64].as_slice(), true, Kind::Double),
                    None => leaf.shallow_clone(),
                };
                let square = centered_x.square().mean_dim([-1i64].as_slice(), true, Kind::Double);
                let mut expected = centered_x * (square + 1e-5).rsqrt() * &scale;
                if let Some(shift) = &shift {
                    expected += shift;
                }
                assert_close(&y, &expected, tolerance, &format!("y, {what}"));
                (&expected * wide(&dy)).sum(Kind::Double).backward();
                let around = wide(&residual);
                let dx = leaf.grad() + around;
                assert_close(&found.dx, &dx, tolerance, &format!("dx, {what}"));
                let reach = F32_TOLERANCE * rows as f64;
                assert_close(&found.d_weight, &scale.grad(), reach, &format!("d_weight, {what}"));
                assert_eq!(found.d_bias.is_some(), centered);
                if let (Some(d_bias), Some(shift)) = (&found.d_bias, &shift) {
                    assert_close(d_bias, &shift.grad(), reach, &format!("d_bias, {what}"));
                }
            }
        }
    });
}

#[test]
fn without_a_residual_nothing_is_added() {
    with_kernels(|fused, kind, tolerance| {
        let [x, dy] = [(); 2].map(|()| random(&[9, 16], kind));
        let weight = random(&[16], kind);
        let (_, mean, rstd) = fused.norm_forward(&x, (&weight, None), 1e-5);
        let input = NormInput { x: &x, weight: &weight, mean: mean.as_ref(), rstd: &rstd };
        let bare = fused.norm_backward(input, &dy, None).dx;
        let zeros = fused.norm_backward(input, &dy, Some(&x.zeros_like())).dx;
        assert_close(&bare, &zeros, tolerance * 0.0, "dx");
    });
}

/// What the CPU's kernels make of `up` and of a gradient: SwiGLU and GELU, forward and backward.
fn activations<E: Element + view::Element>(
    up: &Tensor,
    d_act: &Tensor,
    dy: &Tensor,
) -> [Tensor; 4] {
    let (pool, columns) = (Pool::new(2), d_act.size()[1] as usize);
    let mut made = [d_act, up, up, up].map(Tensor::copy);
    let [swiglu, d_swiglu, of_gelu, d_gelu] = made.each_mut().map(view::slice_mut::<E>);
    let [up, d_act, dy] = [up, d_act, dy].map(view::slice::<E>);
    activation::swiglu_forward(&pool, up, columns, swiglu);
    activation::swiglu_backward(&pool, d_swiglu, d_act, columns);
    gelu::forward(&pool, up, of_gelu);
    gelu::backward(&pool, d_gelu, dy);
    made
}

#[test]
fn activations_agree_with_the_kernels_of_the_cpu() {
    with_kernels(|fused, kind, tolerance| {
        // So large that exp overflows on a careless way.
        let up = random(&[61, 2 * 24], kind) * 30.0;
        let d_act = random(&[61, 24], kind);
        let dy = random(&[61, 2 * 24], kind);
        let [swiglu, d_swiglu, gelu, d_gelu] = match kind {
            Kind::Float => activations::<f32>(&up, &d_act, &dy),
            _ => activations::<half::bf16>(&up, &d_act, &dy),
        };
        assert_close(&fused.swiglu_forward(&up), &swiglu, tolerance, "swiglu");
        assert_close(&fused.swiglu_backward(&up, &d_act), &d_swiglu, tolerance, "d swiglu");
        assert_close(&fused.gelu_forward(&up), &gelu, tolerance, "gelu");
        assert_close(&fused.gelu_backward(&up, &dy), &d_gelu, tolerance, "d gelu");
    });
}

#[test]
fn rotation_follows_positions_and_turns_back() {
    with_kernels(|fused, kind, tolerance| {
        let (sequence, heads, half) = (6, 3, 16);
        let qkv = random(&[4 * sequence, 5 * 2 * half], kind);
        let angles = random(&[sequence, half], Kind::Float);
        let (cos, sin) = (angles.cos(), angles.sin());
        for listed in
            [None, Some(Tensor::randint(sequence, [4 * sequence], (Kind::Int64, Device::Cpu)))]
        {
            let turned = qkv.copy();
            fused.rotate(&turned, (heads, 1.0), (&cos, &sin), (sequence, listed.as_ref()));
            let positions =
                Tensor::arange(4 * sequence, (Kind::Int64, Device::Cpu)).remainder(sequence);
            let positions = listed.as_ref().unwrap_or(&positions);
            let rows = |table: &Tensor| wide(&table.index_select(0, positions)).unsqueeze(1);
            let (c, s) = (rows(&cos), rows(&sin));
            let split = wide(&qkv).view([4 * sequence, 5, 2, half]);
            let part = |which| split.narrow(1, 0, heads).select(2, which);
            let (x, y) = (part(0), part(1));
            let expected = Tensor::stack(&[&x * &c - &y * &s, &y * &c + &x * &s], 2);
            let found = turned.view([4 * sequence, 5, 2, half]);
            assert_close(&found.narrow(1, 0, heads), &expected, tolerance, "turned");
            assert_close(&found.narrow(1, heads, 2), &split.narrow(1, heads, 2), 0.0, "the rest");
            fused.rotate(&turned, (heads, -1.0), (&cos, &sin), (sequence, listed.as_ref()));
            assert_close(&turned, &qkv, 2.0 * tolerance, "turned back");
        }
    });
}

#[test]
fn cross_entropy_agrees_with_softmax_at_any_width() {
    with_kernels(|fused, kind, tolerance| {
        // Rows that begin at any place within 16 bytes, shorter than a pack and longer than a round.
        for columns in [1, 3, 7, 8, 257, 4099] {
            let rows = 11;
            let logits = random(&[rows, columns], kind) * 8.0;
            let targets = Tensor::randint(columns, [rows], (Kind::Int64, Device::Cpu));
            let _ = targets.get(3).fill_(IGNORED_TARGET);
            let leaf = wide(&logits).set_requires_grad(true);
            let expected = leaf.log_softmax(-1, Kind::Double).g_nll_loss::<Tensor>(
                &targets,
                None,
                tch::Reduction::Sum,
                IGNORED_TARGET,
            );
            expected.backward();
            let what = format!("{kind:?}, {columns} columns");
            let only = fused.loss_only(&logits, &targets);
            assert_close(&only, &expected, F32_TOLERANCE, &format!("loss, {what}"));
            let mut grad = logits.copy();
            let both = fused.loss_and_grad(&mut grad, &targets);
            assert_eq!(both, only);
            assert_close(&grad, &leaf.grad(), tolerance, &format!("gradient, {what}"));
        }
    });
}

#[test]
fn masked_logits_and_nan_are_told_apart() {
    with_kernels(|fused, kind, _| {
        let mut logits = Tensor::full([1, 600], f64::NEG_INFINITY, (kind, Device::Cpu));
        let _ = logits.narrow(1, 500, 2).fill_(-1000.0);
        let target = Tensor::from_slice(&[501i64]);
        let loss = fused.loss_and_grad(&mut logits, &target).double_value(&[]);
        assert!((loss - 2f64.ln()).abs() < F32_TOLERANCE, "{loss}");
        assert_eq!(logits.double_value(&[0, 500]), 0.5);
        assert_eq!(logits.double_value(&[0, 501]), -0.5);
        assert_eq!(logits.double_value(&[0, 0]), 0.0);
        let _ = logits.narrow(1, 3, 1).fill_(f64::NAN);
        assert!(fused.loss_only(&logits, &target).double_value(&[]).is_nan());
    });
}

#[test]
fn rows_are_added_whatever_runs_they_form() {
    with_kernels(|fused, kind, _| {
        // One id for all rows, an id a row, and runs that begin, end and pass within chunks.
        for (vocab, count) in [(1, 150), (4096, 70), (5, 400), (3, 96), (7, 1)] {
            let ids = Tensor::randint(vocab, [count], (Kind::Int64, Device::Cpu));
            let dx = random(&[count, 24], kind);
            let before = random(&[vocab, 24], Kind::Float);
            let mut found = before.copy();
            fused.add_rows(&mut found, &ids, &dx);
            let expected = wide(&before).index_add(0, &ids, &wide(&dx));
            assert_close(&found, &expected, F32_TOLERANCE, &format!("{count} rows of {vocab}"));
        }
    });
}

#[test]
fn the_run_time_compiler_takes_every_kernel() {
    for source in SOURCES {
        match launch::compile(source) {
            Ok(ptx) => {
                let ptx = ptx.to_src();
                for kernel in source.kernels {
                    for form in [Form::Bf16, Form::F32] {
                        let entry = format!(".entry {}(", kernel.name(form));
                        assert!(ptx.contains(&entry), "{entry}");
                    }
                }
                assert!(ptx.contains("ld.global.v4"), "{}: packs are one load", source.name);
                assert!(!ptx.contains("atom."), "{}", source.name);
            }
            Err(CudaError::Library { library }) => {
                eprintln!("skipped: {library} is not here");
                return;
            }
            Err(error) => panic!("{}: {error}", source.name),
        }
    }
}

/// libtorch's switches are one for the process: all that they do is in this test.
#[test]
fn the_switches_of_attention_are_libtorchs_own() {
    let q = Tensor::randn([1, 2, 8, 16], (Kind::Float, Device::Cpu));
    let choice =
        || Tensor::internal_fused_sdp_choice::<&Tensor>(&q, &q, &q, None, 0.0, true, None, false);
    // As numbered by libtorch: 0 products and softmax, 1 flash.
    allow(Backend::Flash).expect("the switches");
    assert_eq!(choice(), 1);
    allow(Backend::Math).expect("the switches");
    assert_eq!(choice(), 0);
    let (batch_size, sequence_length, num_heads, head_dim) = (1, 8, 2, 16);
    let shape = Shape {
        batch_size,
        sequence_length,
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        masked: false,
    };
    // Of the fused kernels, flash is the only one for the CPU.
    let found = choose_fastest(Device::Cpu, Kind::Float, shape).expect("the switches");
    assert_eq!(found, Some(Backend::Flash));
    assert_eq!(choice(), 1);
}
