"""What the check of a version found, read in parts: with its lists of problems a report takes megabytes."""

import json
from typing import Any, Literal, NamedTuple

from django.db import connection
from django.db.models import JSONField
from django.db.models.expressions import RawSQL

from stillhouse.datasets.models import DatasetReport, DatasetVersion

PAGE = 50
"""Problems that are shown at once."""
Kind = Literal["errors", "warnings"]
Problem = dict[str, Any]
"""A `workers.contract.Problem`."""


class Checked(NamedTuple):
    """A report and its body without the lists of problems."""

    report: DatasetReport
    body: dict[str, Any]


class Listed(NamedTuple):
    """One page of the problems that a report lists."""

    problems: list[Problem]
    listed: int
    """How many there are on all pages."""
    page: int
    """From 1; the last one where a later one was asked for."""


def checked(version: DatasetVersion) -> Checked | None:
    """What the check found; None until it has ended well."""
    body = RawSQL("body - ARRAY['errors', 'warnings']", (), output_field=JSONField())
    report = DatasetReport.objects.filter(version=version).defer("body").annotate(found=body).first()
    return Checked(report, report.found) if report is not None else None


def problems(version: DatasetVersion, kind: Kind, code: str = "", page: int = 1) -> Listed:
    """A page of the errors or warnings, of one class where there is a `code`. Sorted out by Postgres: most
    of a large report is never sent, and not parsed for a page of it."""
    chosen = "body->%(kind)s"
    if code:
        chosen = f"jsonb_path_query_array({chosen}, '$[*] ? (@.code == $code)', %(code)s::jsonb)"
    query = f"""
        WITH chosen AS MATERIALIZED (
            SELECT {chosen} AS problems FROM datasets_datasetreport WHERE version_id = %(version)s
        ), counted AS (
            SELECT problems, jsonb_array_length(problems) AS listed FROM chosen
        ), paged AS (
            SELECT problems, listed,
                   greatest(1, least(%(page)s, (listed + {PAGE} - 1) / {PAGE})) AS page FROM counted
        )
        SELECT jsonb_path_query_array(
                   problems, '$[$first to $last]',
                   jsonb_build_object('first', (page - 1) * {PAGE}, 'last', page * {PAGE} - 1)
               ), listed, page
        FROM paged
    """
    given = {"kind": kind, "code": json.dumps({"code": code}), "page": page, "version": version.pk}
    with connection.cursor() as cursor:
        cursor.execute(query, given)
        found = cursor.fetchone()
    if found is None or found[1] is None:
        return Listed([], 0, 1)
    return Listed(json.loads(found[0]), found[1], found[2])
