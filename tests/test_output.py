"""What is printed to a pipe that nobody reads any more."""

import subprocess
import sys
from pathlib import Path

SAYS = """
import sys, time
from train.output import keep_printing
keep_printing()
for number in range(5):
    print("line", number)
    print("error", number, file=sys.stderr)
    time.sleep(0.05)
"""


def test_a_closed_pipe_ends_nothing() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SAYS], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stderr.close()

    assert process.wait(30) == 0


def test_a_full_disk_under_stdout_ends_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        assert (
            subprocess.run(
                [sys.executable, "-c", SAYS], stdout=full, stderr=full, check=False
            ).returncode
            == 0
        )
