"""The same machine without units: one line in rc.local before its last `exit 0`, as machines were started before systemd.

`install --rc-local` in the image -> boot goes on while the node deploys; push + reboot -> the new revision; agent and keeper KILLed: the same
workers after the next `run`; uninstall: rc.local has its bytes and mode back."""
from node import pids, wait_ready, workers

CONFIG = """app: lab
root: /srv/lab
user: nobody
source: {repository: "git://git.lab/app.git", branch: main}
release: {min_free: 0, confirm: 0s}
pools:
  w: {command: ./work, count: 2}
"""
WORK = """#!/bin/sh
echo works $(cat version)
exec sleep 1000000
"""
RC_LOCAL = """#!/bin/sh -e
# What the machine did before.
touch /run/before
exit 0
"""


def works(lab, version):
    lab.sh("until [ $(grep -ls 'works %s$' /srv/lab/log/w.0.log /srv/lab/log/w.1.log | wc -l) = 2 ]; do sleep 0.2; done" % version, 120)
    lab.ok("version", version, "works, %.1f s" % lab.since_boot())


def scenario(lab):
    push = lab.serve({"work": WORK, "version": "v1\n"})
    lab.put("/etc/rc.local", RC_LOCAL, 0o755)
    lab.bake(CONFIG)
    lab.bake_command("cp -p /etc/rc.local /var/tmp/rc.local.before")
    lab.bake_command("systemctl disable selfstart.service || true")
    lab.bake_command("selfstart install --rc-local")
    # The second time nothing changes.
    lab.bake_command("cp -p /etc/rc.local /var/tmp/once; selfstart install --rc-local; cmp /etc/rc.local /var/tmp/once")
    lab.boot()
    lab.sh("until [ -e /run/before ]; do sleep 0.1; done")
    wait_ready(lab, "boot through rc.local")
    works(lab, "v1")
    lab.ok("rc.local:", repr(lab.out("tail -n 4 /etc/rc.local")))
    if lab.out("systemctl is-active rc-local selfstart || true").split() not in (["active", "inactive"], ["active", "unknown"]):
        lab.fail("not started by rc.local: " + lab.out("systemctl status rc-local selfstart || true"))
    lab.sh("systemctl is-system-running --wait || true", 120)

    push({"version": "v2\n"}, "v2")
    lab.order("systemctl reboot")
    lab.expect("Welcome to", 240, which="serial")
    lab.hang_up()
    wait_ready(lab, "push + reboot")
    works(lab, "v2")

    first = workers(lab)
    lab.sh("pkill -9 -f '[i]nternal-agent'; until selfstart status >/dev/null 2>&1; do sleep 0.1; done", 30)
    if pids(workers(lab)) != pids(first):
        lab.fail("agent KILLed: other workers")
    lab.ok("agent KILLed: the same workers")

    lab.sh("selfstart uninstall --force")
    lab.sh("cmp /etc/rc.local /var/tmp/rc.local.before && [ $(stat -c %a:%U /etc/rc.local) = $(stat -c %a:%U /var/tmp/rc.local.before) ]")
    lab.ok("uninstall: rc.local has its bytes and mode back")
