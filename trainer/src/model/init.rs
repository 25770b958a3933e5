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
                let drawn = normal_pair(&mut rng, std);
                pair.copy_from_slice(&drawn[..pair.len()]);
            }
        }
        Init::TruncatedNormal { std, deviations } => {
            let mut rng = generator(seed, &param.name);
            let bound = std * deviations;
            for value in values {
                let drawn = std::iter::repeat_with(|| normal_pair(&mut rng, std)[0]);
                let kept = drawn.into_iter().find(|drawn| drawn.abs() <= bound);
                *value = kept.expect("the iterator does not end");
            }
        }
        Init::Stacked { stds } => {
            let columns = param.shape[1] as usize;
            let mut rng = generator(seed, &param.name);
            for (index, pair) in values.chunks_mut(2).enumerate() {
                let drawn = normal_pair(&mut rng, 1.0);
                for (offset, value) in pair.iter_mut().enumerate() {
                    let column = (2 * index + offset) % columns;
                    *value = drawn[offset] * stds[column * stds.len() / columns];
                }
            }
        }
        Init::Identity { blocks, transposed } => {
            let [first, second] = [param.shape[0] as usize, param.shape[1] as usize];
            let (rows, columns) = if transposed { (second, first) } else { (first, second) };
            let block_rows = rows / blocks;
            for row in 0..rows {
                for column in 0..columns {
                    let at = if transposed { column * rows + row } else { row * columns + column };
                    values[at] = identity_entry((block_rows, columns), (row % block_rows, column));
                }
            }
        }
    }
}

/// Two independent normal values of mean 0.
fn normal_pair(rng: &mut ChaCha8Rng, std: f64) -> [f64; 2] {
    let radius = std * (-2.0 * open_uniform(rng).ln()).sqrt();
    let angle = std::f64::consts::TAU * open_uniform(rng);
    [radius * angle.cos(), radius * angle.sin()]
}

/// An entry of [`Init::Identity`]. Taller than wide, with `p` the power of two that holds the rows:
/// `H_p / sqrt(p)`, in Sylvester's order `H[i, j] = (-1)^popcount(i & j)`.
fn identity_entry((rows, columns): (usize, usize), (row, column): (usize, usize)) -> f64 {
    if rows <= columns {
        return f64::from(u8::from(row == column));
    }
    let scale = (rows.next_power_of_two() as f64).sqrt().recip();
    if (row & column).count_ones().is_multiple_of(2) { scale } else { -scale }
}

/// A uniform value in (0, 1], from 53 random bits.
pub fn open_uniform(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
}
