"""Launches of one job meet before their ranks do: machine 0 lets in those of its job, and refuses
all others.

torch's store does not ask who comes: with its static rendezvous the machine of another job that
reached the port was taken for one of this job, and both ended with exit code 0. A guest says who it
is; it hears `go` once all are there, or why it is refused. The line then stays, so that each end
hears of the loss of the other.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from train.errors import RunFailed, counted, print_error, some
from train.installation import LAUNCH
from train.launching.addresses import address_of, for_gloo
from train.launching.arguments import LaunchRefused
from train.launching.line import BYE, GO, Line
from train.launching.machines import Machines

WAIT_SECONDS = 600.0
"""For the other machines: as long as torch's own rendezvous."""
PAUSE_SECONDS = 0.5
ANSWER_SECONDS = 10.0

Card = dict[str, Any]
"""Who a machine is: its job, the shape and the command line of it, its number and its host name."""


class NotMet(RunFailed):
    """The machines of a job did not come together."""


@contextmanager
def meet(machines: Machines, ranks: int) -> Iterator[dict[str, str]]:
    """Gives the variables that are known only now: by which address and interface the others reach
    this machine.

    Raises LaunchRefused where a machine is none of this job, or a port is taken, and NotMet where
    one does not come.
    """
    if machines.number == 1:
        yield {}
        return
    card = _card(machines, ranks)
    end = Head(machines, card) if machines.rank == 0 else Guest(machines, card)
    try:
        yield _variables(end.address, machines)
    finally:
        end.close()


def _card(machines: Machines, ranks: int) -> Card:
    numbers = f"{machines.least}:{machines.number}" if machines.is_elastic else str(machines.number)
    each = " on each" if machines.is_elastic else ""
    return {
        "job": machines.job,
        "shape": f"{counted(ranks, 'rank')}{each} of {numbers} machines, {machines.backend}",
        "words": machines.words,
        "machine": machines.rank,
        "host": socket.gethostname(),
    }


def _variables(address: str, machines: Machines) -> dict[str, str]:
    variables = for_gloo(address)
    if machines.is_elastic:
        variables["PET_LOCAL_ADDR"] = address  # else torch tells the others this machine's own name
    return variables


class Head:
    """Machine 0: a thread that answers at the door, and one for each guest."""

    def __init__(self, machines: Machines, card: Card) -> None:
        self.address = address_of(machines.head) if machines.is_elastic else ""
        self._machines = machines
        self._card = card
        self._guests: dict[int, Line] = {}
        self._begun = machines.is_elastic  # guests are let in as they come
        self._changed = threading.Condition()
        self._closed = False
        _open(machines.port, machines).close()  # torch's store will want it, in another process
        self._door = _open(machines.door, machines)
        threading.Thread(target=self._answer_all, name="door", daemon=True).start()
        if not self._begun:
            self._wait()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            for line in self._guests.values():
                line.send(BYE)
                line.close()
        with suppress(OSError):  # wakes the thread that waits there; close alone does not
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _wait(self) -> None:
        job = self._machines.job
        print_error(
            f"launch: waiting for {counted(self._machines.number - 1, 'more machine')} of job {job}"
        )
        with self._changed:
            met = self._changed.wait_for(lambda: self._begun, WAIT_SECONDS)
            missing = [
                str(rank) for rank in range(1, self._machines.number) if rank not in self._guests
            ]
        if not met:
            self.close()
            raise NotMet(
                f"launch: machine {some(missing)} of job {job} did not come within "
                f"{WAIT_SECONDS:.0f} s\n  why:  nothing was started there, or "
                f"{self._machines.head}:{self._machines.door} is not reached\n  type: the same "
                "command on all machines, on each with its own --machine_rank"
            )

    def _answer_all(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._door.accept()
            except OSError:  # closed
                return
            threading.Thread(
                target=self._answer, args=(Line(connection),), name="door", daemon=True
            ).start()

    def _answer(self, line: Line) -> None:
        card = line.receive(ANSWER_SECONDS)
        if card is None:  # no launch
            line.close()
            return
        guest = f"machine {card.get('machine')} ({card.get('host')})"
        with self._changed:
            refused = self._refusal(card)
            if not refused:
                self._let_in(card["machine"], line)
        if refused:
            print_error(f"launch: {guest} was refused: {refused}")
            line.send({"refused": refused})
            line.close()
            return
        lost = line.loss()
        line.close()
        with self._changed:
            del self._guests[card["machine"]]
        if lost and not self._closed:
            print_error(f"launch: {guest} of job {self._machines.job} is lost: {lost}")

    def _let_in(self, rank: int, line: Line) -> None:
        self._guests[rank] = line
        self.address = self.address or line.own_address
        if self._begun:
            line.send(GO)
        elif len(self._guests) == self._machines.number - 1:
            self._begun = True
            for guest in self._guests.values():
                guest.send(GO)
            self._changed.notify_all()

    def _refusal(self, card: Card) -> str:
        """Why this guest is not let in; empty where it is."""
        here = self._card
        host = card.get("host")
        rank = card.get("machine")
        if card.get("job") != here["job"]:
            return (
                f"{here['host']}:{self._machines.door} is of job {here['job']}, {host} of job "
                f"{card.get('job')}"
            )
        if card.get("shape") != here["shape"]:
            return (
                f"job {here['job']} is {here['shape']} on {here['host']}, but {card.get('shape')} "
                f"on {host}"
            )
        if card.get("words") != here["words"]:
            return (
                f"config or key=value of job {here['job']} are others on {host} than on "
                f"{here['host']}"
            )
        if not isinstance(rank, int) or not 0 < rank < self._machines.number:
            return f"machine {rank} of job {here['job']} is {here['host']}, or none"
        if rank in self._guests:
            return (
                f"machine {rank} of job {here['job']} is there already; {host} needs a "
                "--machine_rank of its own"
            )
        if self._begun and not self._machines.is_elastic:
            return (
                f"job {here['job']} has begun; when it has ended, the same command on all "
                "machines goes on"
            )
        return ""


class Guest:
    """Any other machine."""

    def __init__(self, machines: Machines, card: Card) -> None:
        self._machines = machines
        self._closed = False
        self._line = Line(_reach(machines))
        self.address = self._line.own_address
        self._line.send(card)
        answer = self._line.receive(WAIT_SECONDS)
        if answer != GO:
            self._line.close()
            raise _not_let_in(answer, machines)
        threading.Thread(target=self._listen, name="door", daemon=True).start()

    def close(self) -> None:
        self._closed = True
        self._line.send(BYE)
        self._line.close()

    def _listen(self) -> None:
        lost = self._line.loss()
        if lost and not self._closed:
            machines = self._machines
            print_error(
                f"launch: machine 0 ({machines.head}) of job {machines.job} is lost: {lost}"
            )


def _reach(machines: Machines) -> socket.socket:
    """A connection to the door, once it is open."""
    where = f"{machines.head}:{machines.door}"
    deadline = time.monotonic() + WAIT_SECONDS
    said = ""
    while True:
        try:
            return socket.create_connection((machines.head, machines.door), timeout=ANSWER_SECONDS)
        except OSError as error:
            why = error.strerror or str(error)
        if why != said:
            print_error(f"launch: machine 0 at {where} does not answer yet ({why}); waiting for it")
            said = why
        if time.monotonic() > deadline:
            raise NotMet(
                f"launch: machine 0 of job {machines.job} did not answer for {WAIT_SECONDS:.0f} s\n"
                f"  got:  {where}: {why}\n  why:  nothing was started there, or that is not its "
                "name\n  type: the same command there, with --machine_rank 0"
            )
        time.sleep(PAUSE_SECONDS)


def _not_let_in(answer: Card | None, machines: Machines) -> Exception:
    if answer and "refused" in answer:
        return LaunchRefused(
            f"launch: machine 0 refuses this machine\n  got:  {answer['refused']}\n"
            f"  why:  the ranks of all machines train one run\n"
            f"  type: {LAUNCH} ... -- --main_process_ip HOST --main_process_port PORT --rdzv_id "
            "JOB   (of this job)"
        )
    return NotMet(
        f"launch: {machines.head}:{machines.door} has hung up\n"
        f"  why:  machine 0 of job {machines.job} has ended, or another program listens there\n"
        f"  type: the same command on all machines"
    )


def _open(port: int, machines: Machines) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise LaunchRefused(
            f"launch: port {port} of this machine cannot be had\n  got:  {error.strerror}\n"
            f"  why:  job {machines.job} needs {machines.port} and {machines.door}; another job "
            f"may have them\n  type: {LAUNCH} ... -- --main_process_port {machines.port + 10} ... "
            "  (on all machines)"
        ) from error
