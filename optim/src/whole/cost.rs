//! What an update of a whole parameter costs, to share parameters out among ranks.

use super::facts::ParamFacts;
use super::{Galore, Muon, Soap, WholeRule};

/// Operations that an element of a pass over memory counts as: a pass is bound by memory.
const PASS: u128 = 32;

impl WholeRule {
    /// About how many floating-point operations an update of the parameter takes on average: an
    /// integer that follows from rule and shapes alone, so that all ranks weigh alike.
    ///
    /// Worked number: Muon, five iterations, a 1024 x 4096 matrix: `5 (4 1024^2 4096 + 2 1024^3)`,
    /// 96.6e9, and 134e6 for the passes over memory.
    pub fn cost(&self, facts: &ParamFacts) -> u128 {
        let [rows, cols] = facts.matrix().unwrap_or([facts.numel(), 1]).map(size);
        let passes = rows * cols * PASS;
        passes
            + match self {
                Self::Adafactor(_) | Self::Came(_) | Self::AdamMini(_) => 0,
                Self::Muon(rule) => muon(rule, facts, [rows, cols]),
                Self::Galore(rule) => galore(rule, [rows, cols]),
                Self::Soap(rule) => soap(rule, [rows, cols]),
            }
    }
}

/// Products of each part with its own transpose, and of that with itself and the part.
fn muon(rule: &Muon, facts: &ParamFacts, [rows, cols]: [u128; 2]) -> u128 {
    let inputs = rows * cols / size(facts.num_outputs());
    let of_part = |outputs: i64| {
        let (small, large) = (size(outputs).min(inputs), size(outputs).max(inputs));
        4 * small * small * large + 2 * small * small * small
    };
    let products: u128 = facts.parts.iter().map(|part| of_part(part.num_outputs)).sum();
    u128::from(rule.config().num_iterations) * products
}

/// Two projections, and now and then a decomposition (Golub and Van Loan 2013, section 8.6).
fn galore(rule: &Galore, [rows, cols]: [u128; 2]) -> u128 {
    let config = rule.config();
    let (small, large) = (rows.min(cols), rows.max(cols));
    let rank = u128::from(config.rank).min(small);
    let decomposition = 14 * small * small * large + 8 * small * small * small;
    4 * rows * cols * rank + decomposition / u128::from(config.refresh_every)
}

/// For each side with a basis: into it, out of it, the covariance, and now and then a QR.
fn soap(rule: &Soap, [rows, cols]: [u128; 2]) -> u128 {
    let config = rule.config();
    let side = |long: u128, other: u128| {
        if long > u128::from(config.max_basis_dim) {
            return 0;
        }
        let refresh = 10 * long * long * long / u128::from(config.refresh_every);
        6 * long * long * other + refresh
    };
    side(rows, cols) + side(cols, rows)
}

fn size(numel: i64) -> u128 {
    u128::try_from(numel).unwrap_or(0)
}
