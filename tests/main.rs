//! The integration tests of all rooms together, as one binary.
//!
//! `parity` compares with Hugging Face; `recompute`, `ranks` and `zero` compare ways of computing the
//! same; `exchange` takes models in and out; `curvature` compares estimates with exact derivatives,
//! `coordinates` one width with another; `forms` residual forms with their papers; `documents` and
//! `data` pack and mix; `families`, `rules`, `whole`, `resume`, `growth`, `inheritance`, `masks`,
//! `saving`, `faults`, `guard` and `watchdog` run the program, `hosts` on two hosts; `cli` checks what
//! it says, `layering` what may name what, `waits` where a step may wait for
//! a GPU.

mod cli;
mod coordinates;
mod curvature;
mod data;
mod documents;
mod exchange;
mod families;
mod faults;
mod fixture;
mod forms;
mod growth;
mod guard;
mod hosts;
mod inheritance;
mod layering;
mod loss_terms;
mod masks;
mod parity;
mod program;
mod ranks;
mod recompute;
mod resume;
mod rules;
mod saving;
mod steady;
mod stopping;
mod waits;
mod watchdog;
mod whole;
mod zero;
