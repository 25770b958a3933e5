//! Numbers and ranges of the rules that need parameters whole.

use grove_optim::{AdamW, Error};

use super::super::plan::{RestPlan, Rule, Scaling};
use super::super::run_config::OptimTable;
use super::optim::take;
use super::{Problems, Shown};

/// Muon's learning rate at its original scaling, which suits nothing but matrices.
const ORIGINAL_MUON_LR: f64 = 2e-2;

/// Puts what the table has in the place of a rule's usual numbers; other rules stay.
///
/// What a rule does not take gets the rule's own learning rate and decay, and its betas and eps
/// where it has them, as in the code of `GaLore` and SOAP; with Muon's original scaling `AdamW`'s
/// learning rate. `[optim.rest]` overrides each.
pub(super) fn fill(rule: &mut Rule, table: &OptimTable, (lr, weight_decay): (f64, f64)) {
    let rest = RestPlan { lr, weight_decay, ..RestPlan::USUAL };
    match rule {
        Rule::Adafactor(plan) => {
            take(&mut plan.decay_power, table.decay_power);
            take(&mut plan.eps1, table.eps1);
            take(&mut plan.eps2, table.eps2);
            take(&mut plan.clip_threshold, table.clip_threshold);
            take(&mut plan.step_scale, table.step_scale);
        }
        Rule::Came(plan) => {
            take(&mut plan.betas, table.betas);
            take(&mut plan.beta3, table.beta3);
            take(&mut plan.eps1, table.eps1);
            take(&mut plan.eps2, table.eps2);
            take(&mut plan.clip_threshold, table.clip_threshold);
        }
        Rule::AdamMini(plan) => {
            take(&mut plan.betas, table.betas);
            take(&mut plan.eps, table.eps);
        }
        Rule::Muon(plan) => {
            take(&mut plan.momentum, table.momentum);
            take(&mut plan.nesterov, table.nesterov);
            take(&mut plan.num_iterations, table.num_iterations);
            take(&mut plan.scaling, table.scaling);
            take(&mut plan.products, table.products);
            let lr = if plan.scaling == Scaling::Original { RestPlan::USUAL.lr } else { lr };
            plan.rest = written(RestPlan { lr, ..rest }, table);
        }
        Rule::Galore(plan) => {
            take(&mut plan.rank, table.rank);
            take(&mut plan.refresh_every, table.refresh_every);
            take(&mut plan.scale, table.scale);
            take(&mut plan.betas, table.betas);
            take(&mut plan.eps, table.eps);
            plan.rest = written(RestPlan { betas: plan.betas, eps: plan.eps, ..rest }, table);
        }
        Rule::Soap(plan) => {
            take(&mut plan.betas, table.betas);
            take(&mut plan.covariance_beta, table.covariance_beta);
            take(&mut plan.eps, table.eps);
            take(&mut plan.refresh_every, table.refresh_every);
            take(&mut plan.max_basis_dim, table.max_basis_dim);
            plan.rest = written(RestPlan { betas: plan.betas, eps: plan.eps, ..rest }, table);
        }
        _ => {}
    }
}

/// The learning rate of a file that sets none, where it is not the rule's usual one.
pub(super) fn default_lr(table: &OptimTable, usual: f64) -> f64 {
    if table.scaling == Some(Scaling::Original) { ORIGINAL_MUON_LR } else { usual }
}

/// `[optim.rest]` over its defaults.
fn written(mut rest: RestPlan, table: &OptimTable) -> RestPlan {
    take(&mut rest.lr, table.rest.lr);
    take(&mut rest.betas, table.rest.betas);
    take(&mut rest.eps, table.rest.eps);
    take(&mut rest.weight_decay, table.rest.weight_decay);
    rest
}

/// Asks the optimizer room, which knows the ranges.
pub(super) fn check(rule: &Rule, weight_decay: f64, problems: &mut Problems) {
    let Some(config) = rule.whole(weight_decay) else { return };
    problems.require_in_range(config.build().err(), "optim.");
    if let Some(rest) = rule.rest() {
        problems.require_positive("optim.rest.lr", rest.lr, "use a number such as 3e-4");
        problems.require_in_range(AdamW::new(rest.config()).err(), "optim.rest.");
    }
}

impl Problems {
    /// Notes a hyper-parameter that the optimizer room refused, whose key begins with `prefix`.
    fn require_in_range(&mut self, refused: Option<Error>, prefix: &str) {
        if let Some(Error::OutOfRange { key, value, expected, usual }) = refused {
            let leaf = key.strip_prefix("optim.").unwrap_or(&key);
            let problem = format!("is out of range, expected {expected}");
            let remedy = format!("use {usual:?}, say");
            self.require(false, &format!("{prefix}{leaf}"), Shown(value), problem, remedy);
        }
    }
}
