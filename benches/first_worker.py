#!/usr/bin/env python3
"""How long after the keeper's start the first worker works, with a built release.

    benches/first_worker.py                       N = 1 and 10 workers, 40 starts each
    benches/first_worker.py -n 10 --starts 100    another size and number
    benches/first_worker.py --installed           as root: the agent as the user `selfstart`, where there is none too
    benches/first_worker.py --installed --cgroups and a cgroup for each worker
    benches/first_worker.py --binary target/debug/selfstart

The binary measured is target/release/selfstart (or $SELFSTART, or --binary). Python's standard library, git and a C compiler are needed.
Everything a run makes is in a temporary folder that is gone afterwards. As root the agent is the user `selfstart`, where there is one.

How it measures
  * The release was deployed and built by a start before, and the source has nothing new: what a reboot without a push is.
  * begin    CLOCK_MONOTONIC right before `selfstart run` is executed
  * first    the least, last the greatest of what the workers, static C programs, wrote of that clock as their first action
  * fetch    how long the ask whether the source has something new took: a repository on this disk, without any network. Pools wait for it
             (at most `source.boot_timeout`), so it is part of `first`
  * The node is stopped by TERM, and gone, before the next start; the first start of each size is not counted.
  * --installed: a machine without the user gets one for this program alone, in a mount namespace with other /etc/passwd and /etc/group
  * --cgroups: in a tree that is named as the unit names one. Where the old hierarchies have the controllers it limits nothing, but is made,
    entered, looked at and removed for each start all the same
"""
import argparse, os, select, shutil, signal, statistics, struct, subprocess, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from supervisors import rows_to_text

WORKER_C = r'''
#include <fcntl.h>
#include <time.h>
#include <unistd.h>
/* worker FIFO: tells when it began, then waits for its end */
int main(int argc, char **argv) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  long long ns = t.tv_sec * 1000000000LL + t.tv_nsec;
  int fd = open(argv[argc - 1], O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, &ns, sizeof ns) != sizeof ns) return 1;
  for (;;) pause();
}
'''

CONFIG = """app: first
root: {root}
user: {user}
source: {{repository: {dir}/app, branch: main}}
release: {{min_free: 0}}
build: {{steps: ["true"]}}
pools:
  w: {{command: {dir}/worker {dir}/fifo, count: {count}, ready: {{after: 0s}}, stop: [TERM 5s, KILL]}}
"""


def prepare(folder, count):
    """a repository, a worker and a configuration; who is not root runs all of it"""
    os.chmod(folder, 0o755)
    app = folder / "app"
    app.mkdir()
    git = ["git", "-C", str(app), "-c", "user.name=b", "-c", "user.email=b@example.invalid"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    (folder / "worker.c").write_text(WORKER_C)
    subprocess.run(["cc", "-O2", "-static", "-o", folder / "worker", folder / "worker.c"], check=True)
    os.mkfifo(folder / "fifo")
    os.chmod(folder / "fifo", 0o666)
    user = "nobody" if os.geteuid() == 0 else str(subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip())
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(root=folder / "root", dir=folder, count=count, user=user))
    os.chmod(config, 0o644)
    return config


# What `--installed` runs itself in.
INSTALLED = """set -e
cp /etc/passwd "$1/passwd"; cp /etc/group "$1/group"
echo 'selfstart:x:64999:64999::/nonexistent:/usr/sbin/nologin' >>"$1/passwd"; echo 'selfstart:x:64999:' >>"$1/group"
mount --bind "$1/passwd" /etc/passwd; mount --bind "$1/group" /etc/group
shift
exec "$@"
"""


def in_a_namespace_of_its_own():
    """as root, where there is no user `selfstart`: runs this program once more, with one"""
    with tempfile.TemporaryDirectory(prefix="first-worker.") as folder:
        os.chmod(folder, 0o755)
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", INSTALLED, "sh", folder, sys.executable, *sys.argv]
        sys.exit(subprocess.run(words).returncode)


def make_tree(name):
    """a cgroup as the unit's"""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    tree = Path(next(at for _, at, kind, *_ in mounts if kind == "cgroup2"), name)
    tree.mkdir()
    os.environ["SELFSTART_CGROUP"] = str(tree)
    return tree


def remove_tree(tree):
    for below in sorted((it for it in tree.rglob("*") if it.is_dir()), reverse=True):
        below.rmdir()
    tree.rmdir()


def one_start(binary, config, folder, count, tree):
    """ms to the first and to the last worker, and who the agent was"""
    fifo = os.open(folder / "fifo", os.O_RDWR | os.O_NONBLOCK)
    began = time.monotonic_ns()
    with open(folder / "log", "ab") as log:
        keeper = subprocess.Popen([binary, "--config", config, "run"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    seen, limit = b"", time.monotonic() + 60
    try:
        while len(seen) < 8 * count:
            ready, _, _ = select.select([fifo], [], [], max(0, limit - time.monotonic()))
            if not ready:
                sys.exit("no worker within a minute: " + (folder / "log").read_text()[-2000:])
            seen += os.read(fifo, 4096)
        agent = user_of_agent(keeper.pid)
        if tree and len(list(tree.glob("w.*#*"))) != count:
            sys.exit("not each worker has a cgroup: " + (folder / "log").read_text()[-2000:])
    finally:
        keeper.send_signal(signal.SIGTERM)
        keeper.wait()
        os.close(fifo)
    times = [(at - began) / 1e6 for at in struct.unpack(f"{count}q", seen)]
    return min(times), max(times), agent


def user_of_agent(keeper):
    for children in Path(f"/proc/{keeper}/task").glob("*/children"):
        for pid in children.read_text().split():
            if b"internal-agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return "root" if os.stat(f"/proc/{pid}").st_uid == 0 else "not root"
    return "?"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", default="1,10", help="workers")
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--binary", default=os.environ.get("SELFSTART") or "target/release/selfstart")
    parser.add_argument("--installed", action="store_true")
    parser.add_argument("--cgroups", action="store_true")
    given = parser.parse_args()
    if given.installed and "selfstart:" not in Path("/etc/passwd").read_text():
        in_a_namespace_of_its_own()
    binary = str(Path(given.binary).resolve())
    head, rows = ["workers", "agent", "starts", "first: min", "median", "p95", "max", "last: median", "p95"], []
    for count in map(int, given.n.split(",")):
        folder = Path(tempfile.mkdtemp(prefix="first-worker."))
        tree = make_tree(folder.name) if given.cgroups else None
        try:
            config = prepare(folder, count)
            one_start(binary, config, folder, count, tree)
            seen = [one_start(binary, config, folder, count, tree) for _ in range(given.starts)]
        finally:
            if tree:
                remove_tree(tree)
            shutil.rmtree(folder, ignore_errors=True)
        first, last = sorted(it[0] for it in seen), sorted(it[1] for it in seen)
        p95 = lambda of: of[min(len(of) - 1, int(len(of) * 0.95))]
        ms = lambda value: f"{value:.0f} ms"
        rows.append([str(count), seen[-1][2], str(len(seen)), ms(first[0]), ms(statistics.median(first)), ms(p95(first)), ms(first[-1]),
                     ms(statistics.median(last)), ms(p95(last))])
    print(rows_to_text(head, rows))


if __name__ == "__main__":
    main()
