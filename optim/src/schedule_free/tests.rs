//! Worked number, the three points, and ranges of schedule-free AdamW.

use super::{ScheduleFree, ScheduleFreeConfig};
use crate::sample::{self, SCALARS, values};
use crate::{Rule, Scalars};
use proptest::prelude::*;
use tch::Tensor;

fn rule() -> ScheduleFree {
    ScheduleFree::new(ScheduleFreeConfig::default()).unwrap()
}

#[test]
fn the_worked_number_of_the_docs() {
    let scalars = Scalars {
        lr: 0.1,
        weight_decay: 0.0,
        grad_scale: 1.0,
        step: 1,
        averaging_weight: 1.0,
        ..SCALARS
    };
    let (y, [z, v]) = sample::one_step(&Rule::ScheduleFree(rule()), 1.0, 0.5, [1.0, 0.0], &scalars);
    // eps is 2e-8 of the root, a tenth of it in the step.
    assert!((y - 0.9).abs() < 3e-9 && (z - 0.9).abs() < 3e-9, "{y} {z}");
    assert!((v - 0.000_25).abs() < 1e-18, "{v}");
}

#[test]
fn ranges_are_named() {
    let text = |config| ScheduleFree::new(config).unwrap_err().to_string();
    assert_eq!(
        text(ScheduleFreeConfig { beta1: 0.0, ..ScheduleFreeConfig::default() }),
        "optim.betas[0] = 0 is out of range: expected 0 < betas[0] < 1; a usual value is 0.9"
    );
    let error = rule().eval_point(&[0.0; 3], &[0.0; 2], &mut [0.0; 3]).unwrap_err().to_string();
    assert!(error.starts_with("buffer z has 2 elements"), "{error}");
    let error = rule().eval_point(&[0.0; 3], &[0.0; 3], &mut [0.0; 2]).unwrap_err().to_string();
    assert!(error.starts_with("buffer interpolated point has 2 elements"), "{error}");
}

#[test]
fn the_eval_point_of_tensors_agrees() {
    let (y, z): (Vec<f64>, Vec<f64>) = (values(1000, 1), values(1000, 2));
    let mut x = vec![0.0; 1000];
    rule().eval_point(&y, &z, &mut x).unwrap();
    let tensor = rule().eval_point_tensor(&Tensor::from_slice(&y), &Tensor::from_slice(&z));
    assert_eq!(Vec::<f64>::try_from(&tensor.unwrap()).unwrap(), x);
}

proptest! {
    /// `x` is the average of all `z` with the averaging weights, whatever the gradients.
    #[test]
    fn the_eval_point_is_the_average_of_base_iterates(
        grads in prop::collection::vec(-3.0_f64..3.0, 1..30), start in -1.0_f64..1.0,
    ) {
        let (mut y, mut state) = (start, [start, 0.0]);
        let mut average = start;
        for (i, &grad) in grads.iter().enumerate() {
            let averaging_weight = 1.0 / (i as f64 + 1.0);
            let scalars =
                Scalars { lr: 0.01, step: i as u64 + 1, averaging_weight, ..SCALARS };
            (y, state) = sample::one_step(&Rule::ScheduleFree(rule()), y, grad, state, &scalars);
            average += averaging_weight * (state[0] - average);
        }
        let mut x = [0.0];
        rule().eval_point(&[y], &[state[0]], &mut x).unwrap();
        // Thirty steps of a few roundings of numbers near one.
        prop_assert!((x[0] - average).abs() < 1e-14, "{} {average}", x[0]);
        let mut back = [0.0];
        rule().training_point(&x, &[state[0]], &mut back).unwrap();
        prop_assert!((back[0] - y).abs() < 1e-15, "{} {y}", back[0]);
    }
}
