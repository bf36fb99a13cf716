"""On the path of a process that is to live two hours ahead: Python's wall clock, not the kernel's."""

import time

AHEAD = 2 * 3600
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + AHEAD
time.time_ns = lambda: _time_ns() + AHEAD * 10**9
