#!/usr/bin/env python3
"""How late selfstart ends a job that is stale by its title.

    benches/stale_jobs.py                             N = 10 and 100 workers, limit 10 s, 40 jobs or more each
    benches/stale_jobs.py -n 10 --limit 60 --jobs 20  another size, limit and number
    benches/stale_jobs.py --binary target/debug/selfstart

The binary measured is target/release/selfstart (or $SELFSTART, or --binary). Python's standard library, git and a C compiler are needed;
Linux with pidfd_open (5.3). Everything a run makes is in a temporary folder that is gone afterwards.

How it measures
  * A worker is a static C program that behaves as a Resque master does: after a random pause of 0 to 3 s, so that the looks of selfstart
    meet jobs at any phase, it forks a child whose title is `resque-3.0.0: Processing slow since EPOCH [SleepJob]`, which never ends by
    itself, and takes the next job when that one is dead. It tells the pid of each child through a FIFO.
  * due      the start of the child (field 22 of /proc/PID/stat, 10 ms exact) + the limit: from then on the job is older than the limit
  * killed   due .. the child has ended: its pidfd is readable
  * verdict  due .. the line of kind `stale_job` with its pid is in run/events.jsonl, by inotify
  * CPU      of keeper and agent over the whole run, by schedstat
No polling by this script. The promise is at most max(2 s, 5 % of the limit) late; a job that is killed before it is due, or never, or a
worker that is killed instead of its child, ends the run with an error.
"""
import argparse, ctypes, json, os, re, select, shutil, signal, struct, subprocess, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import selfstart_peer
from supervisors import cpu, pct, rows_to_text, sec

MASTER_C = r'''
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <fcntl.h>
#include <unistd.h>
/* master FIFO: one job after the other, each in a child that is this program under the title of a Resque job */
int main(int argc, char **argv) {
  if (argc < 2) for (;;) pause();
  int fd = open(argv[1], O_WRONLY | O_CLOEXEC);
  if (fd < 0) return 1;
  srandom(getpid() ^ (unsigned)time(0));
  for (;;) {
    usleep(random() % 3000000);
    char title[128], line[32];
    snprintf(title, sizeof title, "resque-3.0.0: Processing slow since %lld [SleepJob]", (long long)time(0));
    pid_t child = fork();
    if (child < 0) return 2;
    if (!child) { execl("/proc/self/exe", title, (char *)0); _exit(127); }
    int n = snprintf(line, sizeof line, "%d\n", (int)child);
    if (write(fd, line, n) < 0) return 3;
    waitpid(child, 0, 0);
  }
}
'''

CONFIG = """app: stale
root: {root}
source: {{repository: {dir}/app, branch: main}}
release: {{min_free: 0}}
log: {{level: warn}}
pools:
  w:
    command: {dir}/master {dir}/fifo
    count: {count}
    ready: {{after: 0s}}
    stop: [TERM 1s, KILL]
    memory: 1GB
    stale_job_timeout: {limit}s
"""


def started(pid):
    """seconds after boot at which a process began"""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat[stat.rfind(b")") + 2:].split()[19]) / os.sysconf("SC_CLK_TCK")


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def listen(folder):
    """an inotify of what is made and written in a folder"""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(folder), 0x2 | 0x100 | 0x80) < 0:   # MODIFY, CREATE, MOVED_TO
        raise OSError(ctypes.get_errno(), "inotify")
    return fd


class Run:
    """N workers, until enough of their jobs have been ended"""

    def __init__(self, binary, n, limit, least, base):
        self.n, self.limit, self.least, self.dir = n, limit, max(least, n), Path(base)
        self.root = self.dir / "r"
        (self.root / "run").mkdir(parents=True)
        selfstart_peer.make_app(self.dir / "app")
        (self.dir / "master.c").write_text(MASTER_C)
        subprocess.run(["cc", "-O2", "-w", "-static", "-o", str(self.dir / "master"), str(self.dir / "master.c")], check=True)
        (self.dir / "config.yaml").write_text(CONFIG.format(root=self.root, dir=self.dir, count=n, limit=limit))
        os.mkfifo(self.dir / "fifo")
        self.fifo = os.open(self.dir / "fifo", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.argv = [binary, "--config", str(self.dir / "config.yaml"), "run"]
        self.due, self.killed, self.told = {}, {}, {}      # by the child's pid: moments
        self.waits, self.partial, self.journal, self.read = {}, b"", b"", 0

    def measure(self):
        changes = listen(self.root / "run")
        poll = select.poll()
        for fd in (self.fifo, changes):
            poll.register(fd, select.POLLIN)
        with open(self.dir / "log", "wb") as log:
            keeper = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        began, patience = now(), 60 + 4 * (self.limit + 5) * (1 + self.least // self.n)
        try:
            while len(self.killed.keys() & self.told.keys()) < self.least:
                if keeper.poll() is not None or now() - began > patience:
                    raise SystemExit(f"{len(self.killed)} of {self.least} jobs ended: {(self.dir / 'log').read_text()[-2000:]}")
                for fd, _ in poll.poll(1000):
                    at = now()
                    if fd == self.fifo:
                        self.jobs(poll)
                    elif fd == changes:
                        self.events(changes, at)
                    else:
                        poll.unregister(fd)
                        self.killed[self.waits.pop(fd)] = at
                        os.close(fd)
            own = cpu([keeper.pid, *children(keeper.pid, b"internal-agent")])
            return self.figures(sum(own.values()) / (now() - began))
        finally:
            keeper.send_signal(signal.SIGTERM)
            try:
                keeper.wait(30)
            except subprocess.TimeoutExpired:
                keeper.send_signal(signal.SIGTERM)       # the second one: the last rung now
                keeper.wait(30)
            for fd in (self.fifo, changes, *self.waits):
                os.close(fd)

    def jobs(self, poll):
        *lines, self.partial = (self.partial + os.read(self.fifo, 65536)).split(b"\n")
        for pid in map(int, lines):
            self.due[pid] = started(pid) + self.limit
            fd = os.pidfd_open(pid)
            self.waits[fd] = pid
            poll.register(fd, select.POLLIN)

    def events(self, changes, at):
        try:
            while os.read(changes, 65536):
                pass
        except BlockingIOError:
            pass
        try:
            with open(self.root / "run/events.jsonl", "rb") as journal:
                journal.seek(self.read)
                new = journal.read()
        except FileNotFoundError:
            return
        self.read += len(new)
        *lines, self.journal = (self.journal + new).split(b"\n")
        for event in map(json.loads, lines):
            if event["kind"] == "stale_job":
                self.told.setdefault(int(re.search(r"process (\d+)", event["text"])[1]), at)
            elif event["kind"] == "worker_ended":
                raise SystemExit(f"a worker has ended: {event['text']}")

    def figures(self, share):
        both = [pid for pid in self.killed if pid in self.told]
        killed = [self.killed[pid] - self.due[pid] for pid in both]
        told = [self.told[pid] - self.due[pid] for pid in both]
        if min(killed) < -0.02:                          # two ticks
            raise SystemExit(f"a job was ended {-min(killed):.2f} s before it was due")
        return {"n": self.n, "limit_s": self.limit, "promise_s": max(2, self.limit / 20), "killed_s": killed, "verdict_s": told, "cpu": share}


def children(pid, word):
    """children with a word in their command line"""
    out = []
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                stat = Path(f"/proc/{d}/stat").read_bytes()
                if int(stat[stat.rfind(b")") + 2:].split()[1]) == pid and word in Path(f"/proc/{d}/cmdline").read_bytes():
                    out.append(int(d))
            except OSError:
                continue
    return out


def table(results):
    head = ["N", "limit", "jobs", "killed min", "median", "p90", "max", "verdict min", "median", "max", "promise", "CPU"]
    rows = []
    for r in results:
        k, v = r["killed_s"], r["verdict_s"]
        rows.append([r["n"], f"{r['limit_s']} s", len(k), sec(min(k)), sec(pct(k, .5)), sec(pct(k, .9)), sec(max(k)),
                     sec(min(v)), sec(pct(v, .5)), sec(max(v)), f"{r['promise_s']:g} s" + ("" if max(k + v) <= r["promise_s"] else " BROKEN"),
                     f"{100 * r['cpu']:.3f}%"])
    return rows_to_text(head, rows)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog=__doc__.split("\n\n", 1)[1],
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("-n", default="10,100", help="worker counts (default 10,100)")
    ap.add_argument("--limit", type=int, default=10, help="`stale_job_timeout` in seconds (default 10)")
    ap.add_argument("--jobs", type=int, default=40, help="least number of jobs, and at least N (default 40)")
    ap.add_argument("--binary", default=selfstart_peer.BINARY)
    ap.add_argument("-o", "--out", help="results as JSON")
    o = ap.parse_args()
    if not Path(o.binary).exists():
        sys.exit(f"{o.binary} is not built: cargo build --release")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))      # so that what was started is ended
    results = []
    for n in map(int, o.n.split(",")):
        base = tempfile.mkdtemp(prefix="ssj-")
        try:
            results.append(Run(str(Path(o.binary).resolve()), n, o.limit, o.jobs, base).measure())
        finally:
            shutil.rmtree(base, ignore_errors=True)
    if o.out:
        Path(o.out).write_text(json.dumps(results, indent=1))
    print(table(results))
    if any(max(r["killed_s"] + r["verdict_s"]) > r["promise_s"] for r in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
