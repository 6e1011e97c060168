"""What becomes of deploys on a machine that is rebooted, switched off and cut off.

boot -> deployed -> ready; push + reboot -> the new revision; the git server down at boot: the last good release works, the update follows;
power cut at five moments of a deploy: the next boot ends in a whole release; poweroff with a job in flight: it is finished first."""
import json, random

CONFIG = """app: lab
root: /srv/lab
user: nobody
source: {repository: "git://git.lab/app.git", branch: main, boot_timeout: 20s}
release: {min_free: 0, keep: 3}
build: {steps: ["./build", "test -s built.0 && test -s built.199"]}
pools:
  w: {command: ./work, count: 2, stop: [TERM 30s, KILL]}
"""
# Two hundred files, so that a power cut has something to tear.
BUILD = "#!/bin/sh\nset -eu\ni=0\nwhile [ $i -lt 200 ]; do cat version version version > built.$i; i=$((i+1)); done\n"
WORK = r"""#!/usr/bin/python3
import os, signal, sys, time
slot, job = os.environ["SELFSTART_SLOT"], None
def term(*_):
    if slot == "0" and os.path.exists("/srv/lab/shared/long"):
        time.sleep(5)
        with open("/srv/lab/shared/finished", "w") as f:
            f.write("yes"); f.flush(); os.fsync(f.fileno())
        os.sync()
    sys.exit(0)
signal.signal(signal.SIGTERM, term)
print("worker", slot, "works", open("version").read().strip(), flush=True)
while True: time.sleep(1)
"""


def ready(lab, version, what, timeout=240):
    lab.sh("selfstart wait --ready --timeout %ds" % timeout, timeout + 60)
    lab.sh("until grep -hs 'works %s$' /srv/lab/log/w.0.log /srv/lab/log/w.1.log | wc -l | grep -q '^[2-9]'; do sleep 0.2; done" % version, 120)
    lab.say("ok  ", what, "-> version", version, "works, %.1f s" % lab.since_boot())
    whole(lab, version)


def rebooted(lab):
    """Asks for a reboot, and waits until the next boot's node is there: what is asked before is never answered."""
    lab.reboot()
    lab.expect("kind=agent_started", 240)
    lab.sock = None


def whole(lab, version=None):
    """`current` points to a release that is whole and built; returns its version."""
    seen = lab.sh("cd /srv/lab/current/ && n=$(ls built.* | wc -l) && for f in built.*; do [ \"$(cat $f)\" = \"$(cat version version version)\" ] || exit 9; done && echo $n $(cat version)")[1].split()
    if seen[0] != "200" or (version and seen[1] != version):
        lab.fail(f"current is not whole, or another: {seen}, wanted {version}")
    return seen[1]


def scenario(lab):
    lab.append = "cloud-init=disabled"
    push = lab.start_git({"work": WORK, "build": BUILD, "version": "v1\n"})
    lab.put("/usr/bin/selfstart", src=lab.binary, mode=0o755)
    for unit in ["selfstart.service", "selfstart-workers.service"]:
        lab.put("/etc/systemd/system/" + unit, src=lab.project + "/systemd/" + unit)
    lab.enable("selfstart.service")
    lab.put("/etc/selfstart/config.yaml", CONFIG)
    lab.boot()
    ready(lab, "v1", "first boot")
    lab.sh("touch /srv/lab/shared/long && chown nobody /srv/lab/shared && sync")

    push({"version": "v2\n"}, "v2")
    rebooted(lab)
    ready(lab, "v2", "push + reboot")
    if lab.sh("cat /srv/lab/shared/finished")[1] != "yes":
        lab.fail("the job in flight was not finished before the reboot")
    lab.say("ok  ", "the job in flight was finished first")

    # The git server is down at boot: the last good release works after boot_timeout, the update follows by itself.
    lab.stop_git()
    push({"version": "v3\n"}, "v3")
    rebooted(lab)
    lab.sh("selfstart wait --ready --timeout 200s", 240)
    if whole(lab) != "v2":
        lab.fail("without a git server the last good release must work")
    lab.say("ok  ", "git server down: v2 works, %.1f s" % lab.since_boot())
    lab.restart_git()
    ready(lab, "v3", "git server back")

    # The power fails while a deploy goes on: at any moment the next boot ends in a whole release.
    rng = random.Random(int(lab.opt.get("seed", "7")))
    for n in range(int(lab.opt.get("cuts", "5"))):
        version = "v%d" % (4 + n)
        push({"version": version + "\n"}, version)
        lab.mark()
        lab.sh("selfstart deploy --no-wait")
        moment = ["deploy_started", "building", "switched", "rollout", "rollout"][n % 5]
        lab.expect(moment, 60)
        lab.wait(rng.uniform(0, 1.0))
        lab.power_off_hard()
        lab.say("power cut after `%s` of %s" % (moment, version))
        lab.boot(keep=True)
        ready(lab, version, "power cut, boot")
    lab.reboot("systemctl poweroff")
    lab.wait_off(120)
    lab.say("ok  ", "poweroff")
