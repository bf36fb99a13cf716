"""/v1/uploads, OpenAI's way for files in parts: not taken, with a word on the two ways that are."""

from django.http import HttpRequest, HttpResponse

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import UserError
from stillhouse.openai_api.access import by_method
from stillhouse.openai_api.files import MOST_BYTES


def upload(request: HttpRequest, by: Membership, rest: str = "") -> HttpResponse:
    raise UserError(
        "no_uploads_in_parts",
        "This API takes no uploads in parts.",
        next_step=f"Send up to {MOST_BYTES // 1024**2} MiB in one piece (`files.create`), or choose the file "
        "on the datasets page, which sends it in parts.",
        status=404,
    )


view = by_method(GET=upload, POST=upload)
