"""The data plane: what apps call. Raw ASGI, an in-memory snapshot, and no database on the request path."""
