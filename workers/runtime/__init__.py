"""The worker: claims a job by id, runs it in a child process, uploads what it made, finishes.

Holds no database and no object-store credentials; never imports torch (the child does).
"""
