//! The one place where a step waits for its device: numbers that come to the host together.
//!
//! Whatever a step decides on the host (losses, the gradient's norm, whether they are finite) is
//! asked for here while the device still computes it, and fetched in one copy. Nothing else within
//! a step reads the device or copies to it from memory that is not pinned, for either waits for all
//! that is queued; `tests/waits.rs` lists the exceptions.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::clock::Clock;
use crate::metrics::Phase;

/// Numbers that are to come to the host together.
#[derive(Debug, Default)]
pub struct Readback {
    parts: Vec<Tensor>,
    len: usize,
}

/// Where numbers that were asked for will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(Range<usize>);

/// Numbers that have come to the host.
#[derive(Debug)]
pub struct Arrived(Vec<f64>);

impl Readback {
    /// Nothing asked for.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for scalars, one after the other. The device is not waited for.
    ///
    /// # Shapes
    /// - `scalars`: `[]` each, any floating dtype
    pub fn ask_scalars(&mut self, scalars: &[Tensor]) -> Place {
        match scalars {
            [] => Place(self.len..self.len),
            scalars => self.ask(&Tensor::stack(scalars, 0)),
        }
    }

    /// Asks for the elements of a tensor. The device is not waited for.
    ///
    /// # Shapes
    /// - `values`: `[n]`, any floating dtype, of the same device as all others
    pub fn ask(&mut self, values: &Tensor) -> Place {
        let start = self.len;
        self.len += values.numel();
        self.parts.push(values.to_kind(Kind::Double));
        Place(start..self.len)
    }

    /// Waits for all that was queued on the device and copies what was asked for, in one piece. The
    /// wait is counted as [`Phase::Device`], which then runs; on the CPU nothing waits.
    pub fn fetch(self, clock: &mut Clock) -> Arrived {
        let Some(first) = self.parts.first() else { return Arrived(Vec::new()) };
        if first.device() != Device::Cpu {
            clock.enter(Phase::Device);
        }
        clock.note_readback();
        let values = Tensor::cat(&self.parts, 0);
        Arrived(Vec::try_from(values).expect("parts are vectors of f64"))
    }
}

impl Arrived {
    /// What was asked for at a place of the same readback.
    pub fn at(&self, place: &Place) -> &[f64] {
        &self.0[place.0.clone()]
    }
}

#[cfg(test)]
mod tests {
    //! Order, and one copy for everything.

    use super::*;

    #[test]
    fn numbers_arrive_at_their_places_in_one_copy() {
        let (mut readback, mut clock) = (Readback::new(), Clock::new());
        let vector = readback.ask(&Tensor::from_slice(&[1.0_f32, 2.5]));
        let none = readback.ask_scalars(&[]);
        let scalars = readback.ask_scalars(&[Tensor::from(3.0), Tensor::from(f64::NAN)]);
        let arrived = readback.fetch(&mut clock);
        assert_eq!(arrived.at(&vector), [1.0, 2.5]);
        assert_eq!(arrived.at(&none), [0.0; 0]);
        assert_eq!(arrived.at(&scalars)[0], 3.0);
        assert!(arrived.at(&scalars)[1].is_nan());
        assert_eq!(clock.take_readbacks(), 1);
    }

    #[test]
    fn nothing_asked_for_is_no_copy() {
        let mut clock = Clock::new();
        assert_eq!(Readback::new().fetch(&mut clock).at(&Place(0..0)), [0.0; 0]);
        assert_eq!(clock.take_readbacks(), 0);
    }
}
