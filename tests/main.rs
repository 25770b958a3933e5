//! The integration tests of all rooms together, as one binary.
//!
//! `parity` compares with Hugging Face; `recompute`, `ranks` and `zero` compare ways of computing the
//! same; `curvature` compares estimates with exact derivatives, `coordinates` one width with another;
//! `families`, `rules`, `resume`, `growth` and `faults` run the program, `hosts` on two hosts; `cli` checks what
//! it says, `layering` what may name what.

mod cli;
mod coordinates;
mod curvature;
mod families;
mod faults;
mod fixture;
mod growth;
mod hosts;
mod layering;
mod parity;
mod program;
mod ranks;
mod recompute;
mod resume;
mod rules;
mod zero;
