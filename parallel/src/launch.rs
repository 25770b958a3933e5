//! Who this process is among those that were launched: the only place that reads the
//! environment.

use crate::{
    collective::{Collective, LocalCollective, MpiCollective},
    error::{Error, Result},
};

/// Where Linux keeps the name of the host.
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";

/// What started this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Nobody: one process by itself.
    Alone,
    /// OpenMPI's `mpirun`.
    OpenMpi,
    /// MPICH's or Intel MPI's `mpiexec` (Hydra), or another one that speaks PMI.
    Pmi,
    /// Slurm's `srun` with an MPI plugin.
    Slurm,
}

impl Launcher {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "no launcher",
            Self::OpenMpi => "mpirun (OpenMPI)",
            Self::Pmi => "mpiexec (PMI)",
            Self::Slurm => "srun",
        }
    }
}

/// This process's place in the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// What started it.
    pub launcher: Launcher,
    /// Number of this process, below `world_size`.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// Number of this process on its host, which picks its GPU or its cores.
    pub local_rank: usize,
    /// Processes on this host.
    pub local_size: usize,
    /// Name of the host, for messages.
    pub hostname: String,
}

impl Launch {
    /// Reads what the launcher left in the environment. The first of these that is there counts:
    ///
    /// 1. OpenMPI: `OMPI_COMM_WORLD_RANK`, `_SIZE`, `_LOCAL_RANK`, `_LOCAL_SIZE`. Under Slurm,
    ///    `mpirun` starts its daemons by `srun`, whose variables then count daemons, not ranks.
    /// 2. PMI: `PMI_RANK`, `PMI_SIZE`, `MPI_LOCALRANKID`, `MPI_LOCALNRANKS`; under `srun
    ///    --mpi=pmi2`, which does not set the last two, `SLURM_LOCALID` and
    ///    `SLURM_STEP_TASKS_PER_NODE`.
    /// 3. Slurm: `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` (or `SLURM_NTASKS`), `SLURM_LOCALID`,
    ///    `SLURM_STEP_TASKS_PER_NODE`, if the process was started by `srun` with an MPI plugin.
    ///    `SLURM_STEP_ID` tells `srun` from the batch script and from `salloc`'s shell, which
    ///    have `SLURM_NTASKS` too but are one process; `PMIX_RANK` tells that there is a plugin
    ///    (`--mpi=pmix`).
    /// 4. Otherwise one rank.
    ///
    /// # Errors
    /// [`Error::Variable`], [`Error::VariableMissing`] and [`Error::VariablesContradict`] with
    /// the names of the variables; [`Error::SrunWithoutMpi`] for several tasks without a plugin.
    pub fn from_environment() -> Result<Self> {
        Self::from_variables(&read)
    }

    fn from_variables(read: &dyn Fn(&'static str) -> Option<String>) -> Result<Self> {
        let place = if read("OMPI_COMM_WORLD_SIZE").or(read("OMPI_COMM_WORLD_RANK")).is_some() {
            Some((Launcher::OpenMpi, openmpi(read)?))
        } else if read("PMI_SIZE").or(read("PMI_RANK")).is_some() {
            Some((Launcher::Pmi, pmi(read)?))
        } else if read("SLURM_STEP_ID").is_some() && read("SLURM_PROCID").is_some() {
            slurm(read)?.map(|place| (Launcher::Slurm, place))
        } else {
            None
        };
        let hostname = std::fs::read_to_string(HOSTNAME_FILE)
            .ok()
            .or_else(|| read("HOSTNAME"))
            .map_or_else(|| "unknown host".to_owned(), |name| name.trim().to_owned());
        let [rank, world_size, local_rank, local_size] = match &place {
            Some((_, numbers)) => check_numbers(numbers)?,
            None => [0, 1, 0, 1],
        };
        let launcher = place.map_or(Launcher::Alone, |(launcher, _)| launcher);
        Ok(Self { launcher, rank, world_size, local_rank, local_size, hostname })
    }
}

/// What else the environment says to a trainer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `OMP_NUM_THREADS`: threads that each rank may compute with, if the user set it.
    pub omp_num_threads: Option<usize>,
    /// `GROVE_TERMINAL_COLUMNS`: the width of the terminal that standard output ends in. A rank
    /// under `mpirun` cannot see it: its output is a pseudo-terminal whatever follows.
    pub terminal_columns: Option<u16>,
}

impl Environment {
    /// Reads the variables; empty, they count as not set. A width that is no number does too.
    ///
    /// # Errors
    /// [`Error::Variable`] if `OMP_NUM_THREADS` is not a number above 0 (or a comma-separated
    /// list of them, of which the first counts).
    pub fn read() -> Result<Self> {
        Self::from_variables(&read)
    }

    fn from_variables(read: &dyn Fn(&'static str) -> Option<String>) -> Result<Self> {
        const THREADS: &str = "OMP_NUM_THREADS";
        let omp_num_threads = read(THREADS)
            .filter(|found| !found.is_empty())
            .map(|found| {
                let first = found.split(',').next().unwrap_or_default().trim().parse().ok();
                let expected = "a number of threads above 0";
                first.filter(|&threads: &usize| threads > 0).ok_or(Error::Variable {
                    variable: THREADS,
                    found,
                    expected,
                })
            })
            .transpose()?;
        let columns = read("GROVE_TERMINAL_COLUMNS").and_then(|found| found.parse().ok());
        Ok(Self { omp_num_threads, terminal_columns: columns.filter(|&columns| columns > 0) })
    }
}

/// The collective over all ranks of `launch`: the local one for one rank, MPI for more. With one
/// rank MPI is not touched. With `check`, ranks over MPI compare what they are calling before each
/// call, which costs 1 to 2 microseconds a call.
///
/// # Collectives
/// Every rank must connect.
///
/// # Errors
/// Those of [`MpiCollective::connect`]; [`Error::LaunchDiffersFromMpi`] if MPI counts other
/// ranks than the launcher, as when its `mpirun` belongs to another MPI library.
pub fn connect(launch: &Launch, check: bool) -> Result<Box<dyn Collective>> {
    if launch.world_size == 1 {
        return Ok(Box::new(LocalCollective::new()));
    }
    let collective = MpiCollective::connect(check)?;
    let (mpi_rank, mpi_size) = (collective.rank(), collective.degree());
    if (mpi_rank, mpi_size) != (launch.rank, launch.world_size) {
        return Err(Error::LaunchDiffersFromMpi {
            launcher: launch.launcher.name(),
            rank: launch.rank,
            world_size: launch.world_size,
            mpi_rank,
            mpi_size,
        });
    }
    Ok(Box::new(collective))
}

/// A number with the variable it came from.
type Number = (&'static str, usize);

/// Rank, world size, local rank and local size with their variables.
type Numbers = [Number; 4];

fn openmpi(read: &dyn Fn(&'static str) -> Option<String>) -> Result<Numbers> {
    numbers(
        read,
        [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
    )
}

fn pmi(read: &dyn Fn(&'static str) -> Option<String>) -> Result<Numbers> {
    if read("MPI_LOCALRANKID").is_none() && read("SLURM_LOCALID").is_some() {
        let local_size = slurm_local_size(read)?;
        let [rank, size, local_rank, _] =
            numbers(read, ["PMI_RANK", "PMI_SIZE", "SLURM_LOCALID", "PMI_SIZE"])?;
        return Ok([rank, size, local_rank, local_size.unwrap_or(size)]);
    }
    numbers(read, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"])
}

/// The place in an `srun` step with an MPI plugin, or `None` for a step of one task without.
fn slurm(read: &dyn Fn(&'static str) -> Option<String>) -> Result<Option<Numbers>> {
    let size = match read("SLURM_STEP_NUM_TASKS") {
        Some(_) => "SLURM_STEP_NUM_TASKS",
        None => "SLURM_NTASKS",
    };
    let [rank, size, local_rank, _] = numbers(read, ["SLURM_PROCID", size, "SLURM_LOCALID", size])?;
    if read("PMIX_RANK").is_some() {
        let local_size = slurm_local_size(read)?.unwrap_or(size);
        return Ok(Some([rank, size, local_rank, local_size]));
    }
    match size.1 {
        0 | 1 => Ok(None),
        tasks => Err(Error::SrunWithoutMpi { tasks }),
    }
}

/// The tasks on this host, by `SLURM_STEP_TASKS_PER_NODE`, which looks like `2(x3),1`: three
/// hosts with 2 tasks, then one with 1. `SLURM_NODEID` says which host this is.
fn slurm_local_size(read: &dyn Fn(&'static str) -> Option<String>) -> Result<Option<Number>> {
    const TASKS: &str = "SLURM_STEP_TASKS_PER_NODE";
    let Some(found) = read(TASKS) else { return Ok(None) };
    let mut host = match read("SLURM_NODEID") {
        Some(node) => number("SLURM_NODEID", node)?.1,
        None => 0,
    };
    let expected = "a list like 2(x3),1 that covers SLURM_NODEID";
    let wrong = || Error::Variable { variable: TASKS, found: found.clone(), expected };
    for part in found.split(',') {
        let (tasks, hosts) = match part.split_once("(x") {
            Some((tasks, hosts)) => (tasks, hosts.trim_end_matches(')')),
            None => (part, "1"),
        };
        let hosts: usize = hosts.trim().parse().map_err(|_| wrong())?;
        if host < hosts {
            return tasks.trim().parse().map(|tasks| Some((TASKS, tasks))).map_err(|_| wrong());
        }
        host -= hosts;
    }
    Err(wrong())
}

/// Reads four variables that come together.
fn numbers(
    read: &dyn Fn(&'static str) -> Option<String>,
    variables: [&'static str; 4],
) -> Result<Numbers> {
    let present = variables.into_iter().find(|name| read(name).is_some()).unwrap_or(variables[0]);
    let remedy = "start all ranks by one launcher, or unset the first to run one rank";
    let mut found = variables.map(|variable| (variable, 0));
    for (variable, value) in &mut found {
        let text =
            read(variable).ok_or(Error::VariableMissing { present, missing: variable, remedy })?;
        *value = number(variable, text)?.1;
    }
    Ok(found)
}

fn number(variable: &'static str, found: String) -> Result<Number> {
    let value = found.trim().parse().ok();
    let expected = "a number of at least 0";
    value.map(|value| (variable, value)).ok_or(Error::Variable { variable, found, expected })
}

/// Checks that ranks lie below their sizes and the host is not larger than the world.
fn check_numbers(&[rank, size, local_rank, local_size]: &Numbers) -> Result<[usize; 4]> {
    let contradict = |smaller: Number, relation, larger: Number| Error::VariablesContradict {
        smaller_variable: smaller.0,
        smaller: smaller.1,
        relation,
        larger_variable: larger.0,
        larger: larger.1,
    };
    if rank.1 >= size.1 {
        return Err(contradict(rank, "below", size));
    }
    if local_rank.1 >= local_size.1 {
        return Err(contradict(local_rank, "below", local_size));
    }
    if local_size.1 > size.1 {
        return Err(contradict(local_size, "at most", size));
    }
    if local_rank.1 > rank.1 {
        return Err(contradict(local_rank, "at most", rank));
    }
    Ok([rank.1, size.1, local_rank.1, local_size.1])
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn read(name: &'static str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests;
