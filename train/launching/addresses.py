"""By which address, and by which network interface, other machines reach this one."""

import ipaddress
import os
import socket
from contextlib import suppress

import psutil

from train.launching.arguments import LaunchRefused


def address_of(head: str) -> str:
    """Of this machine, which is `head`, before any other has come."""
    address = ""
    with suppress(OSError):
        address = str(socket.getaddrinfo(head, None, proto=socket.IPPROTO_TCP)[0][4][0])
    if not address or (ipaddress.ip_address(address).is_loopback and head not in ("localhost", address)):
        raise LaunchRefused(
            f"launch: {head} is no name by which others reach this machine\n"
            f"  got:  {address or 'no address'}, as this machine resolves it\n"
            f"  why:  the ranks elsewhere are told to come there\n"
            f"  type: --main_process_ip with the address of this machine"
        )
    return address


def for_gloo(address: str) -> dict[str, str]:
    """It takes the interface that this machine's own name leads to, which on many machines is the loopback."""
    if not os.environ.get("GLOO_SOCKET_IFNAME"):
        for name, addresses in psutil.net_if_addrs().items():
            if address in {each.address.partition("%")[0] for each in addresses}:
                return {"GLOO_SOCKET_IFNAME": name}
    return {}
