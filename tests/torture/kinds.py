"""Every kind of fault by its name."""

from bad_server import bad_server
from dead_engine import dead_engine
from faults import (
    Case,
    cut,
    damaged,
    death,
    delete,
    failing_rename,
    file_size_limit,
    flip,
    full_disk,
    handled,
    moved,
    power_cut,
    refused_call,
    signalled,
    three_kills,
)

KINDS: dict[str, tuple[Case, int]] = {
    "death at a call": (death, 0),
    "power cut": (power_cut, 100),
    "full disk": (full_disk, 60),
    "disk refuses a call": (refused_call, 60),
    "failing rename": (failing_rename, 40),
    "disk refuses large files": (file_size_limit, 12),
    "SIGKILL": (signalled("SIGKILL"), 60),
    "SIGTERM": (signalled("SIGTERM"), 40),
    "SIGINT": (signalled("SIGINT"), 20),
    "three kills": (three_kills, 20),
    "changed byte": (damaged("changed byte", flip), 120),
    "cut file": (damaged("cut file", cut), 60),
    "deleted file": (damaged("deleted file", delete), 40),
    "project moved": (moved, 8),
    "copies and own files": (handled, 4),
    "bad server": (bad_server, 80),
    "dead engine": (dead_engine, 6),
}
"""Kind -> its case, and how many of it a full torture tries; 0 means one for each call of the file layer."""
