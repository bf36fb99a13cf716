"""Datasets: reading, checking and splitting JSONL chats. Pure functions over paths; nothing here knows the
platform.
"""

from workers.data.rows import BadRow, ChatMessage, Row, read_rows
from workers.data.split import split_rows
from workers.data.validation import validate

__all__ = ["BadRow", "ChatMessage", "Row", "read_rows", "split_rows", "validate"]
