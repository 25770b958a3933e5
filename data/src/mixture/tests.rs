//! Shares, stages, limits and their inverses, against direct counting.

use proptest::prelude::*;
use tempfile::TempDir;

use super::interleave::Interleave;
use super::*;
use crate::loader::tests::{counting_file, small_config};

fn weights(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
    pairs.iter().map(|&(name, weight)| (name.to_owned(), weight)).collect()
}

fn stage(first_step: u64, pairs: &[(&str, f64)]) -> Stage {
    Stage { first_step, weights: weights(pairs) }
}

/// Three sources of 400, 2000 and 100 tokens; 12 samples a step, windows of 8.
fn sources(limit: Option<f64>) -> (Vec<TempDir>, Vec<MixtureSource>) {
    let sources = [("a", 400), ("b", 2000), ("c", 100)].map(|(name, num_tokens)| {
        let (folder, file) = counting_file(num_tokens);
        let corpus = Corpus::from_one_file(file, 0.2).unwrap();
        let max_epochs = limit.filter(|_| name == "c");
        (folder, MixtureSource { name: name.to_owned(), corpus, max_epochs })
    });
    sources.into_iter().unzip()
}

fn mixture(limit: Option<f64>, stages: &[Stage]) -> (Vec<TempDir>, Mixture) {
    let (folders, sources) = sources(limit);
    (folders, Mixture::new(sources, stages, &small_config()).unwrap())
}

/// Draws the first samples one by one and checks counts, gaps and the inverse.
fn check_draws(mixture: &Mixture, num_steps: u64) {
    let mut counts = vec![0; mixture.sources.len()];
    for sample in 0..num_steps * 12 {
        if sample % 12 == 0 {
            assert_eq!(mixture.counts(sample / 12), counts, "before sample {sample}");
        }
        let draw = mixture.draw(sample).unwrap();
        assert_eq!(draw.sample, counts[draw.source], "samples of a source come without gaps");
        counts[draw.source] += 1;
        assert_eq!(mixture.sample_of(draw), Some(sample));
    }
}

#[test]
fn shares_hold_at_every_prefix() {
    let shares = [0.5, 0.3, 0.15, 0.05, 0.0];
    let interleave = Interleave::new(&shares, 7);
    let mut counts = [0_u64; 5];
    for sample in 0..200_000_u64 {
        counts[interleave.at(sample).0] += 1;
        let n = sample as f64 + 1.0;
        for (count, share) in counts.iter().zip(shares) {
            // Twice the standard deviation of random draws, and one for whole numbers; the
            // method is far better than that, at every prefix.
            let bound = 2.0 * (n * share * (1.0 - share)).sqrt() + 1.0;
            assert!((*count as f64 - n * share).abs() <= bound, "{count} of {n}, share {share}");
        }
    }
    assert_eq!(counts[4], 0);
}

proptest! {
    #[test]
    fn turns_are_counted_and_inverted(
        parts in prop::collection::vec(0_u32..1000, 1..6),
        key in any::<u64>(),
        sample in 0_u64..1 << 40,
    ) {
        let total: u32 = parts.iter().sum();
        prop_assume!(total > 0);
        let shares: Vec<f64> =
            parts.iter().map(|&part| f64::from(part) / f64::from(total)).collect();
        let interleave = Interleave::new(&shares, key);
        let (source, index) = interleave.at(sample);
        prop_assert!(parts[source] > 0);
        prop_assert_eq!(interleave.index_of(source, index), Some(sample));
        prop_assert_eq!(interleave.count(source, sample), index);
        prop_assert_eq!(interleave.count(source, sample + 1), index + 1);
        let sum: u64 = (0..parts.len()).map(|source| interleave.count(source, sample)).sum();
        prop_assert_eq!(sum, sample);
    }
}

#[test]
fn stages_change_the_shares_and_lose_no_sample() {
    let stages = [
        stage(0, &[("a", 3.0), ("b", 1.0)]),
        stage(50, &[("b", 1.0)]),
        stage(80, &[("a", 1.0), ("b", 1.0), ("c", 2.0)]),
    ];
    let (_folders, mixture) = mixture(None, &stages);
    check_draws(&mixture, 150);
    assert_eq!(mixture.end_step(), u64::MAX);
    let report = mixture.report(50);
    assert!((report[0].share - 0.75).abs() < 0.01, "{report:?}");
    assert_eq!(report[2].num_samples, 0);
    assert!(report[0].epochs > 10.0, "{report:?}");
    assert_eq!(mixture.counts(80)[0], mixture.counts(50)[0]);
    assert!(mixture.draw(u64::MAX / 2).is_ok());
}

#[test]
fn a_source_stops_at_its_limit_and_the_others_go_on() {
    let (_folders, mixture) = mixture(Some(1.5), &[stage(0, &[("a", 1.0), ("c", 1.0)])]);
    check_draws(&mixture, 100);
    let report = mixture.report(100);
    assert!(report[2].epochs <= 1.5 && report[2].epochs > 0.5, "{report:?}");
    assert_eq!(report[2].num_samples, mixture.report(10_000)[2].num_samples);
    assert_eq!(report[0].num_samples + report[2].num_samples, 1200);
}

#[test]
fn data_that_ends_is_named() {
    let (_folders, mixture) = mixture(Some(10.0), &[stage(0, &[("c", 1.0)])]);
    // 80 tokens make 9 windows of 8, so ten epochs last 90 samples, or 7 whole steps of 12.
    assert_eq!(mixture.end_step(), 7);
    check_draws(&mixture, 7);
    let message = mixture.draw(84).unwrap_err().to_string();
    assert!(message.contains("the data ends at step 7"), "{message}");
}

#[test]
fn a_change_of_mixture_keeps_what_was_before() {
    let stages = [stage(0, &[("a", 1.0), ("b", 1.0)]), stage(60, &[("b", 1.0)])];
    let changed = with_weights_from(&stages, 40, weights(&[("a", 1.0), ("c", 3.0)]));
    assert_eq!(changed.len(), 2);
    let ((_one, before), (_two, after)) = (mixture(None, &stages), mixture(None, &changed));
    for sample in 0..40 * 12 {
        assert_eq!(before.draw(sample).unwrap(), after.draw(sample).unwrap());
    }
    check_draws(&after, 100);
    assert_eq!(with_weights_from(&stages, 60, weights(&[("a", 1.0)])).len(), 2);
}

#[test]
fn what_cannot_be_mixed_is_refused() {
    let refused = |stages: &[Stage]| {
        let (_folders, sources) = sources(None);
        Mixture::new(sources, stages, &small_config()).unwrap_err().to_string()
    };
    for (stages, words) in [
        (vec![], "has no stage"),
        (vec![stage(0, &[("a", 0.0)])], "stage 0: the weights sum to 0"),
        (vec![stage(0, &[("a", -1.0)])], "the weight of `a` is -1"),
        (vec![stage(0, &[("z", 1.0)])], "no source is named `z`; the sources are a, b, c"),
        (vec![stage(1, &[("a", 1.0)])], "begins at step 1, expected 0"),
        (vec![stage(0, &[("a", 1.0)]), stage(0, &[("a", 1.0)])], "expected more than 0"),
        (vec![stage(0, &[("a", 1.0), ("b", 1e-9)])], "`b` has a share of 1.000e-9"),
    ] {
        let message = refused(&stages);
        assert!(message.contains(words), "{message}");
    }
    let (_folders, mut twice) = sources(Some(0.0));
    let stages = [stage(0, &[("a", 1.0)])];
    let refused =
        |sources| Mixture::new(sources, &stages, &small_config()).unwrap_err().to_string();
    assert!(refused(twice.clone()).contains("max_epochs of `c` is 0"));
    assert!(refused(vec![]).contains("has no source"));
    twice[1].name = "a".to_owned();
    assert!(refused(twice).contains("two sources are named `a`"));
}

#[test]
fn changed_and_vanished_sources_are_named() {
    let (_folders, mixture) = mixture(None, &[stage(0, &[("a", 1.0)])]);
    let mut fingerprints = mixture.fingerprints();
    mixture.expect_fingerprints(&fingerprints).unwrap();
    *fingerprints.get_mut("b").unwrap() ^= 1;
    let message = mixture.expect_fingerprints(&fingerprints).unwrap_err().to_string();
    assert!(message.contains("was changed: its fingerprint is"), "{message}");
    let gone = BTreeMap::from([("gone".to_owned(), 1)]);
    assert!(mixture.expect_fingerprints(&gone).unwrap_err().to_string().contains("`gone`"));
}

#[test]
fn each_source_has_its_own_validation() {
    let (_folders, mixture) = mixture(None, &[stage(0, &[("a", 1.0)])]);
    let batch = mixture.validation("b", 8, 3).unwrap().batch(0).unwrap();
    assert_eq!(batch.tokens[0], 1600);
    assert!(mixture.validation("z", 8, 3).is_err());
}
