"""What systemd, the kernel's cgroups and the kernel's OOM killer do with the real binary, the package and its units.

package installed by dpkg; boot -> deployed -> ready, workers as an unprivileged user; limits read back from memory.max; agent KILLed, keeper
KILLed, restart, daemon-reload, holder KILLed: the same workers, with the same limits; a real OOM of one worker; stop: nobody is left."""
from node import agent_pid, main_pid, nobody_is_left, pids, wait_ready, workers

CONFIG = """app: lab
root: /srv/lab
user: nobody
source: {repository: "git://git.lab/app.git", branch: main}
release: {min_free: 0, confirm: 0s}
pools:
  w: {command: ./work, count: 3, limits: {memory: 64MiB, tasks: 20, cpu: 1.5}, restart: {backoff: [100ms, 1s]}}
"""
# Needs more than it may when it is told to by USR1.
WORK = r"""#!/usr/bin/python3
import os, signal
def hog(*_):
    blocks = []
    while True: blocks.append(bytearray(8 << 20))
signal.signal(signal.SIGUSR1, hog)
print("worker", os.environ["SELFSTART_SLOT"], "up", os.environ["SELFSTART_REVISION"][:10], flush=True)
while True: signal.pause()
"""
TREE = "/sys/fs/cgroup/system.slice/selfstart-workers.service"
LIMITS = [str(64 << 20), "1", "20", "150000", "100000"]


def same_workers(lab, before, what):
    """The same processes as before, each once, in their cgroups, with their limits."""
    after = workers(lab)
    if pids(after) != pids(before):
        lab.fail(f"{what}: other workers: {before} -> {after}")
    there = sorted(map(int, lab.out("pgrep -x work || true").split()))
    if there != sorted(pids(after).values()):
        lab.fail(f"{what}: {there} run, {pids(after)} are minded")
    limits_kept(lab, after, what)
    lab.ok(what, "- the same workers, with their limits:", there)


def limits_kept(lab, now, what):
    for slot, it in now.items():
        group = lab.out(f"cut -d: -f3 /proc/{it['pid']}/cgroup")
        if not group.startswith("/system.slice/selfstart-workers.service/w.%d#" % slot):
            lab.fail(f"{what}: worker {slot} is in {group}")
        values = lab.out(f"cd '/sys/fs/cgroup{group}' && cat memory.max memory.oom.group pids.max cpu.max cgroup.procs").split()
        if values[:5] != LIMITS or str(it["pid"]) not in values[5:]:
            lab.fail(f"{what}: the cgroup of worker {slot} has {values}")


def standing(lab, pid):
    """Of a process: its user and group, and its capabilities."""
    return lab.out(f"stat -c '%U %G' /proc/{pid}; awk '/^(CapEff|CapPrm|CapAmb):/ {{print $2}}' /proc/{pid}/status").split()


def unprivileged(lab, now):
    """Only the keeper is root: the agent is selfstart's, workers are nobody's, neither with a capability."""
    for who, pids_of_them in (("selfstart selfstart", [agent_pid(lab)]), ("nobody nogroup", pids(now).values())):
        for pid in pids_of_them:
            seen = standing(lab, pid)
            if " ".join(seen[:2]) != who or any(int(capabilities, 16) for capabilities in seen[2:]):
                lab.fail(f"process {pid}, wanted {who} without capabilities: {seen}")
    if standing(lab, main_pid(lab))[0] != "root":
        lab.fail("the keeper is not root")
    lab.ok("the agent runs as selfstart, workers as nobody, without capabilities")


def killed_agent(lab, first):
    agent = agent_pid(lab)
    lab.sh(f"kill -9 {agent}")
    lab.sh(f"until selfstart status >/dev/null 2>&1 && ! [ -e /proc/{agent} ]; do sleep 0.1; done", 30)
    same_workers(lab, first, "agent KILLed")


def killed_keeper(lab, first, what):
    old = main_pid(lab)
    lab.sh(f"kill -9 {old}")
    lab.sh("until n=$(systemctl show -p MainPID --value selfstart); [ \"$n\" != 0 ] && [ \"$n\" != %s ] && selfstart status >/dev/null 2>&1; "
           "do sleep 0.2; done" % old, 60)
    same_workers(lab, first, what)


def killed_by_the_kernel(lab, first):
    """One worker needs more than it may: its end has a verdict, and nobody else is touched."""
    agent = agent_pid(lab)
    lab.mark()
    lab.sh("selfstart signal w/1 USR1")
    lab.expect(r"for want of memory .*kind=worker_ended pool=w slot=1", 60)
    lab.sh("until selfstart status --json | grep -q '\"ready\":3'; do sleep 0.2; done", 60)
    after = workers(lab)
    if pids(after)[1] == pids(first)[1] or any(pids(after)[slot] != pids(first)[slot] for slot in (0, 2)):
        lab.fail(f"after the OOM: {first} -> {after}")
    verdict = after[1]["last_verdict"]
    if verdict["kind"] != "oom":
        lab.fail(f"the verdict is {verdict}")
    if agent_pid(lab) != agent:
        lab.fail("the agent did not live through the OOM of a worker")
    limits_kept(lab, after, "after the OOM")
    lab.ok("a real OOM:", verdict["text"])
    return after


def scenario(lab):
    lab.serve({"work": WORK})
    lab.bake(CONFIG)
    lab.boot()
    wait_ready(lab, "boot")
    lab.say("kernel -> first worker: %s s" % lab.out(
        "journalctl -b -o short-monotonic -u selfstart | sed -n 's/^\\[ *\\([0-9.]*\\)\\].*kind=worker_started.*/\\1/p' | head -1"))
    first = workers(lab)
    same_workers(lab, first, "after boot")
    unprivileged(lab, first)
    # Who runs as whom, and in which cgroup.
    lab.say("\n" + lab.out("ps -eo pid,ppid,user,cgroup:60,args | grep -E '[s]elfstart|[w]ork$'"))

    killed_agent(lab, first)
    unprivileged(lab, first)
    lab.sh("systemctl daemon-reload")
    same_workers(lab, first, "daemon-reload")
    killed_keeper(lab, first, "keeper KILLed")
    holder = lab.out("systemctl show -p MainPID --value selfstart-workers")
    lab.sh(f"kill -9 {holder}; while systemctl is-active --quiet selfstart-workers; do sleep 0.1; done", 30)
    same_workers(lab, first, "holder KILLed")
    killed_keeper(lab, first, "keeper KILLed without a holder")
    after = killed_by_the_kernel(lab, first)

    lab.sh("systemctl restart selfstart", 120)
    wait_ready(lab, "restart", 60)
    again = workers(lab)
    if set(pids(again).values()) & set(pids(after).values()):
        lab.fail("a restart drains, so the workers must be new ones")
    limits_kept(lab, again, "restart")
    groups = lab.out(f"find {TREE} -mindepth 1 -maxdepth 1 -type d | wc -l")
    if groups not in ("3", "4"):
        lab.fail(f"{groups} cgroups for 3 workers and a holder")
    lab.ok("restart: drained, and new ones")

    lab.sh("systemctl stop selfstart", 120)
    nobody_is_left(lab, "stop")
    lab.ok("units:", lab.out("systemctl is-active selfstart selfstart-workers || true").split())
