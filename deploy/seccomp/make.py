#!/usr/bin/env python3
"""Makes io-uring.json out of a container runtime's default seccomp profile.

    deploy/seccomp/make.py /usr/share/containers/seccomp.json > deploy/seccomp/io-uring.json

That input is of Debian's golang-github-containers-common (Apache-2.0). Its rules for capabilities are left out, since ours has
none; what is left is in the form that the OCI runtime specification has, which Docker, podman and the kubelet's
runtimes all read. The three calls of io_uring are allowed on top."""

import json
import sys

IO_URING = ["io_uring_enter", "io_uring_register", "io_uring_setup"]
# podman allows these to everybody, as they fail without capabilities. Docker does not, and nor do we.
WITHOUT = {
    *["fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree", "pivot_root"],
    *["quotactl", "reboot", "setdomainname", "sethostname", "setns", "syslog", "umount", "umount2", "unshare"],
}
ARCHITECTURES = {"SCMP_ARCH_X86_64": {"amd64"}, "SCMP_ARCH_AARCH64": {"arm64"}}


def applies(rule):
    """Whether a rule is for a process without capabilities, on one of our architectures."""
    includes = rule.get("includes") or {}
    ours = set().union(*ARCHITECTURES.values())
    return not includes.get("caps") and (not includes.get("arches") or ours & set(includes["arches"]))


def flat(rule):
    kept = {key: rule[key] for key in ("names", "action", "errnoRet", "args") if rule.get(key)}
    names = set(kept["names"])
    kept["names"] = sorted(names - WITHOUT if rule["action"] == "SCMP_ACT_ALLOW" else names)
    return kept


def main():
    default = json.load(open(sys.argv[1]))
    rules = [flat(rule) for rule in default["syscalls"] if applies(rule)]
    rules.append({"names": IO_URING, "action": "SCMP_ACT_ALLOW"})
    profile = {
        "defaultAction": default["defaultAction"],
        "defaultErrnoRet": default.get("defaultErrnoRet", 1),
        "architectures": sorted(ARCHITECTURES),
        "syscalls": rules,
    }
    json.dump(profile, sys.stdout, indent=1)
    print()


main()
