//! How the agent's own log looks: for people on a terminal, for the journal under systemd, as JSON on request.
//!
//! Human: `2026-11-22T15:02:11.123+01:00 WARN text kind=... pool=...`, local time with its offset, coloured on a terminal.
//! Under systemd: `<4>text kind=...`, without time, with the priority of sd-daemon(3). JSON: `{"at","level","target","text",...}`, UTC.
//! Lines go through a queue to a thread of their own: who stops reading standard error must not stop the agent. What finds the queue full
//! is dropped, and counted in the log.
//! A value's control characters are escaped: what a worker or a git server says cannot begin a line of ours.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::stamp;

/// `log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For the journal under systemd, else for people.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One object a line.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// `log.level` names no level.
    #[error("no such log level: `{0}`")]
    Level(String),
    /// The thread that writes cannot be made.
    #[error("failed to begin the thread of the log")]
    Thread(#[source] std::io::Error),
    /// A log was set up before.
    #[error("failed to set up the log")]
    Twice(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// So many lines wait for whoever reads them: some hundred kilobytes beside the pipe's own, which is minutes of a busy node.
const QUEUE_LINES: usize = 1024;

/// The thread writes, and once in a long time formats a line.
const THREAD_STACK_BYTES: usize = 128 << 10;

/// A line, and how many before it found no room.
type Queued = (u64, Vec<u8>);

/// The way to the thread that writes.
#[derive(Clone)]
struct Queue {
    lines: SyncSender<Queued>,
    dropped: Arc<AtomicU64>,
    /// How many lines are in the queue or being written.
    open: Arc<(Mutex<u64>, Condvar)>,
}

/// The queue of this process.
static QUEUE: OnceLock<Queue> = OnceLock::new();

impl Queue {
    /// Begins a thread that writes to `out`; `look`: how it says that lines were dropped. It ends with the last clone of this.
    fn to(out: impl std::io::Write + Send + 'static, look: Look) -> std::io::Result<Self> {
        let (lines, queued) = sync_channel(QUEUE_LINES);
        let queue = Self { lines, dropped: Arc::default(), open: Arc::default() };
        let open = Arc::clone(&queue.open);
        std::thread::Builder::new().name("log".into()).stack_size(THREAD_STACK_BYTES).spawn(move || write(&queued, out, look, &open))?;
        Ok(queue)
    }

    fn put(&self, line: &[u8]) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        *self.open.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.lines.try_send((dropped, line.to_vec())) {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
            *self.open.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        }
    }

    fn finish(&self, within: Duration) {
        let open = self.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _in_vain = self.open.1.wait_timeout_while(open, within, |open| *open > 0);
    }
}

/// Writes what is queued; what cannot be written is nobody's.
fn write(queued: &Receiver<Queued>, mut out: impl std::io::Write, look: Look, open: &(Mutex<u64>, Condvar)) {
    while let Ok((dropped, line)) = queued.recv() {
        if dropped > 0 {
            let _nobody_reads = out.write_all(&dropped_line(look, dropped));
        }
        let _nobody_reads = out.write_all(&line);
        *open.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        open.1.notify_all();
    }
}

/// Says how many lines are missing, in the look of the others.
fn dropped_line(look: Look, dropped: u64) -> Vec<u8> {
    let line = Arc::new(Mutex::new(Vec::new()));
    // Of a level that every log shows.
    if let Ok(subscriber) = subscriber(look, "error", Into(Arc::clone(&line))) {
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(dropped, "{dropped} lines of this log are missing here: nobody read them in time");
        });
    }
    std::mem::take(&mut *line.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Keeps what is written.
struct Into(Arc<Mutex<Vec<u8>>>);

impl<'w> MakeWriter<'w> for Into {
    type Writer = Kept<'w>;

    fn make_writer(&'w self) -> Kept<'w> {
        Kept(&self.0)
    }
}

struct Kept<'w>(&'w Mutex<Vec<u8>>);

impl std::io::Write for Kept<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Queue {
    type Writer = OneLine<'w>;

    fn make_writer(&'w self) -> OneLine<'w> {
        OneLine(self)
    }
}

/// A line on its way: `tracing_subscriber` writes each whole.
struct OneLine<'w>(&'w Queue);

impl std::io::Write for OneLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Waits, but not for ever, until what was logged is written: before the process ends.
pub(crate) fn finish() {
    /// Whoever reads does so within it.
    const WITHIN: Duration = Duration::from_millis(500);
    if let Some(queue) = QUEUE.get() {
        queue.finish(WITHIN);
    }
}

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Human { colour: bool },
    Journal,
    Json,
}

/// Sends the log of this process to standard error from now on.
///
/// # Errors
/// If the level is none of `error`, `warn`, `info`, `debug`, `trace`, or this is called twice.
pub(crate) fn init(format: LogFormat, level: &str) -> Result<(), LogError> {
    let stderr = std::io::stderr();
    let terminal = stderr.is_terminal();
    let journal = rustix::fs::fstat(stderr.as_fd()).is_ok_and(|stat| {
        // JOURNAL_STREAM in systemd.exec(5): device and inode of the stream; it is inherited by children whose stderr is something else.
        std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
    });
    // NO_COLOR: https://no-color.org
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let look = look(format, journal, colour);
    let queue = Queue::to(std::io::stderr(), look).map_err(LogError::Thread)?;
    tracing::subscriber::set_global_default(subscriber(look, level, queue.clone())?).map_err(LogError::Twice)?;
    let _is_the_first = QUEUE.set(queue);
    Ok(())
}

const fn look(format: LogFormat, journal: bool, colour: bool) -> Look {
    match format {
        LogFormat::Json => Look::Json,
        LogFormat::Auto if journal => Look::Journal,
        LogFormat::Auto | LogFormat::Human => Look::Human { colour },
    }
}

fn subscriber<W>(look: Look, level: &str, writer: W) -> Result<impl Subscriber + Send + Sync, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let level = match level {
        "error" => Level::ERROR,
        "warn" => Level::WARN,
        "info" => Level::INFO,
        "debug" => Level::DEBUG,
        "trace" => Level::TRACE,
        other => return Err(LogError::Level(other.to_owned())),
    };
    Ok(tracing_subscriber::fmt().with_max_level(level).with_writer(writer).event_format(look).finish())
}

impl<S, N> FormatEvent<S, N> for Look
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut seen = Seen::default();
        event.record(&mut seen);
        let Seen { text, fields } = seen;
        let level = *event.metadata().level();
        let now = jiff::Timestamp::now();
        if *self == Self::Json {
            let mut object = Map::new();
            object.insert("at".into(), format!("{now:.3}").into());
            object.insert("level".into(), level.as_str().to_ascii_lowercase().into());
            object.insert("target".into(), event.metadata().target().into());
            object.insert("text".into(), text.into());
            for (name, value) in fields {
                object.entry(name).or_insert(value);
            }
            return writeln!(out, "{}", Value::Object(object));
        }
        match self {
            Self::Human { colour } => {
                let now = now.to_zoned(stamp::zone());
                let now = now.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z");
                let (on, off) = if *colour { (colour_of(level), "\x1b[0m") } else { ("", "") };
                write!(out, "{now} {on}{level}{off} ")?;
            }
            _ => write!(out, "<{}>", priority(level))?,
        }
        escape(&mut out, &text)?;
        for (name, value) in fields {
            write!(out, " {name}=")?;
            match value {
                Value::String(value) if value.bytes().any(|b| b.is_ascii_whitespace() || b == b'"') || value.is_empty() => {
                    // As JSON: quoted and escaped.
                    escape(&mut out, &Value::String(value).to_string())?;
                }
                Value::String(value) => escape(&mut out, &value)?,
                other => write!(out, "{other}")?,
            }
        }
        writeln!(out)
    }
}

/// As sd-daemon(3) numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn colour_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}

fn escape(out: &mut Writer<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        if c.is_control() { write!(out, "{}", c.escape_default())? } else { out.write_char(c)? }
    }
    Ok(())
}

/// The fields of an event, in their order.
#[derive(Default)]
struct Seen {
    text: String,
    fields: Vec<(String, Value)>,
}

impl Seen {
    fn put(&mut self, field: &Field, value: Value) {
        self.fields.push((field.name().to_owned(), value));
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.text = format!("{value:?}");
        } else {
            self.put(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { value.clone_into(&mut self.text) } else { self.put(field, value.into()) }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    /// The whole chain, as one value.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.put(field, text.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::telling::{Happening, Kind};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(look: Look, level: &str, what: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(look, level, move || writer.clone()).expect("a level");
        tracing::subscriber::with_default(subscriber, what);
        String::from_utf8(sink.0.lock().expect("not poisoned").clone()).expect("text")
    }

    fn happening() -> Happening {
        Happening::new(Kind::StaleJob, "job 7\nis \x1b[31mold").slot(&"a/3".parse().expect("a slot")).verdict("stale")
    }

    #[test]
    fn under_systemd_a_line_has_a_priority_and_no_time() {
        let text = logged(Look::Journal, "info", || happening().log());
        assert_eq!(text, "<4>job 7\\nis \\u{1b}[31mold kind=stale_job pool=a slot=3 verdict=stale\n");
    }

    #[test]
    fn for_people_a_line_has_local_time_with_its_offset() {
        let text = logged(Look::Human { colour: false }, "info", || tracing::info!(path = "/a b", "hello"));
        let (time, rest) = text.split_at("2026-11-22T14:02:11.123+00:00".len());
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{text}");
        assert_eq!(rest, " INFO hello path=\"/a b\"\n");
        let text = logged(Look::Human { colour: true }, "info", || tracing::error!("hello"));
        assert!(text.contains("\x1b[31mERROR\x1b[0m hello"), "{text:?}");
    }

    #[test]
    fn json_is_one_object_a_line_in_utc() {
        let text = logged(Look::Json, "info", || happening().log());
        assert_eq!(text.lines().count(), 1);
        let object: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&object["text"], &object["slot"], &object["level"]), (&"job 7\nis \u{1b}[31mold".into(), &3.into(), &"warn".into()));
        assert!(object["at"].as_str().is_some_and(|at| at.ends_with('Z')));
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let error = crate::telling::rotating::FileError::Open { path: "/x".into(), source: std::io::ErrorKind::NotFound.into() };
        let text = logged(Look::Journal, "error", || tracing::error!(error = &error as &dyn std::error::Error, "no"));
        assert_eq!(text, "<3>no error=\"failed to open `/x`: entity not found\"\n");
    }

    /// Takes nothing until it is let go.
    struct Stuck(Option<Receiver<()>>, Sink);

    impl std::io::Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if let Some(stuck) = self.0.take() {
                let _let_go = stuck.recv();
            }
            self.1.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_stops_reading_the_log_does_not_stop_the_agent_and_hears_later_how_much_is_missing() {
        let (let_go, stuck) = sync_channel(1);
        let sink = Sink::default();
        let queue = Queue::to(Stuck(Some(stuck), sink.clone()), Look::Journal).expect("a thread");
        let subscriber = subscriber(Look::Journal, "info", queue.clone()).expect("a level");
        // On a thread of its own, so that one that waits for the reader fails the test and does not hang it.
        let (done, is_done) = sync_channel(1);
        std::thread::spawn(move || {
            tracing::subscriber::with_default(subscriber, || {
                (0..5000).for_each(|n| tracing::info!(n, "line"));
                done.send(()).expect("the test waits");
                let _let_go_first = let_go.send(());
                // The queue has room again when all of it is written.
                queue.finish(Duration::from_secs(20));
                tracing::info!("after it");
                queue.finish(Duration::from_secs(20));
                done.send(()).expect("the test waits");
            });
        });
        let wait = Duration::from_secs(30);
        is_done.recv_timeout(wait).expect("nobody waits for who reads the log");
        is_done.recv_timeout(wait).expect("all is written");
        let text = String::from_utf8(sink.0.lock().expect("not poisoned").clone()).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        let kept = lines.len() - 2;
        assert!(kept == QUEUE_LINES || kept == QUEUE_LINES + 1, "{kept}");
        assert!((0..kept).all(|n| lines[n] == format!("<6>line n={n}")), "what was kept is in order");
        assert!(lines[kept].starts_with(&format!("<3>{} lines of this log are missing here", 5000 - kept)), "{}", lines[kept]);
        assert_eq!(lines[kept + 1], "<6>after it");
    }

    #[test]
    fn levels_below_the_wanted_one_are_silent_and_wrong_ones_are_refused() {
        assert_eq!(logged(Look::Journal, "warn", || tracing::info!("quiet")), "");
        assert!(subscriber(Look::Json, "loud", std::io::sink).is_err());
    }

    #[test]
    fn auto_looks_at_where_it_writes_to() {
        assert_eq!(look(LogFormat::Auto, true, false), Look::Journal);
        assert_eq!(look(LogFormat::Auto, false, true), Look::Human { colour: true });
        assert_eq!(look(LogFormat::Human, true, false), Look::Human { colour: false });
        assert_eq!(look(LogFormat::Json, true, true), Look::Json);
    }
}
