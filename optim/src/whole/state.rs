//! The state tensors of whole-matrix rules: names, which never change, and shapes.

/// What a state tensor of a whole-matrix rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WholeStateKind {
    /// Moving average of the gradient, of its update (CAME), in the parameter's own coordinates.
    FirstMoment,
    /// Moving average of the squared gradient, an element each.
    SecondMoment,
    /// Moving average of each row's mean squared gradient.
    SecondMomentRow,
    /// Moving average of each column's mean squared gradient.
    SecondMomentCol,
    /// Moving average of each row's mean instability (CAME).
    InstabilityRow,
    /// Moving average of each column's mean instability (CAME).
    InstabilityCol,
    /// Moving average of each block's mean squared gradient (Adam-mini).
    SecondMomentBlock,
    /// Muon's momentum.
    Momentum,
    /// The singular vectors that `GaLore` projects on.
    Projector,
    /// Moving average of the projected gradient.
    ProjectedFirstMoment,
    /// Moving average of the squared projected gradient.
    ProjectedSecondMoment,
    /// Moving average of the gradient in SOAP's bases.
    RotatedFirstMoment,
    /// Moving average of the squared gradient in SOAP's bases.
    RotatedSecondMoment,
    /// Moving average of `g g^T`.
    CovarianceLeft,
    /// Moving average of `g^T g`.
    CovarianceRight,
    /// Eigenvectors of [`WholeStateKind::CovarianceLeft`], one a column.
    BasisLeft,
    /// Eigenvectors of [`WholeStateKind::CovarianceRight`], one a column.
    BasisRight,
}

impl WholeStateKind {
    /// The name in checkpoints, which never changes.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstMoment => "exp_avg",
            Self::SecondMoment => "exp_avg_sq",
            Self::SecondMomentRow => "exp_avg_sq_row",
            Self::SecondMomentCol => "exp_avg_sq_col",
            Self::InstabilityRow => "exp_avg_res_row",
            Self::InstabilityCol => "exp_avg_res_col",
            Self::SecondMomentBlock => "exp_avg_sq_block",
            Self::Momentum => "momentum_buffer",
            Self::Projector => "projector",
            Self::ProjectedFirstMoment => "exp_avg_projected",
            Self::ProjectedSecondMoment => "exp_avg_sq_projected",
            Self::RotatedFirstMoment => "exp_avg_rotated",
            Self::RotatedSecondMoment => "exp_avg_sq_rotated",
            Self::CovarianceLeft => "covariance_left",
            Self::CovarianceRight => "covariance_right",
            Self::BasisLeft => "basis_left",
            Self::BasisRight => "basis_right",
        }
    }
}

/// One state tensor of one parameter: all zeros before the first update, in the gradient's dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeStateSpec {
    /// What it holds.
    pub kind: WholeStateKind,
    /// Its shape.
    pub shape: Vec<i64>,
}

impl WholeStateSpec {
    /// A state tensor of this kind and shape.
    pub(crate) fn new(kind: WholeStateKind, shape: &[i64]) -> Self {
        Self { kind, shape: shape.to_vec() }
    }

    /// Number of elements.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}
