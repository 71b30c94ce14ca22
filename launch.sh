#!/usr/bin/env bash
# One command for a CPU, a GPU or all of them: finds or makes the environment, and hands over to `python -m train.launch`,
# which picks the devices, starts the ranks, hands signals on to them and turns the end into an exit code.
# By exec: a shell that waits in the foreground dies of what the terminal sends, and leaves the ranks behind.
set -euo pipefail

clone=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/environment.sh
source "$clone/scripts/environment.sh"

dry_run=''
for word in "$@"; do
    case $word in
        --) break ;;
        --help | -h) exec cat "$clone/train/launching/usage.txt" ;;
        --dry-run) dry_run=yes ;;
    esac
done

# The current directory comes last: at the front, a train.py or a folder train/ there would hide ours.
export PYTHONSAFEPATH=1 PYTHONPATH="$clone${PYTHONPATH:+:$PYTHONPATH}:$PWD"

if [[ -z $dry_run ]]; then
    use_environment "$clone" "${EXTRAS:-}"
elif ! look_for_environment "$clone" "${EXTRAS:-}" && ! "$PYTHON" -c 'import yaml, psutil' 2>/dev/null; then
    # Without the environment there is no yaml to read the launcher file, and no filter for secrets:
    # the words themselves are not printed.
    say "launch: the first start makes the environment, then runs $PYTHON -m train.launch with the same words"
    exit
fi
exec "$PYTHON" -m train.launch "$@"
