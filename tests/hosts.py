"""Several machines on one: network namespaces joined by a bridge, each with its own hostname and
/etc/hosts.

    with hosts(2) as pair:
        process = pair[0].start(["./launch.sh", ...], cwd=..., env=...)
        pair[1].cut()       # its cable; later: restore()
        pair[1].kill()      # all that runs there

Files, process ids and shared memory stay those of this machine. Needs root; `why_not()` says why it
cannot be had.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

PREFIX = "iso"
CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUTS = 0x40000000, 0x00020000, 0x04000000

# By `ip netns exec` a process gets the network; a host has a name of its own, and its own idea of
# the others', too.
_ENTER = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'


@dataclass(frozen=True)
class Host:
    name: str  # as `hostname` gives it, and as the others find it
    address: str
    namespace: str
    port: str  # of the bridge: the other end of this host's cable
    bridge: str
    names: Path  # its /etc/hosts

    def command(self, words: Sequence[str]) -> list[str]:
        """`words`, run on this host. The process that is started becomes that command: signals
        reach it.
        """
        enter = [
            "unshare",
            "--mount",
            "--uts",
            "sh",
            "-c",
            _ENTER,
            "sh",
            self.name,
            str(self.names),
        ]
        return ["ip", "netns", "exec", self.namespace, *enter, *words]

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(words), text=True, **options)

    def enter(self) -> None:
        """This process moves to this host; for one that was forked, before it starts a thread."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/run/netns/{self.namespace}").open() as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET) or libc.unshare(
                CLONE_NEWNS | CLONE_NEWUTS
            ):
                raise OSError(ctypes.get_errno(), f"cannot enter {self.namespace}")
        _run("mount", "--make-rprivate", "/")
        _run("mount", "--bind", str(self.names), "/etc/hosts")
        _run("hostname", self.name)

    def cut(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        _run("ip", "link", "set", self.port, "nomaster")

    def restore(self) -> None:
        _run("ip", "link", "set", self.port, "master", self.bridge)

    def processes(self) -> list[psutil.Process]:
        found = []
        for pid in _run("ip", "netns", "pids", self.namespace).split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def kill(self) -> None:
        """All that runs there, at once."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """`number` hosts, node1, node2, ... on a network of their own; whatever still runs there is
    killed at the end.
    """
    _sweep()
    bridge = f"{PREFIX}{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))
    made = [
        Host(
            name=f"node{place}",
            address=f"10.213.0.{place}",
            namespace=f"{bridge}-{place}",
            port=f"{bridge}p{place}",
            bridge=bridge,
            names=folder / "hosts",
        )
        for place in range(1, number + 1)
    ]
    lines = [f"{host.address} {host.name}" for host in made]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for host in made:
            _join(host)
        yield made
    finally:
        for host in made:
            _remove(host.namespace, host.port)
        _run("ip", "link", "del", bridge)
        shutil.rmtree(folder)


def _join(host: Host) -> None:
    _run("ip", "netns", "add", host.namespace)
    peer = ["peer", "name", "eth0", "netns", host.namespace]
    _run("ip", "link", "add", host.port, "type", "veth", *peer)
    _run("ip", "link", "set", host.port, "master", host.bridge, "up")
    inside = ["ip", "-n", host.namespace]
    _run(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
    _run(*inside, "link", "set", "eth0", "up")
    _run(*inside, "link", "set", "lo", "up")


def _remove(namespace: str, port: str) -> None:
    """The processes of a host, and both ends of its cable."""
    with suppress(subprocess.CalledProcessError):
        for pid in _run("ip", "netns", "pids", namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run("ip", "netns", "del", namespace)
    with suppress(subprocess.CalledProcessError):
        _run("ip", "link", "del", port)


def _sweep() -> None:
    """What tests that were killed have left: names hold the id of their process."""
    for namespace in Path("/run/netns").glob(f"{PREFIX}*-*"):
        bridge, _, place = namespace.name.partition("-")
        if _is_left_behind(bridge):
            _remove(namespace.name, f"{bridge}p{place}")
    for link in Path("/sys/class/net").glob(f"{PREFIX}*"):
        if _is_left_behind(link.name):
            _run("ip", "link", "del", link.name)


def _is_left_behind(bridge: str) -> bool:
    pid = bridge.removeprefix(PREFIX)
    return pid.isdecimal() and not psutil.pid_exists(int(pid))


@cache
def why_not() -> str:
    """Empty where hosts can be made here."""
    if not shutil.which("ip"):
        return "no `ip` (iproute2) here"
    try:
        with hosts(1) as made:
            subprocess.run(made[0].command(["true"]), check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {' '.join(error.cmd)}: {str(error.stderr).strip()}"
    return ""


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
