"""What people say about a version: tags to find it again, comments pinned to its rows.

A version never changes; tags and comments hang on it and may come and go. The trail says who did what to
which row, never what a comment said: it may repeat what stands in the row.
"""

import re
import unicodedata
from collections.abc import Sequence

from django.db import transaction
from django.db.models import Count, QuerySet

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.errors import NotFound, UserError
from stillhouse.core.text import storable
from stillhouse.datasets.models import Comment, DatasetVersion, Tag
from stillhouse.datasets.queries import check_not_erased

MOST_TAGS = 20
"""Of a version."""
TAG_CHARACTERS = 40
MOST_COMMENTS = 10_000
"""Of a version."""
COMMENT_CHARACTERS = 4000
LAST_ROW = 2**53
_TAG = re.compile(r"[^\W_]+(-[^\W_]+)*")

Place = tuple[int, str]
"""A row: its number, and the file inside an archive or the sheet it stands in."""


def clean_tag(text: str) -> str:
    """A tag as it is kept: small letters and digits, words joined by dashes. Raises UserError `bad_tag`."""
    name = re.sub(r"[\s_]+", "-", unicodedata.normalize("NFC", text).strip().lower())
    if len(name) > TAG_CHARACTERS or not _TAG.fullmatch(name):
        raise UserError(
            "bad_tag",
            f"{text.strip()[:TAG_CHARACTERS]!r} is no tag.",
            "tag",
            f"Use letters, digits and dashes, at most {TAG_CHARACTERS} of them.",
        )
    return name


@transaction.atomic
def add_tag(*, by: Membership, version: DatasetVersion, name: str) -> Tag:
    """Hang a tag on the version; the same tag again changes nothing. UserError `bad_tag`, `too_many_tags`."""
    _check(by, version)
    name = clean_tag(name)
    # Two people at once: the one who comes second counts the first one's tag.
    DatasetVersion.objects.select_for_update(of=("self",)).get(pk=version.pk)
    there = version.tags.filter(name=name).first()
    if there is not None:
        return there
    if version.tags.count() >= MOST_TAGS:
        raise UserError(
            "too_many_tags",
            f"{version} has {MOST_TAGS} tags already.",
            "tag",
            "Remove one that is not needed.",
        )
    tag = Tag.objects.create(version=version, name=name, created_by=by.user)
    _record(by, version, "dataset.tagged", {"tag": name})
    return tag


@transaction.atomic
def remove_tag(*, by: Membership, version: DatasetVersion, name: str) -> None:
    """Take a tag off; nothing happens where it does not hang."""
    _check(by, version)
    removed, _ = version.tags.filter(name=name).delete()
    if removed:
        _record(by, version, "dataset.untagged", {"tag": name})


@transaction.atomic
def add_comment(*, by: Membership, version: DatasetVersion, row: int, text: str, source: str = "") -> Comment:
    """Pin a comment to a row, by its number and the file it stands in.

    Whether there is such a row is not looked up: that would read the version's file. Raises UserError
    `no_comment`, `comment_too_long`, `bad_row`, `too_many_comments`, and Conflict `erased`.
    """
    _check(by, version)
    check_not_erased(version)
    text = storable(text.replace("\r\n", "\n").strip())
    if not text:
        raise UserError("no_comment", "The comment is empty.", "text", "Write what you have to say.")
    if len(text) > COMMENT_CHARACTERS:
        raise UserError(
            "comment_too_long",
            f"The comment has {len(text):,} characters; {COMMENT_CHARACTERS:,} is the most.",
            "text",
            "Say it in fewer words.",
        )
    if not 1 <= row <= LAST_ROW or len(source) > Comment.SOURCE_CHARACTERS:
        raise UserError("bad_row", "There is no such row.", "row", "Give the row's number, from 1 on.")
    if version.comments.count() >= MOST_COMMENTS:
        raise UserError(
            "too_many_comments",
            f"{version} has {MOST_COMMENTS:,} comments already.",
            "text",
            "Delete some that are settled.",
        )
    comment = Comment.objects.create(
        version=version, row=row, source=storable(source), text=text, created_by=by.user
    )
    _record(by, version, "dataset.commented", {"row": row, "comment": comment.pk})
    return comment


@transaction.atomic
def delete_comment(*, by: Membership, comment: Comment) -> None:
    """Delete a comment of one's own. Raises UserError `not_yours` (403) for somebody else's."""
    _check(by, comment.version)
    if comment.created_by_id != by.user_id:
        raise UserError(
            "not_yours",
            "Only the person who wrote a comment may delete it.",
            "comment",
            f"Ask {comment.created_by}.",
            status=403,
        )
    _record(by, comment.version, "dataset.comment_deleted", {"row": comment.row, "comment": comment.pk})
    comment.delete()


def get_comment(by: Membership, comment_id: str) -> Comment:
    """One comment of the workspace; raises NotFound."""
    mine = Comment.objects.filter(version__dataset__workspace=by.workspace, pk=comment_id)
    comment = mine.select_related("version__dataset", "created_by").first()
    if comment is None:
        raise NotFound("comment")
    return comment


def comments_of(version: DatasetVersion) -> QuerySet[Comment]:
    """Row by row, the oldest first."""
    return version.comments.select_related("created_by").order_by("source", "row", "created_at")


def comments_at(version: DatasetVersion, rows: Sequence[int]) -> dict[Place, list[Comment]]:
    """Those on rows of these numbers, by row."""
    found: dict[Place, list[Comment]] = {}
    for comment in comments_of(version).filter(row__in=rows):
        found.setdefault((comment.row, comment.source), []).append(comment)
    return found


def tags_in_use(by: Membership) -> list[tuple[str, int]]:
    """Every tag of the workspace and how many versions have it, by name."""
    mine = Tag.objects.filter(version__dataset__workspace=by.workspace).order_by("name")
    return list(mine.values_list("name").annotate(versions=Count("pk")))


def _check(by: Membership, version: DatasetVersion) -> None:
    if version.dataset.workspace_id != by.workspace_id:
        raise NotFound("dataset version")
    require(by, "dataset.upload")


def _record(by: Membership, version: DatasetVersion, action: str, details: dict[str, object]) -> None:
    record(
        workspace=by.workspace,
        by=by.user,
        action=action,
        object_id=version.pk,
        object_name=str(version),
        details=details,
    )
