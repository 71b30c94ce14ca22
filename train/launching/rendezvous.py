"""Launches of one job meet before their ranks: machine 0 accepts those of its job only.

torch's store does not ask who comes: with its static rendezvous the machine of another job that
reached the port was taken for one of this job, and both ended with exit code 0. A guest sends who
it is; it receives `go` once all are there, or why it is refused. The connection stays open, so that
each end learns when the other is lost.
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
"""Who a machine is: its job, the job's shape and command line, its own number and host name."""


class NotMet(RunFailed):
    """The machines of a job did not come together."""


@contextmanager
def meet(machines: Machines, ranks: int) -> Iterator[dict[str, str]]:
    """Yields variables that are known only now: the address and interface of this machine.

    Raises LaunchRefused where a machine is none of this job, or a port is in use, and NotMet where
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
    if machines.is_elastic:
        shape = f"{counted(ranks, 'rank')} on each of {machines.least}:{machines.number} machines"
    else:
        shape = f"{counted(ranks, 'rank')} of {machines.number} machines"
    return {
        "job": machines.job,
        "shape": f"{shape}, {machines.backend}",
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
    """Machine 0: a thread that accepts connections, and one for each guest."""

    def __init__(self, machines: Machines, card: Card) -> None:
        # The guests of an elastic job come at any time, so no connection shows yet by which address
        # they reach this machine.
        self.address = address_of(machines.head) if machines.is_elastic else ""
        self._machines = machines
        self._card = card
        self._guests: dict[int, Line] = {}
        self._begun = machines.is_elastic  # then guests are accepted as they come
        self._changed = threading.Condition()
        self._closed = False
        _open(machines.port, machines).close()  # torch's store will open it, in another process
        self._server = _open(machines.meeting_port, machines)
        threading.Thread(target=self._answer_all, name="rendezvous", daemon=True).start()
        if not self._begun:
            self._wait()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            # It tells an end from a loss.
            for line in self._guests.values():
                line.send(BYE)
                line.close()
        with suppress(OSError):  # wakes the thread that waits there; close alone does not
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

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
            where = f"{self._machines.head}:{self._machines.meeting_port}"
            raise NotMet(
                f"launch: machine {some(missing)} of job {job} did not come within "
                f"{WAIT_SECONDS:.0f} s\n"
                f"  why:  nothing was started there, or {where} is not reached\n"
                "  run:  the same command on all machines, on each with its own --machine_rank"
            )

    def _answer_all(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            # A thread for each: one that connects and sends nothing keeps nobody else waiting.
            threading.Thread(
                target=self._answer, args=(Line(connection),), name="rendezvous", daemon=True
            ).start()

    def _answer(self, line: Line) -> None:
        card = line.receive(ANSWER_SECONDS)
        if card is None:  # no launch
            line.close()
            return
        guest = f"machine {card.get('machine')} ({card.get('host')})"
        # Under the lock: of two guests with one number the second is refused.
        with self._changed:
            refused = self._why_refused(card)
            if not refused:
                self._accept(card["machine"], line)
        if refused:
            print_error(f"launch: {guest} was refused: {refused}")
            line.send({"refused": refused})
            line.close()
            return
        # From here on the connection is watched, in order to name a loss. It stops nothing: a
        # network that is cut may come back.
        lost = line.loss()
        line.close()
        with self._changed:
            # Its place is free again: a launch may end and come once more, before the start or in
            # an elastic job.
            del self._guests[card["machine"]]
        if lost and not self._closed:
            print_error(f"launch: {guest} of job {self._machines.job} is lost: {lost}")

    def _accept(self, rank: int, line: Line) -> None:
        self._guests[rank] = line
        self.address = self.address or line.own_address
        if self._begun:
            line.send(GO)
        elif len(self._guests) == self._machines.number - 1:
            self._begun = True
            for guest in self._guests.values():
                guest.send(GO)
            self._changed.notify_all()

    def _why_refused(self, card: Card) -> str:
        """Empty where this guest is accepted."""
        # What explains the rest comes first: another job has another command line as well.
        here = self._card
        host = card.get("host")
        rank = card.get("machine")
        if card.get("job") != here["job"]:
            where = f"{here['host']}:{self._machines.meeting_port}"
            return f"{where} is of job {here['job']}, {host} of job {card.get('job')}"
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
        # torch's static rendezvous has a fixed number of machines, and takes none in later.
        if self._begun and not self._machines.is_elastic:
            return (
                f"job {here['job']} has begun; when it has ended, the same command on all "
                "machines resumes it"
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
        # It comes once all machines are there.
        answer = self._line.receive(WAIT_SECONDS)
        if answer != GO:
            self._line.close()
            raise _refused(answer, machines)
        threading.Thread(target=self._listen, name="rendezvous", daemon=True).start()

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
    """A connection to machine 0, once it listens."""
    where = f"{machines.head}:{machines.meeting_port}"
    deadline = time.monotonic() + WAIT_SECONDS
    reported = ""
    while True:
        try:
            return socket.create_connection(
                (machines.head, machines.meeting_port), timeout=ANSWER_SECONDS
            )
        except OSError as error:
            why = error.strerror or str(error)
        # Each reason once: the other machine may come minutes later.
        if why != reported:
            print_error(f"launch: machine 0 at {where} does not answer yet ({why}); waiting for it")
            reported = why
        if time.monotonic() > deadline:
            raise NotMet(
                f"launch: machine 0 of job {machines.job} did not answer for {WAIT_SECONDS:.0f} s\n"
                f"  got:  {where}: {why}\n  why:  nothing was started there, or that is not its "
                "name\n  run:  the same command there, with --machine_rank 0"
            )
        time.sleep(PAUSE_SECONDS)


def _refused(answer: Card | None, machines: Machines) -> Exception:
    if answer and "refused" in answer:
        return LaunchRefused(
            f"launch: machine 0 refuses this machine\n  got:  {answer['refused']}\n"
            f"  why:  the ranks of all machines train one run\n"
            f"  run:  {LAUNCH} ... -- --main_process_ip HOST --main_process_port PORT --rdzv_id "
            "JOB   (of this job)"
        )
    return NotMet(
        f"launch: {machines.head}:{machines.meeting_port} has hung up\n"
        f"  why:  machine 0 of job {machines.job} has ended, or another program listens there\n"
        f"  run:  the same command on all machines"
    )


def _open(port: int, machines: Machines) -> socket.socket:
    # Of both families, as the name of this machine may lead to an address of either.
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise LaunchRefused(
            f"launch: port {port} of this machine cannot be had\n  got:  {error.strerror}\n"
            f"  why:  job {machines.job} needs {machines.port} and {machines.meeting_port}; "
            "another job may have them\n"
            f"  run:  {LAUNCH} ... -- --main_process_port {machines.port + 10} ...   "
            "(on all machines)"
        ) from error
