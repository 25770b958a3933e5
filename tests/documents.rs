//! Documents packed into rows: logits, loss and gradients are those of the documents run apart.

use std::collections::BTreeMap;

use grove::gradients::Round;
use grove::model::block::Recompute;
use grove::model::plain::PlainModel;
use grove::model::segments::Segments;
use grove::pass::{Documents, Tokens, logits, loss_sum};
use grove_data::Batch;
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, NAMES, Subject, alone, by_name, relative_error};

/// f64 rounds at 1e-16, and sums of some thousand terms are added in another order.
const F64: f64 = 1e-12;
/// The same for f32, which rounds at 6e-8.
const F32: f64 = 1e-5;
/// bf16 rounds at 4e-3; packed and apart, attention rounds its weights against other maxima.
const BF16: f64 = 4e-2;

/// Rows of documents, each a list of tokens; what is left of a row is padding.
struct Packed {
    rows: Vec<Vec<Vec<u32>>>,
    sequence_length: usize,
}

impl Packed {
    /// Documents of one token, a few, and many; a row without padding and one with; all of the
    /// fixture's tokens, cut anew.
    fn of(fixture: &Fixture) -> Self {
        let tokens = fixture.get("tokens");
        let sequence_length = tokens.size()[1] as usize - 1;
        let all: Vec<i64> = Vec::try_from(tokens.reshape([-1])).expect("ids");
        let mut all = all.into_iter().map(|id| id as u32);
        let full = sequence_length + 1;
        let lengths: [&[usize]; 2] = [&[1, 4, 3, full - 8], &[6, 5]];
        let rows = lengths.map(|row| row.iter().map(|&n| all.by_ref().take(n).collect()).collect());
        Self { rows: rows.into(), sequence_length }
    }

    fn documents(&self) -> impl Iterator<Item = &Vec<u32>> {
        self.rows.iter().flatten()
    }

    fn batch(&self) -> Batch {
        let length = self.sequence_length;
        let (mut tokens, mut segment_starts, mut loss_mask) = (Vec::new(), Vec::new(), Vec::new());
        for (number, row) in self.rows.iter().enumerate() {
            let (mut columns, mut mask) = (Vec::new(), vec![false; length + 1]);
            for document in row {
                segment_starts.push((number * length + columns.len()) as u32);
                mask[columns.len()..columns.len() + document.len() - 1].fill(true);
                columns.extend(document);
            }
            if columns.len() < length {
                segment_starts.push((number * length + columns.len()) as u32);
            }
            columns.resize(length + 1, 0);
            tokens.extend(columns);
            loss_mask.extend(&mask[..length]);
        }
        let (batch_size, loss_mask) = (self.rows.len(), Some(loss_mask));
        Batch { tokens, batch_size, sequence_length: length, segment_starts, loss_mask }
    }
}

fn ids(tokens: &[u32]) -> Tensor {
    let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_slice(&ids).view([1, -1])
}

fn for_each_fixture(check: impl Fn(&str, &Fixture, Kind, f64)) {
    for name in NAMES {
        let fixture = Fixture::load(name);
        for (kind, tolerance) in [(Kind::Double, F64), (Kind::Float, F32), (Kind::BFloat16, BF16)] {
            check(&format!("{name} {kind:?}"), &fixture, kind, tolerance);
        }
    }
}

#[test]
fn logits_are_those_of_the_documents_apart() {
    for_each_fixture(|label, fixture, kind, tolerance| {
        let subject = Subject::new(fixture, kind, Recompute::None);
        let packed = Packed::of(fixture);
        let tokens = Tokens::of_batch(&subject.compute, &packed.batch(), Documents::Apart);
        let logits_of = |inputs: &Tensor, segments: Option<&Segments>| {
            alone(&subject.state.units, |traffic| {
                logits(subject.layers(), (inputs, segments), traffic).expect("one rank")
            })
        };
        let found = logits_of(&tokens.inputs, tokens.segments.as_deref());
        for (number, row) in packed.rows.iter().enumerate() {
            let mut column = 0;
            for document in row {
                let len = document.len().min(packed.sequence_length - column);
                if len == 0 {
                    continue;
                }
                let expected = logits_of(&ids(&document[..len]), None);
                let first = (number * packed.sequence_length + column) as i64;
                let error = relative_error(&found.narrow(0, first, len as i64), &expected);
                assert!(error < tolerance, "{label}, row {number}, column {column}: {error:e}");
                column += len;
            }
        }
    });
}

#[test]
fn loss_and_gradients_are_those_of_the_documents_apart() {
    for_each_fixture(|label, fixture, kind, tolerance| {
        let packed = Packed::of(fixture);
        let [together, apart] = [0, 1].map(|_| Subject::new(fixture, kind, Recompute::Elementwise));
        let tokens = Tokens::of_batch(&together.compute, &packed.batch(), Documents::Apart);
        let loss = together.forward_backward_of(&tokens, Round::only());
        let long: Vec<_> = packed.documents().filter(|document| document.len() > 1).collect();
        let targets: usize = long.iter().map(|document| document.len() - 1).sum();
        assert_eq!(tokens.num_targets(), targets as u64, "{label}");
        let mut expected = 0.0;
        for (number, document) in long.iter().enumerate() {
            let (first, last) = (number == 0, number + 1 == long.len());
            let round = Round { first, last, contributes: true };
            expected += apart.forward_backward(&ids(document), round);
        }
        let error = (loss - expected).abs() / expected;
        assert!(error < tolerance, "{label}: loss {loss}, expected {expected}");
        let expected = by_name(&apart.state.units, |unit| &unit.grads);
        for (name, grad) in by_name(&together.state.units, |unit| &unit.grads) {
            let error = relative_error(&grad, &expected[&name]);
            assert!(error < tolerance, "{label}: the gradient of {name} is off by {error:e}");
        }
        let forward_only = alone(&together.state.units, |traffic| {
            loss_sum(together.layers(), &tokens, traffic).expect("one rank").double_value(&[])
        });
        assert!((forward_only - loss).abs() < F64 * loss, "{label}: {forward_only}, {loss}");
    });
}

#[test]
fn documents_together_are_a_row_of_text() {
    let fixture = Fixture::load("llama_gqa_tied");
    let subject = Subject::new(&fixture, Kind::Double, Recompute::None);
    let batch = Packed::of(&fixture).batch();
    let together = Tokens::of_batch(&subject.compute, &batch, Documents::Together);
    assert!(together.segments.is_none());
    let apart = Tokens::of_batch(&subject.compute, &batch, Documents::Apart);
    let [a, b] = [&together, &apart].map(|t| subject.forward_backward_of(t, Round::only()));
    assert_eq!(together.num_targets(), apart.num_targets());
    assert!((a - b).abs() > 1e-6 * a, "the masks have no effect: {a}, {b}");
}

#[test]
fn a_micro_batch_without_targets_has_neither_loss_nor_gradient() {
    for_each_fixture(|label, fixture, kind, _| {
        let subject = Subject::new(fixture, kind, Recompute::None);
        let mut batch = Packed::of(fixture).batch();
        batch.loss_mask = Some(vec![false; batch.batch_size * batch.sequence_length]);
        let tokens = Tokens::of_batch(&subject.compute, &batch, Documents::Apart);
        assert_eq!(tokens.num_targets(), 0, "{label}");
        assert_eq!(subject.forward_backward_of(&tokens, Round::only()), 0.0, "{label}");
        for (name, grad) in by_name(&subject.state.units, |unit| &unit.grads) {
            assert_eq!(grad.abs().max().double_value(&[]), 0.0, "{label}: {name}");
        }
    });
}

#[test]
fn the_plain_model_cuts_rows_too() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        let model = PlainModel::new(&fixture.config);
        let weights: BTreeMap<_, _> = fixture.params();
        let subject = Subject::new(&fixture, Kind::Double, Recompute::None);
        let batch = Packed::of(&fixture).batch();
        let tokens = Tokens::of_batch(&subject.compute, &batch, Documents::Apart);
        let segments = Segments::new(Device::Cpu, tokens.shape(), &batch.segment_starts);
        let plain = model.logits_in_segments(&weights, &tokens.inputs, &segments);
        let found = alone(&subject.state.units, |traffic| {
            logits(subject.layers(), (&tokens.inputs, Some(&segments)), traffic).expect("one rank")
        });
        let error = relative_error(&found, &plain);
        assert!(error < F64, "{name}: {error:e}");
    }
}
