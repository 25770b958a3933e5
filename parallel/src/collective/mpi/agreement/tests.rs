//! Records keep what tells calls apart.

use super::*;

fn call(operation: Operation, name: &str, dtype: Option<Dtype>) -> Call {
    Call { sequence: 3, operation, name: name.to_owned(), dtype, count: 70_000 }
}

#[test]
fn records_carry_the_whole_call() {
    let mut operations = vec![
        Operation::AllGather,
        Operation::AllToAll,
        Operation::Barrier,
        Operation::Broadcast { root: 5 },
    ];
    operations.extend(ONTO.map(Operation::OrderedReduceScatter));
    for reduction in REDUCTIONS {
        operations.extend([Operation::AllReduce(reduction), Operation::ReduceScatter(reduction)]);
    }
    for operation in operations {
        for dtype in Dtype::ALL.into_iter().map(Some).chain([None]) {
            let call = call(operation, "block.11.gradients", dtype);
            assert_eq!(decode(&encode(&call)), call);
        }
    }
}

#[test]
fn long_names_that_differ_at_the_end_make_different_records() {
    let long = "n".repeat(300);
    let (a, b) = (format!("{long}a"), format!("{long}b"));
    let record = |name: &str| encode(&call(Operation::Barrier, name, None));
    assert_ne!(record(&a), record(&b));
    assert_eq!(decode(&record(&a)).name.len(), NAME_WORDS * WORD_BYTES);
}
