"""The Debian package on a real machine, by the real dpkg and the real systemd.

Installed without a configuration: nothing runs, and nothing has failed. A configuration is written: it starts, as an unprivileged user's workers.
Reboot: it comes up by itself. Upgrade, downgrade: the same workers. Removed: none is left, their configuration and root are. Purged."""
import os, subprocess

from minding import WORK, same_workers, workers

CONFIG = """app: lab
root: /srv/lab
user: nobody
source: {repository: "git://git.lab/app.git", branch: main}
release: {min_free: 0}
pools:
  w: {command: ./work, count: 3, limits: {memory: 64MiB, tasks: 20, cpu: 1.5}}
"""


def scenario(lab):
    lab.append = "cloud-init=disabled"
    lab.start_git({"work": WORK})
    for version in ["1.0.0-1", "1.1.0-1"]:
        told = subprocess.run([lab.project + "/packaging/deb", "--binary", lab.binary, "--version", version, "--out", lab.run], stdout=subprocess.PIPE, check=True)
        lab.put("/root/%s.deb" % version, src=told.stdout.decode().strip())
    lab.put("/root/config.yaml", CONFIG)
    lab.boot()
    state = lambda: lab.sh("systemctl show -p ActiveState,SubState,Result,ConditionResult,UnitFileState selfstart | tr '\\n' ' '")[1]
    install = lambda version: lab.sh("dpkg -i /root/%s.deb 2>&1" % version, 180)[1]

    told = install("1.0.0-1")
    if "write /etc/selfstart/config.yaml" not in told:
        lab.fail("it does not say what to do next: " + told)
    lab.sh("systemctl start selfstart")
    now = state()
    if "ActiveState=inactive" not in now or "ConditionResult=no" not in now or "UnitFileState=enabled" not in now or "Result=success" not in now:
        lab.fail("without a configuration: " + now)
    lab.say("ok   without a configuration:", now)

    lab.sh("install -o root -g selfstart -m 640 /root/config.yaml /etc/selfstart/config.yaml && systemctl start selfstart && selfstart wait --ready --timeout 120s", 200)
    lab.reboot()
    # What is asked before that is answered by the boot that ends, or by none.
    lab.expect("kind=agent_started", 240)
    lab.sock = None
    lab.sh("selfstart wait --ready --timeout 120s", 300)
    lab.say("ok   configured; reboot -> ready %.1f s" % lab.since_boot())
    first = workers(lab)
    owners = set(lab.sh("ps -o user= -p " + ",".join(str(it["pid"]) for it in first.values()))[1].split())
    if owners != {"nobody"}:
        lab.fail("workers run as %s" % owners)

    can = lab.sh("selfstart help upgrade >/dev/null 2>&1", check=False)[0] == 0
    for version in ["1.1.0-1", "1.0.0-1"]:
        told = install(version)
        if can == ("still runs the program from before" in told):
            lab.fail("%s, and what runs was %srenewed: %s" % (version, "not " if can else "", told))
        lab.sh("selfstart wait --ready --timeout 60s", 90)
        same_workers(lab, first, "%s: %s" % (version, "renewed" if can else "told that it must be renewed by hand"))
        if "ActiveState=active" not in state():
            lab.fail(state())

    lab.sh("dpkg -r selfstart 2>&1", 180)
    if lab.sh("pgrep -x work; pgrep -x selfstart", check=False)[1].strip():
        lab.fail("removed, and these run: " + lab.sh("ps -eo pid,args | grep -E '[w]ork|[s]elfstart'", check=False)[1])
    told = lab.sh("dpkg -P selfstart 2>&1", 60)[1]
    if "/etc/selfstart stays" not in told:
        lab.fail(told)
    lab.sh("test -e /etc/selfstart/config.yaml && test -e /srv/lab/current && ! test -e /etc/systemd/system/multi-user.target.wants/selfstart.service")
    lab.say("ok   removed and purged:", " ".join(told.split("\n")[-3:]))
