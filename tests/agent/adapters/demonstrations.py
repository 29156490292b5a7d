"""Tasks of our synthesis, and their solutions as the assistant turns of a script."""

import asyncio

from baleen.synthesis.catalogue import synthesise
from baleen.synthesis.trajectories import demonstrate


def tool_tasks(count, difficulty=3):
    """Thinking tasks over tools whose solutions take `difficulty` dependent steps."""
    made = synthesise(3, train=30 * count, test=0, unseen=0).train
    fitting = [task for task in made if task.domain == "tools" and task.thinking and task.difficulty == difficulty]
    assert len(fitting) >= count
    return fitting[:count]


def with_fault(task, fault):
    """The task with a fault for `faulty.py`: `verifier` or `world`."""
    return task.model_copy(update={"metadata": {**task.metadata, "fault": fault}})


def demonstration(task):
    """The task's solution as a whole conversation."""

    async def told():
        return demonstrate(task)

    return asyncio.run(told())


def turns_of(task):
    """The demonstration's assistant messages in OpenAI's shape."""
    fields = {"content", "reasoning_content", "tool_calls"}
    turns = [message for message in demonstration(task) if message.role == "assistant"]
    return [turn.model_dump(mode="json", include=fields) for turn in turns]
