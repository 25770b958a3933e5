//! A run's life: start or resume, step after step, and the visible list of what is due after each.

mod meters;
mod opening;
mod samples;
mod saves;
mod trips;

use std::time::Instant;

use grove_data::{Prefetcher, Validation};
use grove_parallel::{Collective, Environment};
use sha2::{Digest, Sha256};

use crate::beacon::Beacon;
use crate::checkpoint::AllowedChange;
use crate::clock::Clock;
use crate::config::{self, Plan, Policy};
use crate::corpus::{self, Data};
use crate::error::Error;
use crate::eval::{Evaluation, evaluate_sources};
use crate::eval_point::{to_eval_point, to_training_point};
use crate::folder::{self, Found};
use crate::growth::inherit::teach;
use crate::growth::start;
use crate::metrics::{EvalRecord, MemoryByCategory, Plots, Progress, Sinks};
use crate::model::compute::Compute;
use crate::pass::Traffic;
use crate::recipe::{allocate, placement, recipe};
use crate::report::{Costs, Rates, Spent, memory_by_category, step_record, work_seconds};
use crate::run_lock::RunLock;
use crate::saver::Saver;
use crate::sharding::Sharding;
use crate::signals::StopRequest;
use crate::snapshot::Snapshot;
use crate::state::RunState;
use crate::step::{Recipe, StepOutcome, train_step};
use crate::step_numbers::{Word, agree_on, agree_to_stop};
use crate::teacher::Distillation;
use crate::watchdog::Pulse;
use meters::Meters;
use saves::Saves;
use trips::{exclude, first_snapshot};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Finished,
    /// It was asked to stop, and has saved.
    Interrupted,
}

/// Trains what the plan says, on this rank, which runs on `host`.
///
/// # Errors
/// Whatever ends a run early, before or between updates.
///
/// # Collectives
/// Every rank must call it with the same plan.
pub fn train(
    plan: &Plan,
    compute: Compute,
    collective: &dyn Collective,
    stop: &StopRequest,
    host: &str,
) -> Result<Ending, Error> {
    train_watched(plan, compute, collective, stop, (host, &Pulse::default()))
}

/// The same with a pulse by which another thread sees what this one does.
///
/// # Errors
/// Those of [`train`].
///
/// # Collectives
/// Every rank must call it with the same plan.
pub fn train_watched(
    plan: &Plan,
    compute: Compute,
    collective: &dyn Collective,
    stop: &StopRequest,
    seat: (&str, &Pulse),
) -> Result<Ending, Error> {
    plan.check_ranks(collective.degree())?;
    start::check_stages(plan)?;
    let (mut plan, mut compute) = (opening::with_first_masks(plan)?, compute);
    loop {
        let plans: Vec<Plan> = (0..=plan.growth.len()).map(|stage| plan.at_stage(stage)).collect();
        let Some(run) = Run::open(&plans, compute, (collective, seat), stop)? else {
            return Ok(Ending::Interrupted);
        };
        let is_last = run.end == plan.run.steps;
        match run.finish_stage()? {
            (Ending::Finished, returned) if !is_last => compute = returned,
            (ending, _) => return Ok(ending),
        }
        // The next stage goes on from the checkpoint of this one's last step.
        plan.checkpoint.resume = true;
    }
}

impl Run<'_> {
    /// The stage's steps and what comes after the last one; gives back what the next stage computes
    /// with.
    fn finish_stage(mut self) -> Result<(Ending, Compute), Error> {
        let mut ending = self.steps();
        if matches!(ending, Ok(Ending::Finished))
            && self.end == self.plan.run.steps
            && let Err(error) = self.sample()
        {
            ending = Err(error);
        }
        if matches!(ending, Err(Error::Tripped { .. }))
            && let Err(error) = self.finish_save()
        {
            self.sinks.progress().warn(&error.to_string());
        }
        self.say_costs();
        self.sinks.finish();
        match ending {
            Ok(ending) => Ok((ending, self.recipe.compute)),
            Err(error) => {
                // Its groups would wait for peers, who wait to be told.
                std::mem::forget(self);
                Err(error)
            }
        }
    }
}

struct Run<'a> {
    /// The plans of all stages in which the model grows.
    plans: &'a [Plan],
    /// The plan of the stage that the run is in.
    plan: &'a Plan,
    /// The stage's last step.
    end: u64,
    collective: &'a dyn Collective,
    stop: &'a StopRequest,
    recipe: Recipe,
    state: RunState,
    traffic: Traffic<'a>,
    saver: Saver,
    saves: Saves,
    /// The changes of meaning over resumes that the user allowed.
    allowed_changes: Vec<AllowedChange>,
    data: Data,
    batches: Prefetcher,
    /// By source.
    validation: Vec<(String, Validation)>,
    sinks: Sinks,
    clock: Clock,
    meters: Meters,
    peak_flops: f64,
    costs: Costs,
    /// What is to be said once something can be said.
    warnings: Vec<String>,
    /// The last good state, if it is to be kept in memory.
    snapshot: Option<Snapshot>,
    /// On rank 0: held as long as the run may write.
    _lock: Option<RunLock>,
}

impl<'a> Run<'a> {
    /// Everything before the first step; `None` if a rank was asked to stop meanwhile.
    fn open(
        plans: &'a [Plan],
        compute: Compute,
        (collective, (host, pulse)): (&'a dyn Collective, (&str, &Pulse)),
        stop: &'a StopRequest,
    ) -> Result<Option<Self>, Error> {
        let plan = &plans[0];
        // Before anything that depends on the plan: ranks of different plans make different calls.
        let program = hashed(env!("GROVE_SOURCE"));
        agree_on(collective, [("the program", program), ("the plan", hashed(&plan.to_toml()))])?;
        let Found { lock, checkpoint: resumed, warnings } = folder::open(plan, collective, host)?;
        // A folder that cannot hold a beacon costs the word of a killed rank, not the run.
        let beacon = Beacon::light(&plan.run.dir, collective.rank(), host).ok();
        if corpus::prepare(plan, collective, stop)? {
            return Ok(None);
        }
        let resumed_step = resumed.as_ref().map_or(0, |checkpoint| checkpoint.run_state().step);
        let stage = plan.stage_after(resumed_step);
        let plan = &plans[stage];
        let mut data = Data::open(plan)?;
        let sharding = Sharding::new(placement(plan, collective), collective)?;
        let recipe = recipe(plan, compute, collective.degree())?;
        let mut state = allocate(plan, &recipe, &sharding)?;
        let compute = &recipe.compute;
        let begun = (&mut state, &mut data);
        let allowed_changes = opening::begin((plans, stage), &recipe, begun, resumed.as_ref())?;
        let (data_hash, step) = (hashed(&data.fingerprint), state.step as i64);
        agree_on(collective, [("the training data", data_hash), ("the step to start from", step)])?;
        let (mut warnings, mut growth_lines) = (warnings, Vec::new());
        if collective.rank() == 0 {
            folder::write_plan(plan)?;
            let at = (plans, stage);
            growth_lines = opening::certify(at, &data, resumed.as_ref(), &mut warnings)?;
        }
        let mut traffic = Traffic::new(sharding, &state.units, plan.parallel.prefetch_units);
        traffic.refresh_all(&state.units)?;
        traffic.graphs = opening::graphs(plan, compute)?;
        let validation = if plan.eval.is_some() { data.validation(plan)? } else { Vec::new() };
        let (peak_flops, device) = (opening::peak_flops(plan, compute), compute.device);
        let snapshot = first_snapshot(plan, &state);
        let mut run = Self {
            batches: data.batches(plan, collective, (state.step, &state.history.excluded))?,
            saver: saves::saver(plan, collective)?,
            saves: Saves::after(state.step),
            end: plan.end_of_stage(stage),
            sinks: open_sinks(plan, collective, state.step)?,
            data,
            allowed_changes,
            clock: Clock::showing(pulse.clone(), beacon),
            meters: Meters::start(device),
            plans,
            plan,
            collective,
            stop,
            recipe,
            state,
            traffic,
            validation,
            peak_flops,
            costs: Costs::default(),
            warnings,
            snapshot,
            _lock: lock,
        };
        run.say_start(&growth_lines);
        Ok(Some(run))
    }

    /// The loop: one step, then what is due after it.
    fn steps(&mut self) -> Result<Ending, Error> {
        if agree_to_stop(self.collective, self.stop)? {
            return self.interrupt();
        }
        while self.state.step < self.end {
            let taught = teach(self.plan, self.collective, &mut self.recipe, self.state.step)?;
            if let Some(line) = taught {
                self.sinks.progress().note(&line);
            }
            self.recipe.model.mask_at(&self.recipe.compute, self.state.step);
            // What was used since the last step was not used by this one.
            let _ = (self.meters.joules(), self.collective.ledger().take_step());
            let _ = self.recipe.compute.work.take();
            if self.plan.profile.covers(self.state.step + 1) {
                self.clock.begin_trace();
            }
            let started = Instant::now();
            let leaves_step = self.plan.checkpoint.grace_seconds > 0;
            let word = Word { stop: self.stop, saves: self.saver.counts(), leaves_step };
            let outcome = train_step(
                &self.recipe,
                &mut self.state,
                &mut self.batches,
                &mut self.traffic,
                word,
                &mut self.clock,
            )?;
            let Some(outcome) = outcome else { return self.interrupt() };
            self.hear_of_save(outcome.saves)?;
            if let Some(tripped) = outcome.tripped {
                self.trip(&outcome, tripped)?;
                if tripped.policy == Policy::Rewind {
                    continue;
                }
            }
            self.record(&outcome, started);
            self.snapshot_if_due();
            if outcome.stop || (self.eval_is_due() && self.eval()? == Evaluation::Stopped) {
                return self.interrupt();
            }
            if self.save_is_due() {
                self.begin_save()?;
            }
        }
        self.save_the_last()?;
        Ok(Ending::Finished)
    }

    fn eval_is_due(&self) -> bool {
        let last = self.state.step == self.end;
        self.plan.eval.is_some_and(|eval| last || is_due(self.state.step, eval.every))
    }

    fn interrupt(&mut self) -> Result<Ending, Error> {
        self.save_before_a_stop()?;
        let (step, steps) = (self.state.step, self.plan.run.steps);
        let line = format!("stopped at step {step} of {steps}; continue with --resume");
        self.sinks.progress().note(&line);
        Ok(Ending::Interrupted)
    }

    fn record(&mut self, outcome: &StepOutcome, started: Instant) {
        let taught = outcome.distilled.map_or(0, |distilled| distilled.flops_per_token);
        let flops_per_token = u128::from(self.plan.derived.flops_per_token);
        let num_passed = u128::from(outcome.num_tokens) * u128::from(outcome.num_passes);
        let num_taught = u128::from(outcome.num_tokens) * u128::from(taught);
        self.state.flops += num_passed * flops_per_token + num_taught;
        let (energy_joules, gpu_energy_joules) = self.meters.joules();
        let spent = Spent {
            communication: self.collective.ledger().take_step(),
            memory: MemoryByCategory {
                snapshot: self.saver.buffer_bytes()
                    + self.snapshot.as_ref().map_or(0, Snapshot::bytes),
                teacher: self.recipe.distillation.as_ref().map_or(0, Distillation::bytes),
                ..memory_by_category(&self.state, &self.traffic, &self.clock)
            },
            phases: self.clock.take(),
            unit_seconds: self.clock.take_unit_seconds(),
            step_seconds: started.elapsed().as_secs_f64(),
            work_seconds: work_seconds(&self.recipe.compute),
            save_seconds: self.saves.take_seconds(),
            energy_joules,
            gpu_energy_joules,
            peak_device_memory_bytes: self.meters.peak_device_memory_bytes(),
        };
        self.costs.add(outcome, &spent);
        self.sinks.step(&step_record(outcome, spent, &self.rates(), &self.state));
        if self.state.step == self.plan.profile.steps[1] {
            self.write_trace();
        }
    }

    /// Writes what was traced, and says where most of the time went.
    fn write_trace(&mut self) {
        let Some(trace) = self.clock.take_trace() else { return };
        let written = trace.write(&self.plan.run.dir, self.collective.rank());
        let progress = self.sinks.progress();
        match written {
            Ok(path) => progress.note(&format!("traced to {}", path.display())),
            Err(error) => progress.warn(&format!("no trace of the profiled steps: {error}")),
        }
    }

    fn eval(&mut self) -> Result<Evaluation, Error> {
        let eval =
            self.plan.eval.expect("an evaluation is due only where there is validation data");
        self.clock.show("eval");
        self.recipe.model.mask_at(&self.recipe.compute, self.state.step);
        let moved = to_eval_point(&self.state.units, &self.recipe.rules, &mut self.traffic)?;
        let layers = self.recipe.layers(&self.state);
        let batches = (&self.validation[..], eval.batches);
        let (evaluation, sources) =
            evaluate_sources(layers, batches, &mut self.traffic, self.stop)?;
        if moved {
            to_training_point(&self.state.units, &mut self.traffic)?;
        }
        if let Evaluation::Loss(loss) = evaluation {
            let bytes = self.plan.data.tokenizer == Some(config::Tokenizer::Bytes);
            self.sinks.eval(&EvalRecord {
                step: self.state.step,
                loss,
                perplexity: loss.exp(),
                bits_per_byte: bytes.then_some(loss / std::f64::consts::LN_2),
                sources,
            });
        }
        Ok(evaluation)
    }

    fn say_costs(&mut self) {
        if let Some(line) = self.costs.line(&self.rates(), &self.state) {
            self.sinks.progress().note(&line);
        }
    }

    fn rates(&self) -> Rates {
        Rates {
            flops_per_token: self.plan.derived.flops_per_token,
            num_ranks: self.collective.degree(),
            peak_flops: self.peak_flops,
        }
    }
}

/// A text as a number that ranks can compare.
fn hashed(text: &str) -> i64 {
    let hash = Sha256::digest(text.as_bytes());
    i64::from_le_bytes(std::array::from_fn(|i| hash[i]))
}

/// Whether something that is due every `every` steps (0: never) is due after `step`.
fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

fn open_sinks(plan: &Plan, collective: &dyn Collective, step: u64) -> Result<Sinks, Error> {
    if collective.rank() != 0 {
        return Ok(Sinks::silent());
    }
    let terminal = Environment::read()?.terminal_columns;
    let progress = Progress::auto(plan.run.steps, plan.metrics.log_every, step, terminal);
    let plots = if plan.metrics.tensorboard { Plots::TensorBoard } else { Plots::None };
    Ok(Sinks::open(&plan.run.dir, step, plots, progress))
}
