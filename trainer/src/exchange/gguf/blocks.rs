//! How GGML stores values: plain numbers, or blocks of 32 that share a scale.

use half::{bf16, f16};

/// Values of a quantized block.
const BLOCK: usize = 32;

/// How the values of a tensor are stored (ggml's `ggml_type`, those that are read here).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 4 bits: `(q - 8) d`, with an f16 `d` a block.
    Q4_0,
    /// 4 bits: `q d + m`, with f16 `d` and `m` a block.
    Q4_1,
    /// 8 bits, signed: `q d`, with an f16 `d` a block.
    Q8_0,
}

impl BlockType {
    /// The type with this code in a file; `None` if it is not read here.
    #[must_use]
    pub fn of_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            2 => Some(Self::Q4_0),
            3 => Some(Self::Q4_1),
            8 => Some(Self::Q8_0),
            30 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Values and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (BLOCK, 2 + BLOCK / 2),
            Self::Q4_1 => (BLOCK, 4 + BLOCK / 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
        }
    }

    /// Bytes of a tensor, given its dims fastest first; `None` if a row is no whole number of
    /// blocks, or there are more bytes than an address can say.
    pub(super) fn len_bytes(self, dims: &[usize]) -> Option<usize> {
        let (values, bytes) = self.block();
        let (row, rows) = dims.split_first()?;
        let row = row.is_multiple_of(values).then(|| row / values)?;
        rows.iter().try_fold(row, |count, dim| count.checked_mul(*dim))?.checked_mul(bytes)
    }

    /// The values of whole blocks.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let (values, size) = self.block();
        let mut out = Vec::with_capacity(bytes.len() / size * values);
        match self {
            Self::F32 => out.extend(singles(bytes)),
            Self::F16 => out.extend(pairs(bytes).map(|x| f16::from_le_bytes(x).to_f32())),
            Self::Bf16 => out.extend(pairs(bytes).map(|x| bf16::from_le_bytes(x).to_f32())),
            Self::Q4_0 => {
                for block in bytes.chunks_exact(size) {
                    let scale = half_at(block, 0);
                    out.extend(nibbles(&block[2..]).map(|q| (f32::from(q) - 8.0) * scale));
                }
            }
            Self::Q4_1 => {
                for block in bytes.chunks_exact(size) {
                    let (scale, least) = (half_at(block, 0), half_at(block, 2));
                    out.extend(nibbles(&block[4..]).map(|q| f32::from(q) * scale + least));
                }
            }
            Self::Q8_0 => {
                for block in bytes.chunks_exact(size) {
                    let scale = half_at(block, 0);
                    out.extend(block[2..].iter().map(|&q| f32::from(q.cast_signed()) * scale));
                }
            }
        }
        out
    }
}

fn singles(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x))
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = [u8; 2]> {
    bytes.as_chunks().0.iter().copied()
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The lower halves of all bytes, then the upper ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let lower = bytes.iter().map(|byte| byte & 15);
    lower.chain(bytes.iter().map(|byte| byte >> 4))
}
