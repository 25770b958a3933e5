//! Initial values of parameters: counter-based random numbers keyed by (seed, parameter name), so
//! that a parameter starts alike whatever else the model holds and whoever computes it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use super::units::{Init, ParamSpec};

/// A generator for one purpose: the stream is a pure function of `seed` and `name`.
pub fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(name.as_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// Fills `values` with the parameter's initial values.
///
/// Normal values come in pairs by Box and Muller's transform (1958) of two 53-bit uniforms, so
/// every pair takes the same number of random words.
pub fn fill(seed: u64, param: &ParamSpec, values: &mut [f64]) {
    match param.init {
        Init::Ones => values.fill(1.0),
        Init::Zeros => values.fill(0.0),
        Init::Normal(std) => {
            let mut rng = generator(seed, &param.name);
            for pair in values.chunks_mut(2) {
                let radius = std * (-2.0 * open_uniform(&mut rng).ln()).sqrt();
                let angle = std::f64::consts::TAU * open_uniform(&mut rng);
                pair[0] = radius * angle.cos();
                if let Some(second) = pair.get_mut(1) {
                    *second = radius * angle.sin();
                }
            }
        }
    }
}

/// A uniform value in (0, 1], from 53 random bits.
pub fn open_uniform(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
}
