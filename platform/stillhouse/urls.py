"""Everything Django answers; the data plane under /v1/ is dispatched before it, in asgi.py, but for files and
fine-tuning jobs."""

from django.urls import include, path

urlpatterns = [
    path("accounts/", include("allauth.urls")),
    path("v1/", include("stillhouse.openai_api.urls")),
    path("worker/v1/", include("stillhouse.worker_api.urls")),
    path("", include("stillhouse.web.urls")),
]

handler403 = "stillhouse.web.views.errors.forbidden"
handler404 = "stillhouse.web.views.errors.not_found"
handler500 = "stillhouse.web.views.errors.server_error"
