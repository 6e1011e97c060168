//! What an agent that is not root may not do although its user may: make a file that makes somebody else of who executes it (setuid, setgid).
//!
//! A filter of system calls (`seccomp(2)`), as systemd's RestrictSUIDSGID (src/shared/seccomp-util.c), and what goes around that one: io_uring
//! opens files without a system call, and in a namespace of its own a user can have overlayfs copy a setuid file from one that it has made up
//! (CVE-2023-0386 was one of this kind). The keeper sets it between clone and exec, so that no process of that user was ever without it: one that
//! was taken over could otherwise stop the next agent before it gave up anything (`ptrace(2)`). It is for ever and inherited, by the agent's
//! threads too; workers are not the agent's children.
//!
//! Own code and not a crate: it is one table and forty instructions of a language with six; it has to be a value that is ready before the clone.

use libc::sock_filter;

/// Set-user-ID and set-group-ID (`inode(7)`).
const SPECIAL: u32 = 0o6000;

/// Only with one of these is the mode of `open(2)` one: O_CREAT, and the bit of O_TMPFILE that is not O_DIRECTORY. Both are the same on our machines.
const MAKES: u32 = 0o100 | 0o20_000_000;

/// The machine whose numbers of system calls ours are (include/uapi/linux/audit.h).
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// From this number on they are x32's: the same machine to the filter, other numbers.
#[cfg(target_arch = "x86_64")]
const OTHER_NUMBERS: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`. Arguments are eight bytes, the low half first on both machines; all that is looked at is of 32 bits.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
#[cfg(target_arch = "x86_64")]
const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const IF_ANY_OF: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const ANSWER: u16 = 0x06; // BPF_RET | BPF_K

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
/// As a kernel that has no such call: who asks knows another way.
const NOT_THERE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The filter is not to cost a kernel before 5.16 what it takes from programs that do not trust themselves (speculative stores).
pub(super) const FLAGS: usize = 1 << 2; // SECCOMP_FILTER_FLAG_SPEC_ALLOW, Linux 4.17

/// Refused when this argument has any of these bits.
const BITS: &[(libc::c_long, u32, u32)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, 1, SPECIAL),
    (libc::SYS_fchmod, 1, SPECIAL),
    (libc::SYS_fchmodat, 2, SPECIAL),
    // fchmodat2(2), Linux 6.6: one number everywhere.
    (452, 2, SPECIAL),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, 1, SPECIAL),
    (libc::SYS_mkdirat, 2, SPECIAL),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, 1, SPECIAL),
    (libc::SYS_mknodat, 2, SPECIAL),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, 1, SPECIAL),
    (libc::SYS_unshare, 0, libc::CLONE_NEWUSER as u32),
    (libc::SYS_clone, 0, libc::CLONE_NEWUSER as u32),
];

/// Refused when they make a file with such a mode: the arguments with the flags and the mode.
const OPENS: &[(libc::c_long, u32, u32)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1, 2),
    (libc::SYS_openat, 2, 3),
];

/// Their arguments lie in memory, where a filter cannot look.
const BLIND: &[libc::c_long] = &[libc::SYS_openat2, libc::SYS_clone3, libc::SYS_io_uring_setup];

/// Returns the filter.
pub(super) fn program() -> Vec<sock_filter> {
    let word = |number: libc::c_long| u32::try_from(number).unwrap_or(u32::MAX);
    let step = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    let load = |offset| step(LOAD, offset, 0, 0);
    let argument = |number: u32| load(ARGUMENTS + 8 * number);
    let answer = |what| step(ANSWER, what, 0, 0);
    let mut program = vec![load(MACHINE), step(IF_EQUAL, ARCH, 1, 0), answer(NOT_THERE), load(NUMBER)];
    #[cfg(target_arch = "x86_64")]
    program.extend([step(IF_AT_LEAST, OTHER_NUMBERS, 0, 1), answer(NOT_THERE)]);
    // Each block is passed over by other numbers, and ends with an answer to its own.
    for &number in BLIND {
        program.extend([step(IF_EQUAL, word(number), 0, 1), answer(NOT_THERE)]);
    }
    for &(number, at, bits) in BITS {
        program.extend([step(IF_EQUAL, word(number), 0, 4), argument(at), step(IF_ANY_OF, bits, 0, 1), answer(REFUSED), answer(ALLOWED)]);
    }
    for &(number, flags, mode) in OPENS {
        program.extend([
            step(IF_EQUAL, word(number), 0, 6),
            argument(flags),
            step(IF_ANY_OF, MAKES, 0, 3),
            argument(mode),
            step(IF_ANY_OF, SPECIAL, 0, 1),
            answer(REFUSED),
            answer(ALLOWED),
        ]);
    }
    program.push(answer(ALLOWED));
    program
}

/// Whether this process has a filter (`proc_pid_status(5)`, Seccomp).
pub(crate) fn is_on() -> bool {
    fs_err::read_to_string("/proc/thread-self/status")
        .is_ok_and(|status| status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2")))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    /// What the kernel would answer.
    fn answer(program: &[sock_filter], machine: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut register) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
            match step.code {
                LOAD => {
                    register = match step.k {
                        NUMBER => number,
                        MACHINE => machine,
                        offset => u32::try_from(arguments[usize::try_from((offset - ARGUMENTS) / 8).expect("small")] & 0xFFFF_FFFF)
                            .expect("32 bits"),
                    };
                }
                IF_EQUAL => at += jump(register == step.k),
                0x35 => at += jump(register >= step.k),
                IF_ANY_OF => at += jump(register & step.k != 0),
                ANSWER => return step.k,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_numbers_of_another_machine_are_not_there() {
        let program = program();
        let getpid = u32::try_from(libc::SYS_getpid).expect("small");
        assert_eq!(answer(&program, ARCH, getpid, [0; 6]), ALLOWED);
        // i386, arm, and whatever there will be.
        for machine in [0x4000_0003, 0x4000_0028, 0, ARCH ^ 1] {
            assert_eq!(answer(&program, machine, getpid, [0; 6]), NOT_THERE, "{machine:#x}");
        }
        #[cfg(target_arch = "x86_64")]
        assert_eq!(answer(&program, ARCH, OTHER_NUMBERS | getpid, [0; 6]), NOT_THERE);
        // What is above 32 bits of a mode is nothing to the kernel.
        let fchmod = u32::try_from(libc::SYS_fchmod).expect("small");
        assert_eq!(answer(&program, ARCH, fchmod, [0, 1 << 40 | 0o4755, 0, 0, 0, 0]), REFUSED);
        assert_eq!(answer(&program, ARCH, fchmod, [0, 0o1777, 0, 0, 0, 0]), ALLOWED);
    }

    /// As `errno`, 0: it worked.
    #[expect(unsafe_code, reason = "calls that nobody has wrapped")]
    fn ask(number: libc::c_long, arguments: [usize; 4]) -> i32 {
        let [a, b, c, d] = arguments;
        // SAFETY: paths are alive for the call, and nothing is written to.
        match unsafe { libc::syscall(number, a, b, c, d) } {
            0.. => 0,
            _ => std::io::Error::last_os_error().raw_os_error().expect("an error"),
        }
    }

    #[test]
    fn who_has_it_makes_no_file_that_makes_somebody_else_of_who_executes_it() {
        let dir = tempfile::tempdir().expect("a folder");
        fs_err::write(dir.path().join("file"), "").expect("written");
        let file = fs_err::File::open(dir.path().join("file")).expect("open");
        let path = move |name: &str| CString::new(dir.path().join(name).display().to_string()).expect("no NUL");
        // A thread's own, for ever.
        let thread = std::thread::spawn(move || {
            use std::os::fd::AsRawFd;
            assert!(!is_on());
            install();
            assert!(is_on());
            let (here, fd) = (libc::AT_FDCWD as usize, usize::try_from(file.as_raw_fd()).expect("a number"));
            let (old, new) = (path("file"), |name: &str| path(name));
            let made = (libc::O_CREAT | libc::O_WRONLY) as usize;
            let nameless = (libc::O_TMPFILE | libc::O_WRONLY) as usize;
            let mut said = Vec::new();
            for mode in [0o4755_usize, 0o2755, 0o6000, 0o755] {
                let at = |text: &CString| text.as_ptr() as usize;
                let name = |kind: &str| new(&format!("{kind}-{mode:o}"));
                let mut one = |what: &str, number, arguments| said.push((what.to_owned(), mode, ask(number, arguments)));
                one("fchmod", libc::SYS_fchmod, [fd, mode, 0, 0]);
                one("fchmodat", libc::SYS_fchmodat, [here, at(&old), mode, 0]);
                one("mkdirat", libc::SYS_mkdirat, [here, at(&name("mkdirat")), mode, 0]);
                one("mknodat", libc::SYS_mknodat, [here, at(&name("mknodat")), mode | libc::S_IFREG as usize, 0]);
                one("openat", libc::SYS_openat, [here, at(&name("openat")), made, mode]);
                one("O_TMPFILE", libc::SYS_openat, [here, at(&path("")), nameless, mode]);
                // It makes nothing, so it has no mode.
                assert_eq!(ask(libc::SYS_openat, [here, at(&old), 0, mode]), 0);
                #[cfg(target_arch = "x86_64")]
                {
                    one("chmod", libc::SYS_chmod, [at(&old), mode, 0, 0]);
                    one("mkdir", libc::SYS_mkdir, [at(&name("mkdir")), mode, 0, 0]);
                    one("mknod", libc::SYS_mknod, [at(&name("mknod")), mode | libc::S_IFREG as usize, 0, 0]);
                    one("open", libc::SYS_open, [at(&name("open")), made, mode, 0]);
                    one("creat", libc::SYS_creat, [at(&name("creat")), mode, 0, 0]);
                }
                // Linux before 6.6 has none.
                let answer = ask(452, [here, at(&old), mode, 0]);
                assert!(answer == if mode == 0o755 { 0 } else { libc::EPERM } || answer == libc::ENOSYS, "fchmodat2 {mode:o}: {answer}");
            }
            let wrong: Vec<_> = said.into_iter().filter(|(_, mode, said)| *said != if *mode == 0o755 { 0 } else { libc::EPERM }).collect();
            assert!(wrong.is_empty(), "{wrong:?}");
            for number in [libc::SYS_openat2, libc::SYS_clone3, libc::SYS_io_uring_setup] {
                assert_eq!(ask(number, [0; 4]), libc::ENOSYS, "{number}");
            }
            let own = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as usize;
            assert_eq!(ask(libc::SYS_unshare, [own, 0, 0, 0]), libc::EPERM);
            // The C library's way to make a thread is another one then.
            std::thread::spawn(|| ()).join().expect("a thread");
        });
        thread.join().expect("as it says");
    }

    /// Sets it for this thread.
    #[expect(unsafe_code, reason = "seccomp(2) has no safe form")]
    fn install() {
        rustix::thread::set_no_new_privs(true).expect("since Linux 3.5");
        let mut program = program();
        let filter = libc::sock_fprog { len: u16::try_from(program.len()).expect("short"), filter: program.as_mut_ptr() };
        // SAFETY: the program lives as long as the call.
        let set = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, FLAGS, &raw const filter) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}
