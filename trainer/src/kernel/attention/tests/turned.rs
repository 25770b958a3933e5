//! Gradients of queries and keys that were turned before.

use half::bf16;

use super::super::{Element, Saved, Turned, Workspace, backward};
use super::{BF16_TOLERANCE, Case, assert_close, levels, normal, shape, widen};
use crate::kernel::element;
use crate::kernel::pool::Pool;
use crate::kernel::rope::{Positions, QkvLayout, Rope};

/// The gradient with `turned`, and the one without it, turned back afterwards.
fn both<E: Element + element::Element>(case: &Case, positions: Positions<'_>) -> [Vec<f64>; 2] {
    let shape = &case.shape;
    let (qkv, d_out): (Vec<E>, Vec<E>) =
        (normal(shape.qkv_len(), 1, 1.0), normal(shape.out_len(), 2, 1.0));
    let results = case.run(&qkv, &d_out);
    let pool = Pool::new(case.num_threads);
    let rope = Rope::new(shape.head_dim, shape.sequence_length, 100.0);
    let layout = QkvLayout {
        num_attention_heads: shape.num_heads,
        num_key_value_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
    };
    let mut afterwards = results.d_qkv;
    rope.apply_backward(&pool, &mut afterwards, layout, positions);
    let mut turned = vec![E::narrow(f32::NAN); shape.qkv_len()];
    backward(
        &mut Workspace::new(pool, case.level),
        (shape, None),
        Saved { qkv: &qkv, out: &results.out, lse: &results.lse },
        &d_out,
        (&mut turned, Some(Turned { rope: &rope, positions })),
    );
    [widen(&turned), widen(&afterwards)]
}

/// In f32 it is the same arithmetic; in bf16 what is turned afterwards was rounded twice. One thread
/// takes whole key heads, seven divide them.
#[test]
fn turning_back_on_the_way_out_is_turning_back_afterwards() {
    let shape = shape([2, 70, 4, 2, 24]);
    let listed: Vec<i64> = (0..140).map(|row| row * 31 % 70).collect();
    for level in levels() {
        for num_threads in [1, 7] {
            for positions in [Positions::Counted(70), Positions::Listed(&listed)] {
                let case = Case { level, num_threads, shape, segments: None };
                let [turned, afterwards] = both::<f32>(&case, positions);
                assert_eq!(turned, afterwards, "{level:?}, {num_threads} threads");
                let [turned, afterwards] = both::<bf16>(&case, positions);
                assert_close(&turned, &afterwards, BF16_TOLERANCE, "bf16");
            }
        }
    }
}
