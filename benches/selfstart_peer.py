#!/usr/bin/env python3
"""selfstart beside other supervisors, in one run: supervisors.py with one peer more.

    benches/selfstart_peer.py -p floor-sigchld,floor-pidfd,selfstart -n 10,100,1000
    benches/selfstart_peer.py -p floor-pidfd,selfstart --memory

The binary measured is target/release/selfstart (or $SELFSTART). Logging, memory sampling every 10 s and the look at process titles are on.
Its workers come out of a git repository that it has deployed once before the measured start; the first deploy is a figure of its own
(printed as `first deploy`). Python's standard library, git and a C compiler are needed; see README.md for what the figures mean.
"""
import atexit, os, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import supervisors
from supervisors import Peer, peer

BINARY = os.environ.get("SELFSTART", str(Path(__file__).parent.parent / "target/release/selfstart"))


def make_app(app):
    """a repository with one commit"""
    app.mkdir(parents=True, exist_ok=True)
    git = ["git", "-C", str(app), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    subprocess.run(git + ["init", "-q", "-b", "main"], check=True)
    (app / "README").write_text("the bench's app\n")
    subprocess.run(git + ["add", "-A"], check=True)
    subprocess.run(git + ["commit", "-q", "-m", "one"], check=True)


@peer
class Selfstart(Peer):
    name = "selfstart"
    settle = 4.0
    memory = "memory: {ladder: [LIMIT x1/1 kill], every: 1s}"
    note = "keeper and agent together"

    @classmethod
    def missing(cls, tools):
        return None if Path(BINARY).exists() else f"{BINARY} is not built: cargo build --release"

    @classmethod
    def version(cls, tools):
        return subprocess.run([BINARY, "--version"], capture_output=True, text=True).stdout.strip()

    def config(self, count):
        limit = f'{{ladder: ["{self.mem_mb}MiB x1/1 kill"], every: 1s}}' if self.mem_mb else "1GB"
        return f"""app: bench
root: {self.root}
source: {{repository: {self.dir}/app, branch: main}}
release: {{min_free: 0}}
log: {{level: warn}}
pools:
  w:
    command: {' '.join(self.cmd('{slot}'))}
    count: {count}
    ready: {{after: 0s}}
    memory: {limit}
    stale_job_timeout: 10m
    restart: {{backoff: [100ms, 1s], reset_after: 100ms, flapping: {{crashes: 1000, within: 1s, retry_after: 1s}}}}
"""

    def configure(self):
        # The control socket's path must be short, so the root is not below self.dir.
        self.root = tempfile.mkdtemp(prefix="ssb-")
        # Behind the bench's own clean-up, which ends whatever runs in there.
        atexit.register(shutil.rmtree, self.root, ignore_errors=True)
        make_app(self.dir / "app")
        self.write("first.yaml", self.config(0))
        self.write("config.yaml", self.config(self.n))
        began = time.monotonic()
        first = subprocess.Popen([BINARY, "--config", str(self.dir / "first.yaml"), "run"], stderr=subprocess.DEVNULL)
        while not (Path(self.root) / "current").is_symlink():
            if first.poll() is not None or time.monotonic() - began > 60:
                raise SystemExit("selfstart did not deploy")
            time.sleep(0.001)
        print(f"first deploy (start of the keeper to `current`): {(time.monotonic() - began) * 1000:.0f} ms", file=sys.stderr)
        first.send_signal(signal.SIGTERM)
        first.wait(60)

    def argv(self):
        return [BINARY, "--config", str(self.dir / "config.yaml"), "run"]


if __name__ == "__main__":
    sys.exit(supervisors.main())
