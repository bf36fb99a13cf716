"""/worker/v1/: for workers and agents, by bearer token."""

from django.urls import path

from stillhouse.worker_api import views

urlpatterns = [
    path("enrol", views.enrol_worker, name="worker_enrol"),
    path("hello", views.hello, name="worker_hello"),
    path("jobs/<str:job_id>/claim", views.claim, name="worker_claim"),
    path("jobs/<str:job_id>/report", views.report, name="worker_report"),
    path("jobs/<str:job_id>/uploads", views.uploads, name="worker_uploads"),
    path("jobs/<str:job_id>/checkpoints", views.checkpoint, name="worker_checkpoint"),
    path("jobs/<str:job_id>/finish", views.finish, name="worker_finish"),
    path("pools/<str:pool>/sync", views.sync, name="agent_sync"),
]
