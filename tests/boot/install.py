"""`selfstart install` on a running machine with systemd, without the package, and `uninstall`.

The program is copied there by hand and told to install itself: units, example, user. Configured and started: ready, as an unprivileged user's workers, the
agent as `selfstart`. A second time changes nothing. Reboot: it comes up by itself. While it runs uninstall is refused; stopped, it takes away all
that it made but the user."""
from minding import WORK
from node import agent_pid, nobody_is_left, wait_ready, workers

CONFIG = """app: lab
root: /srv/lab
user: nobody
source: {repository: "git://git.lab/app.git", branch: main}
release: {min_free: 0}
pools:
  w: {command: ./work, count: 2, limits: {memory: 64MiB}}
"""
# All that an install could leave behind: names, modes, owners, and the bytes of files. Accounts are looked at by themselves.
TREE = (
    "find /etc /usr/bin /usr/lib/systemd /usr/local /lib/systemd -xdev ! -path '/etc/passwd*' ! -path '/etc/group*' ! -path '/etc/shadow*' ! -path '/etc/gshadow*' "
    "! -path '/etc/.pwd.lock' -printf '%p %M %u %g %l\\n' | sort; find /etc /usr/lib/systemd -xdev -type f ! -path '/etc/passwd*' ! -path '/etc/group*' "
    "! -path '/etc/shadow*' ! -path '/etc/gshadow*' -exec sha256sum {} + | sort -k2"
)


def tree(lab, name):
    lab.sh("(%s) > /root/%s" % (TREE, name), 120)


def compared(lab, one, other, what):
    differs = lab.out("diff /root/%s /root/%s || true" % (one, other))
    if differs:
        lab.fail(what + ":\n" + differs)
    lab.ok(what)


def show(lab, unit):
    return lab.out("systemctl show -p ActiveState,SubState,UnitFileState,FragmentPath %s | tr '\\n' ' '" % unit)


def runs(lab, what):
    wait_ready(lab, what)
    for unit in ("selfstart", "selfstart-workers"):
        if "ActiveState=active" not in show(lab, unit):
            lab.fail(what + ": " + show(lab, unit))
    now = workers(lab)
    owners = set(lab.out("ps -o user= -p " + ",".join(str(it["pid"]) for it in now.values())).split())
    agent = lab.out("ps -o user= -p " + agent_pid(lab))
    if owners != {"nobody"} or agent != "selfstart":
        lab.fail("%s: workers run as %s, the agent as %s" % (what, owners, agent))
    for it in now.values():
        limit = lab.out("cat /sys/fs/cgroup$(cut -d: -f3 /proc/%d/cgroup)/memory.max" % it["pid"])
        if limit != str(64 << 20):
            lab.fail("%s: memory.max is %s" % (what, limit))
    lab.ok(what, "- units active, workers of nobody with their limits, agent of selfstart")


def scenario(lab):
    lab.serve({"work": WORK})
    lab.put_file("/root/selfstart", lab.binary)
    lab.put("/root/config.yaml", CONFIG)
    lab.boot()
    lab.sh("chmod 755 /root/selfstart; systemctl is-system-running --wait || true", 120)
    tree(lab, "before")

    lab.ok("install:", lab.out("/root/selfstart install --systemd").replace("\n", " | "))
    told = show(lab, "selfstart")
    if "UnitFileState=enabled" not in told or "FragmentPath=/etc/systemd/system/selfstart.service" not in told:
        lab.fail("after install: " + told)
    lab.sh("systemd-analyze verify --man=no selfstart.service selfstart-workers.service", 60)
    lab.sh("install -o root -g selfstart -m 640 /root/config.yaml /etc/selfstart/config.yaml && selfstart check && systemctl start selfstart")
    runs(lab, "installed, configured, started")
    tree(lab, "installed")
    lab.sh("selfstart install --systemd")
    tree(lab, "again")
    compared(lab, "installed", "again", "a second install changes nothing")

    lab.reboot()
    runs(lab, "reboot")
    code, told = lab.sh("selfstart uninstall", check=False)
    if code != 4:
        lab.fail("uninstall beside a running node ends with %d: %s" % (code, told))
    runs(lab, "uninstall was refused while it runs")

    lab.sh("systemctl stop selfstart selfstart-workers", 120)
    nobody_is_left(lab, "stopped")
    lab.ok("uninstall:", lab.out("selfstart uninstall").replace("\n", " | "))
    if lab.out("systemctl list-unit-files --no-legend 'selfstart*'; systemctl list-units --all --no-legend 'selfstart*'"):
        lab.fail("units are left: " + lab.out("systemctl list-units --all --no-legend 'selfstart*'"))
    # What the user of the machine made, and the account that owns the node's files, stay.
    lab.sh("test -e /etc/selfstart/config.yaml && test -e /srv/lab/current && id selfstart && rm -r /etc/selfstart")
    tree(lab, "after")
    compared(lab, "before", "after", "uninstall leaves nothing but what was configured")
