#!/usr/bin/env python3
"""Runs one scenario in a machine of its own; README.md says what there is.

    lab.py SCENARIO.py --binary PATH [--set KEY=VALUE ...] [--run FOLDER] [--keep]

A scenario is a Python file with `def scenario(lab)`. Exit status 0: every step held; 1: one did not; 2: it could not be run."""
import argparse
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(os.path.dirname(HERE))

# What a scenario's machine reaches of the host: nothing but git://git.lab.
GIT_IN_GUEST = "169.254.169.253:9418"

# Between two looks at something that cannot tell.
LOOK = 0.1


class Fail(Exception):
    """A step that did not hold."""


def until(look, seconds, what):
    """What `look` returns once that is true. The one place on the host where time passes between two looks."""
    end = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > end:
            raise Fail("not within %d s: %s" % (seconds, what))
        time.sleep(LOOK)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Git:
    """A repository that the machine reaches as git://git.lab/app.git, as long as its server is up."""

    def __init__(self, lab, files):
        self.lab = lab
        self.port = free_port()
        self.base, self.work = os.path.join(lab.run, "git"), os.path.join(lab.run, "work")
        bare = os.path.join(self.base, "app.git")
        os.makedirs(self.base)
        os.makedirs(self.work)
        self._git("init", "-q", "--bare", "-b", "main", bare)
        self._git("init", "-q", "-b", "main")
        self._git("remote", "add", "origin", bare)
        self.push(files, "first")
        self.start()

    def _git(self, *arguments):
        command = ["git", "-c", "user.name=lab", "-c", "user.email=lab@example.invalid", *arguments]
        done = subprocess.run(command, cwd=self.work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Fail("%s: %s" % (" ".join(command), done.stdout))
        return done.stdout.strip()

    def push(self, files, message):
        """Files by path; what begins with `#!` can be executed. Returns the revision."""
        for name, text in files.items():
            path = os.path.join(self.work, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(text)
            os.chmod(path, 0o755 if text.startswith("#!") else 0o644)
        self._git("add", "-A")
        self._git("commit", "-q", "--allow-empty", "-m", message)
        self._git("push", "-q", "origin", "main")
        self.lab.say("pushed", message)
        return self._git("rev-parse", "HEAD")

    def start(self):
        self.server = self.lab.spawn(["git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1", "--port=%d" % self.port,
                                      "--base-path=" + self.base, self.base])
        until(self._listens, 10, "a git server")

    def _listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def stop(self):
        self.server.terminate()
        self.server.wait()


class Lab:
    def __init__(self, run, binary, options):
        self.run, self.binary, self.options = run, binary, options
        self.began = self.booted = time.monotonic()
        self.payload = os.path.join(run, "payload")
        self.processes, self.qemu, self.git = [], None, None
        self.user_data = None
        self.marks = {}
        self.line, self.heard, self.asked = None, b"", 0
        os.makedirs(os.path.join(self.payload, "rootfs"), exist_ok=True)
        # `--set seed=N` repeats a run.
        self.random = random.Random(int(options.get("seed", "7")))

    def say(self, *words):
        print("[%6.1fs]" % (time.monotonic() - self.began), *words, flush=True)

    def ok(self, *words):
        self.say("ok  ", *words)

    def fail(self, why):
        raise Fail(why)

    # The host.

    def spawn(self, command):
        name = "%s.%d.log" % (os.path.basename(command[0]), len(self.processes))
        with open(os.path.join(self.run, name), "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def serve(self, files):
        """A repository with these files; returns what pushes to it."""
        self.git = Git(self, files)
        return self.git.push

    def pass_a_random_moment(self, most):
        """For what may happen at any moment, and not because something else has."""
        time.sleep(self.random.uniform(0, most))

    def package(self, version="1.0.0-1"):
        """The program as a Debian package of this version; returns its path."""
        command = [os.path.join(PROJECT, "packaging/deb"), "--binary", self.binary, "--version", version, "--out", self.run, "--compression", "none"]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout.strip()

    # What is in the machine before its first boot, as if baked into its image.

    def put_file(self, path, source):
        path = os.path.join(self.payload, "rootfs", path.lstrip("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copyfile(source, path)

    def put(self, path, text, mode=0o644):
        path = os.path.join(self.payload, "rootfs", path.lstrip("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, mode)

    def bake(self, config=None):
        """Installs the package, by dpkg in a chroot as an image is baked, and enables the unit. Without a configuration, user data brings it."""
        shutil.copyfile(self.package(), os.path.join(self.payload, "selfstart.deb"))
        if config:
            self.put("/etc/selfstart/config.yaml", config)

    def bake_command(self, command):
        """Is run in the machine's root once, after the package was installed, before anything boots."""
        with open(os.path.join(self.payload, "bake.sh"), "a") as script:
            script.write(command + "\n")

    # The machine.

    def boot(self, keep=False):
        """`keep`: with the disk as the last boot left it."""
        command = [os.path.join(HERE, "boot.sh"), self.run, "--payload", self.payload]
        if self.user_data is None:
            # Most of a boot is cloud-init.
            command += ["--append", "cloud-init=disabled"]
        else:
            seed = os.path.join(self.run, "seed")
            os.makedirs(seed, exist_ok=True)
            for name, text in (("user-data", self.user_data), ("meta-data", "instance-id: lab-1\nlocal-hostname: selfstart-lab\n")):
                with open(os.path.join(seed, name), "w") as file:
                    file.write(text)
            command += ["--seed", seed]
        if keep:
            command.append("--keep-disk")
        if self.git:
            command += ["--fwd", "%s=127.0.0.1:%d" % (GIT_IN_GUEST, self.git.port)]
        self.booted = time.monotonic()
        self.qemu = self.spawn(command)

    def since_boot(self):
        """In seconds, from the start of qemu, or from the last order to reboot."""
        return time.monotonic() - self.booted

    def sh(self, command, timeout=300, check=True):
        """Runs it as root in the machine; returns its exit status and what it printed. Asks again when the machine reboots under it."""
        end = time.monotonic() + timeout
        self.asked += 1
        number, sent, pinged = self.asked, False, 0.0
        while time.monotonic() < end:
            if not self.line:
                self._connect(end)
                sent = False
            if not sent and time.monotonic() - pinged > 2:
                self._write({"id": -number})
                pinged = time.monotonic()
            for answer in self._answers():
                if answer.get("id") == -number and not sent:
                    self._write({"id": number, "cmd": command, "timeout": timeout})
                    sent = True
                elif answer.get("id") == number:
                    if check and answer["rc"]:
                        raise Fail("in the machine: %s -> %d\n%s" % (command, answer["rc"], answer["out"][-2000:]))
                    return answer["rc"], answer["out"]
        raise Fail("the machine did not answer: " + command)

    def out(self, command, timeout=300):
        return self.sh(command, timeout)[1].strip()

    def _connect(self, end):
        def connect():
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(os.path.join(self.run, "lab.sock"))
            except OSError:
                line.close()
                return None
            line.settimeout(1)
            return line

        self.line, self.heard = until(connect, end - time.monotonic(), "a line into the machine"), b""

    def _write(self, question):
        self.line.sendall(b"\n" + json.dumps(question).encode() + b"\n")

    def _answers(self):
        """What has been heard, by lines; nothing after a second without any."""
        try:
            data = self.line.recv(65536)
        except socket.timeout:
            return
        if not data:
            self.hang_up()
            return
        *lines, self.heard = (self.heard + data).split(b"\n")
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                # The beginning of it went to a boot that is over.
                continue

    def hang_up(self):
        if self.line:
            self.line.close()
        self.line = None

    def log(self, which):
        """`console`: the journal; `serial`: the kernel and what systemd shows."""
        try:
            with open(os.path.join(self.run, which + ".log"), "rb") as file:
                return file.read().decode("utf8", "replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def mark(self):
        """`expect` looks only at what is logged from here on."""
        self.marks = {which: len(self.log(which)) for which in ("console", "serial")}

    def expect(self, pattern, timeout=120, which="console"):
        def look():
            match = re.search(pattern, self.log(which)[self.marks.get(which, 0):], re.M)
            if not match and self.qemu.poll() is not None:
                raise Fail("qemu ended (%s) before %r" % (self.qemu.returncode, pattern))
            return match

        match = until(look, timeout, "%r in %s.log" % (pattern, which))
        self.ok(which, repr(pattern), "->", match.group(0)[:160])
        return match

    def reboot(self):
        """Asks for it, and waits for the next boot's node: what is asked before is never answered."""
        self.order("systemctl reboot")
        self.expect("kind=agent_started", 300)
        self.hang_up()

    def poweroff(self, timeout=180):
        self.order("systemctl poweroff")
        until(lambda: self.qemu.poll() is not None, timeout, "the machine switches itself off")
        self.hang_up()

    def order(self, command):
        """What ends the line on which it could be answered."""
        self.mark()
        self.booted = time.monotonic()
        self.sh("systemd-run --quiet --no-block --on-active=0.3 --timer-property=AccuracySec=10ms " + command)

    def cut_the_power(self):
        """The end of a spot instance whose notice nobody heard."""
        self.qemu.kill()
        self.qemu.wait()
        self.hang_up()

    def close(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario")
    parser.add_argument("--binary", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--run")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    run = given.run or tempfile.mkdtemp(prefix="selfstart-lab.")
    os.makedirs(run, exist_ok=True)
    spec = importlib.util.spec_from_file_location("scenario", given.scenario)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, HERE)
    spec.loader.exec_module(module)
    lab = Lab(os.path.abspath(run), given.binary, dict(pair.split("=", 1) for pair in given.set))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    status = 2
    try:
        module.scenario(lab)
        lab.say("PASS", given.scenario)
        status = 0
    except Fail as fail:
        for which in ("serial", "console"):
            print("---- last of %s.log\n%s" % (which, lab.log(which)[-4000:]))
        lab.say("FAIL", fail)
        status = 1
    except Exception:
        traceback.print_exc(file=sys.stdout)
        lab.say("ERROR", given.scenario)
    finally:
        lab.close()
        if status == 0 and not given.keep and not given.run:
            shutil.rmtree(run, ignore_errors=True)
        else:
            print("what is left of it:", run)
    sys.exit(status)


if __name__ == "__main__":
    main()
