"""Checks the facts of one rank."""

from packaging.requirements import Requirement

from train.doctor.facts import Facts
from train.doctor.findings import Finding, doubtful, fine, wrong
from train.errors import counted
from train.installation import IS_CLONE
from train.launching.gpus import find_trouble, hides_all

FULL_GIB = 1
LOW_GIB = 10
SHARED_GIB = 1
OPEN_FILES = 4096


def check_versions(facts: Facts) -> list[Finding]:
    expected = ("torch", "accelerate", "datasets", "wandb", "omegaconf")
    missing = [name for name in expected if name not in facts.packages]
    if missing:
        remedy = "pip install -c constraints.txt -e ." if IS_CLONE else "pip install isobatch"
        return wrong(f"{', '.join(missing)} cannot be found", f"Run: {remedy}")
    findings: list[Finding] = []
    for line in facts.requirements:
        requirement = Requirement(line)
        # prereleases: a nightly build of torch counts by its number alone.
        version = facts.packages.get(requirement.name)
        if version and not requirement.specifier.contains(version, prereleases=True):
            findings += wrong(
                f"{requirement.name} {version} is here, and {requirement} is needed",
                f"Run: pip install -c constraints.txt '{requirement}'",
            )
    versions = ", ".join(f"{name} {facts.packages[name]}" for name in expected)
    cuda = f"CUDA {facts.seen.cuda}" if facts.seen.cuda else "no CUDA"
    return findings or fine(f"Python {facts.python}, {versions}, {cuda}")


def check_driver(facts: Facts) -> list[Finding]:
    """Driver and cards against torch, as the launcher and each rank check them."""
    visible = facts.variables.get("CUDA_VISIBLE_DEVICES")
    # The same question as the launcher and each rank ask, so that the doctor calls nothing fine
    # that a run refuses.
    trouble = find_trouble(facts.seen, visible, lambda: facts.machine)
    if trouble:
        return wrong(f"{trouble.got}: {trouble.why}", f"Run: {trouble.remedy}")
    if facts.machine.cards and hides_all(visible):
        has = counted(len(facts.machine.cards), "GPU")
        return doubtful(
            f"{has}, and CUDA_VISIBLE_DEVICES={visible} hides all",
            "Run: unset CUDA_VISIBLE_DEVICES",
        )
    return fine(f"driver {facts.machine.driver}") if facts.machine.driver else []


def check_gpus(facts: Facts) -> list[Finding]:
    if not facts.gpus:
        return fine("no GPU: ranks work on the CPU")
    findings = fine(f"{len(facts.gpus)} x {facts.gpus[0].name}, NCCL {facts.nccl or 'missing'}")
    # The number that is proposed is that of all machines, as NPROC is.
    if facts.ranks_here > len(facts.gpus) and not facts.on_cpu:
        findings = wrong(
            f"{facts.ranks_here} ranks share {len(facts.gpus)} GPU(s), and each needs its own",
            f"Set: NPROC={len(facts.gpus) * facts.machines}",
        )
    for index, gpu in enumerate(facts.gpus):
        if gpu.free_gib < 0.8 * gpu.memory_gib:
            findings += doubtful(
                f"GPU {index} has {gpu.free_gib:g} of {gpu.memory_gib:g} GiB free: another process "
                "uses it",
                "Run: nvidia-smi",
            )
    return findings


def check_names(facts: Facts) -> list[Finding]:
    """gloo listens at the address that the machine's own name leads to."""
    interfaces = [f"{name} {address}" for name, address in facts.interfaces.items()]
    shown = ", ".join(interfaces) or "none but the loopback"
    first = next(iter(facts.interfaces), "eth0")
    remedy = f"Set: GLOO_SOCKET_IFNAME={first}, or correct /etc/hosts"
    # On one machine the loopback reaches every rank.
    if facts.machines == 1:
        return fine(f"host {facts.host}, interfaces: {shown}")
    if not facts.resolved:
        return wrong(f"the host name {facts.host} leads to no address", remedy)
    # Debian's own line in /etc/hosts gives the name 127.0.1.1: the ranks reach the store, and gloo
    # then fails, after 1 s on one machine and 103 s on the other.
    if facts.resolved.startswith("127.") and "GLOO_SOCKET_IFNAME" not in facts.variables:
        return wrong(
            f"the host name {facts.host} leads to {facts.resolved}, which no other machine can "
            "reach",
            remedy,
        )
    return fine(f"host {facts.host} is {facts.resolved}, interfaces: {shown}")


def check_interfaces(facts: Facts) -> list[Finding]:
    findings: list[Finding] = []
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        for name in facts.variables.get(variable, "").split(","):
            # For NCCL a name is a prefix; with ^ it excludes, with = it has to match exactly.
            if name.startswith("^"):
                continue
            prefix = name.lstrip("=")
            # `lo` is allowed by name: it is what ranks of one machine may use.
            is_up = any(interface.startswith(prefix) for interface in (*facts.interfaces, "lo"))
            if not is_up:
                interfaces = ", ".join(facts.interfaces) or "the loopback only"
                findings += wrong(
                    f"{variable} names {prefix}, which is not up here", f"Set one of: {interfaces}"
                )
    return findings


def check_ports(facts: Facts) -> list[Finding]:
    """Where the ranks meet. The launcher checks that the port is free, before it starts them."""
    port = facts.variables.get("MASTER_PORT")
    if not port:
        return []
    address = facts.variables.get("MASTER_ADDR", "localhost")
    return fine(f"the ranks meet at {address}:{port}")


def check_disks(facts: Facts) -> list[Finding]:
    findings: list[Finding] = []
    for name, disk in facts.disks.items():
        what = f"{name} ({disk.path})"
        free = f"{what} has {disk.free_gib:g} GiB free"
        if not disk.writable:
            findings += wrong(f"{what} cannot be written", f"Run: ls -ld {disk.path}")
        elif disk.free_gib < FULL_GIB:
            findings += wrong(free, f"Run: df -h {disk.path}")
        elif disk.free_gib < LOW_GIB:
            findings += doubtful(free, "Checkpoints of a large model may not fit")
        else:
            findings += fine(free)
    return findings


def check_shared_memory(facts: Facts) -> list[Finding]:
    """For the buffers of NCCL and of data workers; a container has 64 MiB by default."""
    if facts.shared_memory_gib is None:
        return []
    text = f"/dev/shm has {facts.shared_memory_gib:g} GiB free"
    if facts.shared_memory_gib >= SHARED_GIB:
        return fine(text)
    return doubtful(
        f"{text}: NCCL and data.workers need more", "In a container, set: docker run --shm-size=8g"
    )


def check_limits(facts: Facts) -> list[Finding]:
    limit = "none" if facts.open_files < 0 else facts.open_files
    findings = fine(f"limit of open files {limit}")
    if 0 <= facts.open_files < OPEN_FILES:
        findings = doubtful(
            f"no more than {facts.open_files} files may be open", f"Run: ulimit -n {OPEN_FILES}"
        )
    # InfiniBand sends out of memory that the system may not move: locked memory without a limit.
    if facts.infiniband and facts.locked_memory_kib >= 0:
        findings += wrong(
            "InfiniBand cannot lock its buffers: the limit of locked memory is "
            f"{facts.locked_memory_kib} KiB",
            "Run: ulimit -l unlimited (under SLURM, the daemon's limit; docker run --ulimit "
            "memlock=-1)",
        )
    return findings


def check_timeouts(facts: Facts) -> list[Finding]:
    findings = fine(
        f"ranks wait {facts.timeout_seconds:g} s for each other (runtime.timeout_seconds)"
    )
    if facts.variables.get("TORCH_NCCL_ASYNC_ERROR_HANDLING") == "0":
        findings += doubtful(
            "TORCH_NCCL_ASYNC_ERROR_HANDLING=0: torch does not end a rank whose NCCL message "
            "failed",
            "Run: unset TORCH_NCCL_ASYNC_ERROR_HANDLING",
        )
    for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE"):
        if facts.variables.get(name) == "1":
            findings += doubtful(
                f"{name}=1 disables a fast connection", f"If it fixed nothing, run: unset {name}"
            )
    return findings


# In the order in which findings of one level are printed.
CHECKS = (
    check_versions,
    check_driver,
    check_gpus,
    check_names,
    check_interfaces,
    check_ports,
    check_disks,
    check_shared_memory,
    check_limits,
    check_timeouts,
)


def check(facts: Facts) -> list[Finding]:
    findings: list[Finding] = []
    for each in CHECKS:
        findings += each(facts)
    return findings
