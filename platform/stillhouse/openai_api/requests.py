"""What a request for a fine-tuning job may say: OpenAI's fields, and ours under `stillhouse`."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from django.http import HttpRequest, QueryDict
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic import BaseModel as Fields

from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import UserError
from stillhouse.core.text import storable
from stillhouse.training.models import Preset
from stillhouse.training.presets import usual_learning_rate

Auto = Literal["auto"]


def _text(text: str) -> str:
    if storable(text) != text:
        raise ValueError("it has a character that is none")
    return text


Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_text)]
Text = Annotated[str, Field(max_length=512), AfterValidator(_text)]
Metadata = Annotated[dict[Name, Text], Field(max_length=16)]
"""As OpenAI bounds it."""


class Strict(Fields):
    model_config = ConfigDict(extra="forbid")


class Hyperparameters(Strict):
    n_epochs: Auto | float = "auto"
    batch_size: Auto | int = "auto"
    learning_rate_multiplier: Auto | float = "auto"
    """Times the rate that suits a base of this size."""


class Supervised(Strict):
    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Strict):
    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class Own(Strict):
    """What OpenAI has no word for."""

    preset: str = Preset.BALANCED
    settings: dict[str, str | int | float] = {}
    """Settings of a run by the names of the form, `rank` say."""


class JobRequest(Strict):
    model: str = Field(max_length=200)
    """The id of a base."""
    training_file: str = Field(max_length=60)
    validation_file: str | None = Field(None, max_length=60)
    """Rows to evaluate on; without it a share of the training file is held out."""
    hyperparameters: Hyperparameters | None = None
    """OpenAI's older place for what `method` holds."""
    method: Method | None = None
    suffix: str | None = Field(None, max_length=64)
    """The adapter's name."""
    seed: int | None = None
    integrations: list[None] | None = Field(None, max_length=0)
    metadata: Metadata | None = None
    stillhouse: Own = Own()

    def overrides(self, base: BaseModel) -> dict[str, str | int | float]:
        """Settings by the names of a TrainSpec; whatever is "auto" is left to the preset."""
        given = self.method.supervised.hyperparameters if self.method else self.hyperparameters
        found = dict(self.stillhouse.settings)
        if given is not None:
            if given.n_epochs != "auto":
                found["epochs"] = given.n_epochs
            if given.batch_size != "auto":
                found["batch_size"] = given.batch_size
            if given.learning_rate_multiplier != "auto":
                found["learning_rate"] = given.learning_rate_multiplier * usual_learning_rate(base)
        if self.seed is not None:
            found["seed"] = self.seed
        return found


def job_request(request: HttpRequest) -> JobRequest:
    """The body, read; raises UserError `invalid_value` with the field that is wrong as its place."""
    with _told():
        return JobRequest.model_validate(_json(request))


def metadata_wanted(query: QueryDict) -> dict[str, str] | None:
    """What `?metadata[name]=text` asks of a job's metadata; None for `?metadata=null`: that there is none."""
    if query.get("metadata") == "null":
        return None
    wanted = {found[1]: text for name, text in query.items() if (found := _IN_BRACKETS.fullmatch(name))}
    with _told("metadata"):
        read: dict[str, str] = TypeAdapter(Metadata).validate_python(wanted)
        return read


_IN_BRACKETS = re.compile(r"metadata\[(.*)\]", re.DOTALL)


@contextmanager
def _told(*within: str) -> Iterator[None]:
    """What pydantic finds, as a UserError `invalid_value` with the field as its place."""
    try:
        yield
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in (*within, *problem["loc"]))
        raise UserError("invalid_value", f"{place or 'The body'}: {problem['msg']}.", place) from None


def _json(request: HttpRequest) -> object:
    try:
        return json.loads(request.body)
    except (ValueError, RecursionError):
        raise UserError("invalid_json", "The body is not JSON.", "", "Send one JSON object.") from None
