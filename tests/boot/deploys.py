"""What becomes of deploys on a machine that is rebooted, switched off and cut off.

boot -> deployed -> ready; push + reboot -> the new revision; the git server down at boot: the last good release works, the update follows;
power cut at five moments of a deploy: the next boot ends in a whole release; poweroff with a job in flight: it is finished first."""
from node import wait_ready

CONFIG = """app: lab
root: /srv/lab
user: nobody
source: {repository: "git://git.lab/app.git", branch: main, boot_timeout: 20s}
release: {min_free: 0, confirm: 0s, keep: 3}
build: {steps: ["./build", "test -s built.0 && test -s built.199"]}
pools:
  w: {command: ./work, count: 2, stop: [TERM 30s, KILL]}
"""
# Two hundred files, so that a power cut has something to tear.
BUILD = "#!/bin/sh\nset -eu\ni=0\nwhile [ $i -lt 200 ]; do cat version version version > built.$i; i=$((i+1)); done\n"
# When it is told to end, slot 0 has a job of five seconds to finish.
WORK = r"""#!/usr/bin/python3
import os, signal, sys, time
slot = os.environ["SELFSTART_SLOT"]
def term(*_):
    if slot == "0" and os.path.exists("/srv/lab/shared/long"):
        time.sleep(5)
        with open("/srv/lab/shared/finished", "a") as f:
            f.write("yes\n"); f.flush(); os.fsync(f.fileno())
        os.sync()
    sys.exit(0)
signal.signal(signal.SIGTERM, term)
print("worker", slot, "works", open("version").read().strip(), flush=True)
while True: signal.pause()
"""
# In which a power cut comes, up to a second later.
MOMENTS = ["deploy_started", "building", "switched", "rollout", "rollout"]


def works(lab, version, what, seconds=240):
    """Both workers work this version, from a release that is whole."""
    wait_ready(lab, what, seconds)
    lab.sh("until [ $(grep -ls 'works %s$' /srv/lab/log/w.0.log /srv/lab/log/w.1.log | wc -l) = 2 ]; do sleep 0.2; done" % version, 120)
    whole(lab, version)
    lab.ok(what, "-> version", version, "works, %.1f s" % lab.since_boot())


def whole(lab, version):
    """`current` points to a release that is whole and built."""
    files, seen = lab.out(
        "cd /srv/lab/current/ && n=$(ls built.* | wc -l) && "
        "for f in built.*; do [ \"$(cat $f)\" = \"$(cat version version version)\" ] || exit 9; done && echo $n $(cat version)").split()
    if files != "200" or seen != version:
        lab.fail(f"`current` has version {seen} with {files} files, wanted {version} with 200")


def jobs(lab):
    """How many jobs were finished by a worker that was told to end, by whatever."""
    return int(lab.out("cat /srv/lab/shared/finished 2>/dev/null | grep -c yes || true"))


def finished(lab, before):
    """Since it was counted, only the machine's end has told a worker to end."""
    if jobs(lab) != before + 1:
        lab.fail(f"{before} jobs finished before the machine went down, {jobs(lab)} after: wanted one more")
    lab.ok("the job in flight was finished first")


def power_cuts(lab, push):
    """At any moment of a deploy: the next boot ends in a whole release."""
    for n in range(int(lab.options.get("cuts", "5"))):
        version, moment = "v%d" % (4 + n), MOMENTS[n % len(MOMENTS)]
        push({"version": version + "\n"}, version)
        lab.mark()
        lab.sh("selfstart deploy --no-wait")
        lab.expect(moment, 60)
        lab.pass_a_random_moment(1.0)
        lab.cut_the_power()
        lab.boot(keep=True)
        works(lab, version, "power cut after `%s`, boot" % moment)


def scenario(lab):
    push = lab.serve({"work": WORK, "build": BUILD, "version": "v1\n"})
    lab.bake(CONFIG)
    lab.boot()
    works(lab, "v1", "first boot")
    lab.sh("touch /srv/lab/shared/long && chown nobody /srv/lab/shared && sync")

    push({"version": "v2\n"}, "v2")
    before = jobs(lab)
    lab.reboot()
    works(lab, "v2", "push + reboot")
    finished(lab, before)

    lab.git.stop()
    push({"version": "v3\n"}, "v3")
    before = jobs(lab)
    lab.reboot()
    wait_ready(lab, "git server down", 200)
    whole(lab, "v2")
    finished(lab, before)
    lab.git.start()
    works(lab, "v3", "git server back")

    power_cuts(lab, push)
    before = jobs(lab)
    lab.poweroff()
    lab.boot(keep=True)
    wait_ready(lab, "boot after poweroff")
    finished(lab, before)
