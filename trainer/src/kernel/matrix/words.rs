//! Memory that grows to the most that was ever asked for, on cache lines.
#![allow(unsafe_code, reason = "cache lines seen as words")]

/// Words of a cache line.
const LINE_WORDS: usize = 16;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE_WORDS]);

/// 32-bit words that begin on a cache line.
#[derive(Debug, Default)]
pub(super) struct Words {
    lines: Vec<Line>,
}

impl Words {
    /// At least `len` words, with whatever the last user left in them.
    pub(super) fn get(&mut self, len: usize) -> &mut [u32] {
        let num_lines = len.div_ceil(LINE_WORDS);
        if self.lines.len() < num_lines {
            self.lines.resize(num_lines, Line([0; LINE_WORDS]));
        }
        let words = self.lines.as_mut_ptr().cast();
        // SAFETY: `Line` is LINE_WORDS initialized words without padding, and `lines` is borrowed
        // mutably for as long as the words are.
        unsafe { std::slice::from_raw_parts_mut(words, self.lines.len() * LINE_WORDS) }
    }
}
