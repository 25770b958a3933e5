//! What a parameter is for, and what that changes in its update.

use crate::error::{Result, require};
use serde::{Deserialize, Serialize};

/// What a parameter is for. The model tags each of its parameters with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
}

impl Role {
    /// Every role, in a fixed order.
    pub const ALL: [Self; 5] = [Self::Matrix, Self::Embedding, Self::Norm, Self::Bias, Self::Head];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Matrix => "matrix",
            Self::Embedding => "embedding",
            Self::Norm => "norm",
            Self::Bias => "bias",
            Self::Head => "head",
        }
    }
}

/// How the updates of one role differ from the run's learning rate and weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Factor on the scheduled learning rate. Default 1.
    pub lr_multiplier: f64,
    /// Factor on the rule's weight decay. Default 0 for norms and biases (nanoGPT's rule: only
    /// what has two dimensions decays), else 1.
    pub weight_decay_multiplier: f64,
}

/// `[optim.groups.<role>]`: one group for each role; a key left out keeps its role's default.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "GroupsOverride")]
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
        }
    }

    /// Checks that every multiplier is finite and not negative.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the key under `optim.groups`.
    pub fn validate(&self) -> Result<()> {
        for role in Role::ALL {
            let group = self.of(role);
            let check = |name: &str, value: f64, expected, usual| {
                let key = format!("groups.{}.{name}", role.name());
                require(value >= 0.0 && value.is_finite(), &key, value, expected, usual)
            };
            check("lr_multiplier", group.lr_multiplier, "0 <= lr_multiplier < inf", 1.0)?;
            check(
                "weight_decay_multiplier",
                group.weight_decay_multiplier,
                "0 <= weight_decay_multiplier < inf",
                default_group(role).weight_decay_multiplier,
            )?;
        }
        Ok(())
    }
}

impl Default for Groups {
    fn default() -> Self {
        GroupsOverride::default().into()
    }
}

fn default_group(role: Role) -> Group {
    let decays = !matches!(role, Role::Norm | Role::Bias);
    Group { lr_multiplier: 1.0, weight_decay_multiplier: f64::from(u8::from(decays)) }
}

/// A group as a file writes it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GroupOverride {
    lr_multiplier: Option<f64>,
    weight_decay_multiplier: Option<f64>,
}

/// The groups as a file writes them.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GroupsOverride {
    matrix: GroupOverride,
    embedding: GroupOverride,
    norm: GroupOverride,
    bias: GroupOverride,
    head: GroupOverride,
}

impl From<GroupsOverride> for Groups {
    fn from(file: GroupsOverride) -> Self {
        let resolve = |group: GroupOverride, role| {
            let default = default_group(role);
            Group {
                lr_multiplier: group.lr_multiplier.unwrap_or(default.lr_multiplier),
                weight_decay_multiplier: group
                    .weight_decay_multiplier
                    .unwrap_or(default.weight_decay_multiplier),
            }
        };
        Self {
            matrix: resolve(file.matrix, Role::Matrix),
            embedding: resolve(file.embedding, Role::Embedding),
            norm: resolve(file.norm, Role::Norm),
            bias: resolve(file.bias, Role::Bias),
            head: resolve(file.head, Role::Head),
        }
    }
}

#[cfg(test)]
mod tests;
