//! Energy of the processor packages, where the kernel lets us read it (RAPL).

use std::fs;
use std::path::{Path, PathBuf};

/// Where Linux shows the energy counters.
const POWERCAP: &str = "/sys/class/powercap";

/// Reads the energy counters of this machine's processor packages.
///
/// The counters of all packages of the machine are summed, whoever uses them: ranks that share a
/// machine must not be added up. Memory outside the package, disks and fans are not counted.
#[derive(Debug)]
pub enum EnergyMeter {
    /// At least one package counter is readable.
    Rapl(Vec<Package>),
    /// Nothing is readable: no such hardware, a virtual machine, or counters kept for root.
    NotMeasured,
}

/// One processor package's counter.
#[derive(Debug)]
pub struct Package {
    counter: PathBuf,
    range_microjoules: u64,
    last_microjoules: u64,
}

impl EnergyMeter {
    /// Finds the readable counters and starts measuring now.
    #[must_use]
    pub fn start() -> Self {
        Self::start_in(Path::new(POWERCAP))
    }

    /// Does what [`EnergyMeter::start`] does in another folder of the same layout.
    pub(super) fn start_in(powercap: &Path) -> Self {
        let entries = fs::read_dir(powercap).into_iter().flatten().flatten();
        let packages: Vec<_> = entries.filter_map(|entry| Package::open(&entry.path())).collect();
        if packages.is_empty() { Self::NotMeasured } else { Self::Rapl(packages) }
    }

    /// Joules since the previous call, or since the start; `None` where it is not measured.
    ///
    /// A counter wraps around after some 2e5 J (half an hour at 100 W); one wrap between two
    /// calls is accounted for, a second one cannot be seen.
    pub fn joules(&mut self) -> Option<f64> {
        let Self::Rapl(packages) = self else { return None };
        // Every counter is read even if one fails, so that the next difference is right.
        let read: Vec<_> = packages.iter_mut().map(Package::microjoules).collect();
        let total: Option<u64> = read.into_iter().sum();
        total.map(|microjoules| microjoules as f64 * 1e-6)
    }
}

impl Package {
    /// The counter in `zone`, if it is a package's and readable.
    ///
    /// Only `intel-rapl:N` named `package-N` counts: `intel-rapl:N:M` are parts of a package,
    /// `intel-rapl-mmio:N` shows the same package again, and `psys` holds them all.
    fn open(zone: &Path) -> Option<Self> {
        let number = zone.file_name()?.to_str()?.strip_prefix("intel-rapl:")?;
        let is_zone = number.bytes().all(|byte| byte.is_ascii_digit());
        let name = fs::read_to_string(zone.join("name")).ok()?;
        if !is_zone || !name.starts_with("package") {
            return None;
        }
        let counter = zone.join("energy_uj");
        let range_microjoules = read_number(&zone.join("max_energy_range_uj"))?;
        let last_microjoules = read_number(&counter)?;
        Some(Self { counter, range_microjoules, last_microjoules })
    }

    /// Microjoules since the last call.
    fn microjoules(&mut self) -> Option<u64> {
        let now = read_number(&self.counter)?;
        let last = std::mem::replace(&mut self.last_microjoules, now);
        Some(if now >= last {
            now - last
        } else {
            self.range_microjoules.saturating_sub(last) + now
        })
    }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
