//! What a parameter is for, and what that changes in its update.

use crate::rule::Rule;

/// What a parameter is for. The model tags each of its parameters with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A weight matrix inside a block.
    Matrix,
    /// A table with a row a token (or a position); also when the head is tied to it.
    Embedding,
    /// A gain of a normalization.
    Norm,
    /// Any additive bias.
    Bias,
    /// The output matrix, where it is not tied to the embedding.
    Head,
    /// A single learned number: a gain of a residual branch, or a bias before a layer.
    Scalar,
}

/// How the updates of one role differ from the run's learning rate and weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Factor on the scheduled learning rate. Default 1.
    pub lr_multiplier: f64,
    /// Factor on the rule's weight decay. Default 0 for norms, biases and scalars (nanoGPT's rule:
    /// only what has two dimensions decays), else 1.
    pub weight_decay_multiplier: f64,
}

/// One group for each role.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Groups {
    /// Of [`Role::Matrix`].
    pub matrix: Group,
    /// Of [`Role::Embedding`].
    pub embedding: Group,
    /// Of [`Role::Norm`].
    pub norm: Group,
    /// Of [`Role::Bias`].
    pub bias: Group,
    /// Of [`Role::Head`].
    pub head: Group,
    /// Of [`Role::Scalar`].
    pub scalar: Group,
}

impl Groups {
    /// The group of a role.
    pub fn of(&self, role: Role) -> &Group {
        match role {
            Role::Matrix => &self.matrix,
            Role::Embedding => &self.embedding,
            Role::Norm => &self.norm,
            Role::Bias => &self.bias,
            Role::Head => &self.head,
            Role::Scalar => &self.scalar,
        }
    }
}

impl Default for Groups {
    fn default() -> Self {
        let decayed = Group { lr_multiplier: 1.0, weight_decay_multiplier: 1.0 };
        let kept = Group { weight_decay_multiplier: 0.0, ..decayed };
        let (matrix, embedding, head) = (decayed, decayed, decayed);
        Self { matrix, embedding, norm: kept, bias: kept, head, scalar: kept }
    }
}

/// One rule for each role: element-wise rules may be mixed in one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Of [`Role::Matrix`].
    pub matrix: Rule,
    /// Of [`Role::Embedding`].
    pub embedding: Rule,
    /// Of [`Role::Norm`].
    pub norm: Rule,
    /// Of [`Role::Bias`].
    pub bias: Rule,
    /// Of [`Role::Head`].
    pub head: Rule,
    /// Of [`Role::Scalar`].
    pub scalar: Rule,
}

impl Rules {
    /// The same rule for every role.
    pub fn all(rule: Rule) -> Self {
        Self { matrix: rule, embedding: rule, norm: rule, bias: rule, head: rule, scalar: rule }
    }

    /// The rule of a role.
    pub fn of(&self, role: Role) -> &Rule {
        match role {
            Role::Matrix => &self.matrix,
            Role::Embedding => &self.embedding,
            Role::Norm => &self.norm,
            Role::Bias => &self.bias,
            Role::Head => &self.head,
            Role::Scalar => &self.scalar,
        }
    }

    /// The rule of every role, in the order of [`Role`].
    pub fn each(&self) -> [&Rule; 6] {
        [&self.matrix, &self.embedding, &self.norm, &self.bias, &self.head, &self.scalar]
    }
}

impl From<Rule> for Rules {
    fn from(rule: Rule) -> Self {
        Self::all(rule)
    }
}

#[cfg(test)]
mod tests;
