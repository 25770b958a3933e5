//! Worked number, invariance and ranges of AdamW.

use super::{AdamW, AdamWConfig};
use crate::sample::{self, SCALARS};
use crate::{Error, Rule, Scalars};
use proptest::prelude::*;

/// One f64 element through AdamW; returns the parameter and both moments.
fn one_step(rule: &AdamW, theta: f64, grad: f64, scalars: &Scalars) -> [f64; 3] {
    let (theta, [m, v]) = sample::one_step(&Rule::AdamW(*rule), theta, grad, [0.0; 2], scalars);
    [theta, m, v]
}

#[test]
fn the_worked_number_of_the_docs() {
    let rule = AdamW::new(AdamWConfig::default()).unwrap();
    let scalars = Scalars { lr: 0.1, grad_scale: 1.0, step: 1, ..SCALARS };
    let [theta, m, v] = one_step(&rule, 1.0, 0.5, &scalars);
    assert!((theta - 0.89 - 2e-9).abs() < 1e-12, "{theta}");
    assert!((m - 0.05).abs() < 1e-15 && (v - 0.0125).abs() < 1e-15, "{m} {v}");
}

#[test]
fn ranges_are_named() {
    let text = |config| AdamW::new(config).unwrap_err().to_string();
    assert_eq!(
        text(AdamWConfig { beta2: 1.0, ..AdamWConfig::default() }),
        "optim.betas[1] = 1 is out of range: expected 0 <= betas[1] < 1; a usual value is 0.95"
    );
    assert!(text(AdamWConfig { eps: 0.0, ..AdamWConfig::default() }).contains("optim.eps = 0"));
    assert!(
        text(AdamWConfig { beta1: f64::NAN, ..AdamWConfig::default() })
            .contains("optim.betas[0] = NaN")
    );
    let negative = AdamW::new(AdamWConfig { weight_decay: -0.1, ..AdamWConfig::default() });
    assert!(matches!(negative, Err(Error::OutOfRange { .. })));
}

proptest! {
    /// With a vanishing eps, scaling all gradients leaves the step as it is.
    #[test]
    fn the_step_does_not_depend_on_the_scale_of_the_gradient(
        theta in -2.0_f64..2.0, grad in 0.01_f64..10.0, factor in 1e-3_f64..1e3, negative in any::<bool>(),
    ) {
        let rule = AdamW::new(AdamWConfig { eps: 1e-30, ..AdamWConfig::default() }).unwrap();
        let scalars = Scalars { lr: 0.1, grad_scale: 1.0, step: 4, ..SCALARS };
        let grad = if negative { -grad } else { grad };
        let plain = one_step(&rule, theta, grad, &scalars)[0];
        let scaled = one_step(&rule, theta, grad * factor, &scalars)[0];
        let folded = one_step(&rule, theta, grad, &Scalars { grad_scale: factor, ..scalars })[0];
        // A few roundings of numbers below 3.
        prop_assert!((plain - scaled).abs() < 1e-14, "{plain} {scaled}");
        prop_assert!((plain - folded).abs() < 1e-14, "{plain} {folded}");
    }
}
