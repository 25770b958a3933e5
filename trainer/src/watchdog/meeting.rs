//! How the side channel comes about: ranks tell each other by their collective where they are, and
//! where the two that listen can be reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use grove_parallel::Collective;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::process;
use crate::config::WatchdogPlan;

/// Ranks that listen: the first judges, and the second judges the first.
pub(super) const NUM_HUBS: usize = 2;

/// Addresses of a host that are made known.
const MAX_ADDRESSES: usize = 4;

/// Numbers of a rank: host, process, start of it, whether it takes part, addresses.
const PLACE_NUMBERS: usize = 4 + MAX_ADDRESSES;

/// Bytes of a host's name that are made known.
const HOST_BYTES: usize = 32;

/// Where a rank is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The host's name, cut off at 32 bytes.
    pub(super) host: String,
    /// Tells hosts and their networks apart.
    host_key: i64,
    pub(super) pid: u32,
    /// Tells a process from a later one of the same number.
    pub(super) started_ticks: u64,
    addresses: Vec<Ipv4Addr>,
}

impl Place {
    /// Whether both can look at each other's process.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        self.host_key == other.host_key
    }
}

/// The channel as this rank is to use it.
#[derive(Debug)]
pub(super) struct Meeting {
    pub(super) places: Vec<Place>,
    /// By hub: where it listens, if it could.
    pub(super) hubs: Vec<Option<SocketAddr>>,
    /// What a rank shows when it comes.
    pub(super) token: String,
    /// Where this rank listens, if it does.
    pub(super) listener: Option<TcpListener>,
}

/// Finds out where all ranks are. `None` if some rank is to have no watchdog.
///
/// Hubs listen on loopback where all ranks are in one network of one host, else on one address.
///
/// # Collectives
/// Three all-gathers.
pub(super) fn meet(
    plan: &WatchdogPlan,
    collective: &dyn Collective,
    host: &str,
) -> Result<Option<Meeting>, grove_parallel::Error> {
    let rank = collective.rank();
    let key = Sha256::digest(format!("{host} {}", process::network()));
    let pid = std::process::id();
    let mut mine = vec![
        i64::from_le_bytes(std::array::from_fn(|i| key[i])),
        i64::from(pid),
        process::state(pid).map_or(0, |(_, started)| started as i64),
        i64::from(plan.stall_seconds > 0.0),
    ];
    let addresses = process::addresses().into_iter().take(MAX_ADDRESSES);
    mine.extend(addresses.map(|address| i64::from(u32::from(address))));
    mine.resize(PLACE_NUMBERS, 0);
    let numbers = gather(collective, &mine, "where the ranks are")?;
    let mut name = host.as_bytes()[..host.len().min(HOST_BYTES)].to_vec();
    name.resize(HOST_BYTES, 0);
    let name: Vec<i64> = name.into_iter().map(i64::from).collect();
    let names = gather(collective, &name, "names of hosts")?;
    if numbers.chunks(PLACE_NUMBERS).any(|place| place[3] == 0) {
        return Ok(None);
    }
    let places: Vec<Place> =
        numbers.chunks(PLACE_NUMBERS).zip(names.chunks(HOST_BYTES)).map(place).collect();
    let listener = match rank < NUM_HUBS && collective.degree() > 1 {
        true => TcpListener::bind((listening_address(plan, &places, rank), 0)).ok(),
        false => None,
    };
    let [high, low] = process::random_token().unwrap_or_default();
    let (mut hub, address) =
        (vec![0, 0, high, low], listener.as_ref().map(TcpListener::local_addr));
    if let Some(Ok(SocketAddr::V4(address))) = address {
        (hub[0], hub[1]) = (i64::from(u32::from(*address.ip())), i64::from(address.port()));
    }
    let hubs = gather(collective, &hub, "where the watchdogs listen")?;
    let socket = |hub: &[i64]| {
        let address = Ipv4Addr::from(hub[0] as u32);
        (hub[1] > 0).then(|| SocketAddr::new(IpAddr::V4(address), hub[1] as u16))
    };
    let token = format!("{:016x}{:016x}", hubs[2], hubs[3]);
    let hubs = hubs.chunks(4).take(NUM_HUBS).map(socket).collect();
    Ok(Some(Meeting { places, hubs, token, listener }))
}

fn gather(
    collective: &dyn Collective,
    mine: &[i64],
    name: &str,
) -> Result<Vec<i64>, grove_parallel::Error> {
    let all =
        Tensor::zeros([(collective.degree() * mine.len()) as i64], (Kind::Int64, Device::Cpu));
    collective.all_gather(&Tensor::from_slice(mine), &all, name)?.wait()?;
    Ok(Vec::try_from(all).expect("a vector of i64"))
}

fn place((numbers, name): (&[i64], &[i64])) -> Place {
    let name: Vec<u8> = name.iter().map(|&byte| byte as u8).take_while(|&byte| byte > 0).collect();
    let addresses = numbers[4..].iter().filter(|&&number| number != 0);
    Place {
        host: String::from_utf8_lossy(&name).into_owned(),
        host_key: numbers[0],
        pid: numbers[1] as u32,
        started_ticks: numbers[2] as u64,
        addresses: addresses.map(|&number| Ipv4Addr::from(number as u32)).collect(),
    }
}

/// Loopback where nobody comes from elsewhere; else the plan's address for rank 0, or that of the
/// host's which has the most leading bits in common with another host's.
fn listening_address(plan: &WatchdogPlan, places: &[Place], rank: usize) -> IpAddr {
    let own = &places[rank];
    let others = || places.iter().filter(|place| !place.is_beside(own));
    if others().next().is_none() {
        return IpAddr::V4(Ipv4Addr::LOCALHOST);
    }
    if let (Ok(address), 0) = (plan.address.parse(), rank) {
        return address;
    }
    let common = |address: &Ipv4Addr| {
        let bits = |other: &Ipv4Addr| (u32::from(*address) ^ u32::from(*other)).leading_zeros();
        others().flat_map(|place| &place.addresses).map(bits).max()
    };
    let best = own.addresses.iter().max_by_key(|address| common(address));
    IpAddr::V4(best.copied().unwrap_or(Ipv4Addr::LOCALHOST))
}
