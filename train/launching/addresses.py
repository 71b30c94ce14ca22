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
    is_named_loopback = head in ("localhost", address)  # then it is meant: all on one machine
    # Where the name leads to the loopback (Debian's default line, 127.0.1.1 in /etc/hosts), the
    # other machines would be told to connect to themselves.
    if address and (is_named_loopback or not ipaddress.ip_address(address).is_loopback):
        return address
    raise LaunchRefused(
        f"launch: {head} is no name by which others reach this machine\n"
        f"  got:  {address or 'no address'}, as this machine resolves it\n"
        "  why:  the ranks of other machines connect to it\n"
        "  set:  --main_process_ip, to the address of this machine"
    )


def for_gloo(address: str) -> dict[str, str]:
    """GLOO_SOCKET_IFNAME for the interface that has this address, where it is not set.

    gloo itself takes the one that the machine's own name leads to, on many machines the loopback.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return {}
    for name, addresses in psutil.net_if_addrs().items():
        # psutil writes the zone behind an IPv6 address (%eth0).
        if address in {each.address.partition("%")[0] for each in addresses}:
            return {"GLOO_SOCKET_IFNAME": name}
    return {}


def gloo_trouble(environment: Mapping[str, str]) -> str:
    """Why other ranks would not reach this one by gloo; empty where nothing is wrong.

    ./launch.sh names the interface to its ranks; another launcher does not. gloo itself gives up on
    one machine after a second, on another after 103 s; its error does not name the variable.
    """
    # One rank connects to nobody.
    if environment.get("WORLD_SIZE", "1") == "1":
        return ""
    interfaces = psutil.net_if_addrs()
    stated = environment.get("GLOO_SOCKET_IFNAME", "")
    missing = [name for name in stated.split(",") if name and name not in interfaces]
    if missing:
        return (
            f"GLOO_SOCKET_IFNAME={stated} names no network interface of this machine\n"
            f"  got:  {some(list(interfaces), 8)}\n"
            "  why:  the ranks talk by it\n"
            "  run:  unset GLOO_SOCKET_IFNAME, or export it with one of these"
        )
    # On one machine, or where the first one was named by the loopback, the loopback is right.
    head = environment.get("MASTER_ADDR", "localhost")
    world_size = environment["WORLD_SIZE"]
    is_one_machine = environment.get("LOCAL_WORLD_SIZE", world_size) == world_size
    host = socket.gethostname()
    if stated or is_one_machine or _is_loopback(head) or not _is_loopback(host):
        return ""
    interface = for_gloo(_address_towards(head)).get("GLOO_SOCKET_IFNAME", "eth0")
    addresses = some(_addresses(host)) or "no address"
    return (
        "the ranks of other machines cannot reach this one by its name\n"
        f"  got:  {host} leads to {addresses}, and GLOO_SOCKET_IFNAME is not set\n"
        "  why:  gloo listens where the name of its machine leads\n"
        f"  run:  export GLOO_SOCKET_IFNAME={interface}   (on each machine, with its own; or "
        f"{LAUNCH}, which finds it)"
    )


def _is_loopback(host: str) -> bool:
    """Or no address at all."""
    return all(ipaddress.ip_address(address).is_loopback for address in _addresses(host))


def _addresses(host: str) -> list[str]:
    with suppress(OSError):
        entries = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
        return [str(socket_address[0]) for *_, socket_address in entries]
    return []


def _address_towards(head: str) -> str:
    """The address of this machine from which it would reach `head`. Nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # connect on a datagram socket only picks a route; 9 is the discard port
        probe.connect((head, 9))
        return str(probe.getsockname()[0])
    return ""
