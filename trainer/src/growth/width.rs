//! Wider models: one operator for the residual stream, the MLP and the heads, divisible or not.
//!
//! With `k` copies of each of D residual channels, `r` channels of residue and `s = k D / D'`: norm
//! weights take `sqrt(s)` and the norm's epsilon `s`, readers' columns are split so that the copies
//! of a channel sum to its old column, writers' rows are copied, and the residue of the stream is
//! kept at zero (RMSNorm) or at the mean of the channels (LayerNorm), which leaves the statistics
//! of the norm as they were. A tied head counts a channel `k` times, so its norm's weight and bias
//! are divided by `k`. In real arithmetic the function is the same for every input.
//!
//! Equal split: Chen et al. 2016 (Net2Net), arXiv:1511.05641, section 2.2; Chen et al. 2022
//! (bert2BERT, FPI), arXiv:2110.07143, eq. 4. Uneven split: Wang et al. 2023 (LEMON),
//! arXiv:2310.07999, section 4. AKI: bert2BERT, section 3.3. The general residue, `sqrt(s)` and
//! `s eps` are ours; trainer/src/growth/README.md derives them.

use grove_optim::StateKind;
use tch::{Kind, Tensor};

use super::anatomy::{Anatomy, At, Axis, NormPlace, Part};
use super::axis::AxisMap;
use super::noise::normal;
use super::parts::{Nature, Parts, Plane};
use crate::config::{ResidualGrowth, WidthGrowth};
use crate::model::config::{DecoderSpec, ModelConfig, NormKind};

/// Deviation of the residue columns of readers, as a part of that of initial weights: their input
/// is zero at first, and with columns of zero the residue would never get a gradient.
const RESIDUE_COLUMNS: f64 = 0.1;

/// How a model is widened.
#[derive(Clone, Copy, Debug)]
pub struct WidthOptions {
    /// How copies share what they read, and where added rows come from.
    pub split: WidthGrowth,
    /// What new residual channels hold.
    pub residual: ResidualGrowth,
    /// Deviation of an uneven split, as a part of that of initial weights.
    pub split_std: f64,
    /// What random numbers are keyed by.
    pub seed: u64,
}

/// A model widened from another.
pub struct Width<'a> {
    source: Box<dyn Parts + 'a>,
    old: DecoderSpec,
    config: ModelConfig,
    names: Anatomy,
    options: WidthOptions,
    residual: AxisMap,
    hidden: AxisMap,
    queries: AxisMap,
    keys: AxisMap,
    /// `k`, the copies of a residual channel.
    copies: f64,
    /// `s = k D / D'`.
    scale: f64,
}

/// `k` and `s` of a residual stream of `old` channels that becomes one of `new`.
///
/// Worked: 4 to 10 by copies has `k = 2`, `s = 0.8`; padded `k = 1`, `s = 0.4`.
pub fn copies_and_scale(old: usize, new: usize, residual: ResidualGrowth) -> (f64, f64) {
    let copies = match residual {
        ResidualGrowth::Copy => new / old,
        ResidualGrowth::ZeroPad => 1,
    };
    (copies as f64, (copies * old) as f64 / new as f64)
}

impl<'a> Width<'a> {
    /// Widens `source` to the widths, heads and epsilon of `config`; all else is as in `source`.
    /// `None` if the heads do not map.
    pub fn new(
        source: Box<dyn Parts + 'a>,
        config: ModelConfig,
        options: WidthOptions,
    ) -> Option<Self> {
        let (old, new) = (source.config().spec(), config.spec());
        let (old_heads, new_heads) =
            ((old.num_heads, old.num_kv_heads), (new.num_heads, new.num_kv_heads));
        let (keys, queries) = AxisMap::heads(old_heads, new_heads)?;
        let residual = match options.residual {
            ResidualGrowth::Copy => AxisMap::copies(old.hidden_size, new.hidden_size),
            ResidualGrowth::ZeroPad => AxisMap::padded(old.hidden_size, new.hidden_size),
        };
        let (copies, scale) = copies_and_scale(old.hidden_size, new.hidden_size, options.residual);
        Some(Self {
            hidden: AxisMap::cyclic(old.intermediate_size, new.intermediate_size),
            queries: queries.of_blocks(old.head_dim),
            keys: keys.of_blocks(old.head_dim),
            names: Anatomy::new(&config),
            source,
            old,
            config,
            options,
            residual,
            copies,
            scale,
        })
    }

    /// The map of an axis; `None` for those that width leaves alone.
    fn map(&self, axis: Axis) -> Option<&AxisMap> {
        let map = match axis {
            Axis::Vocabulary | Axis::Positions | Axis::One => return None,
            Axis::Residual => &self.residual,
            Axis::Queries => &self.queries,
            Axis::Keys => &self.keys,
            Axis::Hidden => &self.hidden,
        };
        (!map.is_identity()).then_some(map)
    }

    /// The old rows at the new places, without residue.
    fn rows(&self, at: At, plane: Plane) -> Tensor {
        let own = self.source.value(at, plane);
        let axis = at.part.axes().0;
        let Some(map) = self.map(axis) else { return own };
        let inside_block = axis != Axis::Residual;
        match (at.layer, self.options.split) {
            // Added rows are those of the next layer; the last layer has none.
            (Some(layer), WidthGrowth::Aki) if inside_block => {
                let next = At { layer: Some((layer + 1).min(self.old.num_layers - 1)), ..at };
                let both = Tensor::cat(&[own, self.source.value(next, plane)], 0);
                let is_added = map.ordinals().clamp(0, 1) * map.old_len() as i64;
                both.index_select(0, &(map.sources() + is_added))
            }
            _ => own.index_select(0, &map.sources()),
        }
    }

    fn weights(&self, at: At, rows: Tensor) -> Tensor {
        match at.part {
            Part::NormWeight(place) => {
                let scaled = rows * (self.scale.sqrt() / self.head_count(place));
                // Any value but zero would do: its input is zero.
                append(&scaled, 0, self.residual.residue_len(), Residue::Constant(1.0))
            }
            Part::NormBias(place) => {
                let scaled = rows / self.head_count(place);
                append(&scaled, 0, self.residual.residue_len(), Residue::Constant(0.0))
            }
            Part::Number(_) => rows,
            Part::Embedding | Part::Positions => self.stream_columns(rows),
            Part::Weight(_) | Part::Bias(_) | Part::Head => {
                let (row_axis, column_axis) = at.part.axes();
                let rows = match self.map(row_axis) {
                    Some(map) => append(&rows, 0, map.residue_len(), self.stream_residue()),
                    None => rows,
                };
                match column_axis {
                    Some(axis) => self.split_columns(at, rows, axis),
                    None => rows,
                }
            }
        }
    }

    /// Columns that write to the residual stream: copied, with the stream's residue.
    fn stream_columns(&self, rows: Tensor) -> Tensor {
        let copied = rows.index_select(1, &self.residual.sources());
        append(&copied, 1, self.residual.residue_len(), self.stream_residue())
    }

    /// Columns that read an axis: the copies of a column sum to it.
    fn split_columns(&self, at: At, rows: Tensor, axis: Axis) -> Tensor {
        let Some(map) = self.map(axis) else { return rows };
        let mut split = rows.index_select(1, &map.sources()) / map.multiplicities();
        if self.options.split == WidthGrowth::Uneven {
            split += self.unevenness(at, map, split.size()[0]);
        }
        let residue_len = map.residue_len();
        if residue_len == 0 {
            return split;
        }
        let std = self.old.initializer_range * RESIDUE_COLUMNS;
        let shape = [split.size()[0], residue_len as i64];
        let residue = normal(self.options.seed, &format!("{}/residue", self.name(at)), &shape, std);
        Tensor::cat(&[split, residue], 1)
    }

    /// Random numbers that sum to zero over the copies of a column.
    ///
    /// # Shapes
    /// Returns `[num_rows, copies]`, f64. Rows of residue are zero, so that a stream that must be
    /// zero is not zero by cancellation.
    fn unevenness(&self, at: At, map: &AxisMap, num_rows: i64) -> Tensor {
        let (sources, counts) = (map.sources(), map.multiplicities());
        let std = self.old.initializer_range * self.options.split_std;
        let shape = [num_rows, sources.size()[0]];
        let drawn = normal(self.options.seed, &format!("{}/split", self.name(at)), &shape, std);
        let zeros = Tensor::zeros([num_rows, map.old_len() as i64], (Kind::Double, drawn.device()));
        let means = zeros.index_add(1, &sources, &(&drawn / counts));
        let uneven = drawn - means.index_select(1, &sources);
        let row_residue = self.map(at.part.axes().0).map_or(0, AxisMap::residue_len) as i64;
        let kept = num_rows - row_residue;
        let _ = uneven.narrow(0, kept, row_residue).zero_();
        uneven
    }

    /// Moments follow their gradients. A gradient is divided by the copies of the output that it
    /// belongs to, as the copies share the old gradient, and not by those of its input. What a
    /// residue's second moment starts from is the mean of the others: never zero beside a counter
    /// that is not.
    fn moments(&self, at: At, rows: Tensor, plane: Plane) -> Tensor {
        let (power, residue) = match plane.nature() {
            Nature::Squares => (2.0, Residue::Mean),
            _ => (1.0, Residue::Constant(0.0)),
        };
        let residual_len = self.residual.residue_len();
        match at.part {
            Part::NormWeight(place) | Part::NormBias(place) => {
                let mut divisor = self.copies / self.head_count(place);
                if matches!(at.part, Part::NormWeight(_)) {
                    divisor *= self.scale.sqrt();
                }
                append(&(rows / divisor.powf(power)), 0, residual_len, residue)
            }
            Part::Number(_) => rows,
            Part::Embedding | Part::Positions => {
                let copied = rows.index_select(1, &self.residual.sources());
                append(&(copied / self.copies.powf(power)), 1, residual_len, residue)
            }
            Part::Weight(_) | Part::Bias(_) | Part::Head => {
                let (row_axis, column_axis) = at.part.axes();
                let mut value = rows;
                if let Some(map) = self.map(row_axis) {
                    let mut shape = vec![-1];
                    shape.resize(value.dim(), 1);
                    value /= map.multiplicities().pow_tensor_scalar(power).view(shape.as_slice());
                    value = append(&value, 0, map.residue_len(), residue);
                }
                if let Some(map) = column_axis.and_then(|axis| self.map(axis)) {
                    value = value.index_select(1, &map.sources());
                    value = append(&value, 1, map.residue_len(), residue);
                }
                value
            }
        }
    }

    /// By how much a norm's result is counted too often by what reads it.
    fn head_count(&self, place: NormPlace) -> f64 {
        if place == NormPlace::Final && self.old.tied { self.copies } else { 1.0 }
    }

    fn stream_residue(&self) -> Residue {
        match self.old.norm {
            NormKind::Rms => Residue::Constant(0.0),
            NormKind::Layer => Residue::MeanOfFirst(self.old.hidden_size),
        }
    }

    fn name(&self, at: At) -> String {
        format!("{}/{:?}", self.names.name(at), at.part)
    }
}

impl Parts for Width<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn value(&self, at: At, plane: Plane) -> Tensor {
        let rows = self.rows(at, plane);
        match plane.nature() {
            Nature::Weights => self.weights(at, rows),
            Nature::Gradients | Nature::Squares => self.moments(at, rows, plane),
        }
    }

    fn steps(&self, at: At) -> u64 {
        self.source.steps(at)
    }

    fn states(&self) -> Vec<StateKind> {
        self.source.states()
    }

    fn describe(&self, at: At, notes: &mut Vec<String>) {
        self.source.describe(at, notes);
        let (rows, columns) = at.part.axes();
        let aki = self.options.split == WidthGrowth::Aki && rows != Axis::Residual;
        let changed = |axis| self.map(axis).map(|map| (map.old_len(), map.new_len()));
        if let Some((old, new)) = changed(rows) {
            let from = if aki { "the next layer's" } else { "copied" };
            notes.push(format!("rows {old} -> {new} ({from}{})", self.residue_in_words(rows)));
        }
        if let Some((axis, (old, new))) = columns.and_then(|axis| Some((axis, changed(axis)?))) {
            let how = match (at.part, self.options.split) {
                (Part::Embedding | Part::Positions, _) => "copied",
                (_, WidthGrowth::Uneven) => "split unevenly",
                _ => "split equally",
            };
            notes.push(format!("columns {old} -> {new} ({how}{})", self.residue_in_words(axis)));
        }
        if let Part::NormWeight(place) = at.part
            && !self.residual.is_identity()
        {
            notes.push(format!("times {:.6}", self.scale.sqrt() / self.head_count(place)));
        }
    }
}

impl Width<'_> {
    fn residue_in_words(&self, axis: Axis) -> String {
        match self.map(axis).map_or(0, AxisMap::residue_len) {
            0 => String::new(),
            len => format!(", {len} of residue"),
        }
    }
}

/// What the new indices hold that copy none.
#[derive(Clone, Copy)]
enum Residue {
    Constant(f64),
    /// The mean of all others.
    Mean,
    /// The mean of the first so many.
    MeanOfFirst(usize),
}

/// Appends `len` rows (dim 0) or columns (dim 1).
fn append(value: &Tensor, dim: i64, len: usize, residue: Residue) -> Tensor {
    if len == 0 {
        return value.shallow_clone();
    }
    let mut shape = value.size();
    shape[dim as usize] = len as i64;
    let mean =
        |of: &Tensor| of.mean_dim([dim].as_slice(), true, Kind::Double).expand(&shape, false);
    let appended = match residue {
        Residue::Constant(constant) => {
            Tensor::full(&shape, constant, (Kind::Double, value.device()))
        }
        Residue::Mean => mean(value),
        Residue::MeanOfFirst(first) => mean(&value.narrow(dim, 0, first as i64)),
    };
    Tensor::cat(&[value, &appended], dim)
}
