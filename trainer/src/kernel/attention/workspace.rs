//! Threads, instruction set and scratch memory of the attention kernel, kept from call to call.
#![allow(unsafe_code, reason = "sees aligned lines as words and floats")]

use super::Level;
use crate::kernel::pool::Pool;

/// Words in a cache line.
const LINE_WORDS: usize = 16;

/// What [`super::forward`] and [`super::backward`] run on: a pool, a level and each thread's scratch.
///
/// The scratch grows to what the largest call needs and is then reused; keep one workspace for a
/// whole run. Its contents never influence a result.
pub struct Workspace {
    pub(super) pool: Pool,
    pub(super) level: Level,
    pub(super) scratch: Vec<Scratch>,
}

impl Workspace {
    /// A workspace for the threads of `pool`, computing at `level`.
    ///
    /// # Panics
    /// If this processor does not have `level`; [`Level::detect`] gives one that it has.
    #[must_use]
    pub fn new(pool: Pool, level: Level) -> Self {
        assert!(level.is_available(), "{level:?} is not available on this processor");
        let scratch = (0..pool.num_threads()).map(|_| Scratch::default()).collect();
        Self { pool, level, scratch }
    }
}

/// One thread's memory.
#[derive(Default)]
pub(super) struct Scratch {
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE_WORDS]);

impl Scratch {
    /// At least `num_words` words, with whatever the last user left in them.
    pub(super) fn arena(&mut self, num_words: usize) -> Arena<'_> {
        let num_lines = num_words.div_ceil(LINE_WORDS);
        if self.lines.len() < num_lines {
            self.lines.resize(num_lines, Line([0; LINE_WORDS]));
        }
        let words = self.lines.as_mut_ptr().cast();
        // SAFETY: `Line` is LINE_WORDS initialized words without padding, and `lines` is borrowed
        // mutably for as long as the arena lives.
        let rest = unsafe { std::slice::from_raw_parts_mut(words, self.lines.len() * LINE_WORDS) };
        Arena { rest }
    }
}

/// Memory that is handed out piece by piece, each on its own cache lines.
pub(super) struct Arena<'a> {
    rest: &'a mut [u32],
}

impl<'a> Arena<'a> {
    /// What a piece of `num_words` takes from an arena.
    pub(super) const fn piece(num_words: usize) -> usize {
        num_words.next_multiple_of(LINE_WORDS)
    }

    /// The next `num_words` words.
    ///
    /// # Panics
    /// If the arena was made smaller than the sum of its pieces.
    pub(super) fn words(&mut self, num_words: usize) -> &'a mut [u32] {
        let rest = std::mem::take(&mut self.rest);
        let (piece, rest) = rest.split_at_mut(Self::piece(num_words));
        self.rest = rest;
        &mut piece[..num_words]
    }

    /// The next `len` floats, as [`Arena::words`].
    pub(super) fn floats(&mut self, len: usize) -> &'a mut [f32] {
        let words = self.words(len);
        // SAFETY: f32 has the size and alignment of u32 and no invalid bits, and the words are
        // borrowed mutably for 'a.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
    }
}
