//! How documents are laid into rows of `S + 1` tokens.
//!
//! A row is a list of segments, each a stretch of one document. What is computed for one segment
//! does not depend on another one where the trainer cuts attention and positions at the segment
//! starts; the first token of a segment is never a target, since nothing before it belongs to it.

#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use crate::error::Result;
use crate::order::Order;
use crate::source::Source;
use crate::split::Part;

/// Rows that are packed together by [`Packing::BestFit`], at most: a bit of a `u128` each.
const MAX_ROWS_PER_GROUP: u64 = 128;

/// And at least, so that what is left at the end of a group stays small beside it.
const MIN_ROWS_PER_GROUP: u64 = 8;

/// Pieces that a group should have: each row of it packs all of them, which is most of its cost,
/// while more than this hardly fill rows better.
const PIECES_PER_GROUP: u64 = 128;

/// A way to lay documents into rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Rows are windows of the token sequence, wherever documents begin. Every token but the first
    /// of a row is a target.
    Contiguous,
    /// The same windows, cut into segments at document starts.
    ContiguousByDocument,
    /// A row begins with the first document that starts in its window, or continues the document
    /// that fills the window, and holds the documents after it up to where the next row begins.
    /// The last of them is cut off if it does not fit, and its rest is not seen in this epoch
    /// (another epoch has other windows).
    DocumentAligned,
    /// Documents are cut into pieces of at most `S + 1` tokens, and the pieces packed whole, best
    /// fit first, longest first (Ding et al. 2024, "Fewer Truncations Improve Language Modeling",
    /// arXiv 2404.10830, section 3), in groups of up to 128 rows. The few pieces that find no room
    /// in their group are not seen in this epoch.
    BestFit,
}

impl Packing {
    /// Whether it needs to know where documents begin.
    pub(crate) fn needs_documents(self) -> bool {
        self != Self::Contiguous
    }
}

/// A stretch of a document in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its tokens in the source.
    pub(crate) tokens: Range<u64>,
    /// The document they are from; `None` where documents are not known or not minded.
    pub(crate) document: Option<u64>,
}

/// Lays out one source's rows.
pub(crate) struct Layout<'a> {
    pub(crate) part: &'a Part,
    pub(crate) order: &'a Order,
    pub(crate) packing: Packing,
}

impl Layout<'_> {
    /// The segments of the source's row `sample`; they may fill less than `S + 1` tokens.
    ///
    /// # Errors
    /// [`crate::SourceError::NoDocuments`] if the packing needs documents.
    pub(crate) fn row(&self, sample: u64) -> Result<Vec<Segment>> {
        let (phase, window) = self.order.window(sample);
        if self.packing.needs_documents() {
            self.part.file.need_documents("this packing")?;
        }
        let row_tokens = self.order.sequence_length() + 1;
        let start = self.window_start(phase, window);
        Ok(match self.packing {
            Packing::Contiguous => {
                vec![Segment { tokens: start..start + row_tokens, document: None }]
            }
            Packing::ContiguousByDocument => self.by_document(start..start + row_tokens),
            Packing::DocumentAligned => self.by_document(self.aligned(phase, window)),
            Packing::BestFit => self.best_fit(phase, window),
        })
    }

    /// Windows of one epoch whose rows may hold tokens of `tokens`, for an epoch's phase. All that
    /// do are among them.
    pub(crate) fn candidates(&self, phase: u64, tokens: &Range<u64>) -> Range<u64> {
        let (length, num_windows) = (self.order.sequence_length(), self.order.num_windows());
        let origin = self.part.range.start + phase;
        let window_of = |token: u64| (token.saturating_sub(origin) / length).min(num_windows);
        // A row reaches less than two windows beyond the start of its own.
        let first = window_of(tokens.start.saturating_sub(2 * length));
        let end = (window_of(tokens.end) + 1).min(num_windows);
        if self.packing != Packing::BestFit || first >= end {
            return first..end;
        }
        // A group takes the pieces that begin in its windows.
        self.group_rows(self.group_of(first)).start..self.group_rows(self.group_of(end - 1)).end
    }

    fn window_start(&self, phase: u64, window: u64) -> u64 {
        self.part.range.start + phase + window * self.order.sequence_length()
    }

    fn source(&self) -> &Source {
        &self.part.file
    }

    fn document_at(&self, token: u64) -> (u64, Range<u64>) {
        document_at(self.source(), &self.part.range, token)
    }

    /// A stretch of tokens cut at document starts.
    pub(crate) fn by_document(&self, tokens: Range<u64>) -> Vec<Segment> {
        cut_at_documents(self.source(), &self.part.range, tokens)
    }

    /// Where the row of the window at `start` begins, and whether a document does there.
    fn aligned_start(&self, start: u64) -> (u64, bool) {
        let (_, span) = self.document_at(start);
        if span.start == start {
            return (start, true);
        }
        let length = self.order.sequence_length();
        let is_inside = span.end < start + length && span.end < self.part.range.end;
        if is_inside { (span.end, true) } else { (start, false) }
    }

    fn aligned(&self, phase: u64, window: u64) -> Range<u64> {
        let length = self.order.sequence_length();
        let window_start = self.window_start(phase, window);
        let (start, _) = self.aligned_start(window_start);
        let limit = (start + length + 1).min(self.part.range.end);
        let next = window_start + length;
        if next >= self.part.range.end {
            return start..limit;
        }
        let (next_start, is_document) = self.aligned_start(next);
        // A row that continues a document predicts its first token in the row before.
        start..limit.min(next_start + u64::from(!is_document))
    }

    /// As many rows as hold about [`PIECES_PER_GROUP`] pieces of documents of mean length.
    fn rows_per_group(&self) -> u64 {
        let (length, num_tokens) = (self.order.sequence_length(), self.source().num_tokens());
        let num_documents = self.source().num_documents().unwrap_or(0).max(1);
        let piece = (num_tokens / num_documents).clamp(1, length);
        (PIECES_PER_GROUP * piece / length).clamp(MIN_ROWS_PER_GROUP, MAX_ROWS_PER_GROUP)
    }

    fn num_groups(&self) -> u64 {
        self.order.num_windows().div_ceil(self.rows_per_group())
    }

    fn group_of(&self, window: u64) -> u64 {
        let scaled = u128::from(window) * u128::from(self.num_groups());
        (scaled / u128::from(self.order.num_windows())) as u64
    }

    /// The rows of a group: windows in equal parts, as near as can be.
    fn group_rows(&self, group: u64) -> Range<u64> {
        let (num_groups, num_windows) = (self.num_groups(), self.order.num_windows());
        let first = |group: u64| {
            let scaled = u128::from(group) * u128::from(num_windows);
            scaled.div_ceil(u128::from(num_groups)) as u64
        };
        first(group)..first(group + 1)
    }

    fn best_fit(&self, phase: u64, window: u64) -> Vec<Segment> {
        let rows = self.group_rows(self.group_of(window));
        let tokens = self.window_start(phase, rows.start)..self.window_start(phase, rows.end);
        let pieces = self.pieces(tokens);
        let lengths: Vec<u64> =
            pieces.iter().map(|piece| piece.tokens.end - piece.tokens.start).collect();
        let capacity = self.order.sequence_length() + 1;
        let bins = best_fit_decreasing(&lengths, rows.end - rows.start, capacity);
        let own = window - rows.start;
        let is_own = |&(_, bin): &(Segment, Option<u64>)| bin == Some(own);
        pieces.into_iter().zip(bins).filter(is_own).map(|(piece, _)| piece).collect()
    }

    /// The pieces of documents that begin in a stretch of tokens: up to `S + 1` tokens, the next
    /// piece of a document beginning with the last token of the one before, so that each token
    /// but the first of a document is a target once. Pieces of one token, which have no target,
    /// are left out.
    fn pieces(&self, tokens: Range<u64>) -> Vec<Segment> {
        let length = self.order.sequence_length();
        let mut pieces = Vec::new();
        let end = tokens.end.min(self.part.range.end);
        if tokens.start >= end {
            return pieces;
        }
        let (mut document, mut span) = self.document_at(tokens.start);
        let mut at = tokens.start;
        loop {
            let mut start = span.start + (at - span.start).div_ceil(length) * length;
            while start < span.end.min(end) {
                let piece = start..(start + length + 1).min(span.end);
                if piece.end - piece.start > 1 {
                    pieces.push(Segment { tokens: piece, document: Some(document) });
                }
                start += length;
            }
            at = span.end.max(at + 1);
            if at >= end {
                return pieces;
            }
            // The next document is the next number, unless the index is damaged.
            let next = self.source().document(document + 1).ok();
            let next = next.filter(|next| next.start == at && next.end > at);
            (document, span) = match next {
                Some(next) => (document + 1, at..next.end.min(self.part.range.end)),
                None => self.document_at(at),
            };
        }
    }
}

/// The document of a token and its tokens, as far as they lie in `part` of the source, whose
/// documents are known.
fn document_at(source: &Source, part: &Range<u64>, token: u64) -> (u64, Range<u64>) {
    let document = source.document_at(token).expect("documents were checked for");
    let span = source.document(document).expect("it was just found");
    (document, span.start.max(part.start)..span.end.min(part.end))
}

/// A stretch of tokens of `part` of a source, whose documents are known, cut at document starts.
pub(crate) fn cut_at_documents(
    source: &Source,
    part: &Range<u64>,
    tokens: Range<u64>,
) -> Vec<Segment> {
    let (mut segments, mut start) = (Vec::new(), tokens.start);
    while start < tokens.end {
        let (document, span) = document_at(source, part, start);
        // A damaged index must not stop the walk.
        let end = span.end.clamp(start + 1, tokens.end);
        segments.push(Segment { tokens: start..end, document: Some(document) });
        start = end;
    }
    segments
}

/// Puts items into at most 128 bins of `capacity`, longest first, each where it leaves the least
/// room, and among equals into the first; returns the bin of each item, `None` where there was no
/// room. Of items of one length the first comes first.
fn best_fit_decreasing(lengths: &[u64], num_bins: u64, capacity: u64) -> Vec<Option<u64>> {
    assert!(num_bins <= MAX_ROWS_PER_GROUP, "a group has at most so many bins");
    let longest_first = by_length_descending(lengths, capacity as usize);
    let mut rooms = Rooms::new(num_bins, capacity as usize);
    let mut bins = vec![None; lengths.len()];
    for item in longest_first {
        bins[item] = rooms.take(lengths[item] as usize).map(u64::from);
    }
    bins
}

/// Items by length, the longest first, and of one length the first first. They are counted, since
/// no length is above `capacity`.
fn by_length_descending(lengths: &[u64], capacity: usize) -> Vec<usize> {
    let mut places = vec![0_usize; capacity + 2];
    for &length in lengths {
        places[capacity - length as usize + 1] += 1;
    }
    for index in 1..places.len() {
        places[index] += places[index - 1];
    }
    let mut items = vec![0; lengths.len()];
    for (item, &length) in lengths.iter().enumerate() {
        let place = &mut places[capacity - length as usize];
        items[*place] = item;
        *place += 1;
    }
    items
}

/// Bins by the room that is left in them: finding, taking and putting one takes a few steps,
/// whatever their number, since each row of a step packs its whole group.
struct Rooms {
    /// Which bins have exactly this much room, a bit each.
    bins: Vec<u128>,
    /// Which entries of `bins` are not 0, a bit each.
    occupied: Vec<u64>,
}

impl Rooms {
    fn new(num_bins: u64, capacity: usize) -> Self {
        let mut rooms = Self { bins: vec![0; capacity + 1], occupied: vec![0; capacity / 64 + 1] };
        if num_bins > 0 {
            rooms.bins[capacity] = u128::MAX >> (128 - num_bins);
            rooms.occupied[capacity / 64] = 1 << (capacity % 64);
        }
        rooms
    }

    /// Takes `length` from the first bin of those that have the least room for it.
    fn take(&mut self, length: usize) -> Option<u32> {
        let room = self.least(length)?;
        let bin = self.bins[room].trailing_zeros();
        self.bins[room] &= !(1 << bin);
        if self.bins[room] == 0 {
            self.occupied[room / 64] &= !(1 << (room % 64));
        }
        let left = room - length;
        self.bins[left] |= 1 << bin;
        self.occupied[left / 64] |= 1 << (left % 64);
        Some(bin)
    }

    /// The least room of at least `length` that a bin has.
    fn least(&self, length: usize) -> Option<usize> {
        let (first, bit) = (length / 64, length % 64);
        let word = *self.occupied.get(first)? & (u64::MAX << bit);
        if word != 0 {
            return Some(first * 64 + word.trailing_zeros() as usize);
        }
        let rest = self.occupied.iter().enumerate().skip(first + 1);
        let (at, word) = rest.into_iter().find(|(_, word)| **word != 0)?;
        Some(at * 64 + word.trailing_zeros() as usize)
    }
}
