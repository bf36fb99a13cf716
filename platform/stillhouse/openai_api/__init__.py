"""What OpenAI's clients know beside the models themselves: files and fine-tuning jobs.

| file | what it does |
| --- | --- |
| access.py | a key with the scope `training` becomes its maker's membership; errors in OpenAI's form |
| files.py | a file is a dataset version |
| jobs.py | a fine-tuning job is a training run |
| uploads.py | why there are none in parts |
| events.py | what happened to a run, as a job's events |
| requests.py | what a request for a job may say |
| shapes.py | both as JSON |
| pages.py | lists, a page at a time |

Nothing here decides: approving and publishing are for people, on the pages.
"""

_PREFIXES = ("/v1/files", "/v1/fine_tuning/jobs", "/v1/uploads")


def serves(path: str) -> bool:
    """Whether a path is this room's rather than the gateway's."""
    return any(path == prefix or path.startswith(prefix + "/") for prefix in _PREFIXES)
