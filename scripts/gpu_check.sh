#!/usr/bin/env bash
# What only a GPU can show, on one or two of them: tests/gpu, and a report of what came of it. Meant for ten minutes.
# What is named besides goes to pytest as it is.
#
#   ./scripts/gpu_check.sh                  all; the last line names the report, which can be committed under docs/
#   ./scripts/gpu_check.sh -k resume        some; the report then says so
set -euo pipefail

clone=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$clone/scripts/environment.sh"

use_environment "$clone" dev
cd -- "$clone"

# No test may need a network; what an outer launch left in the environment is not meant for the ranks of the tests.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=${WANDB_MODE:-offline}
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT ACCELERATE_USE_CPU
unset ISOBATCH_WORLD_SIZE ISOBATCH_ENDED ISOBATCH_ATTEMPT ISOBATCH_LAUNCHER_PID

exec "$PYTHON" -m tests.gpu "$@"
