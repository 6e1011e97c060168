//! `clone3(2)` with a stack for the child, which glibc has only for itself: the one way to start a process inside a cgroup.
//!
//! To start it outside and move it costs every start the wait for all processors that `cgroup.procs` needs, milliseconds; and until then
//! it runs, and counts, outside its limits.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What the kernel takes (`struct clone_args`, version 2: Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// CLONE_INTO_CGROUP of `linux/sched.h`; the C library's headers have it as a number too large for its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Starts `child` with `argument` on `stack`, in the cgroup whose directory this is; returns its process id. `word` is what CLONE_PARENT_SETTID
/// and CLONE_CHILD_CLEARTID are about.
///
/// # Errors
/// With `ENOSYS` or `EPERM` where there is no `clone3` (a filter), with `EBADF`, `EINVAL`, `EBUSY` or `EOPNOTSUPP` as clone3(2) says.
///
/// # Safety
/// `flags` has CLONE_VM; what `clone(2)` with it demands of `child`, `stack`, `word` and `argument` holds. `child` never returns.
#[expect(unsafe_code, reason = "clone3(2) has no safe form, and none in the C library")]
pub(super) unsafe fn clone_into(
    flags: libc::c_int,
    cgroup: BorrowedFd<'_>,
    stack: &mut [u128],
    word: *mut i32,
    child: extern "C" fn(*mut c_void) -> libc::c_int,
    argument: *mut c_void,
) -> io::Result<i32> {
    let arguments = Arguments {
        flags: u64::from(flags.unsigned_abs() & !0xff) | CLONE_INTO_CGROUP,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        child_tid: word.addr() as u64,
        parent_tid: word.addr() as u64,
        stack: stack.as_mut_ptr().addr() as u64,
        stack_size: size_of_val(stack) as u64,
        cgroup: u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX),
        ..Arguments::default()
    };
    let result: isize;
    // SAFETY: as libc's own clone wrappers do it. In the parent this is a system call that returns once. The child has another stack
    // pointer and all other registers as they are; it never leaves this block: it calls `child`, which does not return.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            // The outermost frame, for whoever unwinds.
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") &raw const arguments,
            in("rsi") size_of::<Arguments>(),
            in("r12") argument,
            in("r13") child,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") &raw const arguments => result,
            in("x1") size_of::<Arguments>(),
            in("x20") argument,
            in("x21") child,
        );
    }
    if result < 0 {
        Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL)))
    } else {
        Ok(i32::try_from(result).unwrap_or(0))
    }
}
