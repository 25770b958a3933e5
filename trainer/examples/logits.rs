//! Writes the logits of a model for some token ids, as rows of little-endian f32: what
//! `scripts/verify-hf` compares with transformers.
//!
//! Usage: `logits FOLDER OUT ID...`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use grove::loaded::LoadedModel;
use grove::model::compute::Compute;
use grove::pass::logits;
use grove_parallel::LocalCollective;
use tch::{Device, Kind, Tensor};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, out, ids @ ..] = arguments.as_slice() else {
        bail!("usage: logits FOLDER OUT ID...");
    };
    let ids: Vec<i64> = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
    let _no_graph = tch::no_grad_guard();
    let compute = Compute::new(Device::Cpu, Kind::Float, 1);
    let model = LoadedModel::open(Path::new(folder), &compute)?;
    let alone = LocalCollective::new();
    let inputs = Tensor::from_slice(&ids).unsqueeze(0);
    let found = logits(model.layers(&compute), (&inputs, None), &mut model.traffic(&alone)?)?;
    let found = Vec::<f32>::try_from(found.to_kind(Kind::Float).reshape([-1]))?;
    let bytes: Vec<u8> = found.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(PathBuf::from(out), bytes).with_context(|| format!("cannot write {out}"))
}
