"""The control plane of Stillhouse: Django, Postgres, pages and APIs."""
