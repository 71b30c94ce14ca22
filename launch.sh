#!/usr/bin/env bash
# One command for a CPU, a GPU or all of them: finds or makes the environment, picks the devices, starts
# `accelerate launch`, hands signals on to the ranks and turns the end into an exit code.
# It does not exec: accelerate's launcher knows only the exit codes 0 and 1, and may die before its ranks.
set -euo pipefail

clone=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/environment.sh
source "$clone/scripts/environment.sh"
unset ISOBATCH_WORLD_SIZE ISOBATCH_ENDED ISOBATCH_ATTEMPT # those of a run that this one was started from

usage() {
    cat <<'TEXT'
usage: ./launch.sh [standard|accumulate] [CONFIG] [key=value ...] [OPTIONS] [-- ACCELERATE FLAGS]
  without arguments: accumulate configs/digits.yaml, on all visible GPUs, or on the CPU

  --plan           print the plan and stop
  --print-config   print the resolved config and stop
  --smoke          two steps, evaluation, save, reload and log; keeps nothing
  --dry-run        print the command and stop
  --help           print this

  NPROC=2          the number of ranks                (default: one per visible GPU, else one on the CPU)
  LAUNCHER=FILE    the launcher file of accelerate    (default: configs/accelerate/ddp.yaml)
  EXTRAS=hf,plots  what .venv should hold besides     (default: nothing)
  OMP_NUM_THREADS  threads of each rank on the CPU    (default: 1)
  TORCH_ELASTIC_SHUTDOWN_TIMEOUT
                   seconds from a stop signal until ranks that still run are killed (default: 120)

  exit code: 0 finished, 2 bad config or data, 75 stopped on request and saved (the same command goes on), else a
  failure. Under SLURM, a job that SIGUSR1 stopped so is put back into the queue.
TEXT
}

read_arguments() {
    loop=accumulate module='' config='' dry_run='' needs_ranks=yes options=() accelerate_flags=()
    if [[ ${1:-} == standard || ${1:-} == accumulate ]]; then
        loop=$1
        shift
    fi
    while (($#)); do
        case $1 in
            --) accelerate_flags=("${@:2}") && break ;;
            --help | -h) usage && exit ;;
            --dry-run) dry_run=yes ;;
            --plan) needs_ranks='' options+=("$1") ;;
            --print-config) needs_ranks='' module=config ;;
            -*) options+=("$1") ;;
            # A file is a CONFIG even if its path holds a `=`, as the folder of a run may.
            *) if [[ -z $config && (-f $1 || $1 != *=*) ]]; then config=$1; else options+=("$1"); fi ;;
        esac
        shift
    done
    config=${config:-$clone/configs/digits.yaml}
}

find_launcher_file() {
    local asked=${LAUNCHER:-$clone/configs/accelerate/ddp.yaml}
    for launcher_file in "$asked" "$clone/$asked"; do
        if [[ -f $launcher_file ]]; then return; fi
    done
    die 2 "launch: there is no launcher file LAUNCHER=$asked" \
        "  got:  neither here ($PWD) nor in $clone is there a file of that name" \
        "  why:  accelerate would take your own default file, and silently train another way" \
        "  type: ls $(printf %q "$clone/configs/accelerate")"
}

# A setting of accelerate: the last flag after `--`, else the launcher file (YAML or JSON), else nothing.
setting() { # NAME [FILE]
    local i value=''
    for ((i = 0; i < ${#accelerate_flags[@]}; i++)); do
        case ${accelerate_flags[i]//-/_} in
            "__$1") value=${accelerate_flags[i + 1]:-} ;;
            "__$1="*) value=${accelerate_flags[i]#*=} ;;
        esac
    done
    if [[ -z $value && -n ${2:-} ]]; then
        value=$(sed -n "s/^[[:space:]]*[\"']\{0,1\}$1[\"']\{0,1\}[[:space:]]*:[[:space:]]*//p" "$2" |
            sed -n "1{s/[[:space:]]*#.*//;s/[\"',]//g;p;}")
    fi
    if [[ $value != null ]]; then printf '%s\n' "$value"; fi
}

# Torch's own variable: what torchrun gives its ranks when a scheduler sends it the signal directly.
read_grace() {
    grace=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120} # as scripts/slurm.sbatch leaves
    if [[ $grace =~ ^[1-9][0-9]*$ ]]; then return; fi
    die 2 "launch: TORCH_ELASTIC_SHUTDOWN_TIMEOUT is the time that ranks have to save after a stop signal" \
        "  got:  TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$grace" "  why:  it has to be a whole number of seconds, 1 or more" \
        "  type: TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120 $(printf %q "$0")"
}

# torch knows best what it can use (CUDA_VISIBLE_DEVICES, MIG, a CPU build of torch). Asking it costs an import,
# so it is asked only where the machine seems to have a GPU. A dry run without torch counts what the driver lists.
count_gpus() {
    if [[ -n $cpu_asked ]]; then
        echo 0
    elif ! command -v nvidia-smi >/dev/null && ! compgen -G '/dev/nvidia[0-9]*' >/dev/null && [[ ! -e /dev/kfd ]]; then
        echo 0
    elif [[ $environment == ready ]]; then
        "$PYTHON" -c 'import torch; print(torch.cuda.device_count())'
    else
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    fi
}

counted() { if [[ $1 == 1 ]]; then echo "$1 $2"; else echo "$1 $2s"; fi; }

read_asked_ranks() {
    asked=$(setting num_processes) asked_by=--num_processes
    if [[ -z $asked ]]; then asked=${NPROC:-} asked_by=NPROC; fi
    if [[ -z $asked || $asked =~ ^[1-9][0-9]*$ ]]; then return; fi
    die 2 "launch: $asked_by is the number of ranks" "  got:  $asked_by=$asked" \
        "  why:  it has to be a whole number, 1 or more" "  type: NPROC=2 $(printf %q "$0")"
}

# A flag that only torchrun knows. accelerate starts a lone rank without torchrun, and drops such flags in silence.
find_torchrun_flag() {
    local flag
    torchrun_flag=''
    for flag in ${accelerate_flags[@]+"${accelerate_flags[@]}"}; do
        case ${flag//-/_} in
            __max_restarts* | __rdzv_* | __monitor_interval* | __log_dir* | __tee*) torchrun_flag=$flag ;;
        esac
    done
}

# By --multi_gpu it sends one rank to torchrun too, but refuses where a flag, or a GPU by its name, says that it is one.
check_lone_rank() {
    local wrong=''
    if [[ $(setting num_processes "$launcher_file") != 1 ]]; then wrong="no num_processes: 1 in $launcher_file"; fi
    if [[ -n $(setting num_processes) ]]; then wrong='--num_processes 1'; fi
    case $(setting gpu_ids "$launcher_file") in '' | all) ;; *) wrong='gpu_ids that name a GPU' ;; esac
    if [[ -z $wrong ]]; then return; fi
    die 2 "launch: $torchrun_flag for one rank has to be asked for in another way" \
        "  got:  $wrong, beside $torchrun_flag" \
        "  why:  accelerate would start the rank without torchrun, which alone knows that flag, or not at all" \
        "  type: NPROC=1 $(printf %q "$0") ... -- $torchrun_flag ...   (no LAUNCHER; CUDA_VISIBLE_DEVICES names a GPU)"
}

choose_ranks() {
    local cpu_asked='' no_gpu='no GPU visible'
    case ${ACCELERATE_USE_CPU:-} in true | True | 1 | yes) cpu_asked=yes no_gpu='as ACCELERATE_USE_CPU says' ;; esac
    gpus=$(count_gpus) machines=$(setting num_machines "$launcher_file") file_decides=''
    machines=${machines:-1}
    # Several machines, or GPUs chosen by name: the file has thought about numbers, only an explicit one overrides it.
    case $(setting gpu_ids "$launcher_file") in '' | all) ;; *) file_decides=yes ;; esac
    if [[ $machines != 1 ]]; then file_decides=yes; fi
    if [[ -n $file_decides ]]; then
        ranks=${asked:-$(setting num_processes "$launcher_file")}
        say "launch: $(counted "${ranks:-?}" rank) on $(counted "$machines" machine) ($launcher_file)"
    elif ((gpus == 0)); then
        ranks=${asked:-1}
        say "launch: $no_gpu: $(counted "$ranks" rank) on the CPU$([[ -n $asked ]] || echo '; NPROC=2 for more')"
    elif ((${asked:-1} > gpus)); then
        die 2 "launch: more ranks than GPUs" "  got:  $asked_by=$asked, $(counted "$gpus" GPU) visible" \
            "  why:  each rank needs a GPU of its own" \
            "  type: NPROC=$gpus $(printf %q "$0")   (or ACCELERATE_USE_CPU=true before NPROC=$asked: ranks on the CPU)"
    else
        ranks=${asked:-$gpus}
        say "launch: $(counted "$gpus" GPU) visible, $(counted "$ranks" rank)"
    fi
}

# Kept in a list and given to the program alone: what this script itself starts must not look like a rank.
collect_variables() {
    # The current directory comes last: at the front, a train.py or a folder train/ there would hide ours.
    variables=(PYTHONSAFEPATH=1 "PYTHONPATH=$clone${PYTHONPATH:+:$PYTHONPATH}:$PWD")
    # A signal that torchrun does not handle kills it and leaves its ranks behind.
    variables+=("PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1" "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$grace")
    if [[ $ranks =~ ^[1-9][0-9]*$ ]]; then variables+=("ISOBATCH_WORLD_SIZE=$ranks"); fi
    # Without the first, two ranks on a CPU are two trainings that both believe they are alone. With more threads
    # than cores, ranks wait for each other: a hundred times slower was seen.
    if ((gpus == 0)); then variables+=(ACCELERATE_USE_CPU=true "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}"); fi
}

build_command() {
    local no_engine='' several='' number=$ranks
    command=("$PYTHON")
    if [[ -n $needs_ranks ]]; then
        if [[ $(setting distributed_type "$launcher_file") =~ ^(NO|no|)$ ]]; then no_engine=yes; fi
        if [[ -n $file_decides && -z ${NPROC:-} ]]; then number=''; fi
        if [[ $ranks != 1 ]]; then
            several=yes
        elif [[ -n $no_engine && -n $torchrun_flag ]]; then
            check_lone_rank
            several=yes number='' # the file says 1
        fi
        command+=(-m accelerate.commands.launch --config_file "$launcher_file")
        if [[ -n $number ]]; then command+=(--num_processes "$number"); fi
        # Port 0 is a free one: two launches on one machine do not meet.
        if [[ $machines == 1 ]]; then command+=(--main_process_port 0); fi
        # Only where the file names no engine: beside FSDP, --multi_gpu silently switches FSDP off. A lone rank needs
        # --cpu, because accelerate overwrites ACCELERATE_USE_CPU for it; several ranks would become one by that flag.
        if [[ -n $no_engine ]]; then
            if [[ -n $several ]]; then command+=(--multi_gpu); elif ((gpus == 0)); then command+=(--cpu); fi
        fi
        command+=(${accelerate_flags[@]+"${accelerate_flags[@]}"})
    fi
    command+=(-m "train.${module:-$loop}" "$config" ${options[@]+"${options[@]}"})
}

print_command() {
    printf '%q ' env "${variables[@]}" "${command[@]}" | sed 's/\\,/,/g; s/ $//'
    printf '\n'
    if [[ -n $needs_ranks ]]; then echo "# launch.sh adds ISOBATCH_ATTEMPT and ISOBATCH_ENDED to it"; fi
}

# Every process of this attempt, by the mark in its environment: torchrun puts each rank into a session of its own,
# so no process group holds them all. Without /proc (macOS) the group and the ranks are what can be asked.
remaining_processes() {
    if [[ -r /proc/self/environ ]]; then
        grep -lzsxF -- "ISOBATCH_ATTEMPT=$attempt" /proc/[0-9]*/environ | tr -dc '0-9\n' || true
    else
        pgrep -g "$launcher" || true
        pgrep -P "$launcher" || true
    fi
}

# The ranks alone, which are the launcher's children: not their data workers, which a SIGTERM kills and with them
# the step that the rank is about to finish.
rank_processes() {
    local pid stat
    if [[ ! -r /proc/self/environ ]]; then pgrep -P "$launcher" || true; fi
    for pid in $(remaining_processes); do
        stat=$(cat "/proc/$pid/stat" 2>/dev/null) || continue
        # pid (name) state parent ...; the name may hold anything
        read -r _ stat _ <<<"${stat##*)}"
        if [[ $stat == "$launcher" ]]; then echo "$pid"; fi
    done
}

send() { # SIGNAL PID...
    local pid
    for pid in "${@:2}"; do kill -s "$1" -- "$pid" 2>/dev/null || true; done
}

# The first signal of a kind goes to the ranks: the launcher would end in a traceback. The same again, or one that comes
# before there are ranks, goes to the launcher's whole group and ends it. The first one sets the time to save; only a
# second Ctrl-C, which leaves at once, cuts it short.
forward() { # SIGNAL
    local targets
    woken=yes
    if [[ -z $forwarded ]]; then deadline=$((SECONDS + grace)); fi
    if [[ " $forwarded " != *" $1 "* ]]; then
        targets=$(rank_processes)
    elif [[ $1 == INT ]] && ((deadline > SECONDS + leaving)); then
        deadline=$((SECONDS + leaving))
    fi
    if [[ -z ${targets:-} ]] && ! kill -0 "$launcher" 2>/dev/null; then targets=$(remaining_processes); fi
    say "launch: SIG$1 handed on; waiting $((deadline - SECONDS)) s for the ranks to end"
    # shellcheck disable=SC2086 # one word per process
    send "$1" ${targets:--$launcher}
    forwarded="$forwarded $1"
}

kill_remaining() {
    local left
    left=$(remaining_processes)
    if [[ -z $left ]]; then return; fi
    say "launch: killed what still ran at the end of its time:" "${left//$'\n'/ }"
    # shellcheck disable=SC2086 # one word per process
    send KILL $left
}

# `wait` ends early at a trapped signal. Then the ranks have their time to save; after it nothing is left of them.
wait_for_launcher() {
    while true; do
        woken=''
        wait "$launcher" 2>/dev/null && launcher_code=0 || launcher_code=$?
        if [[ -z $woken ]]; then return; fi
        while ((SECONDS <= deadline)) && kill -0 "$launcher" 2>/dev/null; do sleep 0.1 || true; done
        if ((SECONDS > deadline)); then kill_remaining; fi
    done
}

# Ranks may outlive a launcher that was killed. What even KILL does not end (stuck in a driver) is left behind.
wait_for_ranks() {
    local killed=''
    if [[ -z $forwarded ]]; then
        deadline=$((SECONDS + grace))
        # Nobody told them: give them the chance to save.
        # shellcheck disable=SC2046 # one word per process
        if ((launcher_code > 128)); then send TERM $(remaining_processes); fi
    fi
    while woken='' && [[ -n $(remaining_processes)$woken ]]; do
        if ((SECONDS > deadline)); then
            if [[ -n $killed ]]; then return; fi
            kill_remaining
            killed=yes deadline=$((SECONDS + 5))
        fi
        sleep 0.1 || true
    done
}

# The program writes how it ended into a file and exits 0, because the launcher would restart or flatten any other
# code. Without that file nobody knows more than the launcher.
final_code() {
    local text='' number=$launcher_code
    if [[ -f $folder/ended.json ]]; then text=$(<"$folder/ended.json"); fi
    if [[ $text =~ \"code\"[[:space:]]*:[[:space:]]*([0-9]+) ]]; then
        if ((BASH_REMATCH[1] != 0 || launcher_code == 0)) || [[ -n $forwarded ]]; then number=${BASH_REMATCH[1]}; fi
    elif [[ -n $forwarded ]]; then
        number=$((128 + $(kill -l "${forwarded##* }")))
    fi
    echo "$number"
}

# SLURM announces the end of a job's time by SIGUSR1: to this shell (--signal=B:USR1@120), or to the ranks, which then
# tell it (--signal=USR1@120). SIGTERM is scancel, which means it.
requeue() { # CODE
    if [[ $1 != 75 || -z ${SLURM_JOB_ID:-} ]]; then return; fi
    if grep -qs '"main": false' "$folder/ended.json"; then return; fi # the machine of rank 0 does it
    if [[ -n ${WANDB_SWEEP_ID:-} ]]; then # a trial of `wandb agent`, whose job this is; the trial was marked as preempted
        say "launch: saved; W&B puts the trial back into the queue of its sweep, so SLURM is not asked to"
        return
    fi
    if [[ " $forwarded " != *" USR1 "* ]] && ! grep -qs SIGUSR1 "$folder/ended.json"; then return; fi
    say "launch: saved; job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID" || say "launch: scontrol requeue failed; type: sbatch again, it goes on from there"
}

run() {
    folder=$(mktemp -d "${TMPDIR:-/tmp}/isobatch.XXXXXX")
    trap 'rm -rf -- "$folder"' EXIT
    attempt=$(date +%s)-$$-$RANDOM forwarded='' deadline=0
    leaving=10 # seconds, after a second Ctrl-C: W&B is told the end
    variables+=("ISOBATCH_ATTEMPT=$attempt" "ISOBATCH_ENDED=$folder/ended.json")
    # Job control gives the launcher a process group of its own, so that Ctrl-C reaches it only by way of forward.
    set -m
    env "${variables[@]}" "${command[@]}" </dev/null &
    launcher=$!
    set +m
    trap 'forward INT' INT
    trap 'forward USR1' USR1
    # A terminal that goes away, and Ctrl-\, must not leave a training behind: stop and save.
    trap 'forward TERM' TERM HUP QUIT
    wait_for_launcher
    wait_for_ranks
    code=$(final_code)
    requeue "$code"
    exit "$code"
}

read_arguments "$@"
find_launcher_file
read_asked_ranks
read_grace
environment=ready
if [[ -z $dry_run ]]; then
    use_environment "$clone" "${EXTRAS:-}"
else
    look_for_environment "$clone" "${EXTRAS:-}" || environment=missing
fi
choose_ranks
find_torchrun_flag
collect_variables
build_command
if [[ -n $dry_run ]]; then
    print_command
elif [[ -z $needs_ranks ]]; then
    exec env "${variables[@]}" "${command[@]}"
else
    run
fi
