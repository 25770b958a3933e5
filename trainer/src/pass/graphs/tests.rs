//! What is recorded when, and that replays see each micro-batch's own tokens, with a stand-in for the
//! GPU whose replays do the recorded work again.

use std::cell::Cell;
use std::rc::Rc;

use grove_optim::{AdamWConfig, RuleConfig, StateDtype};
use grove_parallel::LocalCollective;
use tch::Device;

use super::*;
use crate::model::block::Recompute;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, RunOptions};
use crate::pass::{Documents, micro_step};
use crate::rules::Rules;
use crate::sharding::{Placement, Sharding};
use crate::state::{OwnedSegment, RunState, UnitState};

const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 19, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 8, "rms_norm_eps": 0.01,
    "rope_theta": 100.0, "tie_word_embeddings": true, "initializer_range": 0.02}"#;

/// How often something was recorded and replayed.
#[derive(Clone, Default)]
struct Counts {
    recorded: Rc<Cell<usize>>,
    replayed: Rc<Cell<usize>>,
}

struct Again(Counts);

impl Record for Counts {
    fn record(&mut self, _: &Compute, _: &mut dyn FnMut()) -> Box<dyn Replay> {
        self.recorded.set(self.recorded.get() + 1);
        Box::new(Again(self.clone()))
    }
}

impl Replay for Again {
    fn replay(&self, work: &mut dyn FnMut()) {
        self.0.replayed.set(self.0.replayed.get() + 1);
        work();
    }
}

struct Subject {
    compute: Compute,
    model: Decoder,
    state: RunState,
}

impl Subject {
    fn new() -> Self {
        let compute = Compute::new(Device::Cpu, Kind::Float, 1);
        let config = ModelConfig::from_hf_json(LLAMA).expect("a known family");
        let options =
            RunOptions { sequence_length: 8, recompute: Recompute::None, logits_rows: 10 };
        let model = Decoder::new(&compute, &config, options);
        let (eps, weight_decay, state_dtype) = (1e-8, 0.1, StateDtype::Accumulation);
        let adamw = AdamWConfig { beta1: 0.9, beta2: 0.95, eps, weight_decay, state_dtype };
        let rules = Rules::all(RuleConfig::AdamW(adamw).build().expect("valid hyper-parameters"));
        let home = (&Placement::alone(), Device::Cpu);
        let mut state =
            RunState::allocate(&compute, model.units(), &rules, home).expect("a layout");
        tch::manual_seed(8);
        for unit in &state.units {
            unit.masters.shallow_clone().copy_(&(Tensor::randn_like(&unit.masters) * 0.3));
        }
        state.round_masters();
        Self { compute, model, state }
    }

    /// Rows of as many tokens as each has, all different from one `number` to the next.
    fn tokens(&self, number: usize, rows: usize) -> Tokens {
        let ids: Vec<u32> =
            (0..rows * 9).map(|i| ((i * 7 + number * 5 + i * i) % 19) as u32).collect();
        Tokens::new(&self.compute, &ids, rows)
    }

    /// The gradients of all parameters: what lies between them is arbitrary.
    fn gradients(&self) -> Vec<Tensor> {
        let of_unit = |unit: &UnitState| {
            let grads = unit.grads.copy();
            let part = move |at: &OwnedSegment| {
                grads.narrow(0, at.range.start as i64, at.range.len() as i64)
            };
            unit.segments.iter().map(part).collect::<Vec<_>>()
        };
        self.state.units.iter().flat_map(of_unit).collect()
    }

    /// Losses and, after each step, gradients of steps of three micro-batches.
    fn run(&self, traffic: &mut Traffic<'_>, steps: usize) -> (Vec<f64>, Vec<Tensor>) {
        let layers =
            Layers { model: &self.model, compute: &self.compute, units: &self.state.units };
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for number in 0..3 * steps {
            let round = Round { first: number % 3 == 0, last: number % 3 == 2, contributes: true };
            let tokens = self.tokens(number, 2);
            let loss = micro_step(layers, &tokens, round, traffic, &mut Clock::new());
            losses.push(loss.expect("one rank").double_value(&[]));
            if round.last {
                traffic.sums.finish().expect("one rank");
                gradients.extend(self.gradients());
            }
        }
        (losses, gradients)
    }
}

fn with_traffic<T>(
    subject: &Subject,
    counts: Option<Counts>,
    work: impl FnOnce(&mut Traffic<'_>) -> T,
) -> T {
    let local = LocalCollective::new();
    let sharding = Sharding::new(Placement::alone(), &local).expect("one rank");
    let mut traffic = Traffic::new(sharding, &subject.state.units, 0);
    traffic.graphs = counts.map(|counts| Graphs { recorder: Box::new(counts), recorded: None });
    work(&mut traffic)
}

#[test]
fn replays_are_the_micro_steps_they_stand_for() {
    let _no_graph = tch::no_grad_guard();
    let (subject, counts) = (Subject::new(), Counts::default());
    let expected = with_traffic(&subject, None, |traffic| subject.run(traffic, 5));
    let found = with_traffic(&subject, Some(counts.clone()), |traffic| subject.run(traffic, 5));
    assert_eq!(found.0, expected.0, "losses");
    assert!(found.1.iter().zip(&expected.1).all(|(found, expected)| found == expected));
    assert_eq!(counts.recorded.get(), 2, "the first of a step, and the others");
    // Of 5 first ones and 10 others each kind was warmed up.
    assert_eq!(counts.replayed.get(), 15 - 2 * WARM_UPS);
}

#[test]
fn another_shape_or_place_is_recorded_anew() {
    let _no_graph = tch::no_grad_guard();
    let (subject, counts) = (Subject::new(), Counts::default());
    let other = Subject::new();
    with_traffic(&subject, Some(counts.clone()), |traffic| {
        let step = |subject: &Subject, rows, traffic: &mut Traffic<'_>| {
            let layers = Layers {
                model: &subject.model,
                compute: &subject.compute,
                units: &subject.state.units,
            };
            let tokens = subject.tokens(1, rows);
            let clock = &mut Clock::new();
            drop(micro_step(layers, &tokens, Round::only(), traffic, clock).expect("one rank"));
        };
        (0..5).for_each(|_| step(&subject, 2, traffic));
        assert_eq!((counts.recorded.get(), counts.replayed.get()), (1, 3));
        (0..5).for_each(|_| step(&subject, 3, traffic));
        assert_eq!((counts.recorded.get(), counts.replayed.get()), (2, 6));
        (0..5).for_each(|_| step(&other, 3, traffic));
        assert_eq!((counts.recorded.get(), counts.replayed.get()), (3, 9));
    });
}

#[test]
fn what_differs_from_batch_to_batch_is_not_recorded() {
    let _no_graph = tch::no_grad_guard();
    let (subject, counts) = (Subject::new(), Counts::default());
    let layers =
        Layers { model: &subject.model, compute: &subject.compute, units: &subject.state.units };
    let batch = grove_data::Batch {
        tokens: (0..18).collect(),
        batch_size: 2,
        sequence_length: 8,
        segment_starts: vec![0, 3, 8],
        loss_mask: None,
    };
    let cut = Tokens::of_batch(&subject.compute, &batch, Documents::Apart);
    let mut drawn = subject.tokens(0, 2);
    drawn.draws = Some(Tensor::zeros([16], (Kind::Double, Device::Cpu)));
    with_traffic(&subject, Some(counts.clone()), |traffic| {
        for tokens in [&cut, &drawn] {
            for _ in 0..WARM_UPS + 2 {
                let clock = &mut Clock::new();
                drop(micro_step(layers, tokens, Round::only(), traffic, clock).expect("one rank"));
            }
        }
    });
    assert_eq!(counts.recorded.get(), 0);
}
