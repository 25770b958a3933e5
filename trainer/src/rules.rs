//! Which rule updates which parameter.

use std::collections::BTreeMap;

use grove_optim::{ParamFacts, Role, Rule, Rules as ByRole, StateSpec, WholeRule};

use crate::model::units::ParamSpec;

/// The update rules of a run.
#[derive(Clone, Debug)]
pub struct Rules {
    /// For parameters that are updated an element at a time.
    pub element_wise: ByRole,
    /// For those that their rule needs whole, if there are any.
    pub whole: Option<WholeParams>,
}

/// A rule for whole parameters, with those that it takes.
#[derive(Clone, Debug)]
pub struct WholeParams {
    /// The rule.
    pub rule: WholeRule,
    /// What it takes, by name.
    pub facts: BTreeMap<String, ParamFacts>,
    /// Factor on the learning rate of all other parameters.
    pub rest_lr_ratio: f64,
}

impl Rules {
    /// One rule for all parameters, an element at a time.
    pub fn all(rule: Rule) -> Self {
        Self { element_wise: ByRole::all(rule), whole: None }
    }

    /// The rule of a role's parameters that are not taken whole.
    pub fn of(&self, role: Role) -> &Rule {
        self.element_wise.of(role)
    }

    /// A rule with the parameters that it takes among `facts`; the rest goes to `element_wise`,
    /// at `rest_lr_ratio` times the learning rate.
    pub fn whole(
        rule: WholeRule,
        facts: BTreeMap<String, ParamFacts>,
        (element_wise, rest_lr_ratio): (ByRole, f64),
    ) -> Self {
        let facts = facts.into_iter().filter(|(_, facts)| rule.takes(facts)).collect();
        Self { element_wise, whole: Some(WholeParams { rule, facts, rest_lr_ratio }) }
    }

    /// The facts of a parameter that its rule needs whole.
    pub fn taken_whole(&self, param: &ParamSpec) -> Option<(&WholeRule, &ParamFacts)> {
        let whole = self.whole.as_ref()?;
        Some((&whole.rule, whole.facts.get(&param.name)?))
    }

    /// The flat states of a parameter: none for one that is taken whole.
    pub fn state_specs(&self, param: &ParamSpec) -> &'static [StateSpec] {
        match self.taken_whole(param) {
            Some(_) => &[],
            None => {
                let numel: i64 = param.shape.iter().product();
                self.of(param.role).state_specs(numel as usize)
            }
        }
    }

    /// Factor on the learning rate of parameters that are not taken whole.
    pub fn rest_lr_ratio(&self) -> f64 {
        self.whole.as_ref().map_or(1.0, |whole| whole.rest_lr_ratio)
    }
}
