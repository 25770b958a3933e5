//! The ordered reduce-scatter against a scalar loop, over any number of ranks, and its refusals.

use super::*;

/// (input, output)
const PAIRS: [(Kind, Kind); 3] =
    [(Kind::BFloat16, Kind::Float), (Kind::Float, Kind::Float), (Kind::Double, Kind::Double)];

/// The `count` elements of term `term`: both signs and magnitudes whose sum depends on the order.
fn term(term: usize, count: usize, kind: Kind) -> Tensor {
    let value = |i: usize| {
        let mixed = ((i * 7919 + (term + 1) * 104_729) % 1009) as f64 - 504.0;
        mixed / 3.0 * 10f64.powi((term * 5 % 8) as i32)
    };
    Tensor::from_slice(&(0..count).map(value).collect::<Vec<f64>>()).to_kind(kind)
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let widened = Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).unwrap();
    widened.into_iter().map(f64::to_bits).collect()
}

/// `(base + t_0) + t_1 + ...` element by element, each sum rounded to `kind`.
fn chain(base: Option<&Tensor>, terms: &[Tensor], kind: Kind) -> Vec<u64> {
    let numbers = |tensor: &Tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).unwrap();
    let add = |a: f64, b: f64| match kind {
        Kind::Float => f64::from(a as f32 + b as f32),
        _ => a + b,
    };
    let all: Vec<Vec<f64>> = base.into_iter().chain(terms).map(numbers).collect();
    (0..all[0].len())
        .map(|i| all.iter().map(|term| term[i]).reduce(add).unwrap().to_bits())
        .collect()
}

#[test]
fn it_is_the_chain_in_rank_order() {
    for (degree, (from, to)) in DEGREES.into_iter().flat_map(|d| PAIRS.map(|pair| (d, pair))) {
        for (count, onto) in [(1, Onto::Nothing), (1, Onto::Output), (1500, Onto::Output)] {
            on_ranks(degree, |ranks| {
                let inputs: Vec<Tensor> =
                    (0..degree).map(|rank| term(rank, count * degree, from)).collect();
                let part = |whole: &Tensor| {
                    whole.narrow(0, (ranks.rank() * count) as i64, count as i64).copy()
                };
                let input = inputs[ranks.rank()].copy();
                let base = term(11, count, to);
                let output = base.copy();
                let added = ranks.ordered_reduce_scatter(&input, &output, onto, "unit").unwrap();
                added.wait().unwrap();
                let terms: Vec<Tensor> = inputs.iter().map(part).collect();
                let base = (onto == Onto::Output).then_some(&base);
                let what = format!("{count} {from:?} onto {onto:?} over {degree}");
                assert_eq!(bits(&output), chain(base, &terms, to), "{what}");
                assert_eq!(bits(&input), bits(&inputs[ranks.rank()]), "the input stays: {what}");
            });
        }
    }
}

#[test]
fn any_number_of_ranks_gives_the_same_bits() {
    const NUM_TERMS: usize = 7;
    // Divides over all degrees. The last elements are -0.0 in all terms.
    const COUNT: usize = 24;
    for (from, to) in PAIRS {
        let gradient = |number: usize| {
            let whole = term(number, COUNT, from);
            let _ = whole.narrow(0, COUNT as i64 - 5, 5).fill_(-0.0);
            whole
        };
        let whole = chain(None, &(0..NUM_TERMS).map(gradient).collect::<Vec<_>>(), to);
        assert_eq!(whole[COUNT - 1], (-0.0f64).to_bits());
        for degree in DEGREES {
            on_ranks(degree, |ranks| {
                let n = COUNT / degree;
                let sum = Tensor::full([n as i64], f64::NAN, (to, Device::Cpu));
                let assignment = crate::Assignment::new(NUM_TERMS, degree).unwrap();
                for round in 0..assignment.num_rounds() {
                    let input = match assignment.micro_batch(round, ranks.rank()) {
                        Some(number) => gradient(number),
                        None => Tensor::full([COUNT as i64], -0.0, (from, Device::Cpu)),
                    };
                    let onto = if round == 0 { Onto::Nothing } else { Onto::Output };
                    let added = ranks.ordered_reduce_scatter(&input, &sum, onto, "unit");
                    added.unwrap().wait().unwrap();
                }
                let own = &whole[ranks.rank() * n..(ranks.rank() + 1) * n];
                assert_eq!(bits(&sum), own, "{from:?} on {degree} ranks");
            });
        }
    }
}

#[test]
fn the_test_values_tell_orders_apart() {
    for (from, to) in PAIRS {
        let terms: Vec<Tensor> = (0..4).map(|number| term(number, 64, from)).collect();
        let reversed: Vec<Tensor> = terms.iter().rev().map(Tensor::shallow_clone).collect();
        let (forward, backward) = (chain(None, &terms, to), chain(None, &reversed, to));
        assert_ne!(forward, backward, "{from:?}");
    }
}

#[test]
fn other_dtypes_counts_and_shared_memory_are_refused() {
    let ranks = LocalCollective::new();
    let tensor = |count: i64, kind: Kind| Tensor::zeros([count], (kind, Device::Cpu));
    let refused = |input: &Tensor, output: &Tensor| {
        ranks.ordered_reduce_scatter(input, output, Onto::Output, "w").unwrap_err()
    };
    for from in MOVED {
        for to in MOVED.into_iter().filter(|&to| !PAIRS.contains(&(from, to))) {
            let error = refused(&tensor(2, from), &tensor(2, to));
            assert!(matches!(error, Error::OrderedDtypes { .. }), "{from:?} {to:?}: {error}");
        }
    }
    assert_eq!(
        refused(&tensor(2, Kind::Float), &tensor(2, Kind::BFloat16)).to_string(),
        "ordered_reduce_scatter `w`: input is f32 and output is bf16; give bf16 or f32 input \
         with f32 output, or f64 input with f64 output"
    );
    assert_eq!(
        refused(&tensor(4, Kind::BFloat16), &tensor(3, Kind::Float)).to_string(),
        "ordered_reduce_scatter(onto Output) `w`: 4 input elements do not fit 3 output elements; \
         input must be degree * output with 1 ranks"
    );
    let whole = tensor(4, Kind::Float);
    assert!(matches!(refused(&whole, &whole), Error::Overlap { .. }));
    // The first half of the output's bytes holds all of the input.
    let inside = whole.view_dtype(Kind::BFloat16).narrow(0, 0, 4);
    assert!(matches!(refused(&inside, &whole), Error::Overlap { .. }));
}

#[test]
fn ranks_must_agree_on_what_they_add_to_and_the_ledger_counts_the_input() {
    on_ranks(2, |ranks| {
        let input = Tensor::zeros([6], (Kind::BFloat16, Device::Cpu));
        let output = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let add = |onto| ranks.ordered_reduce_scatter(&input, &output, onto, "w").unwrap().wait();
        add(Onto::Nothing).unwrap();
        let totals = ranks.ledger().totals().by_operation["ordered_reduce_scatter"];
        assert_eq!(totals, OperationTotals { calls: 1, elements: 6, bytes: 12, sent_bytes: 6 });
        let error = add([Onto::Nothing, Onto::Output][ranks.rank()]).unwrap_err().to_string();
        assert!(error.contains("call 1, ordered_reduce_scatter(onto Output) `w` of 6 bf16"));
    });
}
