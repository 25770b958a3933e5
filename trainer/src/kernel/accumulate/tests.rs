//! Each operation against f64, in all pairs of element types.

use super::super::testing::assert_same_at_all_levels;
use super::super::testing::{Tolerance, assert_close, assert_same, exact, sample};
use super::*;
use half::bf16;

/// Empty, odd, and more than one block.
const LENS: [usize; 6] = [0, 1, 7, 64, 1000, 70_001];
const COLUMNS: [usize; 5] = [1, 7, 64, 576, 1000];
const NUM_ROWS: usize = 83;

fn check_pair<S: Tolerance, T: Tolerance>(len: usize) {
    let (sum, term) = (sample::<S>(len, 1.0), sample::<T>(len + 1, 1.0)[1..].to_vec());
    let added: Vec<f64> = exact(&sum).iter().zip(exact(&term)).map(|(s, t)| s + t).collect();
    for num_threads in [1, 2] {
        let pool = Pool::new(num_threads);
        let mut found = sum.clone();
        add_assign(&pool, &mut found, &term);
        assert_close(&found, &added, 0.0, "add_assign");
        cast(&pool, &term, &mut found);
        assert_close(&found, &exact(&term), 0.0, "cast");
    }
}

#[test]
fn element_wise_operations_agree_with_f64() {
    for len in LENS {
        check_pair::<f32, f32>(len);
        check_pair::<f32, bf16>(len);
        check_pair::<bf16, f32>(len);
        check_pair::<bf16, bf16>(len);
    }
}

fn check_column_sums<E: Tolerance>(num_columns: usize) {
    let x = sample::<E>(NUM_ROWS * num_columns, 1.0);
    let mut expected = vec![1.0; num_columns];
    for row in exact(&x).chunks(num_columns) {
        expected.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    let run = |num_threads| {
        let mut sums = vec![1.0; num_columns];
        add_column_sums(&Pool::new(num_threads), &x, &mut sums);
        sums
    };
    let one = run(1);
    assert_close(&one, &expected, NUM_ROWS as f64, "sums");
    assert_same(&run(2), &one, "threads");
}

#[test]
fn column_sums_agree_with_f64_on_any_number_of_threads() {
    for num_columns in COLUMNS {
        check_column_sums::<f32>(num_columns);
        check_column_sums::<bf16>(num_columns);
    }
}

#[test]
fn all_levels_give_the_same_bits() {
    for num_columns in COLUMNS {
        let x = sample::<bf16>(NUM_ROWS * num_columns, 1.0);
        let start = sample::<f32>(x.len(), 1.0);
        assert_same_at_all_levels("accumulate", |level| {
            let (mut output, mut sums) = (start.clone(), vec![1.0; num_columns]);
            let combination = Combination::Add;
            level.run(CombineBlock { output: &mut output, input: &x, combination });
            level.run(ColumnSumBlock { x: &output, sums: &mut sums });
            let mut rounded = x.clone();
            let combination = Combination::Replace;
            level.run(CombineBlock { output: &mut rounded, input: &output, combination });
            output.extend(rounded.iter().map(|v| v.to_f32()));
            [output, sums].concat()
        });
    }
}
