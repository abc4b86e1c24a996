"""All ranks agree on ending a run early, beside the step that is being computed."""

from configs.stop import StopRequest
from engine import distributed


class Stopping:
    """A vote a step: one rank that was asked to stop stops all of them after the same step.

    The votes are summed on the CPU, over a group of their own: they wait for no GPU and hold none
    up. Once agreed, it stays so, and nothing is asked any more.
    """

    def __init__(self, request: StopRequest) -> None:
        """Set up; ``request``: what this process has been asked."""
        self._request = request
        self._vote: distributed.Sum | None = None
        self._is_agreed = False

    @property
    def is_agreed(self) -> bool:
        """The last answer, without asking again."""
        return self._is_agreed

    def begin(self) -> None:
        """Begin to ask all ranks, without waiting; every rank calls it."""
        if not self._is_agreed and self._vote is None:
            self._vote = distributed.Sum(float(self._request.is_asked))

    def agreed(self) -> bool:
        """The answer (asks, if nobody has begun to); every rank must call it."""
        self.begin()
        if self._vote is not None:
            vote, self._vote = self._vote, None
            self._is_agreed = vote.result() > 0
        return self._is_agreed

    @property
    def has_lost_a_rank(self) -> bool:
        """Whether the vote that is under way has failed; safe to ask from any thread."""
        vote = self._vote
        return vote is not None and vote.has_failed
