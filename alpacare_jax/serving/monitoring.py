"""What the server reports of itself: Prometheus's metrics, and one JSON line a request."""

import json
import sys
import time
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from alpacare_jax.inference.requests import Progress
from alpacare_jax.serving.worker import EngineThread, Job
from common import provenance

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bounds of the histograms."""


class Monitor:
    """Counts what happens; `metrics` is the page that Prometheus reads."""

    def __init__(self):
        disable_created_metrics()  # a second line for each, which nobody reads
        registry = self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"alpacare_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"alpacare_{name}", text, buckets=SECONDS, registry=registry)

        self._requests = counter("requests", "HTTP requests by path and status", "path", "status")
        self._answers = counter("answers", "Answers that have ended", "finish_reason")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self._answer_tokens = counter("completion_tokens", "Tokens that were generated")
        self._lost = counter("log_lines_lost", "Lines that could not be written to the log")
        self._first = histogram("first_token_seconds", "From a request to its first token")
        self._whole = histogram("request_seconds", "From a request to the end of its response")

    def watch(self, thread: EngineThread) -> None:
        """Includes the load of the engine."""
        for name, text, value in (
            ("answers_running", "Answers that the engine works on", lambda: thread.running),
            ("answers_waiting", "Answers that wait for a slot", lambda: thread.waiting),
        ):
            Gauge(f"alpacare_{name}", text, registry=self._registry).set_function(value)

    def progress(self, job: Job, progress: Progress) -> None:
        """Counts what a step of the engine added to an answer."""
        self._answer_tokens.inc(len(progress.ids))
        if not job.has_begun:
            job.has_begun = True
            self._first.observe(time.monotonic() - job.submitted)

    def answer(self, finish_reason: str) -> None:
        """Counts an answer that has ended."""
        self._answers.labels(finish_reason).inc()

    def prompts(self, tokens: int) -> None:
        """Counts the tokens of a request's prompts."""
        self._prompt_tokens.inc(tokens)

    def request(self, path: str, status: int, seconds: float, **details: Any) -> None:
        """Counts a request that has ended, and logs it; `details` have no texts unless asked."""
        self._requests.labels(path, str(status)).inc()
        self._whole.observe(seconds)
        self.log(path=path, status=status, seconds=round(seconds, 4), **details)

    def log(self, **content: Any) -> None:
        """Prints a line of JSON on stderr; one that a full disk does not take is counted."""
        try:
            print(json.dumps({"time": provenance.now()} | content), file=sys.stderr, flush=True)
        except OSError:
            self._lost.inc()

    def metrics(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)
