"""/v1/files and /v1/fine_tuning/jobs. The rest of /v1/ is the gateway's."""

from django.urls import path

from stillhouse.openai_api import files, jobs, uploads

urlpatterns = [
    path("files", files.files_view, name="api_files"),
    path("files/<str:id>", files.file_view, name="api_file"),
    path("files/<str:id>/content", files.content_view, name="api_file_content"),
    path("fine_tuning/jobs", jobs.jobs_view, name="api_jobs"),
    path("fine_tuning/jobs/<str:id>", jobs.job_view, name="api_job"),
    path("fine_tuning/jobs/<str:id>/cancel", jobs.cancel_view, name="api_job_cancel"),
    path("fine_tuning/jobs/<str:id>/pause", jobs.pause_view, name="api_job_pause"),
    path("fine_tuning/jobs/<str:id>/resume", jobs.resume_view, name="api_job_resume"),
    path("fine_tuning/jobs/<str:id>/retry", jobs.retry_view, name="api_job_retry"),
    path("fine_tuning/jobs/<str:id>/events", jobs.events_view, name="api_job_events"),
    path("fine_tuning/jobs/<str:id>/checkpoints", jobs.checkpoints_view, name="api_job_checkpoints"),
    path("uploads", uploads.view, name="api_uploads"),
    path("uploads/<path:rest>", uploads.view, name="api_upload"),
]
