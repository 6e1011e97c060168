#!/usr/bin/env python3
"""What one start costs through a manager's shim or shell, and directly with the environment that selfstart keeps.

    benches/runtime.py [--starts N]

Wants a built selfstart (target/release, or target/debug), Debian's rbenv and ruby, and pyenv with a python in ~/.pyenv; leaves out what is not
there. Nothing is loaded by the languages themselves (`--disable-gems`, `-I -S`), so that what is left is the way to them. Each way in turn,
round by round, so that a busy moment meets all of them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HERE = Path(__file__).resolve().parent.parent


def selfstart():
    for kind in ("release", "debug"):
        program = HERE / "target" / kind / "selfstart"
        if program.exists():
            return str(program)
    sys.exit("build selfstart first: cargo build --release")


def captured(release, home):
    """The environment that a release gets, and how long finding it took."""
    request = json.dumps({"release": str(release), "setting": "auto", "user": "bench"})
    env = {"PATH": PATH, "HOME": str(home), "LANG": "C.UTF-8"}
    began = time.monotonic()
    said = subprocess.run([selfstart(), "internal-runtime"], input=request, env=env, capture_output=True, text=True, check=True).stdout
    took = time.monotonic() - began
    return {**env, **json.loads(said)["ok"]["vars"]}, took


def start(argv, env, cwd):
    began = time.monotonic()
    subprocess.run(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return (time.monotonic() - began) * 1000


def program_along(path, name):
    return next(str(Path(entry) / name) for entry in path.split(":") if (Path(entry) / name).exists())


def measure(title, ways, cwd, starts):
    took = {name: [] for name, _, _ in ways}
    for _ in range(starts):
        for name, argv, env in ways:
            took[name].append(start(argv, env, cwd))
    direct = statistics.median(took[ways[0][0]])
    for name, times in took.items():
        middle = statistics.median(times)
        print(f"| {title} | {name} | {middle:.1f} ms | {sorted(times)[int(len(times) * 0.9)]:.1f} ms | {middle - direct:+.1f} ms |")


def ruby(starts):
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        release = home / "release"
        release.mkdir()
        version = home / ".rbenv/versions/3.1.2/bin"
        version.mkdir(parents=True)
        for name in ("ruby", "gem"):
            (version / name).symlink_to(f"/usr/bin/{name}")
        (release / ".ruby-version").write_text("3.1.2\n")
        (home / ".bash_profile").write_text('eval "$(rbenv init - bash)"\n')
        plain = {"PATH": PATH, "HOME": str(home)}
        subprocess.run(["rbenv", "rehash"], env=plain, cwd=release, check=True)
        env, took = captured(release, home)
        argv = ["--disable-gems", "-e", "0"]
        ways = [
            ("selfstart's environment", [program_along(env["PATH"], "ruby"), *argv], env),
            ("rbenv's shim", [str(home / ".rbenv/shims/ruby"), *argv], plain),
            ("`bash -lc` with `rbenv init`", ["bash", "-lc", "ruby " + " ".join(argv)], plain),
        ]
        measure("ruby", ways, release, starts)
        return took


def python(starts):
    root = Path.home() / ".pyenv"
    versions = sorted(path.name for path in root.glob("versions/3.*"))
    if not versions:
        print("left out: there is no pyenv with a python", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        release = Path(folder)
        (release / ".python-version").write_text(versions[-1] + "\n")
        plain = {"PATH": PATH, "HOME": str(Path.home()), "PYENV_ROOT": str(root)}
        env, took = captured(release, Path.home())
        argv = ["-I", "-S", "-c", "0"]
        ways = [
            ("selfstart's environment", [program_along(env["PATH"], "python"), *argv], env),
            ("pyenv's shim", [str(root / "shims/python"), *argv], plain),
        ]
        measure("python", ways, release, starts)
        return took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=60)
    starts = parser.parse_args().starts
    print("| language | started through | med | p90 | more than directly |\n|---|---|---|---|---|")
    took = [ruby(starts), python(starts)]
    print("found once per release, with the program tried: " + ", ".join(f"{it * 1000:.0f} ms" for it in took if it is not None))


if __name__ == "__main__":
    main()
