# shellcheck shell=bash
# Sourced by launch.sh and scripts/test.sh: the one place that finds or makes the Python environment.
#
#   look_for_environment CLONE EXTRAS   sets PYTHON and says on stderr what it is; fails if it would have to be made
#   use_environment CLONE EXTRAS        the same, and makes or updates CLONE/.venv where that is needed
#
# EXTRAS are those of pyproject.toml, comma-separated: "", "dev", "hf,plots". An active environment that imports
# all that is needed is used as it is, whatever its versions. Otherwise CLONE/.venv holds the tested set, and
# .venv/isobatch-stamp says for which pyproject.toml, constraints.txt and extras it was installed. A .venv that is a link
# belongs to somebody else: it counts as active, and nothing is installed into what it leads to.
#
# torch comes in the build that suits driver and card (train/launching/torch_builds.py; TORCH_BUILD=cu126 names another),
# or is that of a module of the cluster, on which .venv is then made.

# On a terminal the last line may hold the live line of a rank: it is cleared before.
say() {
    local start=''
    if [[ -t 2 && ${TERM:-dumb} != dumb ]]; then start=$'\r\e[K'; fi
    printf '%s%s\n' "$start" "$*" >&2
}

die() { # EXIT_CODE LINE...
    local code=$1
    shift
    printf '%s\n' "$@" >&2
    exit "$code"
}

modules_needed() { # EXTRAS
    local extra
    printf '%s ' torch accelerate datasets wandb omegaconf
    for extra in ${1//,/ }; do
        case $extra in
            dev) printf '%s ' pytest pytest_timeout xdist hypothesis ruff mypy matplotlib transformers peft wandb_workspaces ;;
            plots) printf '%s ' matplotlib ;;
            hf) printf '%s ' transformers ;;
            vision) printf '%s ' timm torchvision ;;
            page) printf '%s ' wandb_workspaces ;;
            *) die 2 "environment: there is no extra '$extra'; pyproject.toml has dev, plots, hf, vision and page" ;;
        esac
    done
}

# Prints three lines about an interpreter: its path, its prefix, and what it lacks. Modules are looked up, not
# imported (torch alone takes seconds), and not in the current directory, where a folder `wandb` would pass for one.
inspect_python() { # PYTHON MODULE...
    "$1" -c '
import sys
from importlib.util import find_spec
sys.path = [entry for entry in sys.path if entry]
specs = {name: find_spec(name) for name in sys.argv[1:]}
missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]
if sys.version_info < (3, 11):
    missing.insert(0, "Python>=3.11 (this is %d.%d)" % sys.version_info[:2])
print(sys.executable)
print(sys.prefix)
print(", ".join(missing))
' "${@:2}" 2>/dev/null
}

# The folder of an environment that somebody activated, or linked, on purpose. conda's base is always on, so it does not
# count.
activated_environment() { # CLONE
    if [[ -n ${VIRTUAL_ENV:-} ]]; then
        printf '%s\n' "$VIRTUAL_ENV"
    elif [[ -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-} != base ]]; then
        printf '%s\n' "$CONDA_PREFIX"
    elif [[ -L $1/.venv ]]; then
        printf '%s\n' "$1/.venv"
    fi
}

is_own_venv() { # CLONE FOLDER
    [[ ! -L $1/.venv && $2 -ef $1/.venv ]]
}

# Sets PYTHON if the active interpreter has everything. An activated environment that lacks something ends here:
# making a second one behind its back would surprise, and installing into it is its owner's business.
use_active_python() { # CLONE EXTRAS
    local clone=$1 extras=$2 activated candidates candidate modules report executable prefix missing
    modules=$(modules_needed "$extras") || exit
    read -ra modules <<<"$modules"
    activated=$(activated_environment "$clone")
    if [[ -n $activated ]]; then candidates=("$activated/bin/python"); else candidates=(python3 python); fi
    if is_own_venv "$clone" "$activated"; then return 1; fi
    for candidate in "${candidates[@]}"; do
        report=$(inspect_python "$candidate" "${modules[@]}") || continue
        { read -r executable && read -r prefix && read -r missing; } <<<"$report"$'\n' || true
        if is_own_venv "$clone" "$prefix"; then return 1; fi
        if [[ -z $missing ]]; then
            # shellcheck disable=SC2034 # for those who source this file
            PYTHON=$executable
            say "environment: $executable, the active one"
            return 0
        fi
    done
    if [[ -z $activated ]]; then return 1; fi
    die 1 "environment: the active environment cannot run this: it lacks ${missing:-a Python that starts}" \
        "  got:  $activated" \
        "  why:  no second environment is made while one is active, and an active one is not changed unasked" \
        "  run:  $(install_line python "$clone" "$extras")" \
        "  or:   leave it (deactivate, conda deactivate; rm .venv, where that is a link) and start again: a .venv is then" \
        "        made here"
}

install_line() { # PYTHON CLONE EXTRAS [CONSTRAINTS]
    local target=.
    if [[ -n $3 ]]; then target=".[$3]"; fi
    printf '(cd %q && %q -m pip install -e %q -c %q)' "$2" "$1" "$target" "${4:-constraints.txt}"
}

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1; }

# What the .venv was made from. The place of the clone is part of it: an editable install points there.
fingerprint() { # CLONE
    { cat "$1/pyproject.toml" "$1/constraints.txt" && printf '%s' "$1"; } | sha256
}

stamped() { # CLONE hash|extras
    local stamp="$1/.venv/isobatch-stamp"
    if [[ -r $stamp ]]; then sed -n "s/^$2 //p" "$stamp"; fi
}

venv_is_current() { # CLONE EXTRAS
    local clone=$1 extra installed
    [[ -z ${TORCH_BUILD:-} || $(stamped "$clone" build) == "$TORCH_BUILD" ]] || return 1
    [[ -x $clone/.venv/bin/python && $(stamped "$clone" hash) == "$(fingerprint "$clone")" ]] || return 1
    installed=",$(stamped "$clone" extras),"
    for extra in ${2//,/ }; do
        [[ $installed == *",$extra,"* ]] || return 1
    done
}

# The first interpreter that is new enough and can make a virtual environment.
python_for_venv() {
    local candidate without_venv=
    for candidate in python3 python python3.13 python3.12 python3.11 python3.14; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
        without_venv=$candidate
    done
    if [[ -n $without_venv ]]; then
        die 1 "environment: $without_venv cannot make a virtual environment" \
            "  got:  its modules venv or ensurepip are missing" \
            "  why:  Debian and Ubuntu ship them as a package of their own" \
            "  run:  sudo apt install python3-venv"
    fi
    die 1 "environment: no Python 3.11 or newer on PATH" \
        "  got:  $(python3 --version 2>/dev/null || echo 'no python3 that starts')" \
        "  why:  the code uses the language of 3.11" \
        "  run:  module load python/3.11, or conda create -n isobatch python=3.11 && conda activate isobatch"
}

# One installer at a time: a second launch waits here, and then finds the work done. The lock is held by the open
# file, so it ends with the process, killed or not. Where there is no flock (macOS), two have to take turns by hand.
take_lock() { # CLONE
    exec 9>"$1/.venv.lock"
    command -v flock >/dev/null || return 0
    flock -n 9 && return 0
    say "environment: another launch is installing into .venv; waiting for it"
    flock 9
}

# The torch of an interpreter that a loaded module, or a container of NVIDIA, has brought: it was built for the drivers
# and the network there. Its version, if the code can use it.
torch_of_module() { # PYTHON
    [[ -n ${LOADEDMODULES:-}${NVIDIA_PYTORCH_VERSION:-} ]] || return 1
    "$1" -c '
import sys
from importlib.metadata import version
torch = version("torch")
print(torch)
sys.exit(tuple(map(int, torch.split(".")[:2])) < (2, 8))
' 2>/dev/null
}

make_venv() { # CLONE
    local venv="$1/.venv" python version
    python=$(python_for_venv)
    if version=$(torch_of_module "$python"); then
        say "environment: making $venv on torch $version of $(command -v "$python")," \
            "since a module brings it: ${LOADEDMODULES:-PyTorch $NVIDIA_PYTORCH_VERSION}"
        "$python" -m venv --clear --system-site-packages "$venv"
        echo "torch==$version" >"$venv/torch-of-module"
    else
        say "environment: making $venv with $("$python" --version 2>&1)"
        "$python" -m venv --clear "$venv"
    fi
}

# The build of torch that suits this machine, before pip takes the one that it finds by itself. Where it cannot be had,
# that one is taken: whether it can use the cards is judged by the launch.
install_torch() { # CLONE EXTRAS
    local clone=$1 venv="$1/.venv" build why name pins=()
    { read -r build && read -r why; } < <("$venv/bin/python" -P "$clone/train/launching/torch_builds.py") || true
    if [[ -z ${why:-} ]]; then return 0; fi
    say "environment: torch in the build ${build:-that pip finds} ($why)"
    if [[ -z $build ]]; then return 0; fi
    for name in torch torchvision; do
        if [[ $name == torch || ",$2," == *,vision,* ]]; then
            pins+=("$name==$(sed -n "s/^$name==//p" "$clone/constraints.txt")+$build")
        fi
    done
    "$venv/bin/python" -m pip install --no-deps --retries 1 "${pins[@]}" \
        --extra-index-url "https://download.pytorch.org/whl/$build" >&2 ||
        say "environment: ${pins[*]} cannot be had (pip says why above); what pip finds by itself follows"
}

install_into_venv() { # CLONE EXTRAS
    local clone=$1 extras=$2 venv="$1/.venv" hash target=. constraints=constraints.txt
    # Taken before the installation: a file edited meanwhile makes the stamp out of date, as it should be.
    hash=$(fingerprint "$clone")
    # Named once, it stays: a login node without a GPU cannot find it out.
    export TORCH_BUILD=${TORCH_BUILD:-$(stamped "$clone" build)}
    # Without a stamp until all is there, so that an installation that was killed is done again.
    rm -f -- "$venv/isobatch-stamp"
    if [[ ! -x $venv/bin/python ]]; then make_venv "$clone"; fi
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >&2 ||
        die 1 "environment: $venv has no pip, and ensurepip cannot bring it" "  run:  rm -r $(printf %q "$venv")"
    if [[ -n $extras ]]; then target=".[$extras]"; fi
    say "environment: installing the tested set (constraints.txt); torch is large, the first time takes minutes"
    if [[ -e $venv/torch-of-module ]]; then
        constraints=.venv/constraints.txt
        sed -E '/^torch(vision)?==/d' "$clone/constraints.txt" | cat - "$venv/torch-of-module" >"$venv/constraints.txt"
    else
        install_torch "$clone" "$extras"
    fi
    (cd -- "$clone" && .venv/bin/python -m pip install -e "$target" -c "$constraints") >&2 ||
        die 1 "environment: pip could not install; its own message stands above" \
            "  run:  $(install_line "$venv/bin/python" "$clone" "$extras" "$constraints")" \
            "  or, to start from nothing: rm -r $(printf %q "$venv")"
    printf 'hash %s\nextras %s\nbuild %s\n' "$hash" "$extras" "$TORCH_BUILD" >"$venv/isobatch-stamp.new"
    mv -- "$venv/isobatch-stamp.new" "$venv/isobatch-stamp"
}

look_for_environment() { # CLONE EXTRAS
    if use_active_python "$1" "$2"; then return 0; fi
    # shellcheck disable=SC2034 # for those who source this file
    PYTHON=$1/.venv/bin/python
    if venv_is_current "$1" "$2"; then
        say "environment: $1/.venv"
        return 0
    fi
    say "environment: $1/.venv is $(if [[ -d $1/.venv ]]; then echo 'not up to date'; else echo missing; fi)"
    return 1
}

use_environment() { # CLONE EXTRAS
    local clone=$1 extras=$2 before extra
    if look_for_environment "$clone" "$extras"; then return 0; fi
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        die 1 "environment: nothing is installed inside a SLURM job" \
            "  got:  SLURM_JOB_ID=$SLURM_JOB_ID, and no environment that is ready" \
            "  why:  every node would install at once, and compute nodes often have no network" \
            "  run:  $(printf %q "$clone/launch.sh") --plan   (on the login node, once; then submit again)"
    fi
    take_lock "$clone"
    if ! venv_is_current "$clone" "$extras"; then
        # Extras that were asked for earlier stay: tests and launches take turns in one .venv.
        before=$(stamped "$clone" extras)
        for extra in ${before//,/ }; do
            if [[ ",$extras," != *",$extra,"* ]]; then extras="${extras:+$extras,}$extra"; fi
        done
        install_into_venv "$clone" "$extras"
    fi
    exec 9>&-
    say "environment: $clone/.venv is ready"
}
