"""Addresses of the pages. Everything under /w/<ws>/ goes through `web.access.in_workspace`."""

from django.urls import include, path

from stillhouse.web.views import (
    aliases,
    audit,
    catalog,
    datasets,
    health,
    home,
    keys,
    playground,
    reviews,
    run_events,
    runs,
    versions,
)

workspace_urls = [
    path("", home.home, name="home"),
    path("datasets/", datasets.datasets, name="datasets"),
    path("datasets/new/", datasets.dataset_new, name="dataset_new"),
    path("datasets/<str:id>/", datasets.dataset, name="dataset"),
    path("datasets/<str:id>/versions/<int:number>/", datasets.dataset_version, name="dataset_version"),
    path("datasets/<str:id>/uploads/", datasets.upload_start, name="upload_start"),
    path("uploads/<str:id>/parts/<int:number>/", datasets.upload_part, name="upload_part"),
    path("uploads/<str:id>/finish/", datasets.upload_finish, name="upload_finish"),
    path("uploads/<str:id>/", datasets.upload_abandon, name="upload_abandon"),
    path("runs/", runs.runs, name="runs"),
    path("runs/new/", runs.run_new, name="run_new"),
    path("runs/<str:id>/", runs.run, name="run"),
    path("runs/<str:id>/events/", run_events.run_events, name="run_events"),
    path("runs/<str:id>/cancel/", runs.run_cancel, name="run_cancel"),
    path("adapters/", versions.adapters, name="adapters"),
    path("versions/<str:id>/", versions.version, name="version"),
    path("versions/<str:id>/evaluate/", versions.evaluate_again, name="evaluate_again"),
    path("versions/<str:id>/ask/", reviews.approval_ask, name="approval_ask"),
    path("versions/<str:id>/decide/", reviews.decide, name="decide"),
    path("versions/<str:id>/publish/", aliases.publish, name="publish"),
    path("reviews/", reviews.reviews, name="reviews"),
    path("aliases/", aliases.aliases, name="aliases"),
    path("aliases/<str:id>/rollback/", aliases.rollback, name="rollback"),
    path("playground/", playground.playground, name="playground"),
    path("playground/grant/", playground.playground_grant, name="playground_grant"),
    path("keys/", keys.keys, name="keys"),
    path("keys/<str:id>/revoke/", keys.key_revoke, name="key_revoke"),
    path("bases/", catalog.bases, name="bases"),
    path("audit/", audit.audit, name="audit"),
]

urlpatterns = [
    path("", home.start, name="start"),
    path("health", health.health, name="health"),
    path("w/<slug:ws>/", include(workspace_urls)),
]
