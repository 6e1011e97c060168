"""The Debian package on a real machine, by the real dpkg and the real systemd.

Installed without a configuration: nothing runs, and nothing has failed. A configuration is written: it starts, as an unprivileged user's workers.
Reboot: it comes up by itself. Upgrade, downgrade: the same workers. Removed: none is left, their configuration and root are. Purged."""
from minding import WORK, same_workers
from node import wait_ready, workers

CONFIG = """app: lab
root: /srv/lab
user: nobody
source: {repository: "git://git.lab/app.git", branch: main}
release: {min_free: 0, confirm: 0s}
pools:
  w: {command: ./work, count: 3, limits: {memory: 64MiB, tasks: 20, cpu: 1.5}}
"""


FORMER, NEXT = "1.0.0-1", "1.1.0-1"


def install(lab, version):
    return lab.out("dpkg -i /root/%s.deb 2>&1" % version, 180)


def unit(lab):
    return lab.out("systemctl show -p ActiveState,SubState,Result,ConditionResult,UnitFileState selfstart | tr '\\n' ' '")


def without_configuration(lab):
    told = install(lab, FORMER)
    if "write /etc/selfstart/config.yaml" not in told:
        lab.fail("it does not say what to do next: " + told)
    lab.sh("systemctl start selfstart")
    now = unit(lab)
    for wanted in ("ActiveState=inactive", "ConditionResult=no", "UnitFileState=enabled", "Result=success"):
        if wanted not in now:
            lab.fail("without a configuration: " + now)
    lab.ok("without a configuration:", now)


def removed(lab):
    lab.sh("dpkg -r selfstart 2>&1", 180)
    if lab.sh("pgrep -x work; pgrep -x selfstart", check=False)[1].strip():
        lab.fail("removed, and these run: " + lab.out("ps -eo pid,args | grep -E '[w]ork|[s]elfstart' || true"))
    told = lab.out("dpkg -P selfstart 2>&1", 60)
    if "/etc/selfstart stays" not in told:
        lab.fail(told)
    lab.sh("test -e /etc/selfstart/config.yaml && test -e /srv/lab/current && ! test -e /etc/systemd/system/multi-user.target.wants/selfstart.service")
    lab.ok("removed and purged:", " ".join(told.split("\n")[-3:]))


def scenario(lab):
    lab.serve({"work": WORK})
    for version in (FORMER, NEXT):
        lab.put_file("/root/%s.deb" % version, lab.package(version))
    lab.put("/root/config.yaml", CONFIG)
    lab.boot()
    without_configuration(lab)

    lab.sh("install -o root -g selfstart -m 640 /root/config.yaml /etc/selfstart/config.yaml && systemctl start selfstart")
    wait_ready(lab, "configured")
    lab.reboot()
    wait_ready(lab, "reboot")
    first = workers(lab)
    owners = set(lab.out("ps -o user= -p " + ",".join(str(it["pid"]) for it in first.values())).split())
    if owners != {"nobody"}:
        lab.fail("workers run as %s" % owners)

    for version in (NEXT, FORMER):
        told = install(lab, version)
        if "still runs the program from before" in told:
            lab.fail("%s, and what runs was not renewed: %s" % (version, told))
        wait_ready(lab, version, 60)
        same_workers(lab, first, "%s: renewed" % version)
        if "ActiveState=active" not in unit(lab):
            lab.fail(unit(lab))
    removed(lab)
