//! Full rank, subspace, refresh and ranges of `GaLore`.

use super::{Galore, GaloreConfig};
use crate::whole::WholeRuleConfig;
use crate::whole::tests::{Run, gap, matrix, noise, orthogonal};
use tch::{Kind, Tensor};

/// Products of orthonormal matrices in f64.
const TOLERANCE: f64 = 1e-12;

fn run(rank: u64, refresh_every: u64, rows: i64, cols: i64) -> Run {
    let config = GaloreConfig { rank, refresh_every, ..GaloreConfig::default() };
    Run::new(WholeRuleConfig::Galore(config), matrix(rows, cols), Kind::Double)
}

/// Adam as `GaLore` writes it, in the coordinates of what it is given.
struct Adam(Tensor, Tensor);

impl Adam {
    fn new(shape: &[i64]) -> Self {
        Self(noise(shape, 0) * 0.0, noise(shape, 0) * 0.0)
    }

    fn direction(&mut self, grad: &Tensor, step: f64) -> Tensor {
        self.0 = &self.0 * 0.9 + grad * 0.1;
        self.1 = &self.1 * 0.999 + grad.square() * 0.001;
        let correction = (1.0 - 0.999_f64.powf(step)).sqrt() / (1.0 - 0.9_f64.powf(step));
        &self.0 / (self.1.sqrt() + 1e-6) * correction
    }
}

#[test]
fn the_worked_number_of_the_docs() {
    let update = run(1, 200, 2, 1).update(&Tensor::from_slice(&[3.0, 4.0]).view([2, 1]), 0.01);
    let expected = Tensor::from_slice(&[0.0025, 0.0025]).view([2, 1]);
    // `eps` is 1e-6 beside the uncorrected root, 0.001^0.5 * 3.
    assert!(gap(&update, &expected) < 2e-5, "{update}");
}

#[test]
fn at_full_rank_along_the_axes_it_is_adam() {
    // Orthogonal columns of different norms: the right singular vectors are the axes.
    let columns = orthogonal(7, 1).narrow(1, 0, 4) * Tensor::from_slice(&[2.0, 5.0, 1.0, 3.0]);
    for is_tall in [true, false] {
        let turn = |m: &Tensor| if is_tall { m.shallow_clone() } else { m.tr() };
        let (rows, cols) = if is_tall { (7, 4) } else { (4, 7) };
        let mut galore = run(100, 200, rows, cols);
        let mut adam = Adam::new(&[rows, cols]);
        for step in 1..=10 {
            let grad = if step == 1 { columns.copy() } else { noise(&[7, 4], step) };
            let expected = adam.direction(&turn(&grad), step as f64) * (0.1 * 0.25);
            assert!(gap(&galore.update(&turn(&grad), 0.1), &expected) < TOLERANCE);
        }
    }
}

#[test]
fn at_full_rank_it_is_adam_in_singular_coordinates() {
    let mut galore = run(4, 200, 7, 4);
    let mut adam = Adam::new(&[7, 4]);
    for step in 1..=10 {
        let grad = noise(&[7, 4], step);
        let update = galore.update(&grad, 0.1);
        let projector = &galore.state[0];
        let direction = adam.direction(&grad.mm(&projector.tr()), step as f64);
        assert!(gap(&update, &(direction.mm(projector) * (0.1 * 0.25))) < TOLERANCE);
    }
}

#[test]
fn updates_stay_in_the_subspace_of_the_last_decomposition() {
    let mut galore = run(2, 3, 7, 5);
    let mut previous = Tensor::zeros([2, 5], (Kind::Double, tch::Device::Cpu));
    for step in 1..=7 {
        let grad = noise(&[7, 5], step);
        let update = galore.update(&grad, 0.1);
        let projector = galore.state[0].copy();
        assert_eq!(projector != previous, (step - 1) % 3 == 0, "step {step}");
        assert!(gap(&update.mm(&projector.tr()).mm(&projector), &update) < TOLERANCE);
        if (step - 1) % 3 == 0 {
            // The best rank-2 approximation keeps the two largest singular values.
            let (_, values, _) = grad.svd(true, true);
            let kept = grad.mm(&projector.tr()).norm().double_value(&[]);
            let expected = values.narrow(0, 0, 2).norm().double_value(&[]);
            assert!((kept - expected).abs() < TOLERANCE * expected);
            let largest = projector.abs().argmax(1, true);
            assert!(projector.gather(1, &largest, false).min().double_value(&[]) > 0.0);
        }
        previous = projector;
    }
}

#[test]
fn a_transposed_gradient_has_the_transposed_update() {
    let (mut tall, mut wide) = (run(2, 4, 7, 5), run(2, 4, 5, 7));
    for seed in 0..10 {
        let grad = noise(&[7, 5], seed);
        assert!(gap(&wide.update(&grad.tr(), 0.1).tr(), &tall.update(&grad, 0.1)) < TOLERANCE);
    }
}

#[test]
fn ranges_are_named() {
    let text = |config| Galore::new(config).unwrap_err().to_string();
    let config = GaloreConfig { rank: 0, ..GaloreConfig::default() };
    assert!(text(config).starts_with("optim.rank = 0 is out of range"));
    let config = GaloreConfig { refresh_every: 0, ..GaloreConfig::default() };
    assert!(text(config).starts_with("optim.refresh_every = 0"));
    let config = GaloreConfig { scale: f64::INFINITY, ..GaloreConfig::default() };
    assert!(text(config).starts_with("optim.scale = inf"));
}
