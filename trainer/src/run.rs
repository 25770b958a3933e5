//! A run's life: start or resume, step after step, and the visible list of what is due after each.

use std::fs;
use std::num::NonZeroUsize;
use std::time::Instant;

use grove_data::{Prefetcher, Tokenizer, Validation};
use grove_parallel::Collective;

use crate::checkpoint::{self, Checkpoint};
use crate::clock::Clock;
use crate::config::{self, Plan};
use crate::corpus::{self, Data};
use crate::error::Error;
use crate::eval::{Evaluation, evaluate};
use crate::metrics::{
    EnergyMeter, EvalRecord, Progress, Sinks, StepRecord, mfu, peak_resident_bytes,
};
use crate::model::compute::Compute;
use crate::peak;
use crate::recipe::recipe;
use crate::sample::{Sampling, continue_tokens};
use crate::saving;
use crate::signals::StopRequest;
use crate::state::RunState;
use crate::step::{Recipe, StepOutcome, agree_to_stop, train_step};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Finished,
    /// It was asked to stop, and has saved.
    Interrupted,
}

/// Trains what the plan says, on this rank.
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
) -> Result<Ending, Error> {
    plan.check_ranks(collective.degree())?;
    let mut run = Run::open(plan, compute, collective, stop)?;
    let ending = run.steps()?;
    if ending == Ending::Finished {
        run.sample()?;
    }
    run.sinks.finish();
    Ok(ending)
}

struct Run<'a> {
    plan: &'a Plan,
    collective: &'a dyn Collective,
    stop: &'a StopRequest,
    recipe: Recipe,
    state: RunState,
    /// The step of the newest checkpoint; 0 if there is none.
    saved_step: u64,
    fingerprint: String,
    batches: Prefetcher,
    validation: Option<Validation>,
    sinks: Sinks,
    clock: Clock,
    energy: EnergyMeter,
    peak_flops: f64,
}

impl<'a> Run<'a> {
    fn open(
        plan: &'a Plan,
        compute: Compute,
        collective: &'a dyn Collective,
        stop: &'a StopRequest,
    ) -> Result<Self, Error> {
        let resumed = open_folder(plan, collective)?;
        let data = Data::open(plan, collective)?;
        let recipe = recipe(plan, compute, collective.degree())?;
        let (compute, units) = (&recipe.compute, recipe.model.units());
        let mut state = RunState::allocate(compute, units, &recipe.rule)?;
        match &resumed {
            Some(checkpoint) => resume(plan, &data, &mut state, checkpoint)?,
            None => state.initialize(compute, plan.seed),
        }
        let validation = match plan.eval {
            Some(_) => Some(data.validation(plan)?),
            None => None,
        };
        let peak_flops = match plan.metrics.peak_tflops {
            0.0 => peak::measure(compute),
            tflops => tflops * 1e12,
        };
        let mut run = Self {
            batches: data.batches(plan, collective, state.step)?,
            saved_step: state.step,
            sinks: open_sinks(plan, collective, state.step),
            fingerprint: data.fingerprint,
            clock: Clock::new(),
            energy: EnergyMeter::start(),
            plan,
            collective,
            stop,
            recipe,
            state,
            validation,
            peak_flops,
        };
        run.say_start();
        Ok(run)
    }

    /// The loop: one step, then what is due after it.
    fn steps(&mut self) -> Result<Ending, Error> {
        if agree_to_stop(self.collective, self.stop)? {
            return self.interrupt();
        }
        while self.state.step < self.plan.run.steps {
            let started = Instant::now();
            let outcome = train_step(
                &self.recipe,
                &mut self.state,
                &mut self.batches,
                (self.collective, self.stop),
                &mut self.clock,
            )?;
            self.record(&outcome, started);
            if outcome.stop || (self.eval_is_due() && self.eval()? == Evaluation::Stopped) {
                return self.interrupt();
            }
            if self.save_is_due() {
                self.save(OnFailure::Warn)?;
            }
        }
        if self.saved_step < self.state.step {
            self.save(OnFailure::End)?;
        }
        Ok(Ending::Finished)
    }

    fn eval_is_due(&self) -> bool {
        let last = self.state.step == self.plan.run.steps;
        self.plan.eval.is_some_and(|eval| last || is_due(self.state.step, eval.every))
    }

    fn save_is_due(&self) -> bool {
        is_due(self.state.step, self.plan.checkpoint.every)
    }

    fn interrupt(&mut self) -> Result<Ending, Error> {
        if self.saved_step < self.state.step {
            self.save(OnFailure::End)?;
        }
        let (step, steps) = (self.state.step, self.plan.run.steps);
        let line = format!("stopped at step {step} of {steps}; continue with --resume");
        self.sinks.progress().note(&line);
        Ok(Ending::Interrupted)
    }

    fn record(&mut self, outcome: &StepOutcome, started: Instant) {
        let phases = self.clock.take();
        let step_seconds = started.elapsed().as_secs_f64();
        let flops_per_token = self.plan.derived.flops_per_token;
        self.state.flops += u128::from(outcome.num_tokens) * u128::from(flops_per_token);
        let tokens_per_second = outcome.num_tokens as f64 / step_seconds;
        let flops_per_token = flops_per_token as f64;
        let degree = self.collective.degree();
        self.sinks.step(&StepRecord {
            step: self.state.step,
            loss: outcome.loss,
            grad_norm: outcome.grad_norm,
            lr: outcome.lr,
            num_tokens: self.state.num_tokens,
            tokens_per_second,
            flops_per_second: tokens_per_second * flops_per_token,
            mfu: mfu(tokens_per_second, flops_per_token, degree, self.peak_flops),
            step_seconds,
            phases,
            peak_memory_bytes: peak_resident_bytes().unwrap_or(0),
            energy_joules: self.energy.joules(),
            total_flops: self.state.flops as f64,
        });
    }

    fn eval(&mut self) -> Result<Evaluation, Error> {
        let (Some(validation), Some(eval)) = (&self.validation, self.plan.eval) else {
            unreachable!("an evaluation is due only where there is validation data")
        };
        let evaluation = evaluate(
            (&self.recipe.model, &self.recipe.compute),
            &self.state.units,
            (validation, eval.batches),
            self.collective,
            self.stop,
        )?;
        if let Evaluation::Loss(loss) = evaluation {
            let bytes = self.plan.data.tokenizer == Some(config::Tokenizer::Bytes);
            self.sinks.eval(&EvalRecord {
                step: self.state.step,
                loss,
                perplexity: loss.exp(),
                bits_per_byte: bytes.then_some(loss / std::f64::consts::LN_2),
            });
        }
        Ok(evaluation)
    }

    /// Rank 0 saves, the others wait. Whether a failure ends the run is the same on every rank.
    fn save(&mut self, on_failure: OnFailure) -> Result<(), Error> {
        let mut saved = Ok(());
        if self.collective.rank() == 0 {
            saved = self.save_here();
        }
        self.collective.barrier("the checkpoint is saved")?.wait()?;
        match (saved, on_failure) {
            (Ok(()), _) => self.saved_step = self.state.step,
            (Err(error), OnFailure::Warn) => {
                let kept = self.saved_step;
                let line = format!("{error}; the run goes on, its last checkpoint is step {kept}");
                self.sinks.progress().warn(&line);
            }
            (Err(error), OnFailure::End) => return Err(error),
        }
        Ok(())
    }

    fn save_here(&mut self) -> Result<(), Error> {
        let folder = saving::save(self.plan, &self.state, &self.fingerprint)?;
        let keep = NonZeroUsize::new(self.plan.checkpoint.keep_last as usize)
            .expect("the plan keeps at least one checkpoint");
        checkpoint::prune(&self.plan.run.dir, keep)?;
        self.sinks.progress().note(&format!("saved {}", folder.display()));
        Ok(())
    }

    /// Prints a sample of text, on rank 0.
    fn sample(&mut self) -> Result<(), Error> {
        let (Some(sample), 0) = (&self.plan.sample, self.collective.rank()) else { return Ok(()) };
        let wanted = self.plan.data.tokenizer.as_ref();
        let wanted = wanted.expect("the plan refuses samples without a tokenizer");
        let tokenizer: Tokenizer = corpus::tokenizer(self.plan, wanted)?;
        let prompt = tokenizer.encode(&sample.prompt)?;
        let sampling = Sampling {
            num_tokens: sample.tokens,
            temperature: sample.temperature,
            top_k: sample.top_k.unwrap_or(0),
            seed: self.plan.seed,
        };
        let model = (&self.recipe.model, &self.recipe.compute);
        let window = self.plan.batch.sequence_length;
        let tokens = continue_tokens(model, &self.state.units, &prompt, window, &sampling);
        let text = tokenizer.decode(&tokens)?;
        self.sinks.progress().note(&format!("a sample:\n{}", text.trim_end()));
        Ok(())
    }

    fn say_start(&mut self) {
        let (plan, degree) = (self.plan, self.collective.degree());
        let line = format!(
            "{:.2} M parameters, {} tokens a step, {} rank(s) of {} thread(s), {:?}, peak {:.0} GFLOP/s \
             a rank",
            plan.derived.num_parameters as f64 / 1e6,
            plan.derived.tokens_per_step,
            degree,
            self.recipe.compute.num_threads(),
            self.recipe.compute.device,
            self.peak_flops / 1e9,
        );
        self.sinks.progress().note(&line);
        if self.state.step > 0 {
            let line = format!("resumed at step {} of {}", self.state.step, plan.run.steps);
            self.sinks.progress().note(&line);
        }
    }
}

/// What a failed save does to the run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnFailure {
    /// A warning: there will be another save.
    Warn,
    /// The end: there is none after this one.
    End,
}

/// Whether something that is due every `every` steps (0: never) is due after `step`.
fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// Prepares the run's folder on rank 0 and finds the checkpoint to resume from, if any.
///
/// # Collectives
/// A barrier.
fn open_folder(plan: &Plan, collective: &dyn Collective) -> Result<Option<Checkpoint>, Error> {
    let mut prepared = Ok(());
    if collective.rank() == 0 {
        prepared = prepare_folder(plan);
    }
    collective.barrier("the run's folder is ready")?.wait()?;
    prepared?;
    if !plan.checkpoint.resume {
        return Ok(None);
    }
    let latest = checkpoint::latest(&plan.run.dir)?;
    Ok(latest.map(|whole| Checkpoint::open(&whole.folder)).transpose()?)
}

fn prepare_folder(plan: &Plan) -> Result<(), Error> {
    let dir = &plan.run.dir;
    let io = |action| move |source| Error::Io { action, path: dir.clone(), source };
    fs::create_dir_all(dir).map_err(io("make the run's folder"))?;
    checkpoint::clear_stale(dir)?;
    let checkpoints = checkpoint::list(dir)?;
    if let (Some(last), false) = (checkpoints.last(), plan.checkpoint.resume) {
        return Err(Error::RunExists {
            dir: dir.clone(),
            checkpoints: checkpoints.len(),
            last_step: last.step,
        });
    }
    fs::write(dir.join("plan.toml"), plan.to_toml()).map_err(io("write plan.toml in"))
}

fn resume(
    plan: &Plan,
    data: &Data,
    state: &mut RunState,
    checkpoint: &Checkpoint,
) -> Result<(), Error> {
    let saved = checkpoint.run_state();
    let changes = Plan::from_toml(&saved.plan_toml)?.meaning_changes(plan);
    if !changes.is_empty() {
        return Err(Error::PlanChanged { checkpoint: checkpoint.folder().to_owned(), changes });
    }
    if saved.data_fingerprint != data.fingerprint {
        return Err(Error::DataChanged {
            path: data.path.clone(),
            checkpoint: checkpoint.folder().to_owned(),
            expected: saved.data_fingerprint.clone(),
            found: data.fingerprint.clone(),
        });
    }
    saving::load(state, checkpoint)
}

fn open_sinks(plan: &Plan, collective: &dyn Collective, step: u64) -> Sinks {
    if collective.rank() != 0 {
        return Sinks::silent();
    }
    let progress = Progress::auto(plan.run.steps, plan.metrics.log_every, step);
    Sinks::open(&plan.run.dir, step, progress)
}
