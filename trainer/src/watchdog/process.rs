//! What Linux tells of processes and threads, by the files of `/proc`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::{Command, Stdio};

/// Ticks a second of the times in `stat`: the kernel's interface fixes it at 100.
const TICKS_PER_SECOND: f64 = 100.0;

/// The letter of a process's state and when it started, in ticks since the system did.
pub(super) fn state(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = fields(&stat)?;
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

/// The fields of a `stat` file behind the name, which may hold anything.
fn fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect())
}

/// How much this process has done so far: seconds of all processors, and bytes read and written.
pub(super) fn work_done() -> (f64, u64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = fields(&stat).unwrap_or_default();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    let seconds = (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / TICKS_PER_SECOND;
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let counts = io.lines().filter_map(|line| line.split_once(": ")?.1.parse::<u64>().ok());
    (seconds, counts.sum())
}

/// Threads of this process in uninterruptible sleep.
pub(super) fn disk_threads() -> u8 {
    let threads = threads(std::process::id());
    let waits = |&tid: &u32| {
        let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
        fields(&stat).is_some_and(|fields| fields.first() == Some(&"D"))
    };
    threads.iter().filter(|tid| waits(tid)).count().min(255) as u8
}

/// The threads of a process, ascending.
pub(super) fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let number = |name: std::ffi::OsString| name.to_str()?.parse().ok();
    let mut threads: Vec<u32> =
        entries.flatten().filter_map(|entry| number(entry.file_name())).collect();
    threads.sort_unstable();
    threads
}

/// What each thread of a process is in, as the kernel sees it: one line a thread, and its kernel
/// stack where this user may read it.
pub(super) fn kernel_stacks(pid: u32) -> String {
    let mut text = String::new();
    for tid in threads(pid) {
        let read = |name: &str| {
            let content = fs::read_to_string(format!("/proc/{pid}/task/{tid}/{name}"));
            content.map(|content| content.trim().to_owned()).unwrap_or_default()
        };
        let stat = read("stat");
        let state = fields(&stat).and_then(|fields| fields.first().copied()).unwrap_or("?");
        let (name, waits_in, call) = (read("comm"), read("wchan"), read("syscall"));
        // Writing to a string cannot fail.
        let _ =
            writeln!(text, "thread {tid} {name}: state {state}, kernel {waits_in}, call {call}");
        for line in read("stack").lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

/// Sixteen bytes that nobody can guess, as two numbers.
pub(super) fn random_token() -> io::Result<[i64; 2]> {
    use std::io::Read;
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let (high, low) = bytes.split_at(8);
    let number = |half: &[u8]| i64::from_le_bytes(half.try_into().expect("eight bytes"));
    Ok([number(high), number(low)])
}

/// The network that this process is in: processes of one host may be in several.
pub(super) fn network() -> String {
    fs::read_link("/proc/self/ns/net").map(|link| link.display().to_string()).unwrap_or_default()
}

/// Ends the launcher, if it is the parent of this process, some seconds from now, when this process
/// has ended: a launcher waits for the word of a host that has vanished, for good.
pub(super) fn end_launcher_later() -> io::Result<()> {
    const LAUNCHERS: [&str; 4] = ["mpirun", "mpiexec", "orterun", "prterun"];
    let launcher = parent_id();
    let name = fs::read_to_string(format!("/proc/{launcher}/comm"))?;
    if LAUNCHERS.contains(&name.trim()) {
        Command::new("sh")
            .args(["-c", "sleep 5; kill -KILL \"$0\"", &launcher.to_string()])
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
    }
    Ok(())
}

/// The IPv4 addresses of this host but for loopback.
pub(super) fn addresses() -> Vec<Ipv4Addr> {
    let text = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut found = Vec::new();
    let mut last = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last
            && !address.is_loopback()
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}
