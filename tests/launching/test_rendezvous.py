"""Launches of one job meet; threads of this process stand for machines."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import psutil
import pytest

from tests.conftest import free_port
from train.launching import addresses, line, rendezvous
from train.launching.arguments import LaunchRefused
from train.launching.machines import Machines
from train.launching.rendezvous import NotMet, meet


@pytest.fixture(name="head")
def machines_of_a_job(monkeypatch: pytest.MonkeyPatch) -> Machines:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(rendezvous, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(rendezvous, "WAIT_SECONDS", 5.0)
    port = free_port()
    return Machines(number=2, least=2, head="127.0.0.1", port=port, job="mine", words="aa")


class Started(threading.Thread):
    """A launch on another machine, until it is told to end."""

    def __init__(self, machines: Machines, ranks: int = 4) -> None:
        super().__init__(daemon=True)
        self.machines, self.ranks = machines, ranks
        self.error: Exception | None = None
        self.variables: dict[str, str] = {}
        self.met, self.ends = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with meet(self.machines, self.ranks) as self.variables:
                self.met.set()
                self.ends.wait(10)
        except Exception as error:
            self.error = error
        self.met.set()


@contextmanager
def launches(*machines: Machines) -> Iterator[list[Started]]:
    started = [Started(each) for each in machines]
    with ExitStack() as stack:
        for each in started:
            stack.callback(each.join, 10)
            stack.callback(each.ends.set)
        yield started


def test_all_wait_for_the_last_one_and_end_in_peace(head, capsys):
    head = replace(head, number=3, least=3)
    with launches(replace(head, rank=1), head) as (first, zero):
        assert not first.met.wait(0.1)
        assert not zero.met.is_set()
        with launches(replace(head, rank=2)) as (last,):
            assert all(each.met.wait(5) for each in (first, zero, last))
    assert [each.error for each in (first, zero, last)] == [None] * 3
    assert zero.variables == {"GLOO_SOCKET_IFNAME": "lo"}
    assert "lost" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "ranks", "named"),
    [
        ({"job": "theirs"}, 4, "job mine, .* of job theirs"),
        ({}, 3, "4 ranks of 2 machines, static on .* but 3 ranks of 2 machines"),
        ({"words": "bb"}, 4, "config or key=value"),
        ({"rank": 2}, 4, "machine 2 of job mine"),
    ],
)
def test_a_stranger_is_refused_and_the_job_goes_on(head, changes, ranks, named, capsys):
    with launches(head) as (zero,):
        stranger = Started(replace(head, **{"rank": 1, **changes}), ranks)
        stranger.join(5)
        assert isinstance(stranger.error, LaunchRefused)
        assert re.search(named, str(stranger.error))
        with launches(replace(head, rank=1)) as (one,):
            assert one.met.wait(5)
            assert zero.met.wait(5)
    assert (zero.error, one.error) == (None, None)
    assert "was refused" in capsys.readouterr().err


def test_one_that_comes_once_more_or_late_is_refused(head):
    with launches(head, replace(head, rank=1)) as (zero, one):
        assert zero.met.wait(5)
        assert one.met.wait(5)
        twice = Started(replace(head, rank=1))
        twice.join(5)
        assert "is there already" in str(twice.error)
        one.ends.set()
        one.join(5)
        late = said_by_the_next(replace(head, rank=1), while_it_is="is there already")
        assert "has begun" in late


def said_by_the_next(machines: Machines, while_it_is: str) -> str:
    """Of launches one after the other; the head may not have noticed yet that the one before has
    ended.
    """
    for _ in range(100):
        started = Started(machines)
        started.ends.set()
        started.join(5)
        if while_it_is not in str(started.error):
            break
    return str(started.error)


def test_one_that_has_left_before_the_start_may_come_again(head, capsys):
    head = replace(head, number=3, least=3)
    with launches(head) as (zero,):
        card = rendezvous._card(replace(head, rank=1), 4)
        with rendezvous._reach(head) as gone:  # it says who it is, and dies
            gone.sendall(json.dumps(card).encode() + b"\n")
        assert "of job mine is lost: its launch was killed" in heard(capsys, "lost")
        with launches(replace(head, rank=1), replace(head, rank=2)) as (one, two):
            assert all(each.met.wait(5) for each in (zero, one, two))
    assert [each.error for each in (zero, one, two)] == [None] * 3


def heard(capsys: pytest.CaptureFixture[str], word: str) -> str:
    said = ""
    deadline = time.monotonic() + 5
    while word not in said and time.monotonic() < deadline:
        said += capsys.readouterr().err
        time.sleep(0.01)
    return said


def test_machines_of_an_elastic_job_come_and_go(head, capsys):
    head = replace(head, least=1, backend="c10d")
    with launches(head) as (zero,):
        assert zero.met.wait(5)
        with launches(replace(head, rank=1)) as (one,):
            assert one.met.wait(5)
        assert one.variables["PET_LOCAL_ADDR"] == "127.0.0.1"
        assert said_by_the_next(replace(head, rank=1), while_it_is="is there already") == "None"
    assert "lost" not in capsys.readouterr().err


def test_a_guest_hears_of_the_loss_of_the_head(head, capsys):
    with (
        socket.create_server(("127.0.0.1", head.meeting_port)) as listening,
        launches(replace(head, rank=1)) as (one,),
    ):
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(json.dumps(line.GO).encode() + b"\n")
            assert one.met.wait(5)
        assert "machine 0 (127.0.0.1) of job mine is lost" in heard(capsys, "lost")


def test_a_port_that_is_taken_is_named(head):
    with (
        socket.create_server(("", head.port)),
        pytest.raises(LaunchRefused, match=f"(?s)port {head.port}.*main_process_port"),
    ):
        meet(head, 4).__enter__()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_machine_that_does_not_come_is_named(head, rank, monkeypatch):
    monkeypatch.setattr(rendezvous, "WAIT_SECONDS", 0.2)
    with pytest.raises(NotMet, match=f"machine {1 - rank} of job mine did not"):
        meet(replace(head, rank=rank), 4).__enter__()


def test_another_program_at_the_door_is_told_from_a_launch(head):
    with socket.create_server(("", head.meeting_port)) as other:
        threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        with pytest.raises(NotMet, match="has hung up"):
            meet(replace(head, rank=1), 4).__enter__()


def test_a_name_that_leads_to_the_loopback_is_refused(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("127.0.1.1", 0))])
    with pytest.raises(LaunchRefused, match=r"(?s)node1 .*127\.0\.1\.1"):
        addresses.address_of("node1")


def test_an_interface_that_was_named_is_kept(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert addresses.for_gloo("127.0.0.1") == {}


# A rank that another launcher has started


def test_a_name_that_only_this_machine_understands(monkeypatch):
    addressed = {"node1": "127.0.1.1", "head": "10.0.0.1", "good": "10.0.0.2"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *_, **__: [(0, 0, 0, "", (addressed[name], 0))]
    )
    monkeypatch.setattr(socket, "gethostname", lambda: "node1")
    # of `lo`, which every machine has
    monkeypatch.setattr(addresses, "_address_towards", lambda head: "127.0.0.1")
    several = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "head"}

    said = addresses.gloo_trouble(several)

    assert "got:  node1 leads to 127.0.1.1, and GLOO_SOCKET_IFNAME is not set" in said
    assert "run:  export GLOO_SOCKET_IFNAME=lo" in said
    for fine in (
        several | {"GLOO_SOCKET_IFNAME": "lo"},
        several | {"LOCAL_WORLD_SIZE": "4"},
        several | {"MASTER_ADDR": "node1"},  # the same machine, by namespaces or containers
        {"WORLD_SIZE": "1"},
    ):
        assert addresses.gloo_trouble(fine) == ""
    monkeypatch.setattr(socket, "gethostname", lambda: "good")
    assert addresses.gloo_trouble(several) == ""


def test_an_interface_that_is_not_there(monkeypatch):
    said = addresses.gloo_trouble(
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo,eth77"}
    )
    assert said.startswith("GLOO_SOCKET_IFNAME=lo,eth77 names no network interface")
    assert "got:  " + next(iter(psutil.net_if_addrs())) in said


def test_a_message_of_another_language_is_none():
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    theirs.sendall(b"GET / HTTP/1.1\n")
    talk = line.Line.__new__(line.Line)
    talk._connection = ours
    assert talk.receive(1) is None
    ours.close(), theirs.close()
