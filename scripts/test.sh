#!/usr/bin/env bash
# The tests. What is named besides goes to pytest as it is.
#
#   ./scripts/test.sh                        an answer in about eight minutes: what a change most likely breaks
#   ./scripts/test.sh tests/test_launch.py   some tests, all of them
#   ./scripts/test.sh --all                  all that has to pass before a change is accepted, as CI runs it
set -euo pipefail

clone=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$clone/scripts/environment.sh"

all=''
if [[ ${1:-} == --all ]]; then
    all=yes
    shift
fi
use_environment "$clone" dev
cd -- "$clone"

# The tools of that environment, shellcheck among them, before those of the machine.
PATH=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
# One thread for each process: the tests start several ranks on few cores. No test may need a network.
export PATH OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=${WANDB_MODE:-offline}
# What an outer launch left in the environment is not meant for the runs that the tests start.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
unset ISOBATCH_WORLD_SIZE ISOBATCH_ENDED ISOBATCH_ATTEMPT ISOBATCH_LAUNCHER_PID

failed=()
check() { # NAME COMMAND...
    say "checks: $1"
    "${@:2}" || failed+=("$1")
}

if [[ -n $all ]]; then
    check "ruff check" "$PYTHON" -m ruff check
    check "ruff format" "$PYTHON" -m ruff format --check
    check mypy "$PYTHON" -m mypy
    check shellcheck shellcheck --external-sources launch.sh scripts/*.sh .ci/run
fi

# Two at a time, on any machine; who is idle takes over what waits at the other, since the longest tests come last.
# Some that were asked for: one after the other, so that -s shows them.
if (($# == 0)); then
    set -- -n 2 --dist worksteal
    # What checks the repository itself is left to --all, and to who asks for it by name.
    if [[ -z $all ]]; then set -- "$@" -m "not slow" --ignore=tests/house; fi
fi
check tests "$PYTHON" -m pytest "$@"

if ((${#failed[@]})); then
    say "failed:" "$(printf ' %s;' "${failed[@]}")"
    exit 1
fi
