"""What systemd, the kernel's cgroups and the kernel's OOM killer do with the real binary and the units of systemd/.

boot -> deployed -> ready; limits read back from memory.max; agent KILLed, keeper KILLed, restart, daemon-reload, holder KILLed: the same
workers, with the same limits; a real OOM of one worker; stop: nobody is left."""
import json

CONFIG = """app: lab
root: /srv/lab
user: nobody
source: {repository: "git://git.lab/app.git", branch: main}
release: {min_free: 0}
pools:
  w: {command: ./work, count: 3, limits: {memory: 64MiB, tasks: 20, cpu: 1.5}, restart: {backoff: [100ms, 1s]}}
"""
WORK = r"""#!/usr/bin/python3
import os, signal, sys, time
slot = os.environ["SELFSTART_SLOT"]
print("worker", slot, "up", os.environ["SELFSTART_REVISION"][:10], flush=True)
while not os.path.exists("/tmp/hog." + slot): time.sleep(0.2)
os.unlink("/tmp/hog." + slot)
blocks = []
while True: blocks.append(bytearray(8 << 20))
"""
TREE = "/sys/fs/cgroup/system.slice/selfstart-workers.service"


def workers(lab):
    status = json.loads(lab.sh("selfstart status --json")[1])
    return {slot["slot"]: slot for pool in status["pools"] for slot in pool["slots"]}


def same_workers(lab, before, what):
    """The same processes as before, each once, in their cgroups, with their limits."""
    after = workers(lab)
    pids = {slot: it["pid"] for slot, it in after.items()}
    if pids != {slot: it["pid"] for slot, it in before.items()}:
        lab.fail(f"{what}: other workers: {before} -> {after}")
    there = lab.sh("pgrep -x work || true")[1].split()
    if sorted(map(int, there)) != sorted(pids.values()):
        lab.fail(f"{what}: {there} run, {pids} are minded")
    limits_kept(lab, after, what)
    lab.say("ok  ", what, "- the same workers, with their limits:", sorted(pids.values()))


def limits_kept(lab, now, what):
    for slot, it in now.items():
        group = lab.sh(f"cut -d: -f3 /proc/{it['pid']}/cgroup")[1].strip()
        if not group.startswith("/system.slice/selfstart-workers.service/w.%d#" % slot):
            lab.fail(f"{what}: worker {slot} is in {group}")
        values = lab.sh(f"cd '/sys/fs/cgroup{group}' && cat memory.max memory.oom.group pids.max cpu.max cgroup.procs | tr '\\n' ' '")[1].split()
        if values[:5] != [str(64 << 20), "1", "20", "150000", "100000"] or str(it["pid"]) not in values[5:]:
            lab.fail(f"{what}: the cgroup of worker {slot} has {values}")


def wait_back(lab, old_pid, what):
    lab.sh(f"i=0; until n=$(systemctl show -p MainPID --value selfstart); [ \"$n\" != 0 ] && [ \"$n\" != {old_pid} ] "
           "&& selfstart status >/dev/null 2>&1; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.2; done", 60)
    lab.say("ok  ", what)


def scenario(lab):
    lab.append = "cloud-init=disabled"
    lab.start_git({"work": WORK})
    lab.put("/usr/bin/selfstart", src=lab.binary, mode=0o755)
    for unit in ["selfstart.service", "selfstart-workers.service"]:
        lab.put("/etc/systemd/system/" + unit, src=lab.project + "/systemd/" + unit)
    lab.enable("selfstart.service")
    lab.put("/etc/selfstart/config.yaml", CONFIG)
    lab.boot()
    lab.sh("selfstart wait --ready --timeout 120s", 200)
    lab.say("boot -> ready %.1f s" % lab.since_boot())
    main = lambda: lab.sh("systemctl show -p MainPID --value selfstart")[1].strip()
    kids = lambda: lab.sh(f"pgrep -P {main()} -x exe")[1].strip()
    first = workers(lab)
    same_workers(lab, first, "after boot")
    lab.say(lab.sh("systemctl show -p StatusText,ActiveState,WatchdogUSec selfstart selfstart-workers | tr '\\n' ' '")[1])
    # Who runs as whom, and in which cgroup.
    lab.say("\n" + lab.sh("ps -eo pid,ppid,user,cgroup:60,args | grep -E '[s]elfstart|[w]ork$'")[1])

    agent = kids()
    lab.sh(f"kill -9 {agent}")
    lab.sh(f"until a=$(pgrep -P {main()} -x exe) && [ \"$a\" != {agent} ] && selfstart status >/dev/null 2>&1; do sleep 0.1; done", 30)
    same_workers(lab, first, "agent KILLed")

    lab.sh("systemctl daemon-reload")
    same_workers(lab, first, "daemon-reload")

    old = main()
    lab.sh(f"kill -9 {old}")
    wait_back(lab, old, "keeper KILLed: systemd starts another")
    same_workers(lab, first, "keeper KILLed")

    holder = lab.sh("systemctl show -p MainPID --value selfstart-workers")[1].strip()
    lab.sh(f"kill -9 {holder}; sleep 1; systemctl is-active selfstart-workers", check=False)
    same_workers(lab, first, "holder KILLed")
    old = main()
    lab.sh(f"kill -9 {old}")
    wait_back(lab, old, "keeper KILLed without a holder")
    same_workers(lab, first, "keeper KILLed without a holder")

    # A worker that needs more than it may.
    lab.mark()
    lab.sh("touch /tmp/new && chown nobody /tmp/new && mv /tmp/new /tmp/hog.1")
    lab.expect(r"for want of memory .*kind=worker_ended pool=w slot=1", 60)
    lab.sh("until selfstart status --json | grep -q '\"ready\":3'; do sleep 0.2; done", 60)
    after = workers(lab)
    if after[1]["pid"] == first[1]["pid"] or any(after[s]["pid"] != first[s]["pid"] for s in (0, 2)):
        lab.fail(f"after the OOM: {first} -> {after}")
    verdict = after[1]["last_verdict"]
    if verdict["kind"] != "oom":
        lab.fail(f"the verdict is {verdict}")
    lab.say("ok  ", "a real OOM:", verdict["text"])
    limits_kept(lab, after, "after the OOM")

    lab.sh("systemctl restart selfstart", 120)
    lab.sh("selfstart wait --ready --timeout 60s", 90)
    again = workers(lab)
    if set(it["pid"] for it in again.values()) & set(it["pid"] for it in after.values()):
        lab.fail("a restart drains, so the workers must be new ones")
    limits_kept(lab, again, "restart")
    lab.say("ok  ", "restart: drained, and new ones")
    groups = lab.sh(f"find {TREE} -mindepth 1 -maxdepth 1 -type d | wc -l")[1].strip()
    if groups != "3" and groups != "4":
        lab.fail(f"{groups} cgroups for 3 workers and a holder")

    lab.sh("systemctl stop selfstart", 120)
    left = lab.sh("pgrep -x 'work|exe' ; pgrep -x selfstart; true")[1].split()
    if left:
        lab.fail(f"left after stop: {left}")
    state = lab.sh("systemctl is-active selfstart selfstart-workers || true")[1].split()
    lab.say("ok  ", "stop: nobody is left; units", state)
