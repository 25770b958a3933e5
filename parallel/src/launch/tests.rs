//! Each launcher's variables give the place, and contradictions name their variables.

use std::collections::BTreeMap;

use super::*;

fn variables(list: &[(&'static str, &str)]) -> impl Fn(&'static str) -> Option<String> {
    let map: BTreeMap<&'static str, String> =
        list.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    move |name| map.get(name).cloned()
}

fn launch(list: &[(&'static str, &str)]) -> Result<Launch> {
    Launch::from_variables(&variables(list))
}

fn place(list: &[(&'static str, &str)]) -> (Launcher, [usize; 4]) {
    let launch = launch(list).unwrap();
    assert!(!launch.hostname.is_empty());
    (launch.launcher, [launch.rank, launch.world_size, launch.local_rank, launch.local_size])
}

const OPENMPI: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_RANK", "5"),
    ("OMPI_COMM_WORLD_SIZE", "8"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
];

const SRUN: [(&str, &str); 6] = [
    ("SLURM_STEP_ID", "0"),
    ("SLURM_PROCID", "6"),
    ("SLURM_NTASKS", "7"),
    ("SLURM_LOCALID", "0"),
    ("SLURM_NODEID", "3"),
    ("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"),
];

#[test]
fn nothing_is_one_rank() {
    assert_eq!(place(&[]), (Launcher::Alone, [0, 1, 0, 1]));
}

#[test]
fn openmpi_counts_before_the_srun_that_started_its_daemons() {
    let both = [&OPENMPI[..], &SRUN[..]].concat();
    assert_eq!(place(&both), (Launcher::OpenMpi, [5, 8, 1, 4]));
}

#[test]
fn mpich_and_srun_with_pmi2() {
    let pmi = [("PMI_RANK", "6"), ("PMI_SIZE", "7")];
    let local = [("MPI_LOCALRANKID", "2"), ("MPI_LOCALNRANKS", "3")];
    assert_eq!(place(&[pmi, local].concat()), (Launcher::Pmi, [6, 7, 2, 3]));
    assert_eq!(place(&[&pmi[..], &SRUN[..]].concat()), (Launcher::Pmi, [6, 7, 0, 1]));
}

#[test]
fn srun_counts_only_with_a_plugin() {
    let pmix = [("PMIX_RANK", "6")];
    assert_eq!(place(&[&SRUN[..], &pmix[..]].concat()), (Launcher::Slurm, [6, 7, 0, 1]));
    assert_eq!(
        launch(&SRUN).unwrap_err().to_string(),
        "srun started 7 tasks without an MPI plugin, so each would train alone; \
         use srun --mpi=pmix (or --mpi=pmi2), or mpirun inside the allocation"
    );
    let batch_script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "7"), ("SLURM_LOCALID", "0")];
    assert_eq!(place(&batch_script), (Launcher::Alone, [0, 1, 0, 1]));
}

#[test]
fn wrong_variables_are_named() {
    let with = |name: &'static str, value: &'static str| {
        let mut list = OPENMPI.to_vec();
        list.retain(|(other, _)| *other != name);
        list.push((name, value));
        launch(&list).unwrap_err().to_string()
    };
    assert_eq!(
        with("OMPI_COMM_WORLD_RANK", "8"),
        "environment variables contradict: OMPI_COMM_WORLD_RANK = 8 must be below \
         OMPI_COMM_WORLD_SIZE = 8"
    );
    assert_eq!(
        with("OMPI_COMM_WORLD_LOCAL_SIZE", "9"),
        "environment variables contradict: OMPI_COMM_WORLD_LOCAL_SIZE = 9 must be at most \
         OMPI_COMM_WORLD_SIZE = 8"
    );
    assert_eq!(
        with("OMPI_COMM_WORLD_SIZE", "many"),
        "environment variable OMPI_COMM_WORLD_SIZE = \"many\" is not a number of at least 0"
    );
    assert_eq!(
        launch(&OPENMPI[..3]).unwrap_err().to_string(),
        "environment variable OMPI_COMM_WORLD_RANK is set but OMPI_COMM_WORLD_LOCAL_SIZE is not; \
         start all ranks by one launcher, or unset the first to run one rank"
    );
}

#[test]
fn connecting_one_rank_gives_the_local_collective() {
    let collective = connect(&launch(&[]).unwrap(), true).unwrap();
    assert_eq!((collective.rank(), collective.degree()), (0, 1));
}

#[test]
fn the_terminal_behind_the_launcher() {
    for (found, expected) in [("", None), ("0", None), ("wide", None), ("132", Some(132))] {
        let list = [("GROVE_TERMINAL_COLUMNS", found)];
        let environment = Environment::from_variables(&variables(&list)).unwrap();
        assert_eq!(environment.terminal_columns, expected);
    }
}

#[test]
fn the_threads_that_the_user_set() {
    let read = |list: &[(&'static str, &str)]| Environment::from_variables(&variables(list));
    for (list, expected) in [
        (&[][..], None),
        (&[("OMP_NUM_THREADS", "")], None),
        (&[("OMP_NUM_THREADS", "4,2")], Some(4)),
    ] {
        assert_eq!(read(list).unwrap().omp_num_threads, expected);
    }
    assert_eq!(
        read(&[("OMP_NUM_THREADS", "0")]).unwrap_err().to_string(),
        "environment variable OMP_NUM_THREADS = \"0\" is not a number of threads above 0"
    );
}
