//! Text from a model: one token after the other, each from the distribution given what precedes.

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::model::init::{generator, open_uniform};
use crate::pass::{Layers, Traffic, logits_at};
use crate::signals::StopRequest;
use crate::step_numbers::agree_to_stop;

/// Forwards run at lengths that are multiples of this: libtorch prepares its products for each new
/// shape and keeps what it has prepared.
const LENGTH_STEP: usize = 64;

/// How to draw the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Tokens to add to the prompt.
    pub num_tokens: usize,
    /// Ids below this are drawn: the tokenizer's, which may have fewer than the model.
    pub vocab_size: u32,
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f64,
    /// Draw among this many most likely tokens; 0 among all.
    pub top_k: usize,
    /// Keys the random numbers.
    pub seed: u64,
}

/// Continues `prompt` (at least one token) and returns prompt and continuation, the same on every
/// rank.
///
/// Each token is drawn after a forward over the last `window` tokens at most; a request to stop
/// ends the continuation early.
///
/// # Errors
/// If a collective fails.
///
/// # Collectives
/// For each token one all-reduce, and those of a forward.
pub fn continue_tokens(
    layers: Layers<'_>,
    prompt: &[u32],
    window: usize,
    (sampling, stop): (&Sampling, &StopRequest),
    traffic: &mut Traffic<'_>,
) -> Result<Vec<u32>, grove_parallel::Error> {
    let mut tokens = prompt.to_vec();
    let mut rng = generator(sampling.seed, "sample");
    for _ in 0..sampling.num_tokens {
        if agree_to_stop(traffic.sharding.world(), stop)? {
            break;
        }
        let visible = &tokens[tokens.len().saturating_sub(window)..];
        let last = visible.len() as i64 - 1;
        let mut inputs: Vec<i64> = visible.iter().map(|&token| i64::from(token)).collect();
        // What follows a position does not change it, so the sequence may be filled up.
        inputs.resize(inputs.len().next_multiple_of(LENGTH_STEP).min(window), 0);
        let inputs = Tensor::from_slice(&inputs).unsqueeze(0).to_device(layers.compute.device);
        let logits = logits_at(layers, (&inputs, last), traffic)?;
        tokens.push(draw(&logits, sampling, &mut rng));
    }
    Ok(tokens)
}

/// One token by inverting the cumulative distribution, in f64.
fn draw(logits: &Tensor, sampling: &Sampling, rng: &mut ChaCha8Rng) -> u32 {
    let logits = logits.narrow(0, 0, logits.size()[0].min(i64::from(sampling.vocab_size)));
    if sampling.temperature == 0.0 {
        return token(logits.argmax(-1, false).int64_value(&[]));
    }
    let mut scaled =
        logits.to_device(tch::Device::Cpu).to_kind(Kind::Double) / sampling.temperature;
    if sampling.top_k > 0 {
        let count = (sampling.top_k as i64).min(scaled.size()[0]);
        let (largest, _) = scaled.topk(count, -1, true, true);
        let below = scaled.lt_tensor(&largest.get(count - 1));
        scaled = scaled.masked_fill(&below, f64::NEG_INFINITY);
    }
    let cumulative = scaled.softmax(-1, Kind::Double).cumsum(-1, Kind::Double);
    let threshold = open_uniform(rng) * cumulative.get(-1).double_value(&[]);
    token(cumulative.lt(threshold).sum(Kind::Int64).int64_value(&[]))
}

fn token(index: i64) -> u32 {
    u32::try_from(index).expect("a vocabulary has at most 2^32 tokens")
}
