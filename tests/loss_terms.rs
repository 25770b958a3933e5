//! z-loss and label smoothing against ordinary autograd, forward and backward.

use std::collections::BTreeMap;

use grove::gradients::Round;
use grove::kernel::cross_entropy::Terms;
use grove::model::block::Recompute;
use grove::model::plain::PlainModel;
use grove::pass::loss_sum;
use tch::{Kind, Tensor};

use crate::fixture::{Fixture, NAMES, Subject, alone, by_name, relative_error};

/// f64 rounds at 1e-16, and sums of some thousand terms are added in another order.
const F64: f64 = 1e-12;
/// The same for f32, which rounds at 6e-8.
const F32: f64 = 2e-5;

const TERMS: Terms = Terms { z_loss: 1e-2, label_smoothing: 0.1 };

/// The loss with terms and its gradients by name, in f64 by autograd.
fn plain(fixture: &Fixture, tokens: &Tensor) -> (f64, BTreeMap<String, Tensor>) {
    let params = fixture.params();
    let weights: BTreeMap<String, Tensor> =
        params.iter().map(|(name, it)| (name.clone(), it.set_requires_grad(true))).collect();
    let length = tokens.size()[1] - 1;
    let targets = tokens.narrow(1, 1, length).reshape([-1]);
    let logits = PlainModel::new(&fixture.config).logits(&weights, &tokens.narrow(1, 0, length));
    let logits = logits.flatten(0, -2);
    let entropy = logits.cross_entropy_loss(
        &targets,
        None::<&Tensor>,
        tch::Reduction::Sum,
        -100,
        TERMS.label_smoothing,
    );
    let z_loss = logits.logsumexp([-1i64].as_slice(), false).square().sum(Kind::Double);
    let loss = entropy + z_loss * TERMS.z_loss;
    loss.backward();
    let gradients = weights.iter().map(|(name, weight)| (name.clone(), weight.grad()));
    (loss.double_value(&[]), gradients.collect())
}

#[test]
fn terms_are_those_of_autograd() {
    for (name, kind, tolerance) in
        NAMES.into_iter().flat_map(|name| [(name, Kind::Double, F64), (name, Kind::Float, F32)])
    {
        let fixture = Fixture::load(name);
        let mut subject = Subject::new(&fixture, kind, Recompute::None);
        subject.model.head.terms = TERMS;
        let tokens = fixture.get("tokens");
        let (expected, gradients) = plain(&fixture, tokens);
        let loss = subject.forward_backward(tokens, Round::only());
        let error = (loss - expected).abs() / expected;
        assert!(error < tolerance, "{name} {kind:?}: {loss}, not {expected}");
        for (param, grad) in by_name(&subject.state.units, |unit| &unit.grads) {
            let error = relative_error(&grad, &gradients[&param]);
            assert!(error < tolerance, "{name} {kind:?}: {param} is off by {error:e}");
        }
    }
}

/// An evaluation, and a run without terms, see the cross-entropy alone.
#[test]
fn an_evaluation_has_no_terms() {
    let fixture = Fixture::load(NAMES[0]);
    let tokens = fixture.get("tokens");
    let mut subject = Subject::new(&fixture, Kind::Float, Recompute::None);
    let without = subject.forward_backward(tokens, Round::only());
    subject.model.head.terms = TERMS;
    let (rows, _) = tokens.size2().expect("tokens are [B, S + 1]");
    let ids: Vec<i64> = Vec::try_from(tokens.reshape([-1])).expect("ids");
    let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    let batch = grove::pass::Tokens::new(&subject.compute, &ids, rows as usize);
    let evaluated =
        alone(&subject.state.units, |traffic| loss_sum(subject.layers(), &batch, traffic));
    assert_eq!(evaluated.expect("one rank").double_value(&[]), without);
    assert!(subject.forward_backward(tokens, Round::only()) > without);
}
