#!/usr/bin/env python3
"""How long `selfstart upgrade` takes with so many workers that are handed over, and whether all of them stay.

    benches/upgrade.py                  10 and 1000 workers, 7 upgrades each
    benches/upgrade.py -n 100 --rounds 20

The binary measured is target/release/selfstart (or $SELFSTART); it is replaced by a copy of itself. Time: from the command to its answer, which comes when the
new program minds the node. Python's standard library and git are needed. Everything a run makes is in a temporary folder that is gone afterwards.
"""
import argparse, os, shutil, statistics, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("SELFSTART", str(HERE / "target/release/selfstart"))
CONFIG = """app: upgrade
root: {dir}/root
source: {{repository: "file://{dir}/app.git", branch: main}}
pools:
  w: {{command: "{dir}/worker 100000", count: {count}}}
"""


def said(args, env, **rest):
    done = subprocess.run(args, env=env, capture_output=True, text=True, **rest)
    if done.returncode:
        sys.exit(f"{' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def workers(program):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/exe") == program:
                    found.append(int(entry))
            except OSError:
                pass
    return sorted(found)


def measure(count, rounds):
    folder = tempfile.mkdtemp(prefix="upgrade-")
    env = {"PATH": os.environ["PATH"], "HOME": folder, "GIT_CONFIG_GLOBAL": "/dev/null"}
    app, config, newer = f"{folder}/app.git", f"{folder}/config.yaml", f"{folder}/newer"
    shutil.copy(shutil.which("sleep"), f"{folder}/worker")
    shutil.copy(PROGRAM, newer)
    said(["git", "init", "-q", "-b", "main", app], env)
    Path(app, "a").write_text("a\n")
    said(["git", "-C", app, "add", "."], env)
    said(["git", "-C", app, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"], env)
    Path(config).write_text(CONFIG.format(dir=folder, count=count))
    log = open(f"{folder}/log", "w")
    node = subprocess.Popen([PROGRAM, "--config", config, "run"], env=env, stdout=log, stderr=log)
    try:
        said([PROGRAM, "--config", config, "wait", "--timeout", "120s"], env)
        before, took = workers(f"{folder}/worker"), []
        for _ in range(rounds):
            began = time.monotonic()
            said([PROGRAM, "--config", config, "upgrade", "--binary", newer], env)
            took.append((time.monotonic() - began) * 1000)
        same = workers(f"{folder}/worker") == before and len(before) == count
        print(f"{count} workers, all the same after {rounds} upgrades: {'yes' if same else 'NO'};"
              f" min {min(took):.0f} ms, median {statistics.median(took):.0f} ms, max {max(took):.0f} ms", flush=True)
        return same
    finally:
        node.terminate()
        node.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, nargs="*", default=[10, 1000])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    sys.exit(0 if all([measure(count, args.rounds) for count in args.n]) else 1)


main()
