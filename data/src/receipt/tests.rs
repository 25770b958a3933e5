//! Receipts say what the batches hold, in both directions.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::packing::tests::{config, loader, mixed_lengths, shards_of};
use crate::{Corpus, Loader, Mixture, MixtureSource, Packing, Source, Stage, with_weights_from};

const PACKINGS: [Packing; 4] = [
    Packing::Contiguous,
    Packing::ContiguousByDocument,
    Packing::DocumentAligned,
    Packing::BestFit,
];

/// Reads back what a receipt names and compares it with the batch.
fn check_receipt(loader: &Loader, sources: &BTreeMap<String, Source>, (step, index): (u64, u64)) {
    let batch = loader.micro_batch(step, index).unwrap();
    let rows = loader.receipt(step, index).unwrap();
    assert_eq!(rows.len(), batch.batch_size);
    for (receipt, ids) in rows.iter().zip(batch.tokens.chunks(batch.sequence_length + 1)) {
        let source = &sources[&receipt.source];
        let mut column = 0;
        for piece in &receipt.pieces {
            assert_eq!(piece.columns.start, column, "pieces follow each other");
            column = piece.columns.end;
            let mut read = vec![0; piece.columns.len()];
            source.read(piece.tokens.start, &mut read).unwrap();
            assert_eq!(read, ids[piece.columns.clone()]);
            // The token is where the receipt says, in the file itself.
            let size = if source.vocab_size() <= 256 { 1 } else { 2 };
            let bytes = std::fs::read(&piece.file).unwrap();
            assert_eq!(u32::from(bytes[piece.byte as usize]), read[0] & 0xff, "{size} bytes");
            let document = source.document(piece.document.unwrap()).unwrap();
            assert!(document.start <= piece.tokens.start && piece.tokens.end <= document.end);
            assert_eq!(piece.origin.as_ref().unwrap().record, piece.document.unwrap());
        }
        assert!(ids[column..].iter().all(|&id| id == 0), "the rest is padding");
    }
}

#[test]
fn receipts_are_what_the_batches_hold() {
    let (_folder, source) = shards_of(&mixed_lengths(200));
    let sources = BTreeMap::from([("docs".to_owned(), source.clone())]);
    for packing in PACKINGS {
        let loader = loader(&source, packing);
        for place in [(0, 0), (3, 1), (500, 0), (12_345, 1)] {
            check_receipt(&loader, &sources, place);
        }
    }
}

/// What `seen` must say, by looking at every receipt.
fn seen_by_search(
    loader: &Loader,
    source: &str,
    document: u64,
    steps: Range<u64>,
) -> Vec<Sighting> {
    let mut sightings = Vec::new();
    for step in steps {
        for micro_batch in 0..config().micro_batches_per_step {
            for receipt in loader.receipt(step, micro_batch).unwrap() {
                for piece in receipt.pieces {
                    if receipt.source == source && piece.document == Some(document) {
                        let (row, tokens) = (receipt.row, piece.tokens);
                        sightings.push(Sighting { step, micro_batch, row, tokens });
                    }
                }
            }
        }
    }
    sightings
}

#[test]
fn seen_finds_every_use_of_a_document() {
    let (_folder, source) = shards_of(&mixed_lengths(60));
    for packing in PACKINGS {
        let loader = loader(&source, packing);
        let mut num_sightings = 0;
        for document in 0..60 {
            let expected = seen_by_search(&loader, "docs", document, 3..70);
            let found = loader.seen("docs", document, 3..70).unwrap();
            assert_eq!(found, expected, "document {document}, {packing:?}");
            num_sightings += found.len();
        }
        assert!(num_sightings > 300, "only {num_sightings} with {packing:?}");
    }
}

#[test]
fn receipts_hold_over_a_change_of_mixture_and_on_any_number_of_ranks() {
    let (_one, first) = shards_of(&mixed_lengths(50));
    let (_two, second) = shards_of(&mixed_lengths(90));
    let by_name = BTreeMap::from([("a".to_owned(), first), ("b".to_owned(), second)]);
    let sources = || {
        let source = |(name, file): (&String, &Source)| MixtureSource {
            name: name.clone(),
            corpus: Corpus::from_one_file(file.clone(), 0.1).unwrap(),
            max_epochs: Some(6.0),
        };
        by_name.iter().map(source).collect()
    };
    let weights = |a, b| BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]);
    let stages = [Stage { first_step: 0, weights: weights(1.0, 1.0) }];
    let changed = with_weights_from(&stages, 20, weights(0.2, 3.0));
    let loader_of = |stages: &[Stage]| {
        let mixture = Mixture::new(sources(), stages, &config()).unwrap();
        Loader::of_mixture(Arc::new(mixture), Packing::BestFit, config()).unwrap()
    };
    let (before, after) = (loader_of(&stages), loader_of(&changed));
    for step in 0..60 {
        for index in 0..2 {
            // Who computes a micro-batch is not an input, so this holds for every rank.
            check_receipt(&after, &by_name, (step, index));
            if step < 20 {
                let batch = |loader: &Loader| loader.micro_batch(step, index).unwrap();
                assert_eq!(batch(&before), batch(&after));
            }
        }
    }
    for document in (0..50).step_by(7) {
        let expected = seen_by_search(&after, "a", document, 0..60);
        assert_eq!(after.seen("a", document, 0..60).unwrap(), expected);
    }
    assert!(after.seen("z", 0, 0..60).unwrap_err().to_string().contains("`z`"));
    assert!(after.seen("a", 50, 0..60).unwrap_err().to_string().contains("document 50"));
}
