//! Energy of this machine's GPUs, by NVIDIA's management library (NVML), which is loaded when it is
//! first needed. Written against NVML 13; not run on a GPU so far.

use std::fmt;
use std::time::Instant;

use nvml_wrapper::Nvml;

/// What GPUs tell of their energy.
pub(super) trait Gauge {
    /// How many there are.
    fn count(&self) -> u32;

    /// Millijoules of a GPU since its driver was loaded; `None` where it does not count them.
    fn millijoules(&self, gpu: u32) -> Option<u64>;

    /// Milliwatts that a GPU draws; `None` where it does not say.
    fn milliwatts(&self, gpu: u32) -> Option<u32>;
}

/// Adds up the energy of all GPUs that NVML shows this process, whoever uses them.
pub struct GpuEnergy {
    gauge: Box<dyn Gauge>,
    meters: Vec<Meter>,
}

/// How one GPU's energy is known.
enum Meter {
    /// By its own counter.
    Counted { last_millijoules: u64 },
    /// By the power drawn at each call, in a straight line between two.
    Integrated { last_milliwatts: u32, last: Instant },
}

impl GpuEnergy {
    /// Starts measuring now; `None` without NVML or a GPU that tells either energy or power.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::start_with(Box::new(Nvml::init().ok()?), Instant::now())
    }

    /// The same by another gauge.
    pub(super) fn start_with(gauge: Box<dyn Gauge>, now: Instant) -> Option<Self> {
        let meters: Option<Vec<Meter>> =
            (0..gauge.count()).map(|gpu| Meter::start(&*gauge, gpu, now)).collect();
        let meters = meters.filter(|meters| !meters.is_empty())?;
        Some(Self { gauge, meters })
    }

    /// Joules since the last call, or since the start; `None` where one could not be read.
    pub fn joules(&mut self) -> Option<f64> {
        self.joules_at(Instant::now())
    }

    pub(super) fn joules_at(&mut self, now: Instant) -> Option<f64> {
        let Self { gauge, meters } = self;
        // Every GPU is read even if one fails, so that the next difference is right.
        let read: Vec<Option<f64>> = meters
            .iter_mut()
            .zip(0..)
            .map(|(meter, gpu)| meter.joules(&**gauge, gpu, now))
            .collect();
        read.into_iter().sum()
    }
}

impl Meter {
    fn start(gauge: &dyn Gauge, gpu: u32, now: Instant) -> Option<Self> {
        if let Some(last_millijoules) = gauge.millijoules(gpu) {
            return Some(Self::Counted { last_millijoules });
        }
        Some(Self::Integrated { last_milliwatts: gauge.milliwatts(gpu)?, last: now })
    }

    fn joules(&mut self, gauge: &dyn Gauge, gpu: u32, now: Instant) -> Option<f64> {
        match self {
            Self::Counted { last_millijoules } => {
                let total = gauge.millijoules(gpu)?;
                // A counter that began again says nothing of the time before.
                let millijoules = total.checked_sub(*last_millijoules);
                *last_millijoules = total;
                millijoules.map(|millijoules| millijoules as f64 * 1e-3)
            }
            Self::Integrated { last_milliwatts, last } => {
                let milliwatts = gauge.milliwatts(gpu)?;
                let seconds = now.duration_since(*last).as_secs_f64();
                let mean = 0.5 * (f64::from(*last_milliwatts) + f64::from(milliwatts));
                (*last_milliwatts, *last) = (milliwatts, now);
                Some(mean * 1e-3 * seconds)
            }
        }
    }
}

impl Gauge for Nvml {
    fn count(&self) -> u32 {
        self.device_count().unwrap_or(0)
    }

    fn millijoules(&self, gpu: u32) -> Option<u64> {
        self.device_by_index(gpu).ok()?.total_energy_consumption().ok()
    }

    fn milliwatts(&self, gpu: u32) -> Option<u32> {
        self.device_by_index(gpu).ok()?.power_usage().ok()
    }
}

impl fmt::Debug for GpuEnergy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "GpuEnergy of {} GPU(s)", self.meters.len())
    }
}
