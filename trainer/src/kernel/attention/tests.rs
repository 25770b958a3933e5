//! The kernel against the formula in f64, at every level of this machine, and what must not matter.

mod reference;
mod segments;
mod turned;

use self::reference::{normal, reference};
use super::{AttentionShape, Element, Level, Saved, Segments, Workspace, backward, forward};
use crate::kernel::pool::Pool;
use half::bf16;

/// For f32 elements, relative to the largest value of the tensor: f32 sums of up to some hundred
/// terms and an exponential of 1.5 ulp.
const F32_TOLERANCE: f64 = 1.0e-5;

/// For bf16 elements, relative likewise. Rounding to bf16 is off by 2^-9 at most, and an element of
/// a result sees it at most three times in full: in `out` (through delta), in the weights or the
/// gradients of the scores, and when it is stored.
const BF16_TOLERANCE: f64 = 3.0 / 512.0;

struct Results<E> {
    out: Vec<E>,
    lse: Vec<f32>,
    d_qkv: Vec<E>,
}

struct Case {
    level: Level,
    num_threads: usize,
    shape: AttentionShape,
    segments: Option<Segments>,
}

impl Case {
    fn run<E: Element>(&self, qkv: &[E], d_out: &[E]) -> Results<E> {
        let mut workspace = Workspace::new(Pool::new(self.num_threads), self.level);
        self.run_on(&mut workspace, qkv, d_out)
    }

    fn run_on<E: Element>(&self, workspace: &mut Workspace, qkv: &[E], d_out: &[E]) -> Results<E> {
        let (shape, segments) = (&self.shape, self.segments.as_ref());
        // NaN, so that what is not written shows.
        let nan = E::narrow(f32::NAN);
        let mut out = vec![nan; shape.out_len()];
        let mut lse = vec![f32::NAN; shape.lse_len()];
        let mut d_qkv = vec![nan; shape.qkv_len()];
        forward(workspace, (shape, segments), qkv, &mut out, &mut lse);
        let saved = Saved { qkv, out: &out, lse: &lse };
        backward(workspace, (shape, segments), saved, d_out, (&mut d_qkv, None));
        Results { out, lse, d_qkv }
    }

    /// Runs on normal inputs and compares everything with the formula.
    fn check<E: Element>(&self, deviation: f64) {
        let shape = &self.shape;
        let qkv: Vec<E> = normal(shape.qkv_len(), 1, deviation);
        let d_out: Vec<E> = normal(shape.out_len(), 2, 1.0);
        let results = self.run(&qkv, &d_out);
        let exact = reference((shape, self.segments.as_ref()), &qkv, &d_out);
        let tolerance = if E::IS_BF16 { BF16_TOLERANCE } else { F32_TOLERANCE };
        let what =
            |name| format!("{name} of {shape:?} at {:?}, {} threads", self.level, self.num_threads);
        assert_close(&widen(&results.out), &exact.out, tolerance, &what("out"));
        // f32 at all levels.
        let lse: Vec<f64> = results.lse.iter().map(|&x| f64::from(x)).collect();
        assert_close(&lse, &exact.lse, F32_TOLERANCE, &what("lse"));
        let slots = shape.num_heads + 2 * shape.num_kv_heads;
        let kinds = [
            ("dq", 0..shape.num_heads),
            ("dk", shape.num_heads..shape.num_heads + shape.num_kv_heads),
            ("dv", shape.num_heads + shape.num_kv_heads..slots),
        ];
        for (name, range) in kinds {
            let pick = |values: &[f64]| -> Vec<f64> {
                let heads = values.chunks_exact(shape.head_dim).enumerate();
                let wanted = heads.filter(|(at, _)| range.contains(&(at % slots)));
                wanted.flat_map(|(_, head)| head.to_vec()).collect()
            };
            let (found, expected) = (pick(&widen(&results.d_qkv)), pick(&exact.d_qkv));
            assert_close(&found, &expected, tolerance, &what(name));
        }
    }
}

fn widen<E: Element>(values: &[E]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.widen())).collect()
}

/// Smallest scale of a comparison. A query that sees itself alone has a gradient of exactly 0, the
/// difference of two dot products over the head: of sizes up to 8, where f32 rounds by 2.4e-7 to
/// 4.8e-7 each (4.0e-7 is seen). In f32 this scale allows 1e-6.
const CANCELED: f64 = 0.1;

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(CANCELED, |largest: f64, x| largest.max(x.abs()));
    for (at, (x, y)) in found.iter().zip(expected).enumerate() {
        let error = (x - y).abs() / largest;
        assert!(error <= tolerance, "{what}: {x} instead of {y} at {at}, off by {error:e}");
    }
}

fn shape(sizes: [usize; 5]) -> AttentionShape {
    let [batch, sequence_length, num_heads, num_kv_heads, head_dim] = sizes;
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape {
        batch,
        sequence_length,
        num_heads,
        num_kv_heads,
        head_dim,
        scale,
        window: None,
    }
}

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

fn check_all(shape: AttentionShape) {
    check_segments(shape, None);
}

fn check_segments(shape: AttentionShape, segments: Option<Segments>) {
    for level in levels() {
        let case = Case { level, num_threads: 2, shape, segments: segments.clone() };
        case.check::<f32>(1.0);
        case.check::<bf16>(1.0);
    }
}

fn bits<E: Element>(results: &Results<E>) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let of = |values: &[E]| values.iter().map(|x| x.widen().to_bits()).collect();
    (of(&results.out), results.lse.iter().map(|x| x.to_bits()).collect(), of(&results.d_qkv))
}

#[test]
fn ragged_lengths_match_the_formula() {
    for length in [1, 2, 17, 63, 64, 65, 130] {
        check_all(shape([2, length, 2, 1, 32]));
    }
}

#[test]
fn head_dims_match_the_formula() {
    for head_dim in [1, 16, 20, 32, 48, 64, 80, 96, 112, 128, 256] {
        check_all(shape([1, 100, 2, 2, head_dim]));
    }
}

#[test]
fn grouped_and_single_key_heads_match_the_formula() {
    for (num_heads, num_kv_heads) in [(1, 1), (4, 4), (6, 2), (4, 1)] {
        check_all(shape([2, 90, num_heads, num_kv_heads, 16]));
    }
}

#[test]
fn windows_match_the_formula() {
    for window in [1, 5, 63, 64, 65, 100, 128, 1000] {
        check_all(AttentionShape { window: Some(window), ..shape([1, 200, 2, 1, 16]) });
    }
}

#[test]
fn a_window_of_everything_is_no_window() {
    let none = shape([1, 150, 2, 1, 16]);
    let qkv: Vec<f32> = normal(none.qkv_len(), 3, 1.0);
    let d_out: Vec<f32> = normal(none.out_len(), 4, 1.0);
    let all = AttentionShape { window: Some(150), ..none };
    for level in levels() {
        let run = |shape| Case { level, num_threads: 1, shape, segments: None }.run(&qkv, &d_out);
        assert!(bits(&run(none)) == bits(&run(all)), "{level:?}");
    }
}

/// Bits at 1, 2 and more threads, for shapes whose backward pass is divided and undivided.
fn check_thread_counts<E: Element>() {
    for sizes in [[1, 300, 3, 1, 32], [1, 200, 4, 4, 16], [2, 70, 2, 1, 48]] {
        let shape = shape(sizes);
        let qkv: Vec<E> = normal(shape.qkv_len(), 5, 1.0);
        let d_out: Vec<E> = normal(shape.out_len(), 6, 1.0);
        for level in levels() {
            let run = |num_threads| {
                bits(&Case { level, num_threads, shape, segments: None }.run(&qkv, &d_out))
            };
            let one = run(1);
            for num_threads in [2, 3, 8] {
                assert!(one == run(num_threads), "{shape:?} at {level:?}, {num_threads} threads");
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    check_thread_counts::<f32>();
    check_thread_counts::<bf16>();
}

/// Bits of each sequence of a batch and of the same sequence alone.
fn check_batch<E: Element>() {
    let together = shape([3, 97, 4, 2, 16]);
    let alone = shape([1, 97, 4, 2, 16]);
    let qkv: Vec<E> = normal(together.qkv_len(), 7, 1.0);
    let d_out: Vec<E> = normal(together.out_len(), 8, 1.0);
    for level in levels() {
        let all = Case { level, num_threads: 2, shape: together, segments: None }.run(&qkv, &d_out);
        for sequence in 0..3 {
            let (qkv_len, out_len) = (alone.qkv_len(), alone.out_len());
            let (qkv_at, out_at) = (sequence * qkv_len, sequence * out_len);
            let case = Case { level, num_threads: 2, shape: alone, segments: None };
            let one = case.run(&qkv[qkv_at..][..qkv_len], &d_out[out_at..][..out_len]);
            let lse_at = sequence * alone.lse_len();
            let expected = Results {
                out: all.out[out_at..][..out_len].to_vec(),
                lse: all.lse[lse_at..][..alone.lse_len()].to_vec(),
                d_qkv: all.d_qkv[qkv_at..][..qkv_len].to_vec(),
            };
            assert!(bits(&one) == bits(&expected), "sequence {sequence} at {level:?}");
        }
    }
}

#[test]
fn the_rest_of_the_batch_changes_no_bit() {
    check_batch::<f32>();
    check_batch::<bf16>();
}

/// What a workspace was used for before must not show.
fn check_reuse<E: Element>() {
    for level in levels() {
        let mut workspace = Workspace::new(Pool::new(2), level);
        let large =
            Case { level, num_threads: 2, shape: shape([1, 130, 2, 2, 64]), segments: None };
        let nans = vec![E::narrow(f32::NAN); large.shape.qkv_len()];
        large.run_on(&mut workspace, &nans, &nans[..large.shape.out_len()]);
        let small = Case { level, num_threads: 2, shape: shape([1, 77, 2, 1, 20]), segments: None };
        let qkv: Vec<E> = normal(small.shape.qkv_len(), 9, 1.0);
        let d_out: Vec<E> = normal(small.shape.out_len(), 10, 1.0);
        let used = small.run_on(&mut workspace, &qkv, &d_out);
        assert!(bits(&used) == bits(&small.run(&qkv, &d_out)), "{level:?}");
    }
}

#[test]
fn a_used_workspace_changes_no_bit() {
    check_reuse::<f32>();
    check_reuse::<bf16>();
}

#[test]
fn later_positions_change_no_bit_of_earlier_ones() {
    let shape = shape([1, 100, 1, 1, 16]);
    let qkv: Vec<bf16> = normal(shape.qkv_len(), 11, 1.0);
    let mut changed = qkv.clone();
    let cut = 40 * 3 * 16;
    changed[cut..].copy_from_slice(&normal::<bf16>(qkv.len() - cut, 12, 3.0));
    let d_out: Vec<bf16> = normal(shape.out_len(), 13, 1.0);
    for level in levels() {
        let run = |qkv: &[bf16]| {
            Case { level, num_threads: 1, shape, segments: None }.run(qkv, &d_out).out
        };
        assert_eq!(run(&qkv)[..40 * 16], run(&changed)[..40 * 16], "{level:?}");
    }
}

#[test]
fn large_scores_stay_finite() {
    for level in levels() {
        // Scores of some thousands: all but one exponential of a row vanish.
        let case = Case { level, num_threads: 1, shape: shape([1, 130, 1, 1, 64]), segments: None };
        let qkv: Vec<f32> = normal(case.shape.qkv_len(), 14, 60.0);
        let d_out: Vec<f32> = normal(case.shape.out_len(), 15, 1.0);
        let results = case.run(&qkv, &d_out);
        let all = results.out.iter().chain(&results.lse).chain(&results.d_qkv);
        assert!(all.into_iter().all(|x| x.is_finite()), "{level:?}");
        // The error of a score of 3e3 is 3e3 * 6e-8 * sqrt(64) at most, and the exponential's that.
        let exact = reference((&case.shape, None), &qkv, &d_out);
        assert_close(&widen(&results.out), &exact.out, 2.0e-3, "out");
    }
}

#[test]
fn not_a_number_is_not_hidden() {
    for level in levels() {
        let case = Case { level, num_threads: 1, shape: shape([1, 80, 1, 1, 16]), segments: None };
        let mut qkv: Vec<f32> = normal(case.shape.qkv_len(), 16, 1.0);
        let d_out: Vec<f32> = normal(case.shape.out_len(), 17, 1.0);
        qkv[70 * 48 + 3] = f32::NAN; // a query
        let results = case.run(&qkv, &d_out);
        assert!(results.out[70 * 16..][..16].iter().all(|x| x.is_nan()), "{level:?}");
        assert!(results.out[..70 * 16].iter().all(|x| x.is_finite()), "{level:?}");
        assert!(results.d_qkv[70 * 48..][..16].iter().all(|x| x.is_nan()), "{level:?}");
    }
}

#[test]
fn the_first_row_is_the_first_value() {
    for level in levels() {
        let case = Case { level, num_threads: 1, shape: shape([1, 70, 2, 2, 16]), segments: None };
        let qkv: Vec<bf16> = normal(case.shape.qkv_len(), 18, 2.0);
        let d_out: Vec<bf16> = normal(case.shape.out_len(), 19, 1.0);
        let results = case.run(&qkv, &d_out);
        assert_eq!(results.out[..32], qkv[64..96], "{level:?}: one weight of exactly 1");
    }
}

#[test]
fn the_weights_of_a_row_sum_to_one() {
    for level in levels() {
        let case = Case { level, num_threads: 2, shape: shape([1, 200, 4, 2, 32]), segments: None };
        let mut qkv: Vec<f32> = normal(case.shape.qkv_len(), 20, 1.0);
        // With all values 1, an output is the sum of its row's weights.
        qkv.chunks_exact_mut(8 * 32).for_each(|position| position[6 * 32..].fill(1.0));
        let d_out: Vec<f32> = normal(case.shape.out_len(), 21, 1.0);
        let results = case.run(&qkv, &d_out);
        assert!(results.out.iter().all(|x| (x - 1.0).abs() < 1.0e-6), "{level:?}");
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let shape = shape([1, 4, 2, 1, 16]);
    let mut workspace = Workspace::new(Pool::new(1), Level::Portable);
    let qkv = vec![0.0_f32; shape.qkv_len() - 1];
    let (mut out, mut lse) = (vec![0.0; shape.out_len()], vec![0.0; shape.lse_len()]);
    let call = std::panic::AssertUnwindSafe(|| {
        forward(&mut workspace, (&shape, None), &qkv, &mut out, &mut lse);
    });
    assert!(std::panic::catch_unwind(call).is_err());
}
