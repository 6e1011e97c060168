//! The agent's end of the control socket: accepts, asks who it is, reads one request, passes it on as a [`Call`], writes the answers.
//!
//! It decides nothing about commands. One client can harm no other and not the agent: connections, line length, waiting for a request and
//! waiting for a reader are bounded, and the agent's loop never waits for a client ([`Reply`]), nor for who that is ([`NameOf`]).

use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use selfstart_core::command::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::wire::{Answer, Failed, Outcome, Progress, REQUEST_MAX, RefusalCode, Refused, Request, RequestError};

/// Clients at a time: far more than people and scripts of one node, and at 1 MiB of request each no danger to its memory.
pub(crate) const CONNECTIONS_MAX: usize = 64;

/// A client that has connected asks within this time: it is a program on the same machine.
pub(crate) const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// A line that a client has not taken after this time shows that it does not read.
pub(crate) const READ_WITHIN: Duration = Duration::from_secs(10);

/// While a command takes its time, an empty `progress` this often shows the client that the agent lives, and shows us that the client does.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);

/// When the agent ends, answers that are given already are still written, for at most this long.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);

/// A user's name is waited for at most this long: whoever keeps the names (a directory server, perhaps one that is away) must hold up no
/// command. Without it the user's number is told.
pub(crate) const NAME_WITHIN: Duration = Duration::from_secs(1);

/// Progress that a slow client has not read yet; what comes on top is dropped, the outcome never is.
const PROGRESS_QUEUED: usize = 64;

/// After a failed accept(2) (no descriptors left): others may be closed meanwhile. Twice as long after each further one.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The longest of these waits: whoever asks then waits no longer than that.
const ACCEPT_AGAIN_MAX: Duration = Duration::from_secs(2);

/// Failures to accept in a row.
#[derive(Debug, Default)]
struct Trouble(Option<Duration>);

impl Trouble {
    /// One more: whether to tell it (the first says all), and how long to wait.
    fn again(&mut self) -> (bool, Duration) {
        let first = self.0.is_none();
        let wait = self.0.map_or(ACCEPT_AGAIN, |last| (last * 2).min(ACCEPT_AGAIN_MAX));
        self.0 = Some(wait);
        (first, wait)
    }

    /// Over; returns whether there was any.
    fn over(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// Who speaks, as the kernel saw it at connect(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// `None`: it is in a pid namespace that this process does not see.
    pub(crate) pid: Option<NonZeroU32>,
    /// Its effective user.
    pub(crate) uid: u32,
    /// Its effective group.
    pub(crate) gid: u32,
}

/// Whether a peer may speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may.
    Welcome,
    /// It may not, for this reason.
    Refused(String),
}

/// Judges a peer, quickly and without waiting: it runs in the agent's only thread.
pub(crate) type Gate = Arc<dyn Fn(&Peer) -> Verdict + Send + Sync>;

/// Names a user by number, if it has a name. May take its time: it is called on a thread of its own.
pub(crate) type NameOf = fn(u32) -> Option<String>;

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    /// What is asked.
    pub(crate) request: Request,
    /// By whom.
    pub(crate) peer: Peer,
    /// By whom, for people; only the number where nothing is told of it.
    pub(crate) by: String,
    /// The way back.
    pub(crate) reply: Reply,
}

/// The way back to one client. Nothing here waits; dropped without an outcome, it tells the client that there was no answer.
#[derive(Debug)]
pub(crate) struct Reply {
    progress: mpsc::Sender<Progress>,
    outcome: oneshot::Sender<Outcome>,
}

impl Reply {
    /// Tells how far it is; dropped if the client does not keep up or is gone.
    pub(crate) fn progress(&self, progress: Progress) {
        let _ = self.progress.try_send(progress);
    }

    /// Ends the conversation; a client that is gone does not hear it.
    pub(crate) fn finish(self, outcome: Outcome) {
        let _ = self.outcome.send(outcome);
    }

    /// Tells whether the client is gone: nobody waits for the outcome. What it asked for goes on.
    pub(crate) fn is_gone(&self) -> bool {
        self.outcome.is_closed()
    }

    /// Makes a way back whose far end the caller holds: for tests of the agent's loop.
    pub(crate) fn pair() -> (Self, mpsc::Receiver<Progress>, oneshot::Receiver<Outcome>) {
        let (progress, progress_in) = mpsc::channel(PROGRESS_QUEUED);
        let (outcome, outcome_in) = oneshot::channel();
        (Self { progress, outcome }, progress_in, outcome_in)
    }
}

/// Serves clients until the receiver of `calls` is dropped or closed; then writes what is answered already, and returns.
///
/// Dropping the future ends all connections at once.
pub(crate) async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, gate: Gate, name_of: NameOf) {
    let mut clients = JoinSet::new();
    let names = Names { name_of, turn: Arc::new(Semaphore::new(1)) };
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = calls.closed() => break,
            Some(_) = clients.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        if accepted.is_ok() && trouble.over() {
            tracing::info!("control connections are accepted again");
        }
        match accepted {
            Ok((stream, _)) if clients.len() >= CONNECTIONS_MAX => turn_away(&stream),
            Ok((stream, _)) => {
                clients.spawn(converse(stream, calls.clone(), Arc::clone(&gate), names.clone()));
            }
            Err(error) => {
                let (first, wait) = trouble.again();
                if first {
                    tracing::warn!(%error, "control connections cannot be accepted now; trying again");
                }
                tokio::select! {
                    () = calls.closed() => break,
                    () = sleep(wait) => {}
                }
            }
        }
    }
    drop(listener);
    let _ = timeout(FAREWELL, async { while clients.join_next().await.is_some() {} }).await;
}

/// Says that there are too many, if that can be said without waiting.
fn turn_away(stream: &UnixStream) {
    let refused = Refused {
        code: RefusalCode::Busy,
        reason: format!("{CONNECTIONS_MAX} clients are connected already"),
        hint: Some("try again when some of them are done".into()),
    };
    // A fresh socket takes a line at once; a client whose socket does not is told nothing.
    let _ = stream.try_write(&Answer::Refused(refused).to_line());
}

/// One connection, from its first byte to its last. Whatever goes wrong with it concerns only this client.
async fn converse(stream: UnixStream, calls: mpsc::Sender<Call>, gate: Gate, names: Names) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let peer = Peer {
        pid: credentials.pid().and_then(|pid| u32::try_from(pid).ok()).and_then(NonZeroU32::new),
        uid: credentials.uid(),
        gid: credentials.gid(),
    };
    let (mut from, to) = stream.into_split();
    let mut to = Writer(to);
    if let Verdict::Refused(reason) = gate(&peer) {
        let _ = to.outcome(Outcome::Refused(Refused { code: RefusalCode::Forbidden, reason, hint: None })).await;
        return;
    }
    let request = match timeout(REQUEST_WITHIN, read_request(&mut from)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => {
            let _ = to.outcome(Outcome::Refused(error.into())).await;
            return;
        }
    };
    // At once: from here on a client that hears nothing for a few heartbeats knows that the agent is gone.
    if to.progress(Progress::default()).await.is_err() {
        return;
    }
    let by = if is_told(&request.command) { names.of(peer.uid).await } else { number(peer.uid) };
    let (reply, progress, outcome) = Reply::pair();
    match timeout(REQUEST_WITHIN, calls.send(Call { request, peer, by, reply })).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => {
            let _ = to.outcome(ending()).await;
            return;
        }
        Err(_) => {
            let reason = "the agent is too busy to take commands".into();
            let _ = to.outcome(Outcome::Refused(Refused { code: RefusalCode::Busy, reason, hint: None })).await;
            return;
        }
    }
    // An error means that the client is gone: the receivers are dropped with it, which `Reply::is_gone` tells the loop.
    let _ = answer(&mut from, &mut to, progress, outcome).await;
}

/// Who people are.
#[derive(Clone)]
struct Names {
    name_of: NameOf,
    /// One look-up at a time: those that hang must not take all the threads on which the agent also writes its state.
    turn: Arc<Semaphore>,
}

impl Names {
    async fn of(&self, uid: u32) -> String {
        let mut looking = JoinSet::new();
        let name = async {
            let turn = Arc::clone(&self.turn).acquire_owned().await.ok()?;
            let name_of = self.name_of;
            looking.spawn_blocking(move || {
                let _turn = turn;
                name_of(uid)
            });
            looking.join_next().await?.ok()?
        };
        timeout(NAME_WITHIN, name).await.ok().flatten().unwrap_or_else(|| number(uid))
    }
}

fn number(uid: u32) -> String {
    format!("uid {uid}")
}

/// Whether who said it is told to others.
fn is_told(command: &Command) -> bool {
    match command {
        Command::Deploy { .. }
        | Command::Rollback { .. }
        | Command::Hold { .. }
        | Command::Unhold {}
        | Command::Drain {}
        | Command::Upgrade { .. }
        | Command::Reload { plan: false } => true,
        Command::Status {}
        | Command::Releases {}
        | Command::Start { .. }
        | Command::Stop { .. }
        | Command::Restart { .. }
        | Command::Pause { .. }
        | Command::Resume { .. }
        | Command::Signal { .. }
        | Command::Scale { .. }
        | Command::Reload { plan: true }
        | Command::Wait {}
        | Command::Launch { .. } => false,
    }
}

/// Passes answers on until the last, and notices a client that goes away.
async fn answer(
    from: &mut OwnedReadHalf,
    to: &mut Writer,
    mut progress: mpsc::Receiver<Progress>,
    mut outcome: oneshot::Receiver<Outcome>,
) -> io::Result<()> {
    let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut half_closed = false;
    loop {
        let mut surplus = [0; 64];
        tokio::select! {
            // Progress before the outcome, so that what was told first is heard first.
            biased;
            Some(step) = progress.recv() => to.progress(step).await?,
            ended = &mut outcome => {
                // With more than one thread, both may have come since `progress` was looked at.
                while let Ok(step) = progress.try_recv() {
                    to.progress(step).await?;
                }
                return to.outcome(ended.unwrap_or_else(|_| ending())).await;
            }
            read = from.read(&mut surplus), if !half_closed => match read? {
                // Gone, or only done with writing (`printf ... | nc -U`): writing tells.
                0 => {
                    half_closed = true;
                    to.progress(Progress::default()).await?;
                }
                // The contract is one request a connection; more is not read, so that it cannot keep us busy.
                _ => return Err(io::Error::other("more than one request")),
            },
            _ = heartbeat.tick() => to.progress(Progress::default()).await?,
        }
    }
}

fn ending() -> Outcome {
    Outcome::Failed(Failed {
        reason: "the agent ended before it could answer".into(),
        causes: Vec::new(),
        hint: Some("`selfstart status` tells what became of it".into()),
    })
}

/// Reads up to the end of the first line; `None`: the client closed without a word.
async fn read_request(from: &mut OwnedReadHalf) -> Result<Option<Request>, RequestError> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match from.read(&mut chunk).await {
            Ok(0) | Err(_) if line.is_empty() => return Ok(None),
            Ok(0) | Err(_) => return Err(RequestError::CutShort),
            Ok(n) => match chunk[..n].iter().position(|byte| *byte == b'\n') {
                Some(end) if line.len() + end <= REQUEST_MAX => {
                    line.extend_from_slice(&chunk[..end]);
                    return Request::parse(&line).map(Some);
                }
                None if line.len() + n <= REQUEST_MAX => line.extend_from_slice(&chunk[..n]),
                _ => return Err(RequestError::TooLong),
            },
        }
    }
}

/// The client's receiving side; every line has its time.
struct Writer(OwnedWriteHalf);

impl Writer {
    async fn progress(&mut self, progress: Progress) -> io::Result<()> {
        self.line(&Answer::Progress(progress)).await
    }

    async fn outcome(&mut self, outcome: Outcome) -> io::Result<()> {
        self.line(&outcome.into()).await
    }

    async fn line(&mut self, answer: &Answer) -> io::Result<()> {
        timeout(READ_WITHIN, self.0.write_all(&answer.to_line())).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use selfstart_core::command::Command;
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;
    use crate::control::socket;
    use crate::control::wire::Done;

    /// A server in the test's own runtime; `calls` is the agent's loop.
    struct Rig {
        _dir: tempfile::TempDir,
        path: PathBuf,
        calls: mpsc::Receiver<Call>,
        server: tokio::task::JoinHandle<()>,
    }

    impl Rig {
        fn new() -> Self {
            Self::guarded(|_| Verdict::Welcome)
        }

        fn guarded(gate: impl Fn(&Peer) -> Verdict + Send + Sync + 'static) -> Self {
            Self::with(gate, |_| None)
        }

        fn with(gate: impl Fn(&Peer) -> Verdict + Send + Sync + 'static, name_of: NameOf) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("control.sock");
            let listener = socket::bind(&path, socket::Owner::default()).expect("a socket");
            let (calls, calls_in) = mpsc::channel(4);
            let listener = UnixListener::from_std(listener).expect("a runtime");
            Self { _dir: dir, path, calls: calls_in, server: tokio::spawn(serve(listener, calls, Arc::new(gate), name_of)) }
        }

        async fn client(&self) -> BufReader<UnixStream> {
            BufReader::new(UnixStream::connect(&self.path).await.expect("it listens"))
        }

        async fn asking(&self) -> BufReader<UnixStream> {
            let mut client = self.client().await;
            client.get_mut().write_all(&Request::new(Command::Drain {}).to_line()).await.expect("a request");
            client
        }

        async fn call(&mut self) -> Call {
            soon(self.calls.recv()).await.expect("a call")
        }
    }

    /// A mistake makes a test fail, not hang.
    async fn soon<T>(what: impl Future<Output = T>) -> T {
        timeout(READ_WITHIN * 6, what).await.expect("it comes within a minute")
    }

    /// The next answer that is no heartbeat; `None`: the server closed.
    async fn hear(client: &mut BufReader<UnixStream>) -> Option<Answer> {
        let heard = async {
            loop {
                let mut line = Vec::new();
                client.read_until(b'\n', &mut line).await.ok().filter(|n| *n > 0)?;
                match Answer::parse(&line).expect("an answer") {
                    Answer::Progress(progress) if progress == Progress::default() => {}
                    answer => return Some(answer),
                }
            }
        };
        soon(heard).await
    }

    fn code(answer: Option<Answer>) -> Option<RefusalCode> {
        match answer {
            Some(Answer::Refused(refused)) => Some(refused.code),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_request_reaches_the_loop_and_its_answers_the_client_in_order() {
        let mut rig = Rig::new();
        let mut client = rig.asking().await;
        let call = rig.call().await;
        assert_eq!(call.request, Request::new(Command::Drain {}));
        assert_eq!(call.peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(call.peer.pid.map(NonZeroU32::get), Some(std::process::id()));
        call.reply.progress(Progress::text("one"));
        call.reply.progress(Progress::text("two"));
        call.reply.finish(Done::text("three"));
        assert_eq!(hear(&mut client).await, Some(Answer::Progress(Progress::text("one"))));
        assert_eq!(hear(&mut client).await, Some(Answer::Progress(Progress::text("two"))));
        assert_eq!(hear(&mut client).await, Some(Done::text("three").into()));
        assert_eq!(hear(&mut client).await, None);
    }

    #[tokio::test]
    async fn who_commands_is_named_before_the_loop_hears_of_it() {
        let mut rig = Rig::with(|_| Verdict::Welcome, |uid| Some(format!("number {uid}")));
        let _client = rig.asking().await;
        let call = rig.call().await;
        assert_eq!(call.by, format!("number {}", call.peer.uid));
    }

    #[tokio::test]
    async fn who_keeps_the_names_and_does_not_answer_holds_up_nobody() {
        /// Never answers, until the test is over.
        static AWAY: std::sync::Mutex<()> = std::sync::Mutex::new(());
        static LOOKING: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let away = AWAY.lock();
        let mut rig = Rig::with(
            |_| Verdict::Welcome,
            |_| {
                LOOKING.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                drop(AWAY.lock());
                Some("too late".to_owned())
            },
        );
        let mut drains = Vec::new();
        for _ in 0..4 {
            drains.push(rig.asking().await);
        }
        // A command that nobody is told of does not wait at all.
        let began = Instant::now();
        let mut status = rig.client().await;
        status.get_mut().write_all(&Request::new(Command::Status {}).to_line()).await.expect("a request");
        let call = rig.call().await;
        assert_eq!(call.request.command, Command::Status {});
        assert!(began.elapsed() < NAME_WITHIN, "{:?}", began.elapsed());
        for _ in &drains {
            let call = rig.call().await;
            assert_eq!(call.by, format!("uid {}", call.peer.uid));
        }
        assert!(began.elapsed() < NAME_WITHIN * 3, "{:?}", began.elapsed());
        assert_eq!(LOOKING.load(std::sync::atomic::Ordering::SeqCst), 1, "the threads are left to others");
        drop(away);
    }

    #[tokio::test]
    async fn a_peer_that_the_gate_refuses_is_told_so_and_the_loop_never_hears_of_it() {
        let mut rig = Rig::guarded(|peer| Verdict::Refused(format!("uid {} is a worker's", peer.uid)));
        let mut client = rig.asking().await;
        assert_eq!(code(hear(&mut client).await), Some(RefusalCode::Forbidden));
        assert_eq!(hear(&mut client).await, None);
        assert!(rig.calls.try_recv().is_err());
    }

    #[tokio::test]
    async fn garbage_is_refused_and_the_next_client_served() {
        let mut rig = Rig::new();
        for garbage in [&b"hello\n"[..], b"\n", b"\0\xff\xfe\n", b"{\"version\":1}\n"] {
            let mut client = rig.client().await;
            client.get_mut().write_all(garbage).await.expect("bytes");
            assert_eq!(code(hear(&mut client).await), Some(RefusalCode::BadRequest));
        }
        let mut client = rig.client().await;
        client.get_mut().write_all(b"{\"version\":7,\"command\":{\"verb\":\"status\"}}\n").await.expect("bytes");
        assert_eq!(code(hear(&mut client).await), Some(RefusalCode::Version));
        let mut client = rig.asking().await;
        rig.call().await.reply.finish(Done::text("ok"));
        assert_eq!(hear(&mut client).await, Some(Done::text("ok").into()));
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_refused_before_it_fills_the_memory() {
        let rig = Rig::new();
        let mut client = rig.client().await;
        let endless = vec![b' '; REQUEST_MAX + 1];
        // The server closes while we still write: that is no failure of the test.
        let _ = client.get_mut().write_all(&endless).await;
        match hear(&mut client).await {
            Some(Answer::Refused(refused)) => assert_eq!(refused.reason, "the request is longer than 1048576 bytes"),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_line_of_just_the_longest_length_is_read() {
        let mut rig = Rig::new();
        let mut client = rig.client().await;
        let mut line = Request::new(Command::Drain {}).to_line();
        let pad = REQUEST_MAX + 1 - line.len();
        line.splice(0..0, vec![b' '; pad]);
        client.get_mut().write_all(&line).await.expect("a long request");
        assert_eq!(rig.call().await.request.command, Command::Drain {});
    }

    #[tokio::test]
    async fn a_request_cut_short_is_refused() {
        let rig = Rig::new();
        let mut client = rig.client().await;
        client.get_mut().write_all(b"{\"version\":1").await.expect("bytes");
        client.get_mut().shutdown().await.expect("half closed");
        assert_eq!(code(hear(&mut client).await), Some(RefusalCode::BadRequest));
    }

    #[tokio::test]
    async fn a_client_that_is_done_writing_still_hears_the_outcome() {
        let mut rig = Rig::new();
        let mut client = rig.asking().await;
        client.get_mut().shutdown().await.expect("half closed");
        let call = rig.call().await;
        // The second heartbeat is the answer to the half-closed connection: the server has seen it.
        for _ in 0..2 {
            let mut line = Vec::new();
            client.read_until(b'\n', &mut line).await.expect("a heartbeat");
            assert_eq!(line, b"{\"progress\":{}}\n");
        }
        assert!(!call.reply.is_gone());
        call.reply.finish(Done::text("ok"));
        assert_eq!(hear(&mut client).await, Some(Done::text("ok").into()));
    }

    #[tokio::test]
    async fn the_loop_can_tell_that_a_client_has_vanished() {
        let mut rig = Rig::new();
        let client = rig.asking().await;
        let mut call = rig.call().await;
        assert!(!call.reply.is_gone());
        drop(client);
        timeout(HEARTBEAT / 2, call.reply.outcome.closed()).await.expect("noticed at once, not by a heartbeat's failure");
        call.reply.progress(Progress::text("to nobody"));
        call.reply.finish(Done::text("to nobody"));
    }

    #[tokio::test]
    async fn a_second_request_on_a_connection_ends_it() {
        let mut rig = Rig::new();
        let mut client = rig.asking().await;
        let mut call = rig.call().await;
        client.get_mut().write_all(&Request::new(Command::Unhold {}).to_line()).await.expect("a second one");
        soon(call.reply.outcome.closed()).await;
        assert_eq!(hear(&mut client).await, None);
    }

    #[tokio::test]
    async fn the_65th_client_is_told_to_come_again_and_may() {
        let mut rig = Rig::new();
        let (mut clients, mut replies) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS_MAX {
            clients.push(rig.asking().await);
            clients.last_mut().expect("just pushed").fill_buf().await.expect("a heartbeat: it is accepted");
            replies.push(rig.call().await.reply);
        }
        let mut late = rig.client().await;
        assert_eq!(code(hear(&mut late).await), Some(RefusalCode::Busy));
        assert_eq!(hear(&mut late).await, None);
        clients.pop();
        // The server sees the end of that connection at its own time.
        let call = loop {
            let mut again = rig.asking().await;
            tokio::select! {
                call = rig.calls.recv() => break call.expect("a call"),
                answer = hear(&mut again) => assert_eq!(code(answer), Some(RefusalCode::Busy)),
            }
        };
        call.reply.finish(Done::text("ok"));
    }

    #[test]
    fn trouble_with_accepting_is_told_once_and_waited_out_longer_and_longer() {
        let mut trouble = Trouble::default();
        let millis = [100, 200, 400, 800, 1600, 2000, 2000].map(Duration::from_millis);
        for _ in 0..2 {
            assert!(!trouble.over());
            let told = millis.map(|wait| {
                let (first, waits) = trouble.again();
                assert_eq!(waits, wait);
                first
            });
            assert_eq!(told, [true, false, false, false, false, false, false]);
            assert!(trouble.over());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_nothing_is_let_go() {
        let rig = Rig::new();
        let mut client = rig.client().await;
        let began = Instant::now();
        assert_eq!(hear(&mut client).await, None);
        assert!((REQUEST_WITHIN..REQUEST_WITHIN * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_come_while_the_loop_takes_its_time() {
        let mut rig = Rig::new();
        let mut client = rig.asking().await;
        let call = rig.call().await;
        let began = Instant::now();
        for _ in 0..4 {
            let mut line = Vec::new();
            client.read_until(b'\n', &mut line).await.expect("a heartbeat");
            assert_eq!(line, b"{\"progress\":{}}\n");
        }
        assert_eq!(began.elapsed().as_secs(), 3 * HEARTBEAT.as_secs(), "one at once, then one every so often");
        drop(call);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_let_go_and_stops_nobody() {
        let mut rig = Rig::new();
        let deaf = rig.asking().await;
        let mut call = rig.call().await;
        // More than socket buffers hold; the loop never waits for it.
        for _ in 0..PROGRESS_QUEUED {
            call.reply.progress(Progress::text("x".repeat(1 << 16)));
        }
        let mut other = rig.asking().await;
        rig.call().await.reply.finish(Done::text("ok"));
        assert_eq!(hear(&mut other).await, Some(Done::text("ok").into()));
        let began = Instant::now();
        soon(call.reply.outcome.closed()).await;
        assert!(began.elapsed() <= READ_WITHIN + Duration::from_secs(1), "{:?}", began.elapsed());
        drop(deaf);
    }

    #[tokio::test]
    async fn progress_beyond_the_queue_is_dropped_but_not_the_outcome() {
        let mut rig = Rig::new();
        let mut client = rig.asking().await;
        let call = rig.call().await;
        for n in 0..PROGRESS_QUEUED * 3 {
            call.reply.progress(Progress::text(n.to_string()));
        }
        call.reply.finish(Done::text("ok"));
        let mut heard = 0;
        let last = loop {
            match hear(&mut client).await.expect("an outcome") {
                Answer::Progress(_) => heard += 1,
                outcome => break outcome,
            }
        };
        assert_eq!((heard, last), (PROGRESS_QUEUED, Done::text("ok").into()));
    }

    #[tokio::test]
    async fn a_reply_that_is_dropped_is_answered_all_the_same() {
        let mut rig = Rig::new();
        let mut client = rig.asking().await;
        drop(rig.call().await);
        assert_eq!(hear(&mut client).await, Some(ending().into()));
    }

    #[tokio::test]
    async fn when_the_loop_ends_what_is_answered_is_still_written_and_the_server_ends() {
        let mut rig = Rig::new();
        let mut answered = rig.asking().await;
        let call = rig.call().await;
        let mut unanswered = rig.asking().await;
        unanswered.fill_buf().await.expect("a heartbeat: it is accepted");
        call.reply.finish(Done::text("ok"));
        drop(rig.calls);
        assert_eq!(hear(&mut answered).await, Some(Done::text("ok").into()));
        assert_eq!(hear(&mut unanswered).await, Some(ending().into()));
        soon(rig.server).await.expect("it ended by itself");
        assert!(UnixStream::connect(&rig.path).await.is_err(), "nobody listens");
    }
}
