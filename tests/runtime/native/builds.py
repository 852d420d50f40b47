"""Where the builds of the C library are, and the environment in which a program of each is run.

No report of a sanitizer is suppressed. OpenVINO and its TBB are not instrumented: TBB has to be told of sanitizers, and
ThreadSanitizer to look at memory that instrumented code touches only.
"""
from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[3]
BUILDS = ROOT / "build" / "native"
ENVIRONMENTS = {
    "release": {},
    "asan": {
        "ASAN_OPTIONS": "detect_leaks=1",
        "LSAN_OPTIONS": f"suppressions={Path(__file__).with_name('leaks.supp')}:print_suppressions=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TBB_ENABLE_SANITIZERS": "1",
    },
    "tsan": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1", "TBB_ENABLE_SANITIZERS": "1"},
}


def environment(build: str, **changes: str) -> dict[str, str]:
    """Return the environment for the programs of one build."""
    return os.environ | ENVIRONMENTS[build] | changes
