//! A worker that misbehaves on request, for tests; never installed.
//!
//! What is asked for is done in this order, whatever the order of the words; then it waits for signals for ever.
//!
//! ```text
//! --ignore SIG             TERM, QUIT, INT, HUP, USR1, USR2: ignored (may be repeated)
//! --env-dump FILE          environment as KEY=VALUE lines (of /proc/self/environ), then `#cwd=DIR`
//! --touch FILE             a file with its pid
//! --daemonise FILE         a grandchild in a session of its own that lives on; its pid in FILE
//! --fork N                 N children that wait for ever
//! --title TEXT             the title in /proc/PID/cmdline, as Ruby's `$0 =` sets it
//! --print-on-term TEXT     on TERM: prints TEXT and exits 0
//! --listen PORT [after MS] takes connections on 127.0.0.1
//! --exit CODE [after MS]   exits
//! --leak MB [up-to MB]     grows by so much a second
//! --flood LINES [RATE]     prints `n=000001 pid=PID` and so on (0: for ever), RATE lines a second (default: as fast as it can)
//! --stderr                 the flood goes to standard error
//! --partial TEXT           prints TEXT without a newline, after the flood
//! --then-exit CODE         exits when leak and flood are done
//! --resque QUEUE CLASS MS  a Resque master: forks a child per job of MS milliseconds; titles and signals as Resque 3.0.0
//! ```
//!
//! Files are written beside and renamed: who sees one sees it whole.

#![expect(unsafe_code, reason = "fork, signals and the memory of argv have no safe form")]

use std::io::Write;
use std::net::TcpListener;
use std::process::exit;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Default)]
struct Wishes {
    ignore: Vec<libc::c_int>,
    env_dump: Option<String>,
    touch: Option<String>,
    daemonise: Option<String>,
    fork: u32,
    title: Option<String>,
    print_on_term: Option<String>,
    listen: Option<(u16, Duration)>,
    exit: Option<(i32, Duration)>,
    leak: Option<(usize, usize)>,
    flood: Option<(u64, u64)>,
    stderr: bool,
    partial: Option<String>,
    then_exit: Option<i32>,
    resque: Option<(String, String, Duration)>,
}

fn main() {
    let wishes = parse(std::env::args().skip(1).collect());
    for signal in &wishes.ignore {
        // SAFETY: sets a disposition; no handler is involved.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
    if let Some(file) = &wishes.env_dump {
        let environ = std::fs::read("/proc/self/environ").unwrap_or_default();
        let mut text: Vec<u8> = environ.iter().map(|b| if *b == 0 { b'\n' } else { *b }).collect();
        let cwd = std::env::current_dir().unwrap_or_default();
        text.extend_from_slice(format!("#cwd={}\n", cwd.display()).as_bytes());
        put(file, &text);
    }
    if let Some(file) = &wishes.touch {
        put(file, format!("{}\n", std::process::id()).as_bytes());
    }
    if let Some(file) = &wishes.daemonise {
        daemonise(file);
    }
    for _ in 0..wishes.fork {
        if fork() == 0 {
            wait_for_ever();
        }
    }
    // Before any thread, which waits for it; after the children, which die of it.
    if wishes.print_on_term.is_some() {
        let set = signals(&[libc::SIGTERM]);
        // SAFETY: `set` is initialised; the old mask is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    }
    if let Some(title) = &wishes.title {
        set_title(title);
    }
    if let Some((port, after)) = wishes.listen {
        std::thread::spawn(move || {
            std::thread::sleep(after);
            match TcpListener::bind(("127.0.0.1", port)) {
                Ok(listener) => listener.incoming().for_each(drop),
                Err(error) => say(2, format!("cannot listen on {port}: {error}\n").as_bytes()),
            }
        });
    }
    if let Some((code, after)) = wishes.exit {
        if after.is_zero() && wishes.flood.is_none() && wishes.leak.is_none() {
            exit(code);
        }
        std::thread::spawn(move || {
            std::thread::sleep(after);
            exit(code);
        });
    }
    let term = wishes.print_on_term.clone();
    if let Some(text) = term {
        std::thread::spawn(move || {
            let set = signals(&[libc::SIGTERM]);
            let mut signal = 0;
            // SAFETY: both are initialised and live through the call.
            while unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {}
            say(1, format!("{text}\n").as_bytes());
            exit(0);
        });
    }
    if let Some((queue, class, length)) = &wishes.resque {
        resque(queue, class, *length);
    }
    let leak = wishes.leak.map(|(rate, most)| std::thread::spawn(move || grow(rate, most)));
    if let Some((lines, rate)) = wishes.flood {
        flood(if wishes.stderr { 2 } else { 1 }, lines, rate);
    }
    if let Some(text) = &wishes.partial {
        say(1, text.as_bytes());
    }
    let _held = leak.and_then(|leak| leak.join().ok());
    if let Some(code) = wishes.then_exit {
        exit(code);
    }
    wait_for_ever();
}

fn parse(words: Vec<String>) -> Wishes {
    let mut wishes = Wishes::default();
    let mut words = words.into_iter().peekable();
    fn usage(why: &str) -> ! {
        say(2, format!("fixture-worker: {why}\n").as_bytes());
        exit(2)
    }
    fn need<T: std::str::FromStr>(words: &mut impl Iterator<Item = String>, what: &str) -> T {
        words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| usage(&format!("{what} is missing or wrong")))
    }
    macro_rules! optional {
        ($word:literal) => {
            if words.peek().is_some_and(|word| word == $word) {
                words.next();
                Some(need::<u64>(&mut words, $word))
            } else {
                None
            }
        };
    }
    while let Some(word) = words.next() {
        match word.as_str() {
            "--ignore" => {
                let name: String = need(&mut words, "a signal");
                wishes.ignore.push(match name.as_str() {
                    "TERM" => libc::SIGTERM,
                    "QUIT" => libc::SIGQUIT,
                    "INT" => libc::SIGINT,
                    "HUP" => libc::SIGHUP,
                    "USR1" => libc::SIGUSR1,
                    "USR2" => libc::SIGUSR2,
                    _ => usage("no such signal"),
                });
            }
            "--env-dump" => wishes.env_dump = Some(need(&mut words, "a file")),
            "--touch" => wishes.touch = Some(need(&mut words, "a file")),
            "--daemonise" => wishes.daemonise = Some(need(&mut words, "a file")),
            "--fork" => wishes.fork = need(&mut words, "a number"),
            "--title" => wishes.title = Some(need(&mut words, "a title")),
            "--print-on-term" => wishes.print_on_term = Some(need(&mut words, "a text")),
            "--listen" => {
                let port = need(&mut words, "a port");
                wishes.listen = Some((port, Duration::from_millis(optional!("after").unwrap_or(0))));
            }
            "--exit" => {
                let code = need(&mut words, "a code");
                wishes.exit = Some((code, Duration::from_millis(optional!("after").unwrap_or(0))));
            }
            "--leak" => {
                let rate: usize = need(&mut words, "megabytes a second");
                let most = optional!("up-to").and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX >> 20);
                wishes.leak = Some((rate << 20, most << 20));
            }
            "--flood" => {
                let lines = need(&mut words, "a number of lines");
                let rate = words.next_if(|word| word.bytes().all(|b| b.is_ascii_digit())).and_then(|word| word.parse().ok());
                wishes.flood = Some((lines, rate.unwrap_or(0)));
            }
            "--stderr" => wishes.stderr = true,
            "--partial" => wishes.partial = Some(need(&mut words, "a text")),
            "--then-exit" => wishes.then_exit = Some(need(&mut words, "a code")),
            "--resque" => {
                let (queue, class) = (need(&mut words, "a queue"), need(&mut words, "a class"));
                wishes.resque = Some((queue, class, Duration::from_millis(need(&mut words, "a length"))));
            }
            other => usage(&format!("what is `{other}`?")),
        }
    }
    wishes
}

/// Writes all of it, and gives up only if nobody can ever read it.
fn say(fd: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the bytes live through the call.
        let n = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(n) {
            Ok(n) => bytes = &bytes[n..],
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn put(file: &str, bytes: &[u8]) {
    let temporary = format!("{file}.tmp-{}", std::process::id());
    let written = std::fs::File::create(&temporary).and_then(|mut f| f.write_all(bytes)).and_then(|()| std::fs::rename(&temporary, file));
    if let Err(error) = written {
        say(2, format!("fixture-worker: {file}: {error}\n").as_bytes());
        exit(1);
    }
}

fn fork() -> libc::pid_t {
    // SAFETY: called before any thread is made (main) or where there is none (resque), so that the child can go on freely.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        say(2, b"fixture-worker: cannot fork\n");
        exit(1);
    }
    pid
}

fn wait_for_ever() -> ! {
    loop {
        // SAFETY: has no arguments and no preconditions.
        unsafe { libc::pause() };
    }
}

/// Leaves a grandchild that is nobody's: another session, its parent gone.
fn daemonise(file: &str) {
    let child = fork();
    if child == 0 {
        // SAFETY: no preconditions.
        unsafe { libc::setsid() };
        if fork() == 0 {
            put(file, format!("{}\n", std::process::id()).as_bytes());
            wait_for_ever();
        }
        exit(0);
    }
    // SAFETY: our own child; its status is not asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
}

/// Overwrites the memory that /proc/PID/cmdline shows, arguments and environment, and fills the rest with NUL, as Ruby does.
fn set_title(title: &str) {
    // proc_pid_stat(5): arg_start (48), arg_end (49), env_start (50), env_end (51).
    let stat = std::fs::read("/proc/self/stat").unwrap_or_default();
    let text = String::from_utf8_lossy(&stat);
    let fields: Vec<usize> =
        text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    let (start, arg_end, env_start, env_end) = (field(48), field(49), field(50), field(51));
    let end = if env_start == arg_end { env_end } else { arg_end };
    if start == 0 || end <= start {
        return;
    }
    let mut bytes = title.as_bytes().to_vec();
    bytes.truncate(end - start - 1);
    bytes.resize(end - start, 0);
    // SAFETY: the kernel put arguments and environment there, writable, of that length; this program does not read them any more
    // (arguments were parsed into copies, the environment is not asked for after `--env-dump`).
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), std::ptr::with_exposed_provenance_mut(start), bytes.len()) };
}

fn grow(rate: usize, most: usize) -> Vec<Vec<u8>> {
    let mut held = Vec::new();
    let mut sum = 0;
    while sum < most {
        let part = (rate / 20).clamp(1, most - sum);
        // Not zeros: the pages must be ours.
        held.push(vec![1_u8; part]);
        sum += part;
        std::thread::sleep(Duration::from_millis(50));
    }
    held
}

fn flood(fd: i32, lines: u64, rate: u64) {
    let pid = std::process::id();
    let begin = Instant::now();
    for n in 1.. {
        if lines != 0 && n > lines {
            break;
        }
        say(fd, format!("n={n:06} pid={pid}\n").as_bytes());
        if let Some(due) = (n * 1000).checked_div(rate) {
            std::thread::sleep(Duration::from_millis(due).saturating_sub(begin.elapsed()));
        }
    }
}

fn signals(which: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: an all-zero set is then initialised by sigemptyset, before it is read.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is ours and lives through the calls.
    unsafe {
        libc::sigemptyset(&raw mut set);
        for signal in which {
            libc::sigaddset(&raw mut set, *signal);
        }
    }
    set
}

static CHILD: AtomicI32 = AtomicI32::new(0);
static QUIT: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_quit(_: libc::c_int) {
    QUIT.store(1, Ordering::SeqCst);
}

/// TERM and INT to a Resque master: its child is killed, and it exits 0.
extern "C" fn on_term(_: libc::c_int) {
    let child = CHILD.load(Ordering::SeqCst);
    // SAFETY: kill and _exit are async-signal-safe (signal-safety(7)); the child is not reaped by anybody else.
    unsafe {
        if child > 0 {
            libc::kill(child, libc::SIGKILL);
        }
        libc::_exit(0);
    }
}

/// USR1: the child only.
extern "C" fn on_usr1(_: libc::c_int) {
    let child = CHILD.load(Ordering::SeqCst);
    if child > 0 {
        // SAFETY: as above.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
}

fn trap(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the action is initialised in full; handlers only use atomics and async-signal-safe calls. No SA_RESTART: QUIT must end
    // the pause between jobs.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

/// Works one job after the other, each in a child.
fn resque(queue: &str, class: &str, length: Duration) -> ! {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    trap(libc::SIGQUIT, on_quit);
    trap(libc::SIGTERM, on_term);
    trap(libc::SIGINT, on_term);
    trap(libc::SIGUSR1, on_usr1);
    for job in 1_u64.. {
        set_title(&format!("resque-3.0.0: Waiting for {queue}"));
        std::thread::sleep(Duration::from_millis(20));
        if QUIT.load(Ordering::SeqCst) != 0 {
            break;
        }
        // Resque sets it before it forks: for a moment the master shows it too.
        set_title(&format!("resque-3.0.0: Processing {queue} since {} [{class}]", now()));
        let child = fork();
        if child == 0 {
            for signal in [libc::SIGTERM, libc::SIGQUIT, libc::SIGINT] {
                // SAFETY: sets a disposition.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            std::thread::sleep(length);
            exit(0);
        }
        CHILD.store(child, Ordering::SeqCst);
        set_title(&format!("resque-3.0.0: Forked {child} at {}", now()));
        let mut status = 0;
        // SAFETY: our own child; `status` lives through the call.
        while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
            if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
                break;
            }
        }
        CHILD.store(0, Ordering::SeqCst);
        let how = if libc::WIFEXITED(status) { "done" } else { "died" };
        say(1, format!("job {job} {how} child={child}\n").as_bytes());
    }
    say(1, b"quit\n");
    exit(0)
}
