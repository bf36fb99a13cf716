"""What the frame around every page needs: where one is, who one is, and what waits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.urls import reverse

from stillhouse.accounts.access import PERMISSIONS, may, memberships_of
from stillhouse.accounts.models import Membership, Role
from stillhouse.approvals.queries import review_queue


@dataclass(frozen=True)
class NavLink:
    """One entry of the navigation. `pages` are the URL names during which it is the current one."""

    label: str
    icon: str
    url_name: str
    pages: tuple[str, ...]
    on_phone: bool = False


NAVIGATION: tuple[tuple[str, tuple[NavLink, ...]], ...] = (
    (
        "",
        (NavLink("Home", "house", "home", ("home",), on_phone=True),),
    ),
    (
        "Teach",
        (
            NavLink(
                "Datasets",
                "database",
                "datasets",
                (
                    "datasets",
                    "dataset_new",
                    "dataset",
                    "dataset_version",
                    "dataset_as_seen",
                    "dataset_diff",
                    "dataset_comments",
                    "dataset_trial",
                    "erasures",
                    "erasure",
                ),
                True,
            ),
            NavLink("Runs", "activity", "runs", ("runs", "run_new", "run"), True),
            NavLink("Adapters", "layers", "adapters", ("adapters", "version"), True),
        ),
    ),
    (
        "Serve",
        (
            NavLink("Reviews", "clipboard-check", "reviews", ("reviews",)),
            NavLink("Aliases", "tag", "aliases", ("aliases", "alias_traffic")),
            NavLink("Playground", "message-square-text", "playground", ("playground",), True),
            NavLink("Usage", "scale", "usage", ("usage",)),
        ),
    ),
    (
        "Set up",
        (
            NavLink("API keys", "key-round", "keys", ("keys",)),
            NavLink("Pools", "rocket", "pools", ("pools",)),
            NavLink("Bases", "box", "bases", ("bases",)),
            NavLink("Fleet", "cpu", "fleet", ("fleet",)),
            NavLink("Notifications", "bell", "notifications", ("notifications",)),
            NavLink("Audit trail", "scroll-text", "audit", ("audit",)),
        ),
    ),
)


def shell(request: HttpRequest) -> dict[str, Any]:
    """Context of base.html. Pages outside a workspace (sign-in, errors) get no navigation."""
    base = {"s3_origin": settings.S3_PUBLIC_ENDPOINT}
    membership: Membership | None = getattr(request, "membership", None)
    if membership is None:
        return base
    return {
        **base,
        "by": membership,
        "ws": membership.workspace.slug,
        "workspace": membership.workspace,
        "role_label": Role(membership.role).label,
        "workspaces": [m.workspace for m in memberships_of(request.user)],
        "can": {permission.replace(".", "_"): may(membership, permission) for permission in PERMISSIONS},
        "navigation": _navigation(request, membership),
    }


def _navigation(request: HttpRequest, by: Membership) -> list[Mapping[str, Any]]:
    current = request.resolver_match.url_name if request.resolver_match else ""
    waiting = review_queue(by).count() if may(by, "version.decide") else 0
    return [
        {
            "title": title,
            "links": [
                {
                    "label": link.label,
                    "icon": link.icon,
                    "url": reverse(link.url_name, args=[by.workspace.slug]),
                    "current": current in link.pages,
                    "on_phone": link.on_phone,
                    "count": waiting if link.url_name == "reviews" else 0,
                }
                for link in links
            ],
        }
        for title, links in NAVIGATION
    ]
