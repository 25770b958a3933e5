//! Defaults and ranges of the rules that need parameters whole.

use grove_optim::{AdamW, Error, WholeRuleConfig};

use super::super::plan::{
    AdafactorPlan, AdamMiniPlan, CamePlan, GalorePlan, MuonPlan, Products, RestPlan, Rule, Scaling,
    SoapPlan, StepScale,
};
use super::super::run_config::{OptimTable, WholeRuleName};
use super::{Problems, Shown};

/// `AdamW`'s usual learning rate and betas, for what a rule does not take.
const ADAMW_LR: f64 = 3e-4;
const ADAMW_BETAS: [f64; 2] = [0.9, 0.95];

/// A rule with its learning rate and weight decay, all of them as written or by default: those of
/// the rules' papers, their authors' code, or (Adafactor) torch.
///
/// What a rule does not take gets the rule's own learning rate, decay, betas and eps where it has
/// them, as in the code of `GaLore` and SOAP; with Muon's original scaling, whose learning rate
/// suits nothing else, `AdamW`'s.
pub(super) fn resolve(
    table: &OptimTable,
    wanted: WholeRuleName,
    problems: &mut Problems,
) -> (Rule, f64, f64) {
    let scaling = table.scaling.unwrap_or(Scaling::MatchRmsAdamw);
    let (default_lr, default_decay) = match wanted {
        WholeRuleName::Adafactor | WholeRuleName::Galore => (1e-2, 0.0),
        WholeRuleName::Came => (2e-4, 0.0),
        WholeRuleName::AdamMini => (ADAMW_LR, 0.1),
        WholeRuleName::Muon if scaling == Scaling::Original => (2e-2, 0.1),
        WholeRuleName::Muon => (ADAMW_LR, 0.1),
        WholeRuleName::Soap => (3e-3, 0.01),
    };
    let lr = table.lr.unwrap_or(default_lr);
    let weight_decay = table.weight_decay.unwrap_or(default_decay);
    let rule = rule(table, (wanted, scaling), (lr, weight_decay));
    let config = rule.whole(weight_decay).expect("each of these rules has one");
    check(&config, rule.rest(), problems);
    (rule, lr, weight_decay)
}

fn rule(
    table: &OptimTable,
    (wanted, scaling): (WholeRuleName, Scaling),
    (lr, weight_decay): (f64, f64),
) -> Rule {
    let betas = |default| table.betas.unwrap_or(default);
    let eps = |default| table.eps.unwrap_or(default);
    let rest = |lr: f64, betas, eps| {
        let rest = &table.rest;
        RestPlan {
            lr: rest.lr.unwrap_or(lr),
            betas: rest.betas.unwrap_or(betas),
            eps: rest.eps.unwrap_or(eps),
            weight_decay: rest.weight_decay.unwrap_or(weight_decay),
        }
    };
    match wanted {
        WholeRuleName::Adafactor => Rule::Adafactor(AdafactorPlan {
            decay_power: table.decay_power.unwrap_or(0.8),
            eps1: table.eps1.unwrap_or(1e-18),
            eps2: table.eps2.unwrap_or(1e-3),
            clip_threshold: table.clip_threshold.unwrap_or(1.0),
            step_scale: table.step_scale.unwrap_or(StepScale::Relative),
        }),
        WholeRuleName::Came => Rule::Came(CamePlan {
            betas: betas([0.9, 0.999]),
            beta3: table.beta3.unwrap_or(0.9999),
            eps1: table.eps1.unwrap_or(1e-30),
            eps2: table.eps2.unwrap_or(1e-16),
            clip_threshold: table.clip_threshold.unwrap_or(1.0),
        }),
        WholeRuleName::AdamMini => {
            Rule::AdamMini(AdamMiniPlan { betas: betas(ADAMW_BETAS), eps: eps(1e-8) })
        }
        WholeRuleName::Muon => Rule::Muon(MuonPlan {
            momentum: table.momentum.unwrap_or(0.95),
            nesterov: table.nesterov.unwrap_or(true),
            num_iterations: table.num_iterations.unwrap_or(5),
            scaling,
            products: table.products.unwrap_or(Products::Master),
            rest: match scaling {
                Scaling::Original => rest(ADAMW_LR, ADAMW_BETAS, 1e-8),
                Scaling::MatchRmsAdamw => rest(lr, ADAMW_BETAS, 1e-8),
            },
        }),
        WholeRuleName::Galore => Rule::Galore(GalorePlan {
            rank: table.rank.unwrap_or(128),
            refresh_every: table.refresh_every.unwrap_or(200),
            scale: table.scale.unwrap_or(0.25),
            betas: betas([0.9, 0.999]),
            eps: eps(1e-6),
            rest: rest(lr, betas([0.9, 0.999]), eps(1e-6)),
        }),
        WholeRuleName::Soap => Rule::Soap(SoapPlan {
            betas: betas([0.95, 0.95]),
            covariance_beta: table.covariance_beta.unwrap_or(0.95),
            eps: eps(1e-8),
            refresh_every: table.refresh_every.unwrap_or(10),
            max_basis_dim: table.max_basis_dim.unwrap_or(10_000),
            rest: rest(lr, betas([0.95, 0.95]), eps(1e-8)),
        }),
    }
}

/// Asks the optimizer room, which knows the ranges.
fn check(config: &WholeRuleConfig, rest: Option<&RestPlan>, problems: &mut Problems) {
    problems.require_in_range(config.build().err(), "optim.");
    if let Some(rest) = rest {
        problems.require_positive("optim.rest.lr", rest.lr, "use a number such as 3e-4");
        problems.require_in_range(AdamW::new(rest.config()).err(), "optim.rest.");
    }
}

impl Problems {
    /// Notes a hyper-parameter that the optimizer room refused, whose key begins with `prefix`.
    fn require_in_range(&mut self, refused: Option<Error>, prefix: &str) {
        if let Some(Error::OutOfRange { key, value, expected, usual }) = refused {
            let key =
                key.strip_prefix("optim.").map_or(key.clone(), |key| format!("{prefix}{key}"));
            let problem = format!("is out of range, expected {expected}");
            self.require(false, &key, Shown(value), problem, format!("use {usual:?}, say"));
        }
    }
}
