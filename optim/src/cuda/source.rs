//! The source of a rule's kernels, and what they take.

use std::fmt::Write;

use crate::elements::Scalars;
use crate::quantize::CodeBook;
use crate::real::Real;
use crate::rule::Rule;

const STATE: &str = include_str!("state.cu");
const QUANTIZED: &str = include_str!("quantized.cu");
const ADAMW: &str = include_str!("adamw.cu");
const ADAMW_8BIT: &str = include_str!("adamw_8bit.cu");
const LION: &str = include_str!("lion.cu");
const LION_8BIT: &str = include_str!("lion_8bit.cu");
const SOPHIA: &str = include_str!("sophia.cu");
const SCHEDULE_FREE: &str = include_str!("schedule_free.cu");

/// The most numbers that a rule takes.
pub(super) const MAX_NUMBERS: usize = 10;

/// The numbers of one step, as `Numbers` in `state.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Numbers<T>(pub(super) [T; MAX_NUMBERS]);

/// What an update reads and writes, as `Range` in `state.cu`: addresses on the device.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Range {
    pub(super) master: u64,
    pub(super) grad: u64,
    pub(super) state: [u64; 4],
    pub(super) working: u64,
    pub(super) count: u64,
    pub(super) first: u64,
    pub(super) keys: [u32; 2],
}

/// Which kernel of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// All in f32.
    F32,
    /// All in f64.
    F64,
    /// In f32, states in bf16.
    F32Bf16,
    /// In f64, states in bf16.
    F64Bf16,
    /// In f32, states in 8 bits.
    F32Codes,
}

impl Form {
    /// The forms that a rule has kernels for.
    pub(super) fn of(rule: &Rule) -> &'static [Self] {
        match rule {
            Rule::AdamW(_) | Rule::Lion(_) => &[Self::F32, Self::F64, Self::F32Bf16, Self::F64Bf16],
            Rule::Sophia(_) | Rule::ScheduleFree(_) => &[Self::F32, Self::F64],
            Rule::AdamW8bit(_) | Rule::Lion8bit(_) => &[Self::F32, Self::F64, Self::F32Codes],
        }
    }

    /// The name of its kernel.
    pub(super) fn kernel(self, rule: &Rule) -> String {
        let form = match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F32Bf16 => "f32_bf16",
            Self::F64Bf16 => "f64_bf16",
            Self::F32Codes => "f32_codes",
        };
        format!("{}_{form}", rule.name())
    }
}

/// The whole source of a rule's kernels.
pub(super) fn source(rule: &Rule) -> String {
    match rule {
        Rule::AdamW(_) => [STATE, ADAMW].concat(),
        Rule::Lion(_) => [STATE, LION].concat(),
        Rule::Sophia(_) => [STATE, SOPHIA].concat(),
        Rule::ScheduleFree(_) => [STATE, SCHEDULE_FREE].concat(),
        Rule::AdamW8bit(_) => [STATE, &tables(), QUANTIZED, ADAMW, ADAMW_8BIT].concat(),
        Rule::Lion8bit(_) => [STATE, &tables(), QUANTIZED, LION, LION_8BIT].concat(),
    }
}

/// The code books.
fn tables() -> String {
    let mut text = String::new();
    for (name, book) in [("SIGNED", CodeBook::signed()), ("UNSIGNED", CodeBook::unsigned())] {
        for (what, numbers) in [("VALUES", &book.values()[..]), ("THRESHOLDS", book.thresholds())] {
            let bits: Vec<String> =
                numbers.iter().map(|number| format!("{:#x}u", number.to_bits())).collect();
            let (count, bits) = (numbers.len(), bits.join(","));
            let _ = writeln!(text, "__device__ const u32 {name}_{what}[{count}] = {{{bits}}};");
        }
        let _ = writeln!(text, "#define {name}_ZERO {}", book.zero_code());
    }
    text
}

/// The numbers of a step in the order of the rule's kernels.
pub(super) fn numbers<T: Real>(rule: &Rule, scalars: &Scalars) -> Numbers<T> {
    let mut padded = [T::ZERO; MAX_NUMBERS];
    let mut fill = |numbers: &[T]| padded[..numbers.len()].copy_from_slice(numbers);
    match rule {
        Rule::AdamW(rule) => fill(&rule.step(scalars).numbers()),
        Rule::AdamW8bit(rule) => fill(&rule.step(scalars).numbers()),
        Rule::Lion(rule) => fill(&rule.step(scalars).numbers()),
        Rule::Lion8bit(rule) => fill(&rule.step(scalars).numbers()),
        Rule::Sophia(rule) => fill(&rule.step(scalars).numbers()),
        Rule::ScheduleFree(rule) => fill(&rule.step(scalars).numbers()),
    }
    Numbers(padded)
}
