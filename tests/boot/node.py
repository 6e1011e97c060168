"""What scenarios ask of the node in the machine."""
import json


def workers(lab):
    """By slot of the pool `w`."""
    status = json.loads(lab.out("selfstart status --json"))
    return {slot["slot"]: slot for pool in status["pools"] for slot in pool["slots"]}


def pids(of):
    return {slot: it["pid"] for slot, it in of.items()}


def wait_ready(lab, what, seconds=300):
    lab.sh("selfstart wait --ready --timeout %ds" % seconds, seconds + 60)
    lab.ok(what, "-> ready, %.1f s" % lab.since_boot())


def main_pid(lab):
    """Of the keeper."""
    return lab.out("systemctl show -p MainPID --value selfstart")


def agent_pid(lab):
    """The one child of the keeper that is the agent."""
    return lab.out(f"for p in $(pgrep -P {main_pid(lab)}); do tr '\\0' ' ' </proc/$p/cmdline | grep -q internal-agent && echo $p; done; true")


def nobody_is_left(lab, what):
    left = lab.out("pgrep -x work; pgrep -x selfstart; pgrep -f '[i]nternal-agent'; true").split()
    if left:
        lab.fail(f"{what}: left: {left}\n" + lab.out("ps -eo pid,ppid,user,args"))
    failed = lab.out("until [ \"$(systemctl is-active selfstart-workers)\" != deactivating ]; do sleep 0.1; done; systemctl list-units --failed --no-legend 'selfstart*'", 60)
    if failed:
        lab.fail(f"{what}: {failed}\n" + lab.out("systemctl status --no-pager 'selfstart*' || true"))
    lab.ok(what, "- nobody is left, and no unit has failed")
