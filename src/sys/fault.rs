//! Where a test can let things go wrong: an end of the process between any two steps, short reads and writes, a full disk, a `/proc` that
//! cannot be read.
//!
//! Outside of tests all of it compiles to nothing. A fault belongs to the thread that asked for it.

#[cfg(not(test))]
pub(crate) use off::*;
#[cfg(test)]
pub(crate) use on::*;

#[cfg(not(test))]
mod off {
    /// A step is done: a test may end the process here.
    pub(crate) const fn point() {}

    /// How much of `len` is read or written at once.
    pub(crate) const fn shorten(len: usize) -> usize {
        len
    }

    /// How much of `len` the disk takes.
    pub(crate) const fn disk(len: usize) -> Result<usize, rustix::io::Errno> {
        Ok(len)
    }

    /// Whether a file of that name below `/proc/PID` can be read.
    pub(crate) const fn proc(_name: &str) -> Result<(), rustix::io::Errno> {
        Ok(())
    }
}

#[cfg(test)]
mod on {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
        static SHORT: Cell<bool> = const { Cell::new(false) };
        static DISK: Cell<Option<usize>> = const { Cell::new(None) };
        static PROC: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// What a thread panics with in the place of a kill.
    pub(crate) struct Killed;

    pub(crate) fn point() {
        if let Some(left) = LEFT.get() {
            if left == 0 {
                LEFT.set(None);
                std::panic::resume_unwind(Box::new(Killed));
            }
            LEFT.set(Some(left - 1));
        }
    }

    /// Reads and writes come in halves, so that a kill can fall in between.
    pub(crate) fn shorten(len: usize) -> usize {
        if SHORT.get() && len > 1 { len / 2 } else { len }
    }

    /// Sets how much the disk takes before it is full; `None`: all.
    pub(crate) fn set_disk(left: Option<usize>) {
        DISK.set(left);
    }

    /// How much of `len` the disk takes.
    pub(crate) fn disk(len: usize) -> Result<usize, rustix::io::Errno> {
        match DISK.get() {
            None => Ok(len),
            Some(0) => Err(rustix::io::Errno::NOSPC),
            Some(left) => {
                DISK.set(Some(left.saturating_sub(len)));
                Ok(len.min(left))
            }
        }
    }

    /// Sets which file below `/proc/PID` cannot be read, as when the process is out of descriptors; `None`: all can.
    pub(crate) fn set_proc(name: Option<&'static str>) {
        PROC.set(name);
    }

    /// Whether a file of that name below `/proc/PID` can be read.
    pub(crate) fn proc(name: &str) -> Result<(), rustix::io::Errno> {
        if PROC.get() == Some(name) { Err(rustix::io::Errno::MFILE) } else { Ok(()) }
    }

    /// Lets this thread be killed at the `nth` point from now.
    pub(crate) fn at(nth: u64) {
        LEFT.set(Some(nth));
        SHORT.set(true);
    }

    /// Not any more; returns whether it is still to come.
    pub(crate) fn off() -> bool {
        SHORT.set(false);
        LEFT.take().is_some()
    }
}
