"""By which address, and by which network interface, other machines reach this one."""

import ipaddress
import os
import socket
from collections.abc import Mapping
from contextlib import suppress

import psutil

from train.errors import some
from train.installation import LAUNCH
from train.launching.arguments import LaunchRefused


def address_of(head: str) -> str:
    """Of this machine, which is `head`, before any other has come."""
    address = ""
    with suppress(OSError):
        address = str(socket.getaddrinfo(head, None, proto=socket.IPPROTO_TCP)[0][4][0])
    if not address or (
        ipaddress.ip_address(address).is_loopback and head not in ("localhost", address)
    ):
        raise LaunchRefused(
            f"launch: {head} is no name by which others reach this machine\n"
            f"  got:  {address or 'no address'}, as this machine resolves it\n"
            f"  why:  the ranks elsewhere are told to come there\n"
            f"  run:  --main_process_ip with the address of this machine"
        )
    return address


def for_gloo(address: str) -> dict[str, str]:
    """It takes the interface that this machine's own name leads to, which on many machines is the
    loopback.
    """
    if not os.environ.get("GLOO_SOCKET_IFNAME"):
        for name, addresses in psutil.net_if_addrs().items():
            if address in {each.address.partition("%")[0] for each in addresses}:
                return {"GLOO_SOCKET_IFNAME": name}
    return {}


def gloo_trouble(environment: Mapping[str, str]) -> str:
    """For a rank, before it meets the others: why they would not find it by gloo. Empty where
    nothing is wrong.

    ./launch.sh names the interface to its ranks; another launcher does not. gloo itself gives up on
    one machine after a second, and after 103 s on another, without a word of the variable.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return ""
    known = psutil.net_if_addrs()
    named = environment.get("GLOO_SOCKET_IFNAME", "")
    missing = [name for name in named.split(",") if name and name not in known]
    if missing:
        return (
            f"GLOO_SOCKET_IFNAME={named} names no network interface of this machine\n  got:  "
            f"{some(list(known), 8)}\n  why:  the ranks talk by it\n  run:  unset "
            "GLOO_SOCKET_IFNAME, or export it with one of these"
        )
    head = environment.get("MASTER_ADDR", "localhost")
    is_alone = (
        environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]) == environment["WORLD_SIZE"]
    )
    host = socket.gethostname()
    if named or is_alone or _is_loopback(head) or not _is_loopback(host):
        return ""
    own = next(iter(for_gloo(_own_address(head)).values()), "eth0")
    return (
        f"the ranks of other machines cannot reach this one by its name\n"
        f"  got:  {host} leads to {some(_addresses(host)) or 'no address'}, and GLOO_SOCKET_IFNAME "
        "is not set\n  why:  gloo listens where the name of its machine leads\n"
        f"  run:  export GLOO_SOCKET_IFNAME={own}   (on each machine, with its own; or "
        f"{LAUNCH}, which finds it)"
    )


def _is_loopback(host: str) -> bool:
    """Or no address at all."""
    return all(ipaddress.ip_address(address).is_loopback for address in _addresses(host))


def _addresses(host: str) -> list[str]:
    with suppress(OSError):
        return [
            str(found[4][0]) for found in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
        ]
    return []


def _own_address(head: str) -> str:
    """By which this machine would reach `head`. Nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((head, 9))
        return str(way.getsockname()[0])
    return ""
