//! Where a step may wait for a GPU: counted where it runs, and by name in the sources of all that runs
//! within a step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use grove::Clock;
use grove::config;
use grove::corpus::Data;
use grove::model::compute::Compute;
use grove::pass::Traffic;
use grove::recipe::{allocate, recipe};
use grove::sharding::{Placement, Sharding};
use grove::signals::StopRequest;
use grove::step::train_step;
use grove::step_numbers::{SaveCounts, Word};
use grove_parallel::LocalCollective;
use tch::{Device, Kind};

use crate::program::Program;

/// What runs within a step, seen from the top of the repository.
const WITHIN_A_STEP: [&str; 16] = [
    "trainer/src/step.rs",
    "trainer/src/step",
    "trainer/src/pass.rs",
    "trainer/src/pass",
    "trainer/src/gradients.rs",
    "trainer/src/residents.rs",
    "trainer/src/spare.rs",
    "trainer/src/readback.rs",
    "trainer/src/update.rs",
    "trainer/src/update",
    "trainer/src/curvature.rs",
    "trainer/src/teacher.rs",
    "trainer/src/guard",
    "trainer/src/model",
    "trainer/src/cuda",
    "optim/src",
];

/// What waits for a device, or may.
const WAITS: [&str; 9] = [
    "Vec::try_from(",
    "f64::try_from(",
    "double_value(",
    "int64_value(",
    "to_device(",
    "copy_data(",
    "synchronize(",
    "masked_select(",
    "nonzero(",
];

/// How often a file names one of them, and why that is no second wait of a step on a GPU.
const ALLOWED: [(&str, usize, &str); 12] = [
    ("trainer/src/readback.rs", 1, "the one wait"),
    ("trainer/src/model/compute.rs", 1, "where there is no pinned memory"),
    ("trainer/src/model/rotary.rs", 1, "once, when the model is made"),
    ("trainer/src/model/ramp.rs", 1, "masks that rise, once a step, and none after that"),
    ("trainer/src/model/folding.rs", 2, "checkpoints behind masks"),
    ("trainer/src/model/plain.rs", 1, "Hutchinson's estimate of the curvature"),
    ("trainer/src/curvature.rs", 2, "Hutchinson's probes; masters in host memory"),
    ("trainer/src/cuda/attention.rs", 1, "measures kernels before the first step"),
    ("trainer/src/cuda/graph.rs", 1, "before a micro-step is recorded"),
    ("trainer/src/update.rs", 2, "masters in host memory"),
    ("trainer/src/update/whole.rs", 1, "masters in host memory"),
    ("optim/src/tensor_column.rs", 2, "8-bit states without CUDA kernels"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a folder") {
            sources(&entry.expect("an entry").path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test(path) {
        found.push(path.to_owned());
    }
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs")
}

#[test]
fn what_waits_for_a_device_within_a_step_is_listed() {
    let mut files = Vec::new();
    WITHIN_A_STEP.iter().for_each(|name| sources(&root().join(name), &mut files));
    let mut found = BTreeMap::new();
    for file in files {
        let name = file.strip_prefix(root()).expect("below the top").display().to_string();
        let text = fs::read_to_string(&file).expect("a source file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
        let times: usize = lines
            .map(|line| WAITS.iter().map(|wait| line.matches(wait).count()).sum::<usize>())
            .sum();
        if times > 0 {
            found.insert(name, times);
        }
    }
    let allowed: BTreeMap<String, usize> =
        ALLOWED.iter().map(|(name, times, _)| ((*name).to_owned(), *times)).collect();
    assert_eq!(found, allowed, "a step on a GPU waits once: fetch numbers by `readback`");
}

#[test]
fn a_step_fetches_its_numbers_in_one_copy() {
    let _no_graph = tch::no_grad_guard();
    tch::set_num_threads(1);
    let program = Program::new();
    let text = format!("data.text={}", program.path("text.txt").display());
    let dir = format!("run.dir={}", program.path("run").display());
    let overrides = [text, dir];
    let plan = config::load(&program.path("config.toml"), &overrides).expect("a plan");
    fs::create_dir_all(&plan.run.dir).expect("the run's folder");
    let alone = LocalCollective::new();
    let stop = StopRequest::never();
    grove::corpus::prepare(&plan, &alone, &stop).expect("tokens");
    let compute = Compute::new(Device::Cpu, Kind::Float, 1);
    let recipe = recipe(&plan, compute, 1).expect("a recipe");
    let sharding = Sharding::new(Placement::alone(), &alone).expect("one rank");
    let mut state = allocate(&plan, &recipe, &sharding).expect("a state");
    let data = Data::open(&plan).expect("data");
    let mut batches = data.batches(&plan, &alone, (0, &state.history.excluded)).expect("batches");
    let (mut traffic, mut clock) = (Traffic::new(sharding, &state.units, 0), Clock::new());
    let word = Word { stop: &stop, saves: SaveCounts::default(), leaves_step: false };
    for _ in 0..3 {
        let outcome = train_step(&recipe, &mut state, &mut batches, &mut traffic, word, &mut clock);
        let outcome = outcome.expect("a step").expect("nobody asks it to stop");
        assert_eq!(outcome.micro_losses.len(), 4, "four micro-batches");
        assert_eq!(clock.take_readbacks(), 1, "losses and norm come together");
    }
}
