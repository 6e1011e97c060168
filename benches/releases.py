#!/usr/bin/env python3
"""How long it takes from a push to a release that is on disk, beside what people do by hand.

    cargo build --release
    benches/releases.py --sizes 5000,80000 --rounds 3

A tree of so many files (sizes spread as in rails/rails: half below 1 KB, some of tens) is generated, served by `git daemon` on loopback, and
deployed; then ten files change, twice, and the second time is measured: by then selfstart has a release that went as the base of the next one
(with `release.keep: 1`). Everything is synced (`syncfs` of the file system, which is what selfstart does before a release
counts as built), so run it when nothing else writes. One run, each round all ways in turn; medians. Ways:

    selfstart    `internal-git` fetch, then stage, then syncfs: the helper's work as the agent asks for it; no build, no switch (microseconds)
    clone        git clone --depth 1, sync
    worktree     git fetch --depth 1 into a bare clone, git worktree add, sync
    article      git pull in one work tree, cp -apR of it to a new release, sync: what the article "unicorns, god and resque" had
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ENV = {
    "PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
}
LIBC = ctypes.CDLL(None, use_errno=True)


def git(*args, cwd=None):
    subprocess.run(["git", *args], cwd=cwd, env=ENV, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def syncfs(path):
    fd = os.open(path, os.O_RDONLY)
    if LIBC.syncfs(fd) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")
    os.close(fd)


def make_tree(root, files):
    rng = random.Random(files)
    text = "".join(rng.choice("abcdefghij klmnop\n") for _ in range(200_000))
    for number in range(files):
        folder = os.path.join(root, f"d{number % 40}", f"e{number // 40 % 50}")
        os.makedirs(folder, exist_ok=True)
        size = min(int(rng.paretovariate(1.1) * 400), 60_000)
        start = rng.randrange(len(text) - size)
        with open(os.path.join(folder, f"f{number}.rb"), "w") as file:
            file.write(f"{number}\n" + text[start:start + size])


def change(work, served, number, files):
    rng = random.Random(number)
    for _ in range(10):
        at = rng.randrange(files)
        with open(os.path.join(work, f"d{at % 40}", f"e{at // 40 % 50}", f"f{at}.rb"), "a") as file:
            file.write(f"changed {number}\n")
    git("commit", "-qam", f"change {number}", cwd=work)
    git("push", "-q", served, "main", cwd=work)


class Selfstart:
    def __init__(self, binary, base, url):
        self.binary, self.base, self.url, self.number = binary, base, url, 0
        for name in ("releases", "shared"):
            os.makedirs(os.path.join(base, name))

    def ask(self, request):
        done = subprocess.run([self.binary, "internal-git"], input=json.dumps(request), capture_output=True, text=True, env=ENV)
        last = json.loads(done.stdout.splitlines()[-1])
        if "ok" not in last:
            sys.exit(f"selfstart: {last}")
        return last["ok"]

    def name(self, number):
        return f"20261123T0000{number:02}Z-1a2b3c4"

    def retire(self, number):
        """as a prune leaves the last one that it would remove"""
        releases = os.path.join(self.base, "releases")
        os.rename(os.path.join(releases, self.name(number)), os.path.join(releases, f".spare-{self.name(number)}"))

    def deploy(self):
        self.number += 1
        mirror, stem = os.path.join(self.base, "repo.git"), os.path.join(self.base, "releases", self.name(self.number))
        fetch = {"mirror": mirror, "url": self.url, "wanted": {"branch": "main"}, "depth": 1, "timeout_millis": 600_000}
        began = time.monotonic()
        revision = self.ask({"fetch": fetch})["fetched"]["revision"]
        fetched = time.monotonic()
        stage = {"mirror": mirror, "revision": revision, "destination": stem + ".tmp", "shared": os.path.join(self.base, "shared"), "timeout_millis": 600_000}
        self.ask({"stage": stage})
        staged = time.monotonic()
        syncfs(self.base)
        os.rename(stem + ".tmp", stem)
        ended = time.monotonic()
        self.parts = (fetched - began, staged - fetched, ended - staged)
        return ended - began


class Clone:
    def __init__(self, base, url):
        self.base, self.url, self.number = base, url, 0
        os.makedirs(base)

    def deploy(self):
        self.number += 1
        began = time.monotonic()
        git("clone", "-q", "--depth", "1", self.url, os.path.join(self.base, f"r{self.number}"))
        syncfs(self.base)
        return time.monotonic() - began


class Worktree(Clone):
    def deploy(self):
        self.number += 1
        bare = os.path.join(self.base, "repo.git")
        began = time.monotonic()
        if self.number == 1:
            git("clone", "-q", "--bare", "--depth", "1", self.url, bare)
        git("--git-dir", bare, "fetch", "-q", "--depth", "1", self.url, "+main:refs/wanted")
        git("--git-dir", bare, "worktree", "add", "--detach", os.path.join(self.base, f"r{self.number}"), "refs/wanted")
        syncfs(self.base)
        return time.monotonic() - began


class Article(Clone):
    def deploy(self):
        self.number += 1
        work = os.path.join(self.base, "shared-copy")
        began = time.monotonic()
        if self.number == 1:
            git("clone", "-q", "--depth", "1", self.url, work)
        else:
            git("pull", "-q", "--ff-only", cwd=work)
        subprocess.run(["cp", "-apR", work, os.path.join(self.base, f"r{self.number}")], check=True)
        syncfs(self.base)
        return time.monotonic() - began


def measure(binary, files, rounds, folder):
    base = tempfile.mkdtemp(prefix="releases-", dir=folder)
    daemon = None
    try:
        work, served = os.path.join(base, "work"), os.path.join(base, "served", "app.git")
        git("init", "-q", "-b", "main", work)
        git("init", "-q", "--bare", "-b", "main", served)
        make_tree(work, files)
        git("add", "-A", cwd=work)
        git("commit", "-qm", "first", cwd=work)
        git("push", "-q", served, "main", cwd=work)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = os.path.join(subprocess.run(["git", "--exec-path"], capture_output=True, text=True).stdout.strip(), "git-daemon")
        daemon = subprocess.Popen([program, "--listen=127.0.0.1", f"--port={port}", "--export-all", f"--base-path={base}/served"], env=ENV, stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.01)
        url = f"git://127.0.0.1:{port}/app.git"
        first, update, parts = {}, {}, {"first": [], "update": []}
        for number in range(rounds):
            of = lambda name: os.path.join(base, f"{name}-{number}")
            os.makedirs(of("selfstart"))
            ways = {"selfstart": Selfstart(binary, of("selfstart"), url), "clone": Clone(of("clone"), url),
                    "worktree": Worktree(of("worktree"), url), "article": Article(of("article"), url)}
            syncfs(base)
            # Each way is first in turn: what was written before still costs something.
            order = list(ways.items())
            order = order[number % len(order):] + order[:number % len(order)]
            for name, way in order:
                first.setdefault(name, []).append(way.deploy())
                syncfs(base)
            parts["first"].append(ways["selfstart"].parts)
            # A node that has more releases than it keeps; one of them is the base of the next.
            change(work, served, 2 * number, files)
            ways["selfstart"].deploy()
            ways["selfstart"].retire(1)
            change(work, served, 2 * number + 1, files)
            syncfs(base)
            for name, way in order:
                update.setdefault(name, []).append(way.deploy())
                syncfs(base)
            parts["update"].append(ways["selfstart"].parts)
            for name in ways:
                shutil.rmtree(of(name))
        return first, update, parts
    finally:
        if daemon:
            daemon.terminate()
            daemon.wait()
        shutil.rmtree(base, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(os.path.dirname(__file__), "..", "target", "release", "selfstart"))
    parser.add_argument("--sizes", default="5000,80000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=None, help="on the file system that is to be measured")
    args = parser.parse_args()
    # So that the server and the folder go, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print("| files | what | selfstart (fetch + stage + sync) | clone | worktree | article | of the clone | of the article |")
    print("|---|---|---|---|---|---|---|---|")
    for files in map(int, args.sizes.split(",")):
        first, update, parts = measure(os.path.abspath(args.binary), files, args.rounds, args.dir)
        for what, times in (("first", first), ("update", update)):
            med = {name: statistics.median(all) for name, all in times.items()}
            split = " + ".join(f"{statistics.median(part):.2f}" for part in zip(*parts[what]))
            print(f"| {files} | {what} | {med['selfstart']:.2f} s ({split}) | {med['clone']:.2f} s | {med['worktree']:.2f} s | {med['article']:.2f} s "
                  f"| {med['selfstart'] / med['clone']:.2f} | {med['selfstart'] / med['article']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
