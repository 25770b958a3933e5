//! Fuzzing of every reader: arbitrary bytes, and files that were whole and then edited. No reader
//! may panic, or take memory that the file's size does not account for.
//!
//! Each test is one reader. `PROPTEST_CASES` sets how many inputs it gets; `scripts/fuzz` runs
//! them for minutes.

mod memory;
mod mutation;
mod readers;
mod workplace;
