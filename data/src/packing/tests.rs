//! Each packing shows whole documents where it says so, loses and repeats no more than it says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::loader::tests::counting_file;
use crate::{
    BadRecord, BadUtf8, Batch, Corpus, DocumentOptions, EndOfDocument, Loader, LoaderConfig,
    Mixture, MixtureSource, Progress, Stage, TextDocuments, TokenizeOptions, Tokenizer,
    tokenize_corpus,
};

/// A folder of shards whose documents have these many letters, each with end token 0.
pub(crate) fn shards_of(lengths: &[usize]) -> (TempDir, Source) {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = lengths
        .iter()
        .enumerate()
        .map(|(i, &len)| {
            let letters: String =
                (0..len).map(|at| char::from(b'a' + ((i * 7 + at) % 26) as u8)).collect();
            letters + "\n"
        })
        .collect();
    let input = folder.path().join("in.txt");
    fs::write(&input, lines).unwrap();
    let options = TokenizeOptions {
        inputs: vec![input.to_str().unwrap().to_owned()],
        out: folder.path().join("out"),
        documents: DocumentOptions {
            text_documents: TextDocuments::Lines,
            text_field: String::new(),
            on_bad_utf8: BadUtf8::Fail,
            on_bad_record: BadRecord::Fail,
            score: None,
        },
        end_of_document: EndOfDocument::Id(0),
        deduplicate: false,
        shard_tokens: 100,
        num_threads: 1,
    };
    let stop = AtomicBool::new(false);
    tokenize_corpus(&options, &Tokenizer::bytes(), &Progress::default(), &stop).unwrap();
    let source = Source::open(options.out).unwrap();
    (folder, source)
}

/// Lengths with short, fitting and long documents for windows of 16.
pub(crate) fn mixed_lengths(count: usize) -> Vec<usize> {
    (0..count).map(|i| [3, 9, 40, 15, 1, 16, 17, 100][(i * 5 + i / 8) % 8]).collect()
}

pub(crate) fn config() -> LoaderConfig {
    LoaderConfig { sequence_length: 16, micro_batch_size: 3, micro_batches_per_step: 2, seed: 3 }
}

/// A loader over one source.
pub(crate) fn loader(source: &Source, packing: Packing) -> Loader {
    let corpus = Corpus::from_one_file(source.clone(), 0.0).unwrap();
    let source = MixtureSource { name: "docs".to_owned(), corpus, max_epochs: None };
    let weights = BTreeMap::from([("docs".to_owned(), 1.0)]);
    let stages = [Stage { first_step: 0, weights }];
    let mixture = Mixture::new(vec![source], &stages, &config()).unwrap();
    Loader::of_mixture(Arc::new(mixture), packing, config()).unwrap()
}

/// How often each token of the source is a target in its first epoch, from the batches.
fn targets_of_an_epoch(source: &Source, packing: Packing) -> Vec<u32> {
    let loader = loader(source, packing);
    let mut counts = vec![0; source.num_tokens() as usize];
    for sample in 0..loader.order().num_windows() {
        let segments = loader.segments(crate::mixture::Draw { source: 0, sample }).unwrap();
        let row_tokens: u64 = segments.iter().map(|s| s.tokens.end - s.tokens.start).sum();
        assert!(row_tokens <= 17, "a row of {row_tokens} tokens");
        for segment in segments {
            for token in segment.tokens.start + 1..segment.tokens.end {
                counts[token as usize] += 1;
            }
            if packing.needs_documents() {
                let document = source.document(segment.document.unwrap()).unwrap();
                assert!(
                    document.start <= segment.tokens.start && segment.tokens.end <= document.end
                );
            }
        }
    }
    counts
}

#[test]
fn no_packing_shows_a_target_twice_in_an_epoch() {
    let (_folder, source) = shards_of(&mixed_lengths(300));
    let num_tokens = source.num_tokens() as f64;
    for (packing, least) in [
        (Packing::Contiguous, 0.99),
        // The first token of a document is no target.
        (Packing::ContiguousByDocument, 0.92),
        (Packing::DocumentAligned, 0.80),
        (Packing::BestFit, 0.90),
    ] {
        let counts = targets_of_an_epoch(&source, packing);
        assert!(counts.iter().all(|&count| count <= 1), "{packing:?}");
        let share = f64::from(counts.iter().sum::<u32>()) / num_tokens;
        assert!(share > least, "{packing:?} shows {share} of the targets");
    }
}

#[test]
fn best_fit_keeps_documents_that_fit_whole() {
    let (_folder, source) = shards_of(&mixed_lengths(300));
    let loader = loader(&source, Packing::BestFit);
    for sample in 0..loader.order().num_windows() {
        for segment in loader.segments(crate::mixture::Draw { source: 0, sample }).unwrap() {
            let document = source.document(segment.document.unwrap()).unwrap();
            let (len, offset) =
                (document.end - document.start, segment.tokens.start - document.start);
            assert_eq!(offset % 16, 0, "pieces begin at multiples of S");
            assert_eq!(segment.tokens.end - segment.tokens.start, (len - offset).min(17));
        }
    }
}

#[test]
fn aligned_rows_begin_with_a_document_or_fill_up_with_one() {
    let (_folder, source) = shards_of(&mixed_lengths(300));
    let loader = loader(&source, Packing::DocumentAligned);
    for sample in 0..loader.order().num_windows() {
        let segments = loader.segments(crate::mixture::Draw { source: 0, sample }).unwrap();
        let first = &segments[0];
        let document = source.document(first.document.unwrap()).unwrap();
        let starts = first.tokens.start == document.start;
        let fills = segments.len() == 1 || document.end - first.tokens.start >= 16;
        assert!(starts || fills, "{segments:?} of {document:?}");
    }
}

/// Checks segment starts, mask and padding of a batch against the tokens.
fn check_batch(batch: &Batch) {
    let Batch { tokens, batch_size, sequence_length, segment_starts, loss_mask } = batch;
    let mask = loss_mask.as_ref().unwrap();
    assert_eq!(mask.len(), batch_size * sequence_length);
    assert_eq!(batch.num_targets(), mask.iter().filter(|&&counts| counts).count());
    assert!(segment_starts.is_sorted_by(|a, b| a < b));
    let positions = batch.position_ids();
    assert_eq!(positions.len(), mask.len());
    for (row, ids) in tokens.chunks(sequence_length + 1).enumerate() {
        for column in 0..*sequence_length {
            let at = row * sequence_length + column;
            let starts = segment_starts.contains(&(at as u32));
            assert_eq!(starts, positions[at] == 0);
            assert!(column > 0 || starts, "a row begins a segment");
            // Documents of letters end in 0, so a target behind a 0 begins another document or
            // is padding, and a target that counts is never behind one.
            assert!(!(mask[at] && ids[column] == 0), "target {at} is behind an end: {ids:?}");
            if starts && column > 0 {
                assert!(!mask[at - 1], "the first token of a segment is a target");
            }
        }
    }
}

#[test]
fn batches_carry_boundaries_and_a_mask() {
    let (_folder, source) = shards_of(&mixed_lengths(200));
    for packing in [Packing::ContiguousByDocument, Packing::DocumentAligned, Packing::BestFit] {
        let loader = loader(&source, packing);
        for step in 0..30 {
            let batch = loader.micro_batch(step, step % 2).unwrap();
            check_batch(&batch);
            assert_eq!(batch, loader.micro_batch(step, step % 2).unwrap());
        }
    }
    let plain = loader(&source, Packing::Contiguous).micro_batch(0, 0).unwrap();
    assert_eq!((plain.loss_mask.as_ref(), plain.num_targets()), (None, 48));
    assert_eq!(plain.segment_starts, [0, 16, 32]);
    let by_document = loader(&source, Packing::ContiguousByDocument).micro_batch(0, 0).unwrap();
    assert_eq!(plain.tokens, by_document.tokens, "only the marks differ");
}

#[test]
fn packing_needs_documents() {
    let (_folder, file) = counting_file(500);
    let corpus = Corpus::from_one_file(file, 0.0).unwrap();
    let source = MixtureSource { name: "a".to_owned(), corpus, max_epochs: None };
    let stages = [Stage { first_step: 0, weights: BTreeMap::from([("a".to_owned(), 1.0)]) }];
    let mixture = Arc::new(Mixture::new(vec![source], &stages, &config()).unwrap());
    let refused = Loader::of_mixture(mixture, Packing::BestFit, config());
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("has no document index, which this packing needs"), "{message}");
}

#[test]
fn sources_of_different_tokenizers_do_not_mix() {
    let (_one, tokens) = counting_file(500);
    let (_two, shards) = shards_of(&[10; 50]);
    let sources = [Source::from(tokens), shards].map(|file| MixtureSource {
        name: file.path().display().to_string(),
        corpus: Corpus::from_one_file(file, 0.0).unwrap(),
        max_epochs: None,
    });
    let message = Mixture::new(sources.to_vec(), &[], &config()).unwrap_err().to_string();
    assert!(message.contains("was made with vocab_size 256"), "{message}");
    let (_three, other) = shards_of(&[10; 50]);
    let manifest: PathBuf = other.path().join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let fingerprint = Tokenizer::bytes().vocabulary_fingerprint();
    fs::write(&manifest, text.replace(&fingerprint, "another")).unwrap();
    let other = Source::open(other.path()).unwrap();
    let mut mixed = sources.to_vec();
    mixed[0].corpus = Corpus::from_one_file(other, 0.0).unwrap();
    let message = Mixture::new(mixed, &[], &config()).unwrap_err().to_string();
    assert!(message.contains("was made with bytes (vocab_size 256)"), "{message}");
}

proptest! {
    #[test]
    fn bins_are_never_overfull(
        lengths in prop::collection::vec(2_u64..18, 0..60),
        num_bins in 1_u64..20,
    ) {
        let bins = best_fit_decreasing(&lengths, num_bins, 17);
        let mut filled = vec![0; num_bins as usize];
        for (length, bin) in lengths.iter().zip(&bins) {
            if let Some(bin) = bin {
                filled[*bin as usize] += length;
            }
        }
        prop_assert!(filled.iter().all(|&fill| fill <= 17));
        for (length, bin) in lengths.iter().zip(&bins) {
            if bin.is_none() {
                prop_assert!(filled.iter().all(|&fill| fill + length > 17), "there was room");
            }
        }
    }

    #[test]
    fn best_fit_is_the_plain_algorithm(
        lengths in prop::collection::vec(1_u64..200, 0..400),
        num_bins in 1_u64..=128,
    ) {
        let found = best_fit_decreasing(&lengths, num_bins, 199);
        prop_assert_eq!(found, plain_best_fit(&lengths, num_bins, 199));
    }
}

/// The algorithm as it is told: an ordered set of (room, bin).
fn plain_best_fit(lengths: &[u64], num_bins: u64, capacity: u64) -> Vec<Option<u64>> {
    let mut by_length: Vec<usize> = (0..lengths.len()).collect();
    by_length.sort_by_key(|&item| std::cmp::Reverse(lengths[item]));
    let mut room: BTreeSet<(u64, u64)> = (0..num_bins).map(|bin| (capacity, bin)).collect();
    let mut bins = vec![None; lengths.len()];
    for item in by_length {
        let Some(&(left, bin)) = room.range((lengths[item], 0)..).next() else { continue };
        room.remove(&(left, bin));
        room.insert((left - lengths[item], bin));
        bins[item] = Some(bin);
    }
    bins
}
