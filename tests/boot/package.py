"""The Debian package on a real machine, by the real dpkg, systemd and cloud-init.

Installed without a configuration: nothing runs, and nothing has failed. Switched off, and booted with user data that writes one
(cloud-init/user-data.example.yaml, for this lab's repository): it starts by itself, its workers as an unprivileged user. Upgrade, downgrade: the same
workers. Removed: none is left, their configuration and root are. Purged."""
import subprocess

from minding import WORK, workers

def same_workers(lab, before, what):
    pids = lambda slots: {slot: it["pid"] for slot, it in slots.items()}
    after = workers(lab)
    there = sorted(map(int, lab.sh("pgrep -x work || true")[1].split()))
    if pids(after) != pids(before) or there != sorted(pids(before).values()):
        lab.fail(f"{what}: {before} -> {after}; there run {there}")
    lab.say("ok  ", what, "- the same workers:", there)


def user_data(lab):
    """The example, with this lab's repository, and a user that is there: this image's cloud-init makes none."""
    text = open(lab.project + "/cloud-init/user-data.example.yaml").read()
    for old, new in [
        ("https://git.example.com/acme/hello.git", "git://git.lab/app.git"),
        ("branch: production", "branch: main"),
        ('        credentials: {token: "${file:/etc/selfstart/token}"}\n', ""),
        ("user: deploy", "user: nobody"),
        ("./bin/work, count: {per_cpu: 2}", "./work, count: 3"),
    ]:
        if old not in text:
            lab.fail("the example has changed: it has no " + old)
        text = text.replace(old, new)
    return text


def scenario(lab):
    lab.append = "cloud-init=disabled"
    lab.start_git({"work": WORK})
    for version in ["1.0.0-1", "1.1.0-1"]:
        told = subprocess.run([lab.project + "/packaging/deb", "--binary", lab.binary, "--version", version, "--out", lab.run], stdout=subprocess.PIPE, check=True)
        lab.put("/root/%s.deb" % version, src=told.stdout.decode().strip())
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

    lab.sh("nohup sh -c 'sleep 0.3; systemctl poweroff' >/dev/null 2>&1 &")
    lab.wait_off(240)
    lab.append, lab.sock = "", None
    lab.nocloud(user_data(lab))
    lab.mark()
    lab.boot(keep=True)
    lab.expect("kind=agent_started", 400)
    lab.sh("selfstart wait --ready --timeout 120s", 300)
    lab.say("ok   first boot with user data -> ready %.1f s" % lab.since_boot())
    if lab.sh("stat -c '%U:%G %a' /etc/selfstart/config.yaml")[1] != "root:selfstart 640\n":
        lab.fail("the configuration: " + lab.sh("ls -l /etc/selfstart")[1])
    lab.sh("cloud-init status --wait >/dev/null; systemctl is-active --quiet selfstart", 300)
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
    lab.sh("test -e /etc/selfstart/config.yaml && test -e /srv/hello/current && ! test -e /etc/systemd/system/multi-user.target.wants/selfstart.service")
    lab.say("ok   removed and purged:", " ".join(told.split("\n")[-3:]))
