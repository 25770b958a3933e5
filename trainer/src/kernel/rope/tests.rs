//! The rotation against complex numbers in f64, and its inverse.

use super::super::testing::assert_same_at_all_levels;
use super::super::testing::{Tolerance, assert_close, assert_same, exact, sample};
use super::*;
use half::bf16;

const THETA: f64 = 10_000.0;
/// Two sequences of rows, which blocks do not divide evenly.
const SEQUENCE_LEN: usize = 45;
const NUM_ROWS: usize = 2 * SEQUENCE_LEN;
/// An odd half, one that fills no register, and usual ones.
const HEAD_DIMS: [usize; 4] = [2, 14, 64, 128];

fn layout(head_dim: usize) -> QkvLayout {
    QkvLayout { num_attention_heads: 6, num_key_value_heads: 2, head_dim }
}

/// Turns by `sign` times the position's angles.
fn reference(qkv: &[f64], layout: QkvLayout, positions: Positions<'_>, sign: f64) -> Vec<f64> {
    let (row_len, head_dim) = (layout.row_len(), layout.head_dim);
    let mut turned = qkv.to_vec();
    for row in 0..NUM_ROWS {
        let position = match positions {
            Positions::Counted(len) => row % len,
            Positions::Listed(list) => list[row] as usize,
        };
        for head in 0..layout.num_attention_heads + layout.num_key_value_heads {
            for pair in 0..head_dim / 2 {
                let frequency = THETA.powf(-2.0 * pair as f64 / head_dim as f64);
                let angle = sign * position as f64 * frequency;
                let a = row * row_len + head * head_dim + pair;
                let b = a + head_dim / 2;
                turned[a] = qkv[a] * angle.cos() - qkv[b] * angle.sin();
                turned[b] = qkv[a] * angle.sin() + qkv[b] * angle.cos();
            }
        }
    }
    turned
}

fn check<E: Tolerance>(head_dim: usize, positions: Positions<'_>) {
    let layout = layout(head_dim);
    let rope = Rope::new(head_dim, SEQUENCE_LEN + 3, THETA);
    let qkv = sample::<E>(NUM_ROWS * layout.row_len(), 1.0);
    let run = |num_threads| {
        let pool = Pool::new(num_threads);
        let (mut forward, mut backward) = (qkv.clone(), qkv.clone());
        rope.apply(&pool, &mut forward, layout, positions);
        rope.apply_backward(&pool, &mut backward, layout, positions);
        (forward, backward)
    };
    let (forward, backward) = run(1);
    assert_close(&forward, &reference(&exact(&qkv), layout, positions, 1.0), 1.0, "forward");
    assert_close(&backward, &reference(&exact(&qkv), layout, positions, -1.0), 1.0, "backward");
    let two = run(2);
    assert_same(&two.0, &forward, "forward");
    assert_same(&two.1, &backward, "backward");
}

#[test]
fn agrees_with_f64_on_any_number_of_threads() {
    for head_dim in HEAD_DIMS {
        // Documents of 7 tokens, which neither rows nor blocks mind.
        let listed: Vec<i64> = (0..NUM_ROWS as i64).map(|row| row % 7).collect();
        for positions in [Positions::Counted(SEQUENCE_LEN), Positions::Listed(&listed)] {
            check::<f32>(head_dim, positions);
            check::<bf16>(head_dim, positions);
        }
    }
}

#[test]
fn all_levels_give_the_same_bits() {
    for head_dim in HEAD_DIMS {
        let layout = layout(head_dim);
        let rope = Rope::new(head_dim, SEQUENCE_LEN, THETA);
        let qkv = sample::<bf16>(NUM_ROWS * layout.row_len(), 1.0);
        assert_same_at_all_levels("rope", |level| {
            let mut qkv = qkv.clone();
            level.run(TurnBlock {
                rope: &rope,
                qkv: &mut qkv,
                layout,
                first_row: 3,
                positions: Positions::Counted(SEQUENCE_LEN),
                direction: Direction::Backward,
            });
            qkv
        });
    }
}
