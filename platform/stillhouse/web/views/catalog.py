"""Bases: what may be trained on, and what is on this site."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from stillhouse.accounts.models import Membership
from stillhouse.catalog.queries import bases as all_bases
from stillhouse.serving.queries import pools
from stillhouse.web.access import in_workspace


@in_workspace("GET")
def bases(request: HttpRequest, by: Membership) -> HttpResponse:
    rows = sorted(all_bases(), key=lambda base: (not base.available, base.parameters))
    served = {pool.base_id for pool in pools()}
    return render(request, "catalog/page.html", {"bases": rows, "served": served})
