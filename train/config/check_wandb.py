"""The rules for wandb.*: what W&B would refuse, found without importing it. A test asks W&B whether
they are right.
"""

from collections.abc import Iterator

from train.config.problems import Finding, Values, show

LONGEST_PROJECT = LONGEST_NAME = 128
LONGEST_TAG = 64
NOT_IN_PROJECT = "/\\#?%:"


def _project(values: Values) -> Iterator[Finding]:
    project = values["wandb.project"]
    if project is None:
        return
    wrong = sorted(set(project) & set(NOT_IN_PROJECT))
    if wrong:
        right = "".join("-" if letter in NOT_IN_PROJECT else letter for letter in project)
        entity, slash, name = project.partition("/")
        both = (
            f" (a project of a team: wandb.entity={entity} wandb.project={name})" if slash else ""
        )
        why = f"W&B takes none of {' '.join(NOT_IN_PROJECT)} in a project"
        yield (
            "wandb.project",
            f"got {show(project)}; {why}. Write wandb.project={right[:LONGEST_PROJECT]}{both}",
        )
    elif not project or len(project) > LONGEST_PROJECT:
        why = f"W&B takes 1 to {LONGEST_PROJECT} characters, this has {len(project)}"
        yield (
            "wandb.project",
            f"got {show(project)}; {why}. Write wandb.project=isobatch, or a shorter one",
        )


def _names(values: Values) -> Iterator[Finding]:
    for key in ("wandb.name", "wandb.group", "wandb.entity"):
        name = values[key]
        if name is not None and len(name) > LONGEST_NAME:
            why = f"W&B takes {LONGEST_NAME} characters at most, this has {len(name)}"
            yield key, f"got {show(name)}; {why}. Write a shorter one, and wandb.notes for the rest"
    entity = values["wandb.entity"]
    if entity is not None and (not entity.strip() or "/" in entity or " " in entity):
        why = "it is one account or team, as in https://wandb.ai/ENTITY/PROJECT"
        yield (
            "wandb.entity",
            f"got {show(entity)}; {why}. Write wandb.entity=ENTITY wandb.project=PROJECT",
        )


def _tags(values: Values) -> Iterator[Finding]:
    for tag in values["wandb.tags"]:
        if not 1 <= len(tag) <= LONGEST_TAG:
            why = f"W&B takes tags of 1 to {LONGEST_TAG} characters, this has {len(tag)}"
            yield (
                "wandb.tags",
                f"got {show(tag)}; {why}. Write a shorter one, and wandb.notes for the rest",
            )


def _one_line(values: Values) -> Iterator[Finding]:
    """A line end or an escape sequence in a name is a slip, and shows up in every table."""
    said = [
        (key, values[key]) for key in ("wandb.project", "wandb.name", "wandb.group", "wandb.entity")
    ]
    for key, text in [*said, *(("wandb.tags", tag) for tag in values["wandb.tags"])]:
        if text is not None and not text.isprintable():
            yield (
                key,
                f"got {show(text)}; it holds a control character. Write it on one line, letters "
                "only",
            )


WANDB_RULES = (_project, _names, _tags, _one_line)
