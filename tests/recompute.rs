//! The same bits whatever blocks keep and whatever they compute again.

use grove::gradients::Round;
use grove::model::block::Recompute;
use tch::Kind;

use crate::fixture::{Fixture, NAMES, Subject, by_name};

#[test]
fn recompute_changes_no_bit() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
            let run = |recompute| {
                let subject = Subject::new(&fixture, kind, recompute);
                let loss = subject.forward_backward(fixture.get("tokens"), Round::only());
                (loss, by_name(&subject.state.units, |unit| &unit.grads))
            };
            let (loss, grads) = run(Recompute::None);
            for recompute in [Recompute::Elementwise, Recompute::Block] {
                let (again, others) = run(recompute);
                assert_eq!(again.to_bits(), loss.to_bits(), "{name} {kind:?} {recompute:?}: loss");
                for (param, grad) in &others {
                    assert!(grads[param].equal(grad), "{name} {kind:?} {recompute:?}: {param}");
                }
            }
        }
    }
}
