"""Where a run's stages work: in this process, or on the workers of Ray."""

from typing import Annotated

from pydantic import Field, model_validator

from selfplay.config.base import Count, Section


class Launch(Section):
    """Workers of Ray instead of this process alone. Needs the `ray` extra; may change on a run that has begun."""

    nodes: Count = 1
    """Machines."""
    workers: Count = 1
    """Workers on each machine: one GPU each, or processes where there are no GPUs."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts of a stage that lost a worker, each from its last checkpoint, before the run fails."""
    address: str | None = None
    """A Ray cluster (`10.0.0.1:6379`; `auto` on one of its machines); null starts Ray on this machine for the run."""

    @property
    def size(self) -> int:
        """Workers on all machines together."""
        return self.nodes * self.workers

    @model_validator(mode="after")
    def _check(self) -> "Launch":
        if self.nodes > 1 and self.address is None:
            raise ValueError(
                f"nodes is {self.nodes}, and address names no cluster: run `ray start --head` on one machine "
                "and `ray start --address=HOST:6379` on the others, and set address to auto"
            )
        return self
