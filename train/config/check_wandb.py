"""The rules for wandb.*: what W&B would refuse, checked without importing it.

A test asks W&B itself whether they are right.
"""

from collections.abc import Iterator

from train.config.problems import Finding, Values, show

LONGEST_PROJECT = 128
LONGEST_NAME = 128
LONGEST_TAG = 64
NOT_IN_PROJECT = "/\\#?%:"


def _project(values: Values) -> Iterator[Finding]:
    project = values["wandb.project"]
    # Then WANDB_PROJECT counts, or what `wandb init` has written.
    if project is None:
        return
    got = f"got {show(project)}"
    if set(project) & set(NOT_IN_PROJECT):
        # A project that can be pasted: characters that W&B refuses become dashes.
        valid = project
        for letter in NOT_IN_PROJECT:
            valid = valid.replace(letter, "-")
        why = f"W&B takes none of {' '.join(NOT_IN_PROJECT)} in a project"
        fix = f"Write wandb.project={valid[:LONGEST_PROJECT]}"
        entity, slash, name = project.partition("/")
        # TEAM/PROJECT is how W&B itself writes a project.
        if slash:
            fix += f" (a project of a team: wandb.entity={entity} wandb.project={name})"
        yield "wandb.project", f"{got}; {why}. {fix}"
    elif not 1 <= len(project) <= LONGEST_PROJECT:
        why = f"W&B takes 1 to {LONGEST_PROJECT} characters, this has {len(project)}"
        yield "wandb.project", f"{got}; {why}. Write wandb.project=isobatch, or a shorter one"


def _names(values: Values) -> Iterator[Finding]:
    for key in ("wandb.name", "wandb.group", "wandb.entity"):
        name = values[key]
        if name is not None and len(name) > LONGEST_NAME:
            why = f"W&B takes {LONGEST_NAME} characters at most, this has {len(name)}"
            yield key, f"got {show(name)}; {why}. Write a shorter one, and wandb.notes for the rest"
    entity = values["wandb.entity"]
    if entity is not None and (not entity.strip() or "/" in entity or " " in entity):
        why = "it is one account or team, as in https://wandb.ai/ENTITY/PROJECT"
        fix = "Write wandb.entity=ENTITY wandb.project=PROJECT"
        yield "wandb.entity", f"got {show(entity)}; {why}. {fix}"


def _tags(values: Values) -> Iterator[Finding]:
    # W&B refuses a run for one such tag, when it is initialised.
    fix = "Write a shorter one, and wandb.notes for the rest"
    for tag in values["wandb.tags"]:
        if not 1 <= len(tag) <= LONGEST_TAG:
            why = f"W&B takes tags of 1 to {LONGEST_TAG} characters, this has {len(tag)}"
            yield "wandb.tags", f"got {show(tag)}; {why}. {fix}"


def _one_line(values: Values) -> Iterator[Finding]:
    """A line end or an escape sequence in a name is a slip, and shows up in every table."""
    keys = ("wandb.project", "wandb.name", "wandb.group", "wandb.entity")
    texts = [(key, values[key]) for key in keys]
    texts += [("wandb.tags", tag) for tag in values["wandb.tags"]]
    why = "it holds a control character. Write it on one line, letters only"
    for key, text in texts:
        if text is not None and not text.isprintable():
            yield key, f"got {show(text)}; {why}"


WANDB_RULES = (_project, _names, _tags, _one_line)
