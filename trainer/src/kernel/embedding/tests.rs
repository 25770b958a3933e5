//! Gather and its gradient against plain loops.

use super::super::testing::assert_same_at_all_levels;
use super::super::testing::{Tolerance, assert_close, assert_same, exact, sample};
use super::*;
use half::bf16;

const VOCAB_SIZE: usize = 50;
const SEQUENCE_LEN: usize = 31;
const NUM_TOKENS: usize = 4 * SEQUENCE_LEN;
const SIZES: [usize; 5] = [1, 7, 64, 576, 1000];

/// Some tokens often, some never, the first and the last among them.
fn ids() -> Vec<i64> {
    (0..NUM_TOKENS as i64).map(|i| if i % 3 == 0 { 0 } else { 49 - i * i % 23 }).collect()
}

/// Positions that start anew after 13 tokens, whatever the sequence.
fn listed() -> Vec<i64> {
    (0..NUM_TOKENS as i64).map(|i| i % 13).collect()
}

struct Gradients {
    d_weight: Vec<f32>,
    d_positions: Vec<f32>,
}

fn run_backward<E: Tolerance>(
    dx: &[E],
    position_ids: Option<&[i64]>,
    hidden_size: usize,
    num_threads: usize,
) -> Gradients {
    let mut d_weight = vec![1.0; VOCAB_SIZE * hidden_size];
    let mut d_positions = vec![1.0; SEQUENCE_LEN * hidden_size];
    let gradients = EmbeddingGradients {
        d_weight: &mut d_weight,
        d_positions: Some(&mut d_positions),
        position_ids,
        hidden_size,
    };
    backward(&Pool::new(num_threads), &ids(), dx, gradients).unwrap();
    Gradients { d_weight, d_positions }
}

fn check<E: Tolerance>(hidden_size: usize, position_ids: Option<&[i64]>) {
    let weight = sample::<E>(VOCAB_SIZE * hidden_size, 1.0);
    let positions = sample::<E>(SEQUENCE_LEN * hidden_size, 1.0);
    let dx = sample::<E>(NUM_TOKENS * hidden_size, 1.0);
    let (w, p, d) = (exact(&weight), exact(&positions), exact(&dx));
    let position_of = |row| position_ids.map_or(row % SEQUENCE_LEN, |ids| ids[row] as usize);
    let (mut x, mut plain) = (vec![0.0; dx.len()], vec![E::default(); dx.len()]);
    let (mut d_weight, mut d_positions) = (vec![1.0; w.len()], vec![1.0; p.len()]);
    for (row, id) in ids().iter().enumerate() {
        for i in 0..hidden_size {
            let (token, position) = (*id as usize * hidden_size + i, position_of(row));
            let (at, position) = (row * hidden_size + i, position * hidden_size + i);
            plain[at] = weight[token];
            x[at] = w[token] + p[position];
            d_weight[token] += d[at];
            d_positions[position] += d[at];
        }
    }
    for num_threads in [1, 2] {
        let pool = Pool::new(num_threads);
        let mut found = vec![E::default(); dx.len()];
        let positions = Some(&positions[..]);
        let both = Embedding { weight: &weight, positions, position_ids, hidden_size };
        both.forward(&pool, &ids(), &mut found).unwrap();
        assert_close(&found, &x, 0.0, "x with positions");
        Embedding { positions: None, ..both }.forward(&pool, &ids(), &mut found).unwrap();
        assert_same(&found, &plain, "x");
    }
    let one = run_backward(&dx, position_ids, hidden_size, 1);
    assert_close(&one.d_weight, &d_weight, NUM_TOKENS as f64, "d_weight");
    assert_close(&one.d_positions, &d_positions, NUM_TOKENS as f64, "d_positions");
    for num_threads in [2, 3, 7] {
        let more = run_backward(&dx, position_ids, hidden_size, num_threads);
        assert_same(&more.d_weight, &one.d_weight, "d_weight");
        assert_same(&more.d_positions, &one.d_positions, "d_positions");
    }
}

#[test]
fn agrees_with_plain_loops_on_any_number_of_threads() {
    for hidden_size in SIZES {
        for position_ids in [None, Some(&listed()[..])] {
            check::<f32>(hidden_size, position_ids);
            check::<bf16>(hidden_size, position_ids);
        }
    }
}

#[test]
fn an_id_outside_of_the_table_is_named() {
    let pool = Pool::new(1);
    let weight = [1.0f32; 6];
    let embedding =
        Embedding { weight: &weight, positions: None, position_ids: None, hidden_size: 2 };
    for bad in [3, -1] {
        let error = embedding.forward(&pool, &[2, bad], &mut [0.0; 4]).unwrap_err();
        assert_eq!(error, Error::TokenId { row: 1, id: bad, vocab_size: 3 });
        assert!(error.to_string().starts_with(&format!("token 1 is {bad}, expected an id below")));
        let gradients = EmbeddingGradients {
            d_weight: &mut [0.0; 6],
            d_positions: None,
            position_ids: None,
            hidden_size: 2,
        };
        assert_eq!(backward(&pool, &[2, bad], &[0.0f32; 4], gradients), Err(error));
    }
}

#[test]
fn ranges_share_out_tokens_evenly() {
    assert_eq!(token_ranges(&[0, 1, 2, 3], 10, 2), [0, 2, 10]);
    assert_eq!(token_ranges(&[9, 9, 9], 10, 3), [0, 10, 10]);
    assert_eq!(token_ranges(&[], 4, 1), [0, 4]);
}

#[test]
fn all_levels_give_the_same_bits() {
    for hidden_size in SIZES {
        let positions = sample::<bf16>(SEQUENCE_LEN * hidden_size, 1.0);
        let weight = sample::<bf16>(VOCAB_SIZE * hidden_size, 1.0);
        let embedding = Embedding {
            weight: &weight,
            positions: Some(&positions),
            position_ids: None,
            hidden_size,
        };
        let ids = ids();
        assert_same_at_all_levels("embedding", |level| {
            let mut x = vec![bf16::ZERO; NUM_TOKENS * hidden_size];
            level.run(ForwardBlock { embedding, ids: &ids, first_row: 0, x: &mut x });
            let mut d_weight = vec![1.0; 40 * hidden_size];
            let (first_token, d) = (5, &mut d_weight[..]);
            level.run(BackwardRange { ids: &ids, dx: &x, first_token, d_weight: d, hidden_size });
            d_weight
        });
    }
}
