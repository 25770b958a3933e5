//! Where each thread of this process is in the program, taken when the run is to be ended anyway:
//! each thread is sent a signal whose handler notes its own call stack.
//!
//! Noting it allocates, which is not allowed in a signal handler: a thread that the signal meets in
//! the allocator may never come back. So nothing of this is set up before the end has been decided,
//! it runs on a thread of its own, and the end does not wait for it longer than some seconds.
#![allow(unsafe_code, reason = "a signal handler, and a signal to one thread")]

use std::backtrace::Backtrace;
use std::fmt::Write as _;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::SIGUSR2;
use signal_hook::low_level::register;

/// How long threads have to note their stacks.
const NOTING_TIMEOUT: Duration = Duration::from_millis(500);

/// A thread's stack, in a list to which handlers add without a lock.
struct Node {
    tid: i32,
    backtrace: Backtrace,
    next: *mut Node,
}

/// The newest node. A signal handler reaches nothing that is not global.
static NODES: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

/// The call stacks of these threads of this process, as text, of those that answered in time.
pub(super) fn user_stacks(threads: &[u32]) -> String {
    // SAFETY: the handler allocates, so a thread that was in the allocator may hang; the process is
    // about to end, which the module's first lines bind every caller to.
    if let Err(error) = unsafe { register(SIGUSR2, note) } {
        return format!("no user stacks: {error}\n");
    }
    let own = own_tid();
    let wanted: Vec<i32> =
        threads.iter().map(|&tid| tid as i32).filter(|&tid| tid != own).collect();
    for &tid in &wanted {
        // SAFETY: a system call on integers; a thread that is gone is an error, which is no harm.
        unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, SIGUSR2);
        }
    }
    let deadline = Instant::now() + NOTING_TIMEOUT;
    let (mut text, mut count) = (String::new(), 0);
    while count < wanted.len() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        let mut node = NODES.swap(ptr::null_mut(), Ordering::Acquire);
        while !node.is_null() {
            // SAFETY: each node was leaked by `note`, and the swap above has made it ours alone.
            let Node { tid, backtrace, next } = *unsafe { Box::from_raw(node) };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "thread {tid} in the program:\n{backtrace}");
            (node, count) = (next, count + 1);
        }
    }
    text
}

/// The handler: adds the stack of the thread it runs on to the list.
fn note() {
    let backtrace = Backtrace::force_capture();
    let mut next = NODES.load(Ordering::Relaxed);
    let node = Box::into_raw(Box::new(Node { tid: own_tid(), backtrace, next }));
    loop {
        match NODES.compare_exchange_weak(next, node, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            // SAFETY: the node is not in the list yet, so nobody else knows it.
            Err(newest) => unsafe { ((*node).next, next) = (newest, newest) },
        }
    }
}

fn own_tid() -> i32 {
    // SAFETY: it has no arguments and cannot fail.
    unsafe { libc::gettid() }
}
