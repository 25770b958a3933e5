//! Weights that compute without masks what a model does under them. Each mask stands beside a linear
//! map, so that it can be multiplied into the map's weights, and norms that count a share `s` of the
//! stream's channels are plain ones with `sqrt(s)` times the weight and `s` times epsilon: a checkpoint in the midst of a ramp is
//! then a plain model, which any Hugging Face tool computes as the run does.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::config::ModelConfig;
use super::embedding::TOKENS;
use super::ramp::{Ramp, mask};
use super::units::{Orientation, Projection, UnitMap, UnitSpec};

/// The masks of one step as factors on weights.
#[derive(Debug)]
pub struct Folding {
    /// The model that the folded weights are of: the epsilon of its norms may be another.
    pub config: ModelConfig,
    by_name: BTreeMap<String, Factors>,
}

/// The factors on one parameter, as it is stored.
#[derive(Debug)]
pub struct Factors {
    /// On all of it.
    all: f64,
    /// On the first dim of a matrix, f64.
    rows: Option<Tensor>,
    /// On the last dim, f64.
    columns: Option<Tensor>,
    /// Length of the last dim.
    num_columns: usize,
}

impl Folding {
    /// What the masks of the step after `step` steps make of a model's weights; none where all masks
    /// are 1.
    pub fn new(config: &ModelConfig, ramp: &Ramp, step: u64) -> Option<Self> {
        let weight = ramp.weight(step);
        if weight >= 1.0 {
            return None;
        }
        let spec = config.spec();
        let heads = mask(ramp.heads * spec.head_dim, spec.num_heads * spec.head_dim, weight);
        let neurons = mask(ramp.neurons, spec.intermediate_size, weight);
        let channels = mask(ramp.channels, spec.hidden_size, weight);
        let channels = channels.as_ref();
        let UnitMap { units, block, head } = UnitMap::new(config);
        let mut folding = Self { config: config.clone(), by_name: BTreeMap::new() };
        for layer in 0..spec.num_layers {
            let unit = &units[1 + layer];
            let is_added = ramp.blocks.contains(&layer);
            for (map, inputs) in [(&block.output, &heads), (&block.down, &neurons)] {
                let (all, inputs) = if is_added { (weight, None) } else { (1.0, inputs.as_ref()) };
                folding.put_map((unit, map), all, (channels, inputs));
            }
        }
        if channels.is_some() {
            folding.put(&units[0], TOKENS, (1.0, None, channels));
            let share = ramp.share(spec.hidden_size, weight);
            let norms = [block.attention.norm_before, block.mlp.norm_before];
            let norms = units[1..=spec.num_layers].iter().map(|unit| (unit, &norms[..]));
            for (unit, norms) in norms.chain([(&units[spec.num_layers + 1], &[head.norm][..])]) {
                for norm in norms.iter().flatten() {
                    folding.put(unit, norm.weight, (share.sqrt(), None, None));
                }
            }
            folding.config.scale_eps(share);
        }
        Some(folding)
    }

    /// The factors on a map to the residual stream: one on all that it writes, those on the channels
    /// that it writes, and those on what it reads.
    fn put_map(
        &mut self,
        (unit, map): (&UnitSpec, &Projection),
        all: f64,
        (outputs, inputs): (Option<&Tensor>, Option<&Tensor>),
    ) {
        for index in map.weights.clone() {
            let (rows, columns) = match map.orientation {
                Orientation::OutIn => (outputs, inputs),
                Orientation::InOut => (inputs, outputs),
            };
            self.put(unit, index, (all, rows, columns));
        }
        if let Some(bias) = map.bias {
            self.put(unit, bias, (all, None, outputs));
        }
    }

    fn put(
        &mut self,
        unit: &UnitSpec,
        index: usize,
        (all, rows, columns): (f64, Option<&Tensor>, Option<&Tensor>),
    ) {
        if all == 1.0 && rows.is_none() && columns.is_none() {
            return;
        }
        let param = &unit.params[index];
        let [rows, columns] = [rows, columns].map(|factors| factors.map(Tensor::shallow_clone));
        let num_columns = *param.shape.last().expect("a parameter has a dim") as usize;
        self.by_name.insert(param.name.clone(), Factors { all, rows, columns, num_columns });
    }

    /// The factors on a parameter; none if it stays as it is.
    pub fn of(&self, name: &str) -> Option<&Factors> {
        self.by_name.get(name)
    }
}

impl Factors {
    /// Consecutive elements of the parameter, from the element `first` on, times their factors.
    ///
    /// # Shapes
    /// - `values`: `[n]`, row-major; returns `[n]` in the same dtype and on the same device
    pub fn fold(&self, first: usize, values: &Tensor) -> Tensor {
        let (len, columns) = (values.numel(), self.num_columns);
        let (top, bottom) = (first / columns, (first + len).div_ceil(columns));
        let table = Tensor::full([1, 1], self.all, (Kind::Double, values.device()));
        let table = match &self.rows {
            Some(rows) => {
                let rows = rows.narrow(0, top as i64, (bottom - top) as i64);
                table * rows.unsqueeze(1).to_device(values.device())
            }
            None => table,
        };
        let table = match &self.columns {
            Some(columns) => table * columns.unsqueeze(0).to_device(values.device()),
            None => table,
        };
        let whole = [(bottom - top) as i64, columns as i64];
        let table = table.to_kind(values.kind()).expand(whole, false).reshape([-1]);
        values * table.narrow(0, (first - top * columns) as i64, len as i64)
    }
}
