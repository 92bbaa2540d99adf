"""A verifiers taskset: sums, once with a tool that adds."""

from collections.abc import Iterable

import verifiers.v1 as vf


class Sum(vf.TaskData):
    answer: str = ""


class SumTask(vf.Task[Sum]):
    @vf.reward(weight=1.0)
    async def right(self, trace) -> float:
        return float(trace.last_reply.strip() == self.data.answer)

    @vf.reward(weight=0.5)
    async def short(self, trace) -> float:
        return float(len(trace.last_reply) < 10)

    @vf.metric
    async def length(self, trace) -> float:
        if trace.last_reply == "break":
            raise RuntimeError("the grader broke")
        return float(len(trace.last_reply))


class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
    def load(self) -> Iterable[SumTask]:
        for n in range(5):
            data = Sum(prompt=f"{n}+{n}?", system_prompt="Be brief.", answer=str(2 * n), id=f"sum-{n}")
            yield SumTask(data, self.config.task)


__all__ = ["Sums"]
