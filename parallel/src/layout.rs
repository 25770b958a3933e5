//! Flat units: where each parameter lies in its unit's buffer, and who owns which part of it.

use std::{collections::BTreeSet, ops::Range};

use crate::error::{Error, Result};

/// Parameters begin at multiples of this many elements, and each rank's share is a multiple of
/// it, so that blocks of 8-bit optimizer states never straddle a parameter or a shard.
pub const ALIGNMENT_ELEMENTS: usize = 256;

/// A parameter as the model names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamShape {
    /// The name, unique within the unit.
    pub name: String,
    /// The dims, outermost first, each at least 1.
    pub shape: Vec<i64>,
}

/// A parameter with its place in the unit's flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamPlace {
    /// The name, unique within the unit.
    pub name: String,
    /// The dims, outermost first.
    pub shape: Vec<i64>,
    /// First element in the unit, a multiple of [`ALIGNMENT_ELEMENTS`].
    pub offset: usize,
    /// Number of elements.
    pub numel: usize,
}

impl ParamPlace {
    /// The elements of the unit that this parameter fills, padding left out.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.numel
    }
}

/// A piece of one parameter inside a range of the unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Index of the parameter in [`UnitLayout::params`].
    pub param: usize,
    /// The elements, counted from the parameter's first.
    pub param_range: Range<usize>,
    /// The same elements, counted from the unit's first.
    pub unit_range: Range<usize>,
}

/// Where everything of a unit lies in its one flat buffer.
///
/// Parameters stand in the given order, each at the next multiple of 256 elements. The whole is
/// padded to a multiple of `degree * 256`, so that each rank's share is equal and aligned; a unit
/// without parameters is one such multiple of padding, so that no buffer is empty. The
/// offsets do not depend on the degree; only the padding at the end does.
///
/// # Worked number
/// A unit with `weight [3, 100]` and `bias [100]` on 2 ranks:
/// ```
/// use grove_parallel::layout::{ParamShape, UnitLayout};
/// let params = [
///     ParamShape { name: "weight".into(), shape: vec![3, 100] },
///     ParamShape { name: "bias".into(), shape: vec![100] },
/// ];
/// let layout = UnitLayout::new("head", &params, 2)?;
/// assert_eq!(layout.param("weight")?.range(), 0..300); // 300 elements, then 212 of padding
/// assert_eq!(layout.param("bias")?.range(), 512..612); // 2 * 256, the next multiple after 300
/// assert_eq!(layout.padded_numel(), 1024); // 612 rounded up to a multiple of 2 * 256
/// assert_eq!(layout.shard(0), 0..512); // the weight
/// assert_eq!(layout.shard(1), 512..1024); // the bias
/// # Ok::<(), grove_parallel::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitLayout {
    name: String,
    params: Vec<ParamPlace>,
    padded_numel: usize,
    degree: usize,
}

impl UnitLayout {
    /// Lays out `params` in the given order for `degree` ranks.
    ///
    /// # Errors
    /// [`Error::DuplicateParam`] for a name that comes twice, [`Error::Shape`] for a shape without
    /// elements, [`Error::Zero`] for degree 0.
    pub fn new(name: &str, params: &[ParamShape], degree: usize) -> Result<Self> {
        if degree == 0 {
            return Err(Error::Zero { what: "the number of ranks" });
        }
        let mut seen = BTreeSet::new();
        let mut places: Vec<ParamPlace> = Vec::with_capacity(params.len());
        let mut end = 0;
        for param in params {
            if !seen.insert(param.name.as_str()) {
                let (unit, param) = (name.to_owned(), param.name.clone());
                return Err(Error::DuplicateParam { unit, param });
            }
            let too_odd = || Error::Shape {
                unit: name.to_owned(),
                param: param.name.clone(),
                shape: param.shape.clone(),
            };
            let numel = numel(&param.shape).ok_or_else(too_odd)?;
            let offset = round_up(end, ALIGNMENT_ELEMENTS).ok_or_else(too_odd)?;
            end = offset.checked_add(numel).ok_or_else(too_odd)?;
            let (name, shape) = (param.name.clone(), param.shape.clone());
            places.push(ParamPlace { name, shape, offset, numel });
        }
        let padded_numel = degree
            .checked_mul(ALIGNMENT_ELEMENTS)
            .and_then(|multiple| round_up(end.max(1), multiple))
            .expect("a unit that fits in memory fits with its padding");
        Ok(Self { name: name.to_owned(), params: places, padded_numel, degree })
    }

    /// The unit's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The parameters in their order.
    pub fn params(&self) -> &[ParamPlace] {
        &self.params
    }

    /// Looks a parameter up by its name.
    ///
    /// # Errors
    /// [`Error::UnknownParam`], with the names there are.
    pub fn param(&self, name: &str) -> Result<&ParamPlace> {
        self.params.iter().find(|param| param.name == name).ok_or_else(|| Error::UnknownParam {
            unit: self.name.clone(),
            param: name.to_owned(),
            known: self.params.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Elements of all parameters together, without padding.
    pub fn numel(&self) -> usize {
        self.params.iter().map(|param| param.numel).sum()
    }

    /// Elements of the flat buffer, with padding: a multiple of `degree * 256`.
    pub fn padded_numel(&self) -> usize {
        self.padded_numel
    }

    /// The number of shares.
    pub fn degree(&self) -> usize {
        self.degree
    }

    /// Elements of each rank's share, a multiple of 256.
    pub fn shard_numel(&self) -> usize {
        self.padded_numel / self.degree
    }

    /// The elements of the unit that `coord` owns.
    ///
    /// # Panics
    /// If `coord` is not below the degree.
    pub fn shard(&self, coord: usize) -> Range<usize> {
        assert!(coord < self.degree, "coord {coord} of {}", self.degree);
        coord * self.shard_numel()..(coord + 1) * self.shard_numel()
    }

    /// The pieces of parameters inside `range` (unit-relative), in order, padding left out.
    ///
    /// # Panics
    /// If `range` reaches past [`UnitLayout::padded_numel`].
    pub fn segments(&self, range: Range<usize>) -> impl Iterator<Item = Segment> + '_ {
        assert!(range.end <= self.padded_numel, "{range:?} of {}", self.padded_numel);
        let first = self.params.partition_point(|param| param.range().end <= range.start);
        let within = self.params.iter().enumerate().skip(first);
        within.take_while(move |(_, param)| param.offset < range.end).filter_map(
            move |(index, param)| {
                let start = param.offset.max(range.start);
                let end = param.range().end.min(range.end);
                (start < end).then(|| Segment {
                    param: index,
                    param_range: start - param.offset..end - param.offset,
                    unit_range: start..end,
                })
            },
        )
    }
}

/// The number of elements of a shape, or `None` if it has none or too many.
fn numel(shape: &[i64]) -> Option<usize> {
    if shape.is_empty() {
        return None;
    }
    shape.iter().try_fold(1usize, |numel, &dim| {
        let dim = usize::try_from(dim).ok().filter(|&dim| dim > 0)?;
        numel.checked_mul(dim).filter(|&numel| i64::try_from(numel).is_ok())
    })
}

/// The next multiple of `multiple`, or `None` where it does not fit.
fn round_up(count: usize, multiple: usize) -> Option<usize> {
    count.checked_next_multiple_of(multiple)
}

#[cfg(test)]
mod tests;
