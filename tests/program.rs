//! Runs the `grove` program in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use grove::config;
use grove::model::compute::Compute;
use grove::model::config::Precision;
use grove::run::{self, Ending};
use grove::signals::StopRequest;
use grove_parallel::collective::{ThreadCollective, ThreadGroup};
use tch::{Device, Kind};
use tempfile::TempDir;

/// What the smallest run needs, besides `[run]`: a Llama over bytes of a text that is made here.
const CONFIG: &str = r#"
seed = 3
precision = "fp32"
device = "cpu"
[run]
dir = "run"
steps = 20
[model]
model_type = "llama"
vocab_size = 256
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
[data]
text = "text.txt"
tokenizer = "bytes"
validation_fraction = 0.2
[batch]
sequence_length = 16
micro_batch_size = 2
micro_batches = 4
[optim]
lr = 1e-2
[schedule]
kind = "cosine"
warmup_steps = 2
[eval]
every = 10
[checkpoint]
every = 10
[metrics]
log_every = 1
peak_tflops = 0.1
"#;

/// A folder with a config and a text, where the program runs.
pub(crate) struct Program {
    folder: TempDir,
}

/// The same run with a GPT-2.
const GPT2_MODEL: &str = r#"
[model]
model_type = "gpt2"
vocab_size = 256
n_positions = 16
n_embd = 32
n_layer = 2
n_head = 4
"#;

/// How many threads each rank gets, so that tests do not compete for cores.
const THREADS: &str = "1";

impl Program {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("config.toml"), CONFIG).expect("a config");
        let line = |i: u32| format!("line {i}: {} and {}.\n", i * 7919 % 101, i * 104_729 % 97);
        let text: String = (0..400).map(line).collect();
        std::fs::write(folder.path().join("text.txt"), text).expect("a text");
        Self { folder }
    }

    /// Makes `config.toml` that of a GPT-2.
    pub(crate) fn use_gpt2(&self) {
        let (before, rest) = CONFIG.split_once("[model]").expect("the config has a model");
        let (_, after) = rest.split_once("[data]").expect("the config has data");
        let config = format!("{before}{GPT2_MODEL}[data]{after}");
        std::fs::write(self.path("config.toml"), config).expect("a config");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `grove` with these arguments in the folder.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command_of(Path::new(env!("CARGO_BIN_EXE_grove")));
        command.args(arguments);
        command
    }

    /// Any program in the folder.
    pub(crate) fn command_of(&self, program: &Path) -> Command {
        self.prepare(Command::new(program))
    }

    /// `mpirun` with `ranks` of `grove` with these arguments.
    pub(crate) fn mpirun(&self, ranks: usize, arguments: &[&str]) -> Command {
        let mut command = self.mpirun_of(ranks, Path::new(env!("CARGO_BIN_EXE_grove")));
        command.args(arguments);
        command
    }

    /// `mpirun` with `ranks` of any program.
    pub(crate) fn mpirun_of(&self, ranks: usize, program: &Path) -> Command {
        let mut command = Command::new("mpirun");
        command
            .args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"])
            .arg(ranks.to_string())
            .arg(program);
        self.prepare(command)
    }

    fn prepare(&self, mut command: Command) -> Command {
        command
            .current_dir(self.folder.path())
            .env("OMP_NUM_THREADS", THREADS)
            .env("OMP_WAIT_POLICY", "passive")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs to the end and expects success.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        expect_success(&self.command(arguments).output().expect("the program starts"))
    }

    /// Runs to the end and expects failure; returns standard error.
    pub(crate) fn fail(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("the program starts");
        assert!(!output.status.success(), "it was to fail: {}", stdout(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Trains with these overrides, expecting success, on `ranks` ranks.
    pub(crate) fn train(&self, ranks: usize, overrides: &[&str]) -> String {
        let mut arguments = vec!["train", "config.toml"];
        for over in overrides {
            arguments.extend(["--set", over]);
        }
        let output = if ranks == 1 {
            self.command(&arguments).output()
        } else {
            self.mpirun(ranks, &arguments).output()
        };
        expect_success(&output.expect("the program starts"))
    }

    /// Trains with these overrides on `ranks` threads of this process, each one rank.
    pub(crate) fn train_in_threads(&self, ranks: usize, overrides: &[&str]) {
        let (folder, config) = (self.folder.path(), self.path("config.toml"));
        let mut overrides: Vec<String> = overrides.iter().map(|&over| over.to_owned()).collect();
        overrides.push(format!("data.text={:?}", folder.join("text.txt")));
        overrides.push("metrics.tensorboard=false".to_owned());
        let mut plan = config::load(&config, &overrides).expect("a plan");
        plan.run.dir = folder.join(&plan.run.dir);
        let rank = |collective: ThreadCollective| {
            let _no_graph = tch::no_grad_guard();
            let kind = match plan.precision {
                Precision::Bf16 => Kind::BFloat16,
                Precision::Fp32 => Kind::Float,
                Precision::Fp64 => Kind::Double,
            };
            let compute = Compute::new(Device::Cpu, kind, 1);
            let ended = run::train(&plan, compute, &collective, &StopRequest::never(), "here");
            assert_eq!(ended.expect("a run"), Ending::Finished);
        };
        tch::set_num_threads(1);
        std::thread::scope(|scope| {
            for collective in ThreadGroup::new(ranks) {
                scope.spawn(move || rank(collective));
            }
        });
    }

    /// `ckpt hash` of a run's checkpoint.
    pub(crate) fn hash(&self, run: &str, step: u64) -> String {
        let folder = format!("{run}/checkpoints/step-{step:08}");
        self.succeed(&["ckpt", "hash", &folder]).trim().to_owned()
    }

    /// `ckpt hash` of a checkpoint's folder.
    pub(crate) fn hash_of(&self, folder: &str) -> String {
        self.succeed(&["ckpt", "hash", folder]).trim().to_owned()
    }

    /// `(step, loss)` of every step record of a run, with the loss as it was written.
    pub(crate) fn losses(&self, run: &str) -> Vec<(u64, f64)> {
        let number = |record: &serde_json::Value| {
            (record["step"].as_u64().expect("a step"), record["loss"].as_f64().expect("a loss"))
        };
        self.step_records(run).iter().map(number).collect()
    }

    /// Every step record of a run.
    pub(crate) fn step_records(&self, run: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).expect("metrics");
        let records = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a JSON record"));
        records.filter(|record| record["kind"] == "step").collect()
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn expect_success(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{errors}\n{}", output.status, stdout(output));
    stdout(output)
}

/// Waits until `path` exists, for at most a minute.
pub(crate) fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the process `pid` has ended, for at most a minute.
pub(crate) fn wait_for_end(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    // One that nobody has asked about yet is a zombie.
    let runs = || {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
    };
    while runs() {
        assert!(Instant::now() < deadline, "process {pid} does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for the end of a child, for at most `limit`, and returns what it said.
pub(crate) fn wait_within(mut child: Child, limit: Duration) -> Output {
    let deadline = Instant::now() + limit;
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() >= deadline {
            child.kill().expect("a child that still runs");
            panic!("the program did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().expect("a child that has ended")
}

/// Sends a signal to a process.
pub(crate) fn send(signal: &str, pid: u32) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
    assert!(status.expect("kill runs").success(), "no process {pid}");
}

/// The process of a rank that `mpirun` started, found by its environment.
pub(crate) fn rank_pid(mpirun: u32, rank: usize) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{mpirun}/task/{mpirun}/children"));
    let children = children.expect("mpirun runs");
    let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
    let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.find(|pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|entry| entry == wanted.as_bytes())
    })
    .unwrap_or_else(|| panic!("mpirun {mpirun} has no rank {rank}"))
}
