"""A machine whose image has nothing but the package: what is in cloud-init/user-data.example.yaml makes it a worker machine.

The file as it is in the project, but for the repository and the command, which the lab has."""
import os

from node import pids, wait_ready, workers

WORK = "#!/bin/sh\nexec sleep 1000000\n"


def scenario(lab):
    lab.serve({"bin/work": WORK})
    lab.bake()
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../cloud-init/user-data.example.yaml")) as file:
        text = file.read()
    for old, new in (("https://git.example.com/acme/hello.git", "git://git.lab/app.git"), ("branch: production", "branch: main"),
                     # For https only.
                     ('        credentials: {token: "${file:/etc/selfstart/token}"}\n', "")):
        if old not in text:
            lab.fail(f"the user data has no {old} any more")
        text = text.replace(old, new)
    lab.user_data = text
    lab.boot()
    lab.sh("until [ -e /etc/selfstart/config.yaml ]; do sleep 0.2; done", 600)
    wait_ready(lab, "user data", 600)
    now = workers(lab)
    for it in now.values():
        if lab.out(f"ps -o user= -p {it['pid']}") != "deploy":
            lab.fail("workers must run as `deploy`")
    if lab.sh("cloud-init status --wait", 600, check=False)[1].strip().split()[-1] != "done":
        lab.fail("cloud-init: " + lab.out("cloud-init status --long || true"))
    lab.ok("cloud-init is done; workers as `deploy`:", pids(now))
    lab.reboot()
    wait_ready(lab, "reboot", 600)
