//! What holds for every whole-matrix rule, and what the tests of single rules share.

use tch::{Device, Kind, Tensor};

use super::{
    AdafactorConfig, AdamMiniConfig, CameConfig, DecayOrder, GaloreConfig, MuonConfig, Orientation,
    ParamFacts, Part, SoapConfig, StepScale, WholeRule, WholeRuleConfig, WholeTensors,
};
use crate::elements::Scalars;
use crate::error::Result;
use crate::group::{Group, Role};

/// A matrix of a block, `[out, in]`.
pub(super) fn matrix(rows: i64, cols: i64) -> ParamFacts {
    ParamFacts::new(&[rows, cols], Role::Matrix, Orientation::OutIn)
}

/// Deterministic f64 values, nearly normal, of mean 0 and variance 1.
pub(super) fn noise(shape: &[i64], seed: u64) -> Tensor {
    let uniform = |index: u64| {
        let mut x = index.wrapping_add(seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    // A sum of twelve uniform numbers has variance 1.
    let normal = |index: u64| (0..12).map(|i| uniform(12 * index + i)).sum::<f64>() - 6.0;
    let values: Vec<f64> = (0..shape.iter().product::<i64>() as u64).map(normal).collect();
    Tensor::from_slice(&values).view(shape)
}

/// An orthogonal f64 matrix.
pub(super) fn orthogonal(size: i64, seed: u64) -> Tensor {
    Tensor::linalg_qr(&noise(&[size, size], seed), "reduced").0
}

/// The largest difference of two tensors over the largest element of the second.
pub(super) fn gap(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    (found - &expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
}

/// One parameter under a rule.
pub(super) struct Run {
    pub(super) rule: WholeRule,
    pub(super) facts: ParamFacts,
    pub(super) state: Vec<Tensor>,
    pub(super) master: Option<Tensor>,
    pub(super) step: u64,
}

impl Run {
    /// All states zero, before the first step.
    pub(super) fn new(config: WholeRuleConfig, facts: ParamFacts, dtype: Kind) -> Self {
        let rule = config.build().unwrap();
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (dtype, Device::Cpu));
        let state = rule.state_specs(&facts).iter().map(|spec| zeros(&spec.shape)).collect();
        Self { rule, facts, state, master: None, step: 0 }
    }

    /// The next update with this learning rate, and neither scale nor decay.
    pub(super) fn update(&mut self, grad: &Tensor, lr: f64) -> Tensor {
        self.try_update(grad, lr).unwrap()
    }

    pub(super) fn try_update(&mut self, grad: &Tensor, lr: f64) -> Result<Tensor> {
        self.step += 1;
        let group = Group { lr_multiplier: 1.0, weight_decay_multiplier: 0.0 };
        let scalars = self.rule.scalars(&group, lr, 1.0, self.step);
        let Self { rule, facts, state, master, .. } = self;
        rule.update(WholeTensors { grad, master: master.as_ref(), state }, facts, &scalars)
    }
}

/// Every rule with its defaults, but for Adafactor's master.
fn all() -> [WholeRuleConfig; 6] {
    let plain = AdafactorConfig { step_scale: StepScale::Plain, ..AdafactorConfig::default() };
    [
        WholeRuleConfig::Adafactor(plain),
        WholeRuleConfig::Came(CameConfig::default()),
        WholeRuleConfig::AdamMini(AdamMiniConfig::default()),
        WholeRuleConfig::Muon(MuonConfig::default()),
        WholeRuleConfig::Galore(GaloreConfig::default()),
        WholeRuleConfig::Soap(SoapConfig::default()),
    ]
}

#[test]
fn names_and_states_never_change() {
    let mut found = Vec::new();
    for config in all() {
        let rule = config.build().unwrap();
        let specs = |facts: &ParamFacts| -> Vec<_> {
            let specs = rule.state_specs(facts);
            specs.iter().map(|spec| format!("{} {:?}", spec.kind.name(), spec.shape)).collect()
        };
        let bias = ParamFacts::new(&[5], Role::Bias, Orientation::OutIn);
        found.push(format!("{} {:?} {:?}", rule.name(), specs(&matrix(200, 300)), specs(&bias)));
    }
    let expected = [
        r#"adafactor ["exp_avg_sq_row [200]", "exp_avg_sq_col [300]"] ["exp_avg_sq [5]"]"#,
        r#"came ["exp_avg [200, 300]", "exp_avg_sq_row [200]", "exp_avg_sq_col [300]", "exp_avg_res_row [200]", "exp_avg_res_col [300]"] ["exp_avg [5]", "exp_avg_sq [5]"]"#,
        r#"adam_mini ["exp_avg [200, 300]", "exp_avg_sq_block [200]"] ["exp_avg [5]", "exp_avg_sq_block [5]"]"#,
        r#"muon ["momentum_buffer [200, 300]"] []"#,
        r#"galore ["projector [200, 128]", "exp_avg_projected [128, 300]", "exp_avg_sq_projected [128, 300]"] []"#,
        r#"soap ["exp_avg_rotated [200, 300]", "exp_avg_sq_rotated [200, 300]", "covariance_left [200, 200]", "basis_left [200, 200]", "covariance_right [300, 300]", "basis_right [300, 300]"] []"#,
    ];
    assert_eq!(found, expected);
}

/// The README's column: f32 state bytes a parameter of a 768 x 3072 matrix.
#[test]
fn state_bytes_are_those_of_the_readme() {
    let facts = matrix(3072, 768);
    let bytes = all().map(|config| {
        let specs = config.build().unwrap().state_specs(&facts);
        let numel: i64 = specs.iter().map(super::WholeStateSpec::numel).sum();
        (400.0 * numel as f64 / facts.numel() as f64).round() / 100.0
    });
    assert_eq!(bytes, [0.01, 4.01, 4.01, 4.0, 1.5, 42.0]);
}

#[test]
fn matrix_rules_leave_the_rest_to_others() {
    let embedding = ParamFacts::new(&[50, 8], Role::Embedding, Orientation::OutIn);
    let norm = ParamFacts::new(&[8], Role::Norm, Orientation::OutIn);
    for config in all() {
        let rule = config.build().unwrap();
        let takes_all = ["adafactor", "came", "adam_mini"].contains(&rule.name());
        assert!(rule.takes(&matrix(4, 8)));
        assert_eq!(rule.takes(&embedding), takes_all);
        assert_eq!(rule.takes(&norm), takes_all);
        let after = ["galore", "soap"].contains(&rule.name());
        assert_eq!(rule.decay_order() == DecayOrder::After, after);
        if !takes_all {
            let text = Run::new(config, norm.clone(), Kind::Float).try_update(&noise(&[8], 0), 0.1);
            let text = text.unwrap_err().to_string();
            let start = format!("rule {} does not take a parameter of shape [8] and", rule.name());
            assert!(text.starts_with(&start), "{text}");
        }
    }
}

#[test]
fn an_update_depends_on_values_only() {
    for config in all() {
        let facts = matrix(12, 8);
        let mut run = Run::new(config, facts.clone(), Kind::Float);
        let mut viewed = Run::new(config, facts, Kind::Float);
        // States as parts of one flat buffer, gradients flat.
        let specs = viewed.rule.state_specs(&viewed.facts);
        let total: i64 = specs.iter().map(super::WholeStateSpec::numel).sum();
        let buffer = Tensor::zeros([total], (Kind::Float, Device::Cpu));
        let mut start = 0;
        for (spec, state) in specs.iter().zip(&mut viewed.state) {
            *state = buffer.narrow(0, start, spec.numel()).view(&spec.shape[..]);
            start += spec.numel();
        }
        for seed in 1..=12 {
            let grad = noise(&[12, 8], seed).to_kind(Kind::Float);
            let copy = grad.copy();
            let first = run.update(&grad, 0.01);
            let second = viewed.update(&grad.view(-1), 0.01);
            assert_eq!(first, second, "{}", run.rule.name());
            assert_eq!(grad, copy, "{} wrote its gradient", run.rule.name());
            assert_eq!(first.kind(), Kind::Float);
        }
        for (one, other) in run.state.iter().zip(&viewed.state) {
            assert_eq!(one, other, "{}", run.rule.name());
        }
        assert!(buffer.abs().max().double_value(&[]) > 0.0, "states were written in place");
    }
}

#[test]
fn a_zero_gradient_moves_nothing() {
    for config in all() {
        let mut run = Run::new(config, matrix(6, 9), Kind::Float);
        for _ in 0..3 {
            let update = run.update(&Tensor::zeros([6, 9], (Kind::Float, Device::Cpu)), 0.1);
            let largest = update.abs().max().double_value(&[]);
            assert!(largest == 0.0, "{}: {largest}", run.rule.name());
        }
    }
}

#[test]
fn what_does_not_fit_is_named_before_anything_is_written() {
    for config in all() {
        let mut run = Run::new(config, matrix(4, 8), Kind::Float);
        let mut refused =
            |grad: &Tensor, lr: f64| run.try_update(grad, lr).unwrap_err().to_string();
        let text = refused(&noise(&[8, 4], 0).to_kind(Kind::Float), 0.1);
        assert!(text.starts_with("tensor grad of a whole-matrix update: expected shape [4, 8]"));
        let text = refused(&noise(&[4, 8], 0).to_kind(Kind::BFloat16), 0.1);
        assert!(text.contains("a gradient of dtype BFloat16"), "{text}");
        // f64 gradient, f32 state.
        let text = refused(&noise(&[4, 8], 0), 0.1);
        assert!(text.contains("dtype Float and a gradient of dtype Double"), "{text}");
        let text = refused(&noise(&[4, 8], 0).to_kind(Kind::Float), f64::NAN);
        assert_eq!(text, "the lr of an update is NaN: expected 0 <= lr < inf");
        assert!(run.state.iter().all(|state| state.abs().max().double_value(&[]) == 0.0));
        let removed = run.state.pop().unwrap();
        let text = run.try_update(&noise(&[4, 8], 0).to_kind(Kind::Float), 0.1).unwrap_err();
        assert!(text.to_string().contains("state tensors for this parameter"), "{text}");
        run.state.push(removed.transpose(0, -1).unsqueeze(0));
        let text = run.try_update(&noise(&[4, 8], 0).to_kind(Kind::Float), 0.1).unwrap_err();
        assert!(text.to_string().contains("found shape [1, "), "{text}");
    }
}

#[test]
fn a_missing_master_and_wrong_parts_are_named() {
    let config = WholeRuleConfig::Adafactor(AdafactorConfig::default());
    assert!(config.build().unwrap().needs_master());
    let text = Run::new(config, matrix(4, 8), Kind::Double).try_update(&noise(&[4, 8], 0), 0.1);
    let text = text.unwrap_err().to_string();
    assert!(text.starts_with("rule adafactor reads the master parameter"), "{text}");
    let parts = vec![Part { num_outputs: 4, outputs_per_block: 3 }];
    let config = WholeRuleConfig::AdamMini(AdamMiniConfig::default());
    let mut run = Run::new(config, matrix(4, 8).with_parts(parts), Kind::Double);
    let text = run.try_update(&noise(&[4, 8], 0), 0.1).unwrap_err().to_string();
    assert!(text.contains("do not make up its 4 outputs"), "{text}");
}

#[test]
fn the_gradients_scale_comes_first() {
    let grad = noise(&[4, 8], 3);
    let rule = WholeRuleConfig::AdamMini(AdamMiniConfig::default()).build().unwrap();
    let facts = matrix(4, 8);
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    let firsts = [0.25, 1.0].map(|grad_scale| {
        let group = Group { lr_multiplier: 1.0, weight_decay_multiplier: 0.0 };
        let scalars: Scalars = rule.scalars(&group, 0.1, grad_scale, 1);
        let mut state = vec![zeros(&[4, 8]), zeros(&[4])];
        let grad = &grad * (0.25 / grad_scale);
        let tensors = WholeTensors { grad: &grad, master: None, state: &mut state };
        let _ = rule.update(tensors, &facts, &scalars).unwrap();
        state.swap_remove(0)
    });
    assert_eq!(firsts[0], firsts[1]);
}
