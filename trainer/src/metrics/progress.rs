//! What a user sees while a run goes on: a bar at a terminal, plain lines everywhere else.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::forwarded::Forwarded;
use super::{EvalRecord, StepRecord};

/// How many digits a step takes at least, so that the columns of short runs line up.
const MIN_STEP_WIDTH: usize = 5;

/// The progress display of one rank.
///
/// At a terminal (both stdout and stderr) a bar is drawn on stderr; behind a launcher that passes
/// output on to a terminal, on stdout. Otherwise plain lines go to stdout, so that
/// `grove train FILE > log` keeps them. Warnings always go to stderr. A display
/// that cannot be written to (a closed pipe) is passed over: it must not end a run.
#[derive(Debug)]
pub struct Progress {
    screen: Screen,
    total_steps: u64,
    log_every: u64,
    resumed_step: u64,
    started: Instant,
}

/// Where a display is drawn.
enum Screen {
    /// Nowhere: the ranks that do not report.
    Silent,
    /// One line every `log_every` steps.
    Lines { out: Box<dyn Write + Send>, warnings: Box<dyn Write + Send> },
    /// A bar that is redrawn after every step.
    Bar(ProgressBar),
}

impl Progress {
    /// A bar if stdout and stderr are terminals or `forwarded` to one, else plain lines on stdout.
    ///
    /// `forwarded` is the width of the terminal that a launcher passes stdout on to, if it does.
    /// `resumed_step` is the last step already done (0 for a new run). A plain line is written
    /// for the first step, each multiple of `log_every` (0 for none) and the last step.
    #[must_use]
    pub fn auto(
        total_steps: u64,
        log_every: u64,
        resumed_step: u64,
        forwarded: Option<u16>,
    ) -> Self {
        let screen = if let Some(columns) = forwarded {
            let target = ProgressDrawTarget::term_like(Box::new(Forwarded { columns }));
            Screen::Bar(bar(total_steps, resumed_step, target))
        } else if io::stdout().is_terminal() && io::stderr().is_terminal() {
            Screen::Bar(bar(total_steps, resumed_step, ProgressDrawTarget::stderr()))
        } else {
            Screen::Lines { out: Box::new(io::stdout()), warnings: Box::new(io::stderr()) }
        };
        Self { screen, total_steps, log_every, resumed_step, started: Instant::now() }
    }

    /// Shows nothing, for the ranks that do not report.
    #[must_use]
    pub fn silent() -> Self {
        let screen = Screen::Silent;
        Self { screen, total_steps: 0, log_every: 0, resumed_step: 0, started: Instant::now() }
    }

    /// The same display with plain lines on `out` and warnings on `warnings`.
    #[must_use]
    pub fn lines_to(self, out: Box<dyn Write + Send>, warnings: Box<dyn Write + Send>) -> Self {
        Self { screen: Screen::Lines { out, warnings }, ..self }
    }

    /// Shows one step.
    pub fn step(&mut self, record: &StepRecord) {
        let due = self.is_due(record.step);
        let left = self.left_seconds(record.step);
        match &mut self.screen {
            Screen::Silent => {}
            Screen::Bar(bar) => {
                bar.set_position(record.step);
                bar.set_message(short_costs(record, left));
            }
            Screen::Lines { out, .. } => {
                if due || record.skipped.is_some() {
                    let place = place(record.step, self.total_steps);
                    let note = if record.skipped.is_some() { "  skipped" } else { "" };
                    write_line(out, &format!("step {place}  {}{note}", costs(record, left)));
                }
            }
        }
    }

    /// Shows one evaluation.
    pub fn eval(&mut self, record: &EvalRecord) {
        let place = place(record.step, self.total_steps);
        let bits = record.bits_per_byte.map_or(String::new(), |bits| format!("  bpb {bits:.4}"));
        let (loss, perplexity) = (record.loss, record.perplexity);
        let sources: String =
            record.sources.iter().map(|(name, loss)| format!("  {name} {loss:.4}")).collect();
        self.note(&format!("eval {place}  loss {loss:.4}  ppl {perplexity:.2}{bits}{sources}"));
    }

    /// Shows a line of its own, above the bar where there is one.
    pub fn note(&mut self, line: &str) {
        match &mut self.screen {
            Screen::Silent => {}
            Screen::Bar(bar) => bar.println(line),
            Screen::Lines { out, .. } => write_line(out, line),
        }
    }

    /// Shows a warning on stderr, above the bar where there is one.
    pub fn warn(&mut self, warning: &str) {
        let line = format!("warning: {warning}");
        match &mut self.screen {
            Screen::Silent => {}
            Screen::Bar(bar) => bar.println(line),
            Screen::Lines { warnings, .. } => write_line(warnings, &line),
        }
    }

    /// Leaves the last state of the bar on the screen.
    pub fn finish(&mut self) {
        if let Screen::Bar(bar) = &self.screen {
            bar.abandon();
        }
    }

    fn is_due(&self, step: u64) -> bool {
        let is_multiple = self.log_every > 0 && step.is_multiple_of(self.log_every);
        is_multiple || step == self.resumed_step + 1 || step == self.total_steps
    }

    /// Seconds until the last step at this session's mean pace, evaluations and saves included.
    fn left_seconds(&self, step: u64) -> f64 {
        let done = step.saturating_sub(self.resumed_step).max(1);
        let left = self.total_steps.saturating_sub(step);
        self.started.elapsed().as_secs_f64() / done as f64 * left as f64
    }
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Silent => "Silent",
            Self::Lines { .. } => "Lines",
            Self::Bar(_) => "Bar",
        })
    }
}

fn bar(total_steps: u64, resumed_step: u64, target: ProgressDrawTarget) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:12} {pos}/{len}  {wide_msg}")
        .expect("the template is a constant whose keys indicatif knows");
    let bar = ProgressBar::with_draw_target(Some(total_steps), target).with_style(style);
    bar.set_position(resumed_step);
    bar
}

/// `  120/2000`, as wide at every step of a run.
fn place(step: u64, total_steps: u64) -> String {
    let total = total_steps.to_string();
    format!("{step:>width$}/{total}", width = total.len().max(MIN_STEP_WIDTH))
}

fn costs(record: &StepRecord, left_seconds: f64) -> String {
    format!(
        "loss {:.4}  lr {:.1e}  norm {:.2}  {} tok/s  mfu {:.1} %  {}  left {}",
        record.loss,
        record.lr,
        record.grad_norm,
        with_prefix(record.tokens_per_second),
        record.mfu * 100.0,
        in_binary_units(record.peak_memory_bytes),
        in_time_units(left_seconds),
    )
}

/// What a bar has room for in 80 columns.
fn short_costs(record: &StepRecord, left_seconds: f64) -> String {
    format!(
        "loss {:.3}  {} tok/s  mfu {:.0} %  {}  left {}",
        record.loss,
        with_prefix(record.tokens_per_second),
        record.mfu * 100.0,
        in_binary_units(record.peak_memory_bytes),
        in_time_units(left_seconds),
    )
}

/// `41.2k`: three or so digits and a decimal prefix.
pub(super) fn with_prefix(value: f64) -> String {
    match value.abs() {
        size if size >= 1e9 => format!("{:.1}G", value / 1e9),
        size if size >= 1e6 => format!("{:.1}M", value / 1e6),
        size if size >= 1e3 => format!("{:.1}k", value / 1e3),
        _ => format!("{value:.0}"),
    }
}

/// `1.2 GiB`.
pub(super) fn in_binary_units(bytes: u64) -> String {
    const MEBIBYTE: f64 = 1024.0 * 1024.0;
    let mebibytes = bytes as f64 / MEBIBYTE;
    if mebibytes < 1024.0 {
        format!("{mebibytes:.0} MiB")
    } else {
        format!("{:.1} GiB", mebibytes / 1024.0)
    }
}

/// `42 s`, `3 min`, `2 h 05 min`, `3 d 04 h`.
pub(super) fn in_time_units(seconds: f64) -> String {
    // A float cast saturates, so NaN becomes 0 and infinity the largest number.
    let seconds = seconds.round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..100 => format!("{seconds} s"),
        100..3600 => format!("{minutes} min"),
        3600..86_400 => format!("{hours} h {:02} min", minutes % 60),
        _ => format!("{days} d {:02} h", hours % 24),
    }
}

fn write_line(out: &mut dyn Write, line: &str) {
    // A reader that went away must not end the run, and there is nobody left to tell.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
