//! What an unknown name probably means.

use super::schema::KEYS;

/// Names that other trainers use, and the key that means the same here.
const ALIASES: &[(&str, &str)] = &[
    ("learning_rate", "optim.lr"),
    ("max_steps", "run.steps"),
    ("num_steps", "run.steps"),
    ("train_steps", "run.steps"),
    ("output_dir", "run.dir"),
    ("seq_len", "batch.sequence_length"),
    ("block_size", "batch.sequence_length"),
    ("batch_size", "batch.micro_batch_size"),
    ("gradient_accumulation_steps", "batch.micro_batches"),
    ("grad_clip", "optim.clip_norm"),
    ("max_grad_norm", "optim.clip_norm"),
    ("optimizer", "optim.rule"),
    ("epsilon", "optim.eps"),
    ("min_lr_ratio", "schedule.final_ratio"),
    ("lr_scheduler", "schedule.kind"),
    ("num_layers", "model.num_hidden_layers"),
    ("num_heads", "model.num_attention_heads"),
    ("num_kv_heads", "model.num_key_value_heads"),
    ("dtype", "precision"),
    ("save_every", "checkpoint.every"),
    ("gradient_checkpointing", "memory.recompute"),
];

/// The known key that an unknown one probably means.
///
/// The last parts of the names are compared, and names in the same table are preferred; other
/// trainers' names count. A name is near if at most a third of its letters must change.
pub(super) fn nearest(unknown: &str) -> Option<&'static str> {
    let (table, leaf) = split(unknown);
    let own = KEYS.iter().map(|key| (split(key.path).1, key.path));
    let candidates = own.chain(ALIASES.iter().copied());
    let scored = candidates.filter_map(|(name, path)| {
        let edits = distance(leaf, name);
        let longer = leaf.len().max(name.len());
        let elsewhere = split(path).0 != table;
        (3 * edits <= longer).then_some((edits + usize::from(elsewhere), path))
    });
    scored.min_by_key(|(score, _)| *score).map(|(_, path)| path)
}

/// The word of a list that an unknown one probably means.
pub(super) fn nearest_word(unknown: &str, words: &[&'static str]) -> Option<&'static str> {
    let near = words.iter().map(|word| (distance(unknown, word), *word));
    near.filter(|(edits, word)| 2 * edits <= word.len()).min().map(|(_, word)| word)
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// The edit distance of two names: insertions, deletions and substitutions of one byte
/// (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
