//! What a run says of itself: its plan, each step's record, and what it has cost.

use std::collections::BTreeMap;

use grove_data::Stage;
use grove_optim::BatchRamp;
use grove_parallel::collective::StepTotals;
use tch::{Device, Tensor};

use crate::clock::Clock;
use crate::config::Plan;
use crate::corpus::step_of;
use crate::metrics::{
    Communication, DistillRecord, MemoryByCategory, Phase, StepRecord, UnitSeconds, WorkSeconds,
    mfu, pages_given, peak_resident_bytes,
};
use crate::model::compute::Compute;
use crate::model::fp8::Fp8;
use crate::pass::Traffic;
use crate::state::RunState;
use crate::step::StepOutcome;

/// What turns tokens and seconds into utilization.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Floating-point operations of forward and backward, a token.
    pub flops_per_token: u64,
    /// Ranks of the run.
    pub num_ranks: usize,
    /// FLOP/s of one rank at most.
    pub peak_flops: f64,
}

/// What one step took on this rank.
#[derive(Clone, Debug)]
pub struct Spent {
    /// Seconds by phase.
    pub phases: BTreeMap<Phase, f64>,
    /// The same by unit, of a profiled step.
    pub unit_seconds: UnitSeconds,
    /// Seconds of the whole step.
    pub step_seconds: f64,
    /// Seconds of products and attention, on the CPU.
    pub work_seconds: Option<WorkSeconds>,
    /// Seconds of waiting for saves since the last record.
    pub save_seconds: f64,
    /// Joules of this host's processors, where they can be read.
    pub energy_joules: Option<f64>,
    /// Joules of its GPUs, where they are used and can be read.
    pub gpu_energy_joules: Option<f64>,
    /// The most memory in use on this rank's GPU so far.
    pub peak_device_memory_bytes: Option<u64>,
    /// Calls between ranks.
    pub communication: StepTotals,
    /// The most memory of each category so far.
    pub memory: MemoryByCategory,
}

/// What the steps of this process have cost so far: tokens of all ranks, seconds and joules of
/// this one. The FLOPs told with them are the whole run's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Costs {
    num_tokens: u64,
    /// Tokens, each as often as its step went forward and backward over it.
    num_passed_tokens: u64,
    seconds: f64,
    energy_joules: Option<f64>,
    gpu_energy_joules: Option<f64>,
    peak_device_memory_bytes: Option<u64>,
}

impl Costs {
    /// Adds a step.
    pub fn add(&mut self, outcome: &StepOutcome, spent: &Spent) {
        self.num_tokens += outcome.num_tokens;
        self.num_passed_tokens += outcome.num_tokens * outcome.num_passes;
        self.seconds += spent.step_seconds;
        let energies = [
            (&mut self.energy_joules, spent.energy_joules),
            (&mut self.gpu_energy_joules, spent.gpu_energy_joules),
        ];
        for (sum, joules) in energies {
            if let Some(joules) = joules {
                *sum.get_or_insert(0.0) += joules;
            }
        }
        self.peak_device_memory_bytes = spent.peak_device_memory_bytes;
    }

    /// The four costs in one line: compute, time, memory, energy; `None` before the first step.
    pub fn line(&self, rates: &Rates, state: &RunState) -> Option<String> {
        let Self { num_tokens, num_passed_tokens, seconds, .. } = *self;
        if num_tokens == 0 {
            return None;
        }
        let tokens_per_second = num_tokens as f64 / seconds;
        Some(format!(
            "compute {:.3e} FLOPs at {:.1} % of peak; time {seconds:.1} s for {num_tokens} tokens, \
             {tokens_per_second:.0} a second; memory {} MiB a rank at most{}; energy {}",
            state.flops as f64,
            100.0 * rates.mfu(num_passed_tokens as f64 / seconds),
            peak_resident_bytes().unwrap_or(0) >> 20,
            self.device_memory_words(),
            self.energy_words(),
        ))
    }

    fn device_memory_words(&self) -> String {
        let words = |bytes: u64| format!(" and {} MiB of its GPU", bytes >> 20);
        self.peak_device_memory_bytes.map(words).unwrap_or_default()
    }

    fn energy_words(&self) -> String {
        let a_token = |joules: f64| joules / self.num_tokens as f64;
        match (self.energy_joules.map(a_token), self.gpu_energy_joules.map(a_token)) {
            (Some(host), None) => format!("{host:.4} J a token on this host"),
            (None, Some(gpus)) => format!("{gpus:.4} J a token by this host's GPUs"),
            (Some(host), Some(gpus)) => {
                format!("{host:.4} J a token by this host's processors, {gpus:.4} by its GPUs")
            }
            (None, None) => "not measured".to_owned(),
        }
    }
}

impl Rates {
    /// By tokens a second, each counted as often as a step went forward and backward over it.
    fn mfu(&self, tokens_per_second: f64) -> f64 {
        mfu(tokens_per_second, self.flops_per_token as f64, self.num_ranks, self.peak_flops)
    }
}

/// The most memory that each category has taken on this rank so far, counted by what was allocated.
pub fn memory_by_category(
    state: &RunState,
    traffic: &Traffic<'_>,
    clock: &Clock,
) -> MemoryByCategory {
    let bytes = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
    let mut memory = MemoryByCategory {
        activations: clock.activation_bytes(),
        buffers: traffic.residents.buffer_bytes()
            + traffic.sums.buffer_bytes()
            + traffic.exchange_bytes,
        ..MemoryByCategory::default()
    };
    for unit in &state.units {
        memory.parameters += bytes(&unit.working);
        memory.gradients += bytes(&unit.grads);
        if !unit.masters_are_working() {
            memory.masters += bytes(&unit.masters);
        }
        memory.optimizer_state += unit.state_tensors().map(bytes).sum::<u64>();
    }
    memory
}

/// Seconds of products and attention since this was last asked, where they are worked on as they are
/// called.
pub fn work_seconds(compute: &Compute) -> Option<WorkSeconds> {
    let [products, attention] = compute.work.take();
    (compute.device == Device::Cpu).then_some(WorkSeconds { products, attention })
}

/// The record of the step that has just been counted in `state`.
pub fn step_record(
    outcome: &StepOutcome,
    spent: Spent,
    rates: &Rates,
    state: &RunState,
) -> StepRecord {
    let tokens_per_second = outcome.num_tokens as f64 / spent.step_seconds;
    let passed_per_second = tokens_per_second * outcome.num_passes as f64;
    StepRecord {
        step: state.step,
        loss: outcome.loss,
        grad_norm: outcome.grad_norm,
        lr: outcome.lr,
        num_tokens: state.num_tokens,
        tokens_per_second,
        flops_per_second: passed_per_second * rates.flops_per_token as f64,
        mfu: rates.mfu(passed_per_second),
        step_seconds: spent.step_seconds,
        save_seconds: spent.save_seconds,
        phases: spent.phases,
        unit_seconds: spent.unit_seconds,
        work_seconds: spent.work_seconds,
        peak_memory_bytes: peak_resident_bytes().unwrap_or(0),
        peak_device_memory_bytes: spent.peak_device_memory_bytes,
        pages_given: pages_given().unwrap_or(0),
        energy_joules: spent.energy_joules,
        gpu_energy_joules: spent.gpu_energy_joules,
        communication: Communication::from(&spent.communication),
        memory_bytes: spent.memory,
        total_flops: state.flops as f64,
        distill: outcome
            .distilled
            .map(|it| Box::new(DistillRecord { loss: it.loss, weight: it.weight })),
        skipped: outcome.tripped.map(|tripped| tripped.trip),
    }
}

/// The weights of a mixture, a line for each change of them.
pub fn stage_lines(stages: &[Stage], ramp: &BatchRamp) -> Vec<String> {
    let line = |stage: &Stage| {
        let weight = |(name, weight): (&String, &f64)| format!("{name} {weight}");
        let weights: Vec<String> = stage.weights.iter().map(weight).collect();
        let (step, _) = step_of(ramp, (stage.first_step, 0));
        format!("from step {step}: weights {}", weights.join(", "))
    };
    stages.iter().map(line).collect()
}

/// What is to be known of 8-bit products that are not a GPU's; nothing where there are none.
pub fn emulation_line(compute: &Compute) -> Option<String> {
    (compute.device == Device::Cpu && compute.fp8 != Fp8::Off).then(|| {
        "gpu.fp8 is emulated on the CPU: matrices are rounded to 8 bits as on a GPU and multiplied \
         in fp32, which is slower than bf16"
            .to_owned()
    })
}

/// A plan in few lines: one for each table.
pub fn plan_lines(plan: &Plan) -> String {
    let mut lines: Vec<String> = vec!["plan".to_owned()];
    for line in plan.to_toml().lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(table) => lines.push(format!("  {table}:")),
            None => {
                let table = lines.last_mut().expect("it starts with one line");
                table.push_str(if table.ends_with(':') || table == "plan" { " " } else { ", " });
                table.push_str(line);
            }
        }
    }
    lines.join("\n")
}
