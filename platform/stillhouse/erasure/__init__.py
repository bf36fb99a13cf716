"""Erasure: rows that must not be kept are found, left out of new versions, and their bytes removed.

What was trained on them is quarantined until a lead decides. Lineage and retraining are promised, never that
an adapter unlearns.
"""
