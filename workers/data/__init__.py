"""Datasets: read, checked, split, derived and compared. Pure functions over paths; nothing here knows the
platform.

| file | what it does |
| --- | --- |
| readers/ | any file as batches of raw rows that know their place |
| shapes.py | what the fields of a file mean, by looking |
| batches.py, checks.py, fast.py | raw rows to normalised ones, or the reasons why not |
| figures.py, near.py, personal.py, overlap.py | what can be said of the good rows |
| validation.py, doctor.py | the report on a whole file, and its verdict |
| normalised.py, beside.py | the one layout of good rows, and the fields beside their conversation |
| rows.py, split.py, think.py | what training and evaluation read |
| items.py, operations.py, derive.py, compare.py | new versions from old ones, and what differs |
| elsewhere.py | whether a row also stands in another file |
| limited.py, spread.py | all of it in a child process that cannot take the machine down, on all its cores |
"""

from workers.data.rows import BadRow, ChatMessage, Row, read_rows
from workers.data.split import split_rows
from workers.data.validation import validate

__all__ = ["BadRow", "ChatMessage", "Row", "read_rows", "split_rows", "validate"]
