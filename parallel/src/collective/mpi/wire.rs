//! The MPI functions the exchange is built from, each with its return code checked.
#![allow(unsafe_code, reason = "MPI is a C library; rsmpi's safe calls borrow, these must not")]

use std::{
    ffi::{c_char, c_int, c_void},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use mpi::{
    environment::{Threading, Universe},
    ffi,
    topology::Communicator,
    traits::AsRaw,
};

use super::region::Region;
use crate::error::{Error, Result};

/// MPI counts are C ints, so longer messages go in pieces of this many bytes.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// Broadcasts go in pieces of this many bytes, all of them started together.
const BROADCAST_BYTES: usize = 1 << 20;

/// Waiting only yields for so long: a peer at work on the same message needs the tests to make
/// progress.
const YIELD_FOR: Duration = Duration::from_millis(1);

/// Sleep between tests after that, and once the peer is clearly late.
const SHORT_SLEEP: Duration = Duration::from_micros(20);
const LONG_SLEEP: Duration = Duration::from_micros(200);
const LATE_AFTER: Duration = Duration::from_millis(20);

/// Distinguishes the two directions of data between one pair of ranks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tag {
    /// On its way to the rank that reduces it, or to its destination.
    Contribution = 1,
    /// A reduced piece on its way to everyone.
    Result = 2,
}

/// Messages under way. Their regions must live until they have been waited for.
#[derive(Debug, Default)]
pub(super) struct Messages(Vec<ffi::MPI_Request>);

/// The communicator of all ranks, or of a group. The last one finalizes MPI when dropped.
///
/// Communicators of groups are left to MPI to free: freeing is collective, and ranks drop their
/// groups when they like.
pub(super) struct Wire {
    // Not used: it is here for its drop, which finalizes MPI.
    universe: Rc<Universe>,
    comm: ffi::MPI_Comm,
    rank: usize,
    /// By rank in the communicator: the rank in the whole run.
    ranks_in_run: Vec<usize>,
}

impl Wire {
    /// Initializes MPI. Asks for `MPI_THREAD_MULTIPLE` only so that [`abort`] may come from
    /// another thread; everything else stays on this one.
    pub(super) fn open() -> Result<Self> {
        let (universe, _) =
            mpi::initialize_with_threading(Threading::Multiple).ok_or(Error::MpiInitialized)?;
        let world = universe.world();
        let (rank, degree) = (world.rank(), world.size());
        let comm = world.as_raw();
        return_errors(comm)?;
        let number = |n: c_int| usize::try_from(n).expect("MPI counts ranks from 0");
        let ranks_in_run = (0..number(degree)).collect();
        Ok(Self { universe: Rc::new(universe), comm, rank: number(rank), ranks_in_run })
    }

    /// The wire of `members`, ascending ranks of this one, itself among them. Blocks until all
    /// ranks of this wire have called it, each with its part of a partition.
    pub(super) fn split(&self, members: &[usize]) -> Result<Self> {
        let rank = members.iter().position(|&member| member == self.rank).expect("checked");
        // SAFETY: reads a constant of the MPI library.
        let mut comm = unsafe { ffi::RSMPI_COMM_NULL };
        // SAFETY: the communicator is valid and used by this thread only; `comm` has a place.
        let code = unsafe {
            ffi::MPI_Comm_split(self.comm, members[0] as c_int, self.rank as c_int, &mut comm)
        };
        check("MPI_Comm_split", code)?;
        return_errors(comm)?;
        let ranks_in_run = members.iter().map(|&member| self.ranks_in_run[member]).collect();
        Ok(Self { universe: Rc::clone(&self.universe), comm, rank, ranks_in_run })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn degree(&self) -> usize {
        self.ranks_in_run.len()
    }

    /// The rank in the whole run of a rank of this wire.
    pub(super) fn rank_in_run(&self, rank: usize) -> usize {
        self.ranks_in_run[rank]
    }

    /// The other ranks, ascending.
    pub(super) fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.degree()).filter(move |&peer| peer != rank)
    }

    /// Starts to send `region` to `peer`. Nothing is sent for an empty one.
    pub(super) fn send(
        &self,
        messages: &mut Messages,
        region: Region,
        peer: usize,
        tag: Tag,
    ) -> Result<()> {
        for piece in cut(region, MAX_MESSAGE_BYTES) {
            // SAFETY: the piece is valid and unchanged until the request is waited for, by the
            // promise of whoever made the region; the byte type fits any memory.
            let code = unsafe {
                ffi::MPI_Isend(
                    piece.as_ptr().cast::<c_void>(),
                    count(piece),
                    ffi::RSMPI_UINT8_T,
                    peer as c_int,
                    tag as c_int,
                    self.comm,
                    messages.next(),
                )
            };
            check("MPI_Isend", code)?;
        }
        Ok(())
    }

    /// Starts to fill `region` with what `peer` sends. Nothing is received for an empty one.
    pub(super) fn receive(
        &self,
        messages: &mut Messages,
        region: Region,
        peer: usize,
        tag: Tag,
    ) -> Result<()> {
        for piece in cut(region, MAX_MESSAGE_BYTES) {
            // SAFETY: the piece is valid and untouched until the request is waited for, by the
            // promise of whoever made the region; the byte type fits any memory.
            let code = unsafe {
                ffi::MPI_Irecv(
                    piece.as_ptr().cast::<c_void>(),
                    count(piece),
                    ffi::RSMPI_UINT8_T,
                    peer as c_int,
                    tag as c_int,
                    self.comm,
                    messages.next(),
                )
            };
            check("MPI_Irecv", code)?;
        }
        Ok(())
    }

    /// Fills `gathered` (`degree` times as long) with every rank's `own` and waits for it.
    pub(super) fn all_gather_small(&self, own: Region, gathered: Region) -> Result<()> {
        assert!(
            own.bytes() * self.degree() == gathered.bytes() && own.bytes() <= MAX_MESSAGE_BYTES
        );
        let mut messages = Messages::default();
        // SAFETY: both regions are valid until the wait below returns, and do not overlap.
        let code = unsafe {
            ffi::MPI_Iallgather(
                own.as_ptr().cast::<c_void>(),
                count(own),
                ffi::RSMPI_UINT8_T,
                gathered.as_ptr().cast::<c_void>(),
                count(own),
                ffi::RSMPI_UINT8_T,
                self.comm,
                messages.next(),
            )
        };
        check("MPI_Iallgather", code)?;
        self.wait(&mut messages)
    }

    /// Every rank's words one after another, in rank order.
    pub(super) fn all_gather_words(&self, mut own: Vec<u64>) -> Result<Vec<u64>> {
        let mut gathered = vec![0; own.len() * self.degree()];
        // SAFETY: the gather waits for its messages, and if it fails the memory is kept forever.
        let regions = unsafe { (Region::of_scratch(&mut own), Region::of_scratch(&mut gathered)) };
        if let Err(error) = self.all_gather_small(regions.0, regions.1) {
            std::mem::forget((own, gathered));
            return Err(error);
        }
        Ok(gathered)
    }

    /// Gives everyone the region of `root` and waits for it.
    pub(super) fn broadcast(&self, region: Region, root: usize) -> Result<()> {
        let mut messages = Messages::default();
        for piece in cut(region, BROADCAST_BYTES) {
            // SAFETY: the piece is valid until the wait below returns.
            let code = unsafe {
                ffi::MPI_Ibcast(
                    piece.as_ptr().cast::<c_void>(),
                    count(piece),
                    ffi::RSMPI_UINT8_T,
                    root as c_int,
                    self.comm,
                    messages.next(),
                )
            };
            check("MPI_Ibcast", code)?;
        }
        self.wait(&mut messages)
    }

    /// Waits until every rank is here.
    pub(super) fn barrier(&self) -> Result<()> {
        let mut messages = Messages::default();
        // SAFETY: the communicator is valid and the request has a place.
        let code = unsafe { ffi::MPI_Ibarrier(self.comm, messages.next()) };
        check("MPI_Ibarrier", code)?;
        self.wait(&mut messages)
    }

    /// Waits until all messages are through, and empties the list.
    pub(super) fn wait(&self, messages: &mut Messages) -> Result<()> {
        let length = c_int::try_from(messages.0.len()).expect("the exchange bounds its messages");
        let start = Instant::now();
        loop {
            let mut done: c_int = 0;
            // SAFETY: the list holds `length` requests made by the functions above or null ones.
            let code = unsafe {
                ffi::MPI_Testall(
                    length,
                    messages.0.as_mut_ptr(),
                    &mut done,
                    ffi::RSMPI_STATUSES_IGNORE,
                )
            };
            check("MPI_Testall", code)?;
            if done != 0 {
                break;
            }
            match start.elapsed() {
                waited if waited < YIELD_FOR => thread::yield_now(),
                waited if waited < LATE_AFTER => thread::sleep(SHORT_SLEEP),
                _ => thread::sleep(LONG_SLEEP),
            }
        }
        messages.0.clear();
        Ok(())
    }
}

impl Messages {
    /// A place for one more request; MPI fills it.
    fn next(&mut self) -> &mut ffi::MPI_Request {
        // SAFETY: reads a constant of the MPI library.
        self.0.push(unsafe { ffi::RSMPI_REQUEST_NULL });
        self.0.last_mut().expect("pushed above")
    }
}

/// Makes MPI return error codes instead of ending the process.
fn return_errors(comm: ffi::MPI_Comm) -> Result<()> {
    // SAFETY: the communicator is valid, as MPI has just made it on this thread.
    let code = unsafe { ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN) };
    check("MPI_Comm_set_errhandler", code)
}

/// Ends all ranks of the run, this one included.
pub(super) fn abort(code: i32) {
    if mpi::environment::is_initialized() && !mpi::environment::is_finalized() {
        // SAFETY: MPI is initialized with `MPI_THREAD_MULTIPLE` and not finalized; the world
        // communicator is valid as long as that holds.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
    }
    std::process::exit(code);
}

/// `region` in pieces of at most `piece_bytes`; none if it is empty.
fn cut(region: Region, piece_bytes: usize) -> impl Iterator<Item = Region> {
    (0..region.bytes())
        .step_by(piece_bytes)
        .map(move |start| region.cut(start..region.bytes().min(start + piece_bytes)))
}

fn count(region: Region) -> c_int {
    c_int::try_from(region.bytes()).expect("pieces are at most 2^30 bytes")
}

/// Turns a return code into an error with MPI's text for it.
fn check(function: &'static str, code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length: c_int = 0;
    // SAFETY: the buffer is longer than MPI's longest text.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut length) };
    let text = &text[..usize::try_from(length).unwrap_or(0).min(text.len())];
    Err(Error::Mpi { function, code, message: String::from_utf8_lossy(text).into_owned() })
}
