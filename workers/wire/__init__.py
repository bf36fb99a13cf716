"""How worker and agent reach the platform: their environment, JSON calls, and files by presigned URL."""
