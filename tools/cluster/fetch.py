"""Fetches what a job has written from its host, and publishes it among the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray

from tools.cluster.drive import Done, Failed
from tools.cluster.host import without_token
from tools.cluster.jobs import Job
from tools.cluster.ledger import ResultFile
from tools.cluster.ray_cluster import Actor
from tools.cluster.results import OUTPUTS, Results, pieces_of


class Fetcher:
    """Its calls block, and may run in several threads at once."""

    def __init__(self, results: Results, shared: str | None):
        """shared: the folder of results, if hosts see it: files are moved there instead of sent."""
        self.results, self.shared = results, shared

    def fetch(self, actor: Actor, job: Job, token: str, outcome: Done | Failed) -> Done | Failed:
        """Return the outcome with its files under their names among the results. token: of the request that ended.

        A damaged file, or a name that leads out of the folder of results, makes the outcome a failure. Raises RayError
        if the host is lost, OSError if results cannot be written.
        """
        try:
            kept = self._publish(actor, outcome.kept, token)
            if isinstance(outcome, Failed):
                fetched = Failed(self._with_new_names(outcome, kept), kept)
            else:
                fetched = Done(self._publish(actor, outcome.files, token), kept)
                self.results.forget_states(job.id)
        except ValueError as error:
            earlier = f"{outcome.reason} " if isinstance(outcome, Failed) else ""
            return Failed(f"{earlier}{error}")
        actor.handle.forget.remote(token)
        return fetched

    def _with_new_names(self, outcome: Failed, kept: Sequence[ResultFile]) -> str:
        """Return the reason with the paths of kept files in the folder of results instead of the host's."""
        reason = outcome.reason
        for there, here in zip(outcome.kept, kept, strict=True):
            reason = reason.replace(there.name, str(self.results.folder / here.name))
        return reason

    def _publish(self, actor: Actor, files: Sequence[ResultFile], token: str) -> tuple[ResultFile, ...]:
        received = [(without_token(file, token), self._receive(actor, file)) for file in files]
        return tuple(self.results.publish(file, part) for file, part in received)

    def _receive(self, actor: Actor, file: ResultFile) -> Path:
        if self.shared:
            return Path(self.shared) / OUTPUTS / actor.facts["folder"] / file.name
        read = actor.handle.read
        pieces = pieces_of(file.size, lambda offset, size: ray.get(read.remote(file.name, offset, size)))
        return self.results.receive(file, pieces)
