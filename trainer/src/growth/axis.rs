//! Maps from the new indices of an axis to the old ones, the ground of every width operator.

use tch::Tensor;

/// For each new index the old one that it copies, or none: a new index of its own, the residue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AxisMap {
    old_len: usize,
    sources: Vec<Option<usize>>,
}

impl AxisMap {
    /// The axis as it is.
    pub fn identity(len: usize) -> Self {
        Self::copies(len, len)
    }

    /// `floor(new / old)` whole copies, then residue.
    ///
    /// Worked: 4 to 10 gives `0 1 2 3 0 1 2 3 - -`.
    pub fn copies(old_len: usize, new_len: usize) -> Self {
        let copied = new_len / old_len * old_len;
        let source = |index| (index < copied).then_some(index % old_len);
        Self { old_len, sources: (0..new_len).map(source).collect() }
    }

    /// The old indices once, then residue.
    pub fn padded(old_len: usize, new_len: usize) -> Self {
        let source = |index| (index < old_len).then_some(index);
        Self { old_len, sources: (0..new_len).map(source).collect() }
    }

    /// The old indices again and again: no residue, and copies differ by one at most.
    pub fn cyclic(old_len: usize, new_len: usize) -> Self {
        Self { old_len, sources: (0..new_len).map(|index| Some(index % old_len)).collect() }
    }

    /// Key heads and query heads, so that a query's copies meet copies of its own keys:
    /// `pi_K(floor(q' / g')) = floor(pi_Q(q') / g)` with `g` queries a key head.
    ///
    /// Each key head's copies lie side by side, so that keys spread over their queries keep the
    /// queries in order. Worked: 4 queries on 2 keys to 4 on 4: keys `0 0 1 1`, queries `0 1 2 3`.
    /// `None` if the new slots of some old key head are fewer than its queries.
    pub fn heads(old: (usize, usize), new: (usize, usize)) -> Option<(Self, Self)> {
        let ((old_q, old_k), (new_q, new_k)) = (old, new);
        let (old_group, new_group) = (old_q / old_k, new_q / new_k);
        let keys: Vec<usize> = (0..new_k).map(|key| key * old_k / new_k).collect();
        let mut used = vec![0; old_k];
        let mut queries = Vec::new();
        for query in 0..new_q {
            let key = keys[query / new_group];
            queries.push(key * old_group + used[key] % old_group);
            used[key] += 1;
        }
        if used.iter().any(|&slots| slots < old_group) {
            return None;
        }
        let map = |old_len, sources: Vec<usize>| Self {
            old_len,
            sources: sources.into_iter().map(Some).collect(),
        };
        Some((map(old_k, keys), map(old_q, queries)))
    }

    /// The same map of blocks of `len` elements.
    #[must_use]
    pub fn of_blocks(&self, len: usize) -> Self {
        let within = |source: &Option<usize>| {
            let source = *source;
            (0..len).map(move |element| source.map(|block| block * len + element))
        };
        Self {
            old_len: self.old_len * len,
            sources: self.sources.iter().flat_map(within).collect(),
        }
    }

    /// Whether nothing changes.
    pub fn is_identity(&self) -> bool {
        let same = |(index, source): (usize, &Option<usize>)| *source == Some(index);
        self.sources.len() == self.old_len && self.sources.iter().enumerate().all(same)
    }

    /// Number of old indices.
    pub fn old_len(&self) -> usize {
        self.old_len
    }

    /// Number of new indices.
    pub fn new_len(&self) -> usize {
        self.sources.len()
    }

    /// New indices without an old one; they are the last ones.
    pub fn residue_len(&self) -> usize {
        self.sources.iter().filter(|source| source.is_none()).count()
    }

    /// `[new - residue]` i64: the old index of each copy.
    pub fn sources(&self) -> Tensor {
        let sources: Vec<i64> = self.sources.iter().flatten().map(|&old| old as i64).collect();
        Tensor::from_slice(&sources)
    }

    /// `[new - residue]` f64: how many copies the old index of each copy has.
    pub fn multiplicities(&self) -> Tensor {
        let mut counts = vec![0.0; self.old_len];
        self.sources.iter().flatten().for_each(|&old| counts[old] += 1.0);
        let of: Vec<f64> = self.sources.iter().flatten().map(|&old| counts[old]).collect();
        Tensor::from_slice(&of)
    }

    /// `[new - residue]` i64: 0 for the first copy of an old index, 1 for the second.
    pub fn ordinals(&self) -> Tensor {
        let mut seen = vec![0; self.old_len];
        let ordinals = self.sources.iter().flatten().map(|&old| {
            seen[old] += 1;
            seen[old] - 1
        });
        Tensor::from_slice(&ordinals.collect::<Vec<i64>>())
    }
}
