//! The one message of the side channel: what a rank does, in a frame of fixed length. It says
//! something and asks for nothing.

use super::pulse::Doing;

/// Bytes of every frame: nothing longer is ever read.
pub(super) const FRAME_BYTES: usize = 640;

const MAGIC: u32 = u32::from_le_bytes(*b"GRVB");

/// Bytes of texts; what is longer is cut off.
const PHASE_BYTES: usize = 24;
const UNIT_BYTES: usize = 48;
const CALL_BYTES: usize = 200;
const NOTE_BYTES: usize = 200;

/// The most ranks of its own host that a rank testifies about.
const MAX_WITNESSED: usize = 8;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Who comes, with the run's token in the note.
    Hello,
    /// What the sender does.
    Beat,
    /// The sender has come to its end, as it should.
    Bye,
    /// The sender has failed, for the reason in the note, and tells so itself.
    Raised,
    /// The sender has found the run stalled and ends it; the note names the file for stacks.
    Alarm,
}

const KINDS: [Kind; 5] = [Kind::Hello, Kind::Beat, Kind::Bye, Kind::Raised, Kind::Alarm];

/// A call that the training thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Its number on its rank.
    pub(super) sequence: u64,
    /// Operation, name, dtype and count.
    pub(super) call: String,
    /// How long it has been waited for.
    pub(super) millis: u64,
}

/// A frame's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) kind: Kind,
    pub(super) rank: usize,
    /// What the training thread does.
    pub(super) doing: Doing,
    /// How long it has made no progress.
    pub(super) idle_millis: u64,
    /// What it waits for.
    pub(super) waiting: Option<Waiting>,
    /// Threads of the process in uninterruptible sleep: waiting for a disk, as a rule.
    pub(super) disk_threads: u8,
    /// Ranks of the same host that are stopped or gone, with the letter of their state.
    pub(super) witnessed: Vec<(usize, u8)>,
    pub(super) note: String,
}

impl Beat {
    /// A frame that says nothing but what it is.
    pub(super) fn of(kind: Kind, rank: usize, note: &str) -> Self {
        Self {
            kind,
            rank,
            doing: Doing::default(),
            idle_millis: 0,
            waiting: None,
            disk_threads: 0,
            witnessed: Vec::new(),
            note: note.to_owned(),
        }
    }

    pub(super) fn encode(&self) -> Box<[u8; FRAME_BYTES]> {
        let mut frame = Box::new([0; FRAME_BYTES]);
        let mut out = Writer { rest: &mut frame[..] };
        let kind = KINDS.iter().position(|&kind| kind == self.kind).expect("all are listed");
        out.bytes(&MAGIC.to_le_bytes());
        out.bytes(&[kind as u8, self.disk_threads, u8::from(self.waiting.is_some())]);
        for number in [
            self.rank as u64,
            self.doing.changes,
            self.doing.step,
            self.doing.steps_begun,
            self.doing.round,
            self.idle_millis,
            self.waiting.as_ref().map_or(0, |waiting| waiting.sequence),
            self.waiting.as_ref().map_or(0, |waiting| waiting.millis),
        ] {
            out.bytes(&number.to_le_bytes());
        }
        out.text(&self.doing.phase, PHASE_BYTES);
        out.text(&self.doing.unit, UNIT_BYTES);
        out.text(self.waiting.as_ref().map_or("", |waiting| &waiting.call), CALL_BYTES);
        out.text(&self.note, NOTE_BYTES);
        let witnessed = &self.witnessed[..self.witnessed.len().min(MAX_WITNESSED)];
        out.bytes(&[witnessed.len() as u8]);
        for &(rank, state) in witnessed {
            out.bytes(&(rank as u32).to_le_bytes());
            out.bytes(&[state]);
        }
        frame
    }

    /// The content of a frame; `None` if it is not one of ours.
    pub(super) fn decode(frame: &[u8; FRAME_BYTES]) -> Option<Self> {
        let mut rest = &frame[..];
        let magic = u32::from_le_bytes(take(&mut rest)?);
        let [kind, disk_threads, waits] = take(&mut rest)?;
        let kind = *KINDS.get(usize::from(kind)).filter(|_| magic == MAGIC)?;
        let mut number = || Some(u64::from_le_bytes(take(&mut rest)?));
        let (rank, changes, step, steps_begun) = (number()?, number()?, number()?, number()?);
        let (round, idle_millis, sequence, millis) = (number()?, number()?, number()?, number()?);
        let (phase, unit) = (text(&mut rest, PHASE_BYTES)?, text(&mut rest, UNIT_BYTES)?);
        let (call, note) = (text(&mut rest, CALL_BYTES)?, text(&mut rest, NOTE_BYTES)?);
        let [count] = take(&mut rest)?;
        let mut witnessed = Vec::new();
        for _ in 0..usize::from(count).min(MAX_WITNESSED) {
            let rank = u32::from_le_bytes(take(&mut rest)?) as usize;
            let [state] = take(&mut rest)?;
            witnessed.push((rank, state));
        }
        Some(Self {
            kind,
            rank: usize::try_from(rank).ok()?,
            doing: Doing { changes, step, steps_begun, round, phase, unit },
            idle_millis,
            waiting: (waits == 1).then_some(Waiting { sequence, call, millis }),
            disk_threads,
            witnessed,
            note,
        })
    }
}

struct Writer<'a> {
    rest: &'a mut [u8],
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        let rest = std::mem::take(&mut self.rest);
        let (place, rest) = rest.split_at_mut(bytes.len());
        place.copy_from_slice(bytes);
        self.rest = rest;
    }

    /// A length and as many bytes as there is room for, in a field of fixed length.
    fn text(&mut self, text: &str, room: usize) {
        let mut end = text.len().min(room);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes(&[end as u8]);
        let mut field = vec![0; room];
        field[..end].copy_from_slice(&text.as_bytes()[..end]);
        self.bytes(&field);
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

/// A text without control characters, as it will be shown on a terminal.
fn text(rest: &mut &[u8], room: usize) -> Option<String> {
    let [len] = take(rest)?;
    let (field, after) = rest.split_at_checked(room)?;
    *rest = after;
    let bytes = field.get(..usize::from(len))?;
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    Some(String::from_utf8_lossy(bytes).chars().map(shown).collect())
}
