//! In what two checkpoints differ: plan, state of the run, tensors.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checkpoint, Dtype, RunStateRecord, TensorFile, TensorSpec, TensorView};

/// Bytes of a tensor that are compared at a time; a multiple of every element's size.
const CHUNK_BYTES: usize = 1 << 20;

/// All differences of two checkpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Keys of the plans, and fields of the run's state.
    pub settings: Vec<SettingDifference>,
    /// Tensors of masters and optimizer state.
    pub tensors: Vec<TensorDifference>,
    /// Tensors that both have with equal bits.
    pub num_equal_tensors: usize,
}

/// A key that has two values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingDifference {
    /// The key in the plan, or the field in `run.json`.
    pub key: String,
    /// The value in each; `None` where it is not set.
    pub values: [Option<String>; 2],
}

/// A tensor in which two checkpoints differ.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorDifference {
    /// One of them does not have it, or with another dtype or shape.
    Form {
        /// Its name.
        name: String,
        /// Dtype and shape in each; `None` where it is not there.
        specs: [Option<TensorSpec>; 2],
    },
    /// Some values differ.
    Values {
        /// Dtype and shape, the same in both.
        spec: TensorSpec,
        /// Elements whose bits differ.
        num_different: u64,
        /// The largest `|a - b|`; not a number if at some place one side is none.
        max_abs: f64,
        /// The largest `|a - b| / max(|a|, |b|)`; not a number as above.
        max_relative: f64,
    },
}

/// Compares two checkpoints, a mebibyte of each tensor at a time.
///
/// The model's own file is not compared: it is rounded from the masters.
#[must_use]
pub fn diff(a: &Checkpoint, b: &Checkpoint) -> Difference {
    let mut difference =
        Difference { settings: settings(a.run_state(), b.run_state()), ..Default::default() };
    for (a, b) in [(a.masters(), b.masters()), (a.optimizer(), b.optimizer())] {
        tensors(a, b, &mut difference);
    }
    difference
}

fn settings(a: &RunStateRecord, b: &RunStateRecord) -> Vec<SettingDifference> {
    let sides = [a, b].map(flat);
    let keys: BTreeSet<&String> = sides.iter().flat_map(BTreeMap::keys).collect();
    let differing = keys.into_iter().filter_map(|key| {
        let values = [sides[0].get(key).cloned(), sides[1].get(key).cloned()];
        (values[0] != values[1]).then(|| SettingDifference { key: key.clone(), values })
    });
    differing.collect()
}

/// Every field of a run's state as text: `run.json`'s own, and those of its plan.
fn flat(state: &RunStateRecord) -> BTreeMap<String, String> {
    let RunStateRecord { plan_toml, .. } = state;
    let mut fields = BTreeMap::new();
    let json = serde_json::to_string(state).expect("integers and text can always be JSON");
    let json = serde_json::from_str(&json).expect("it was just written");
    flatten("", &json, &mut fields);
    fields.remove("plan_toml");
    // Parsed as JSON it is rounded to a double.
    fields.insert("total_flops".to_owned(), state.total_flops.to_string());
    match toml::from_str::<toml::Table>(plan_toml) {
        Ok(plan) => {
            let plan = serde_json::to_value(plan).expect("a TOML table can always be JSON");
            flatten("plan", &plan, &mut fields);
        }
        // A plan of another program is compared as one text.
        Err(_) => drop(fields.insert("plan".to_owned(), plan_toml.clone())),
    }
    fields
}

fn flatten(prefix: &str, value: &serde_json::Value, fields: &mut BTreeMap<String, String>) {
    let serde_json::Value::Object(table) = value else {
        fields.insert(prefix.to_owned(), value.to_string());
        return;
    };
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        flatten(&key, value, fields);
    }
}

fn tensors(a: &TensorFile, b: &TensorFile, difference: &mut Difference) {
    let names: BTreeSet<&str> = a.names().chain(b.names()).collect();
    for name in names {
        let specs = [a, b].map(|file| file.get(name).ok().map(|view| view.spec.clone()));
        if specs[0] != specs[1] {
            let name = name.to_owned();
            difference.tensors.push(TensorDifference::Form { name, specs });
            continue;
        }
        let views = (a.get(name), b.get(name));
        let (Ok(a), Ok(b)) = views else { unreachable!("the name is of one, and both have it") };
        match values(a, b) {
            None => difference.num_equal_tensors += 1,
            Some(different) => difference.tensors.push(different),
        }
    }
}

/// The difference of two tensors of one form; `None` if all bits are equal.
fn values(a: TensorView<'_>, b: TensorView<'_>) -> Option<TensorDifference> {
    let (size, dtype) = (a.spec.dtype.size_bytes(), a.spec.dtype);
    let (mut num_different, mut max_abs, mut max_relative) = (0, 0.0, 0.0);
    for (a, b) in a.bytes.chunks(CHUNK_BYTES).zip(b.bytes.chunks(CHUNK_BYTES)) {
        if a == b {
            continue;
        }
        let pairs = a.chunks_exact(size).zip(b.chunks_exact(size)).filter(|(a, b)| a != b);
        for (a, b) in pairs {
            num_different += 1;
            let (a, b) = (value(dtype, a), value(dtype, b));
            // Equal infinities and zeros of two signs differ by nothing; so do NaNs of other bits.
            let abs = if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() };
            let relative = if abs == 0.0 { 0.0 } else { abs / a.abs().max(b.abs()) };
            max_abs = larger(max_abs, abs);
            max_relative = larger(max_relative, relative);
        }
    }
    let spec = a.spec.clone();
    let different = TensorDifference::Values { spec, num_different, max_abs, max_relative };
    (num_different > 0).then_some(different)
}

/// The larger number; not a number once one is not.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// One little-endian element as a number.
fn value(dtype: Dtype, bytes: &[u8]) -> f64 {
    const WHOLE: &str = "a chunk holds whole elements";
    match dtype {
        Dtype::U8 => f64::from(bytes[0]),
        Dtype::Bf16 => half::bf16::from_le_bytes(bytes.try_into().expect(WHOLE)).to_f64(),
        Dtype::F16 => half::f16::from_le_bytes(bytes.try_into().expect(WHOLE)).to_f64(),
        Dtype::F32 => f64::from(f32::from_le_bytes(bytes.try_into().expect(WHOLE))),
        Dtype::F64 => f64::from_le_bytes(bytes.try_into().expect(WHOLE)),
    }
}
