"""Settings of a run from the command line: a file, single values, and what the base itself shows."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from workers.contract import TrainSpec
from workers.contract.limits import UNSERVED, is_harmless, why_unknown
from workers.training.base import check_spec, open_base
from workers.training.errors import TrainingError

LISTS = frozenset({"target_modules"})
OBJECTS = frozenset({"think"})


def spec_for(base: Path, file: Path | None, assignments: Sequence[str]) -> TrainSpec:
    """The spec in `file`, changed by `name=value` assignments. Raises TrainingError for what does not fit.

    Lists are written with commas; `think` as JSON. Without a think contract, the base's template says which
    it is.
    """
    values: dict[str, object] = _spec_file(file) if file is not None else {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise TrainingError("bad_setting", f"--set {assignment} has no value. Write --set name=value.")
        values[name.strip()] = _value(name.strip(), text.strip())
    values = {name: value for name, value in values.items() if not is_harmless(name, value)}
    if unserved := next((name for name in values if name in UNSERVED), None):
        raise TrainingError("unservable_setting", str(why_unknown(unserved)))
    try:
        spec = TrainSpec.model_validate(values)
    except ValidationError as error:
        raise TrainingError("bad_setting", _sentences(error)) from None
    opened = open_base(base)
    if "max_length" not in values and 0 < opened.context_length < spec.max_length:
        spec = spec.model_copy(update={"max_length": opened.context_length})
    check_spec(opened, spec)
    if "think" in values:
        return spec
    # Loads torch: everything that can be refused without it has been by now.
    from workers.training.render import contract_of  # noqa: PLC0415
    from workers.training.tokenizer import load_tokenizer  # noqa: PLC0415

    return spec.model_copy(
        update={"think": contract_of(opened.template, opened.model_type, load_tokenizer(base))}
    )


def _spec_file(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError("bad_spec_file", f"The file {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise TrainingError("bad_spec_file", f"The file {file} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise TrainingError(
            "bad_spec_file", f'The file {file} holds no JSON object. Write {{"name": value, ..}}.'
        )
    return found


def _value(name: str, text: str) -> object:
    if name in LISTS and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if name in LISTS | OBJECTS:
        try:
            return json.loads(text)
        except ValueError:
            raise TrainingError("bad_setting", f"The value of {name} is not JSON: {text[:60]!r}.") from None
    return text


def _sentences(error: ValidationError) -> str:
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(TrainSpec.model_fields))
            found.append(why_unknown(name) or f"There is no setting {name}. There are: {known}.")
        else:
            found.append(
                f"{name} is {problem['input']!r:.60}: {problem['msg'][0].lower()}{problem['msg'][1:]}."
            )
    return " ".join(found)
