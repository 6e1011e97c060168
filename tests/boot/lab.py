#!/usr/bin/env python3
"""Scenario runner for the boot lab (stdlib only; README.md says what it is for).   lab.py SCENARIO.py [--binary PATH] [--set k=v ...] [--run DIR] [--keep]
A scenario is a Python file with  def scenario(lab): ...  ; exit status 0 = every step held, 1 = one failed, 2 = could not run."""
import argparse, importlib.util, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))


class Fail(Exception): pass


def freeport():
    s = socket.socket(); s.bind(("127.0.0.1", 0)); p = s.getsockname()[1]; s.close(); return p


class Lab:
    def __init__(self, run, args):
        self.run, self.args = run, args; self.opt = dict(x.split("=", 1) for x in args.set); self.procs = []; self.qemu = None
        self.t0 = time.time(); self.pos = {}; self.fwds = []; self.sock = None; self.nid = 0; self.buf = b""; self.payload = os.path.join(run, "payload")
        self.binary = args.binary; self.project = os.path.dirname(os.path.dirname(HERE)); self.seed = None; self.mem = 1024; self.smp = 2; self.append = ""   # append: kernel command line, e.g. "cloud-init=disabled" (saves most of the boot)
        os.makedirs(os.path.join(self.payload, "rootfs"), exist_ok=True)

    def fail(self, why): raise Fail(why)

    def say(self, *a): print("[%6.1fs]" % (time.time() - self.t0), *a, flush=True)

    # ---- things on the host -------------------------------------------------------------
    def spawn(self, argv, **kw):
        lf = open(os.path.join(self.run, os.path.basename(argv[0]) + ".%d.log" % len(self.procs)), "ab")
        p = subprocess.Popen(argv, stdout=lf, stderr=lf, stdin=subprocess.DEVNULL, **kw); self.procs.append(p); return p

    def wait_port(self, port, t=10):
        end = time.time() + t
        while time.time() < end:
            try: socket.create_connection(("127.0.0.1", port), 1).close(); return
            except OSError: time.sleep(0.1)
        raise Fail("port %d did not open" % port)

    def forward(self, guest, hostport): self.fwds.append("%s=127.0.0.1:%d" % (guest, hostport))

    def start_git(self, files, branch="main", name="app.git"):
        """a bare repository served as git://git.lab/<name> ; returns a push(files, message) function"""
        base = os.path.join(self.run, "git"); bare, wt = os.path.join(base, name), os.path.join(self.run, "work-" + name)
        os.makedirs(base, exist_ok=True); g = lambda *a, cwd=wt: subprocess.run(["git", "-c", "user.name=lab", "-c", "user.email=lab@example.invalid", *a], cwd=cwd, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode().strip()
        g("init", "-q", "--bare", "-b", branch, bare, cwd=base); os.makedirs(wt); g("init", "-q", "-b", branch); g("remote", "add", "origin", bare)
        def push(fs, msg="commit"):
            for k, v in fs.items():
                f = os.path.join(wt, k); os.makedirs(os.path.dirname(f), exist_ok=True); open(f, "w").write(v)
                if v.startswith("#!"): os.chmod(f, 0o755)
            g("add", "-A"); g("commit", "-q", "--allow-empty", "-m", msg); g("push", "-q", "origin", branch); h = g("rev-parse", "HEAD"); self.say("pushed", h[:10], msg); return h
        if not getattr(self, "gitport", None):
            self.gitport = freeport(); self.git_command = ["git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1", "--port=%d" % self.gitport, "--base-path=" + base, base]; self.git = self.spawn(self.git_command); self.wait_port(self.gitport); self.forward("169.254.169.253:9418", self.gitport)
        self.head = push(files, "first"); return push

    def stop_git(self): self.git.terminate(); self.git.wait()

    def restart_git(self): self.git = self.spawn(self.git_command); self.wait_port(self.gitport)

    def wait(self, seconds): time.sleep(seconds)

    def wait_off(self, timeout):
        try: self.qemu.wait(timeout)
        except subprocess.TimeoutExpired: raise Fail("the machine does not switch itself off")

    def put(self, path, text=None, src=None, mode=0o644):
        """a file for the guest's first boot (as if in the AMI)"""
        f = os.path.join(self.payload, "rootfs", path.lstrip("/")); os.makedirs(os.path.dirname(f), exist_ok=True)
        if src: shutil.copyfile(src, f)
        else: open(f, "w").write(text)
        os.chmod(f, mode)

    def enable(self, unit):
        d = os.path.join(self.payload, "rootfs/etc/systemd/system/multi-user.target.wants"); os.makedirs(d, exist_ok=True); os.symlink("../" + unit, os.path.join(d, unit))

    def nocloud(self, user_data, instance="lab-1"):
        self.seed = os.path.join(self.run, "seed"); os.makedirs(self.seed, exist_ok=True)
        open(self.seed + "/user-data", "w").write(user_data); open(self.seed + "/meta-data", "w").write("instance-id: %s\nlocal-hostname: selfstart-lab\n" % instance)

    # ---- the guest ---------------------------------------------------------------------
    def boot(self, keep=False):
        a = [os.path.join(HERE, "boot.sh"), self.run, "--payload", self.payload, "--mem", str(self.mem), "--smp", str(self.smp)]
        if self.seed: a += ["--seed", self.seed]
        if keep: a += ["--keep-disk"]
        if self.append: a += ["--append", self.append]
        for f in self.fwds: a += ["--fwd", f]
        self.tboot = time.time(); self.qemu = self.spawn(a); self.say("qemu started, pid", self.qemu.pid)

    def log(self, which="console"):
        try: return open(os.path.join(self.run, which + ".log"), "rb").read().decode("utf8", "replace").replace("\r", "")
        except FileNotFoundError: return ""

    def mark(self):
        for w in ("console", "serial"): self.pos[w] = len(self.log(w))

    def expect(self, rx, timeout=120, which="console", since_mark=True):
        """wait until rx is in the log after the last mark(); returns the match; only the log, no order among expects"""
        t = time.time()
        while True:
            m = re.search(rx, self.log(which)[self.pos.get(which, 0) if since_mark else 0:], re.M)
            if m: self.say("ok  ", which, repr(rx), "->", m.group(0)[:160]); return m
            if self.qemu and self.qemu.poll() is not None: raise Fail("qemu ended (%s) while waiting for %r" % (self.qemu.returncode, rx))
            if time.time() - t > timeout: raise Fail("not seen in %d s: %r in %s.log" % (timeout, rx, which))
            time.sleep(0.2)

    def refuse(self, rx, seconds=0, which="console"):
        time.sleep(seconds); m = re.search(rx, self.log(which)[self.pos.get(which, 0):], re.M)
        if m: raise Fail("should not be there: %r" % m.group(0))
        self.say("ok  ", "absent", repr(rx))

    def _conn(self, timeout):
        end = time.time() + timeout; self.buf = b""
        while time.time() < end:
            try: s = socket.socket(socket.AF_UNIX); s.connect(os.path.join(self.run, "lab.sock")); s.settimeout(1); self.sock = s; return
            except OSError: time.sleep(0.3)
        raise Fail("no lab.sock")

    def sh(self, cmd, timeout=120, check=True):
        """run cmd as root in the guest through lab-agent; returns (rc, output); asks again if the guest reboots under it"""
        end = time.time() + timeout
        if not self.sock: self._conn(timeout)
        self.nid += 1; nid = self.nid; pinged = 0; sent = False
        while time.time() < end:
            if not sent and time.time() - pinged > 2: self.sock.sendall(b'\n{"id":-%d}\n' % nid); pinged = time.time()
            try: d = self.sock.recv(65536)
            except socket.timeout: continue
            if not d: self.sock = None; self._conn(max(1, end - time.time())); sent = False; continue
            self.buf += d
            while b"\n" in self.buf:
                line, self.buf = self.buf.split(b"\n", 1)
                try: r = json.loads(line)
                except ValueError: continue
                if r.get("id") == -nid and not sent: self.sock.sendall(json.dumps({"id": nid, "cmd": cmd, "timeout": timeout}).encode() + b"\n"); sent = True
                elif r.get("id") == nid:
                    if check and r["rc"]: raise Fail("guest: %s -> rc %d\n%s" % (cmd, r["rc"], r["out"][-2000:]))
                    return r["rc"], r["out"]
        raise Fail("guest did not answer: " + cmd)

    def reboot(self, how="systemctl reboot"):
        self.mark(); self.tboot = time.time(); self.say("reboot:", how); self.sh("nohup sh -c 'sleep 0.3; %s' >/dev/null 2>&1 &" % how)

    def since_boot(self): return time.time() - self.tboot

    def power_off_hard(self): self.qemu.kill(); self.qemu.wait(); self.sock = None   # the end of a spot instance: no warning to the OS

    def close(self):
        for p in reversed(self.procs):
            if p.poll() is None:
                p.terminate()
                try: p.wait(5)
                except subprocess.TimeoutExpired: p.kill(); p.wait()


def main():
    p = argparse.ArgumentParser(); A = p.add_argument; A("scenario"); A("--binary"); A("--set", action="append", default=[]); A("--run"); A("--keep", action="store_true"); a = p.parse_args()
    run = a.run or tempfile.mkdtemp(prefix="selfstart-lab."); os.makedirs(run, exist_ok=True)
    spec = importlib.util.spec_from_file_location("scenario", a.scenario); mod = importlib.util.module_from_spec(spec); spec.loader.exec_module(mod)
    lab = Lab(run, a); signal.signal(signal.SIGTERM, lambda *_: sys.exit(2)); rc = 2
    try: mod.scenario(lab); lab.say("PASS", a.scenario); rc = 0
    except Fail as e: lab.say("FAIL", e); rc = 1; print("---- last of console.log\n" + lab.log()[-4000:]); print("---- last of serial.log\n" + lab.log("serial")[-1500:])
    except Exception: import traceback; traceback.print_exc(file=sys.stdout); lab.say("ERROR", a.scenario); rc = 2
    finally:
        lab.close()
        if rc == 0 and not a.keep and not a.run: shutil.rmtree(run, ignore_errors=True)
        else: print("run directory:", run)
    sys.exit(rc)


if __name__ == "__main__": main()
