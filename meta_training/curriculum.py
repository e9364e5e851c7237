"""What a run trains on: the documents of each step, and those of its development scores."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import cycle, islice

from meta_training.settings import TaskMix, TrainSettings
from meta_training.task_mixture import pick_task
from meta_training.tasks import CountTokens, Document, Split, Task, build_task

__all__ = ["Curriculum", "Draw"]


@dataclass(frozen=True)
class Draw:
    """What one outer step trains on."""

    stage: int
    tasks: tuple[str, ...]
    documents: tuple[Document, ...]


class Curriculum:
    """The stages of a run. What a step draws follows from the seed and the step alone."""

    def __init__(self, settings: TrainSettings, *, count_tokens: CountTokens, documents: int) -> None:
        """Build the tasks.

        Args:
            settings: of the run.
            count_tokens: of the base's tokeniser.
            documents: of a step, in all processes.

        Raises:
            InvalidInput: a task that is not there, or an option that it refuses.
        """
        self._settings = settings
        self._count_tokens = count_tokens
        self._documents = documents
        self._tasks = [[self._build(mix, "train") for mix in stage.tasks] for stage in settings.stages]

    def draw(self, step: int) -> Draw:
        """Documents of a step, of all processes."""
        settings = self._settings
        rng = random.Random(f"{settings.seed}-{step}")
        stage_index, stage = settings.stage_at(step)
        first = (step - settings.stage_start(stage_index)) * self._documents
        offset = random.Random(f"{settings.seed}-stage-{stage_index}").random()
        weights = [mix.weight for mix in stage.tasks]
        chosen = [pick_task(weights, first + number, offset) for number in range(self._documents)]
        documents = [
            self._tasks[stage_index][index].draw(rng, tokens=rng.randint(*stage.tasks[index].tokens))
            for index in chosen
        ]
        if (most := settings.outer.questions) is not None:
            documents = [
                replace(d, questions=tuple(rng.sample(d.questions, min(most, len(d.questions))))) for d in documents
            ]
        return Draw(stage_index, tuple(stage.tasks[index].task for index in chosen), tuple(documents))

    def draw_dev(self, count: int) -> list[Document]:
        """Development documents of the last stage's tasks in turn: the same in every evaluation of the run."""
        rng = random.Random(f"{self._settings.seed}-dev")
        tasks = [(self._build(mix, "dev"), mix.tokens) for mix in self._settings.stages[-1].tasks]
        return [task.draw(rng, tokens=rng.randint(*tokens)) for task, tokens in islice(cycle(tasks), count)]

    def _build(self, mix: TaskMix, split: Split) -> Task:
        return build_task(mix.task, split=split, count_tokens=self._count_tokens, options=mix.options)
