"""A first build that takes three minutes: the unit is up long before, nothing cuts the build short, and the machine's boot does not wait."""
import json

from node import wait_ready

CONFIG = """app: lab
root: /srv/lab
user: nobody
source: {repository: "git://git.lab/app.git", branch: main}
release: {min_free: 0, confirm: 0s}
build: {steps: ["sleep 185; date +%s > built"], timeout: 30m}
pools:
  w: {command: ./work, count: 2}
"""
WORK = "#!/bin/sh\nexec sleep 1000000\n"


def scenario(lab):
    lab.serve({"work": WORK})
    lab.bake(CONFIG)
    lab.boot()
    # By now units that are not ready after TimeoutStartSec's default of 90 s would have been ended.
    lab.sh("until systemctl is-active --quiet selfstart; do sleep 0.2; done", 120)
    lab.ok("the unit is active, %.1f s" % lab.since_boot())
    lab.sh("systemctl is-system-running --wait || true", 240)
    lab.ok("the machine is up, %.1f s" % lab.since_boot())
    status = json.loads(lab.out("selfstart status --json"))
    if lab.sh("test -e /srv/lab/current", check=False)[0] == 0:
        lab.fail("the build should still go on")
    lab.ok("while it builds:", lab.out("systemctl show -p StatusText --value selfstart"), "|", status["deploy"]["phase"] if "phase" in status["deploy"] else status["deploy"])
    wait_ready(lab, "three minutes of build", 400)
    if lab.out("systemctl show -p NRestarts --value selfstart") != "0":
        lab.fail("the unit was started again")
    if lab.out("ls /srv/lab/releases | wc -l") != "1":
        lab.fail("it took more than one release: " + lab.out("ls /srv/lab/releases"))
