//! Tests of what is measured on the machine: energy, memory, utilization.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::energy::EnergyMeter;
use super::super::gpu_energy::{Gauge, GpuEnergy};
use super::super::memory::{parse_high_water_bytes, parse_minor_faults};
use super::super::{mfu, pages_given, peak_resident_bytes};

#[test]
fn utilization_is_achieved_over_possible_flops() {
    assert_eq!(mfu(1e5, 6e9, 2, 1e15), 0.3);
}

/// Makes a counter folder as Linux shows it.
fn zone(powercap: &Path, zone: &str, name: &str, microjoules: u64) {
    let folder = powercap.join(zone);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("name"), format!("{name}\n")).unwrap();
    fs::write(folder.join("max_energy_range_uj"), "262143328850\n").unwrap();
    fs::write(folder.join("energy_uj"), format!("{microjoules}\n")).unwrap();
}

#[test]
fn energy_sums_packages_and_survives_a_wrap() {
    let powercap = TempDir::new().unwrap();
    let path = powercap.path();
    zone(path, "intel-rapl:0", "package-0", 1_000_000);
    zone(path, "intel-rapl:1", "package-1", 262_143_000_000);
    // None of these may be counted: they show the same joules again.
    zone(path, "intel-rapl:0:0", "package-part", 0);
    zone(path, "intel-rapl-mmio:0", "package-0", 0);
    zone(path, "intel-rapl:2", "psys", 0);
    let mut meter = EnergyMeter::start_in(path);
    for other in ["intel-rapl:0:0", "intel-rapl-mmio:0", "intel-rapl:2"] {
        fs::write(path.join(other).join("energy_uj"), "900000000").unwrap();
    }
    zone(path, "intel-rapl:0", "package-0", 3_500_000);
    zone(path, "intel-rapl:1", "package-1", 171_150);
    // 2.5 J and (262143.328850 - 262143.0) + 0.17115 = 0.5 J.
    let joules = meter.joules().unwrap();
    assert!((joules - 3.0).abs() < 1e-9, "{joules}");
    assert_eq!(meter.joules(), Some(0.0));
    fs::remove_file(path.join("intel-rapl:0/energy_uj")).unwrap();
    assert_eq!(meter.joules(), None);
}

#[test]
fn without_counters_energy_is_not_measured() {
    let powercap = TempDir::new().unwrap();
    assert_eq!(EnergyMeter::start_in(powercap.path()).joules(), None);
    assert_eq!(EnergyMeter::start_in(&powercap.path().join("missing")).joules(), None);
}

#[test]
fn peak_memory_is_the_high_water_mark() {
    let status = "Name:\tgrove\nVmPeak:\t  99 kB\nVmHWM:\t    1234 kB\n";
    assert_eq!(parse_high_water_bytes(status), Some(1234 * 1024));
    assert_eq!(parse_high_water_bytes("Name:\tgrove\n"), None);
    if cfg!(target_os = "linux") {
        assert!(peak_resident_bytes().unwrap() > 100_000);
    }
}

/// A GPU with a counter and one that only tells its power, as a test sets them.
#[derive(Clone, Default)]
struct Gpus {
    millijoules: Rc<Cell<Option<u64>>>,
    milliwatts: Rc<Cell<Option<u32>>>,
}

impl Gauge for Gpus {
    fn count(&self) -> u32 {
        2
    }

    fn millijoules(&self, gpu: u32) -> Option<u64> {
        if gpu == 0 { self.millijoules.get() } else { None }
    }

    fn milliwatts(&self, gpu: u32) -> Option<u32> {
        if gpu == 1 { self.milliwatts.get() } else { None }
    }
}

#[test]
fn energy_of_gpus_is_counted_or_integrated() {
    let (gpus, start) = (Gpus::default(), Instant::now());
    gpus.millijoules.set(Some(5_000));
    gpus.milliwatts.set(Some(100_000));
    let mut energy = GpuEnergy::start_with(Box::new(gpus.clone()), start).unwrap();
    let after = |seconds| start + Duration::from_secs(seconds);
    gpus.millijoules.set(Some(7_500));
    gpus.milliwatts.set(Some(300_000));
    // 2.5 J by the counter, and 2 s of 200 W on average.
    assert_eq!(energy.joules_at(after(2)), Some(402.5));
    gpus.millijoules.set(None);
    assert_eq!(energy.joules_at(after(3)), None);
    // The second GPU went on at 300 W and was read meanwhile.
    gpus.millijoules.set(Some(8_500));
    assert_eq!(energy.joules_at(after(4)), Some(301.0));
    // The driver was loaded again.
    gpus.millijoules.set(Some(10));
    assert_eq!(energy.joules_at(after(5)), None);
    gpus.millijoules.set(Some(1_010));
    assert_eq!(energy.joules_at(after(6)), Some(301.0));
}

#[test]
fn gpus_that_tell_nothing_are_not_measured() {
    assert!(GpuEnergy::start_with(Box::new(Gpus::default()), Instant::now()).is_none());
}

#[test]
fn pages_given_are_the_minor_faults() {
    let stat = "17 (a (b) c) S 1 17 17 0 -1 4194304 4321 9 0 0 3 1\n";
    assert_eq!(parse_minor_faults(stat), Some(4321));
    assert_eq!(parse_minor_faults("17 (grove) S"), None);
    if cfg!(target_os = "linux") {
        assert!(pages_given().unwrap() > 100);
    }
}
