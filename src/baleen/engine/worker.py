"""The engine's own process: takes requests from a pipe, steps, and sends back what every stream got."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from baleen.engine.params import EngineError, EngineOptions, SamplingParams, default_threads
from baleen.engine.sequence import Sequence
from baleen.engine.service import Chunk, ModelInfo, PauseMode

SEND_SECONDS = 0.004
"""What comes within this time goes out together: a message for every step would cost as much as a small network's step.
First and last tokens go out at once."""


def work(connection: Connection, path: Path, options: EngineOptions) -> None:
    """Loads the model in `path` and serves `connection` until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is the parent's to answer
    try:
        worker = Worker(connection, path, options)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
        connection.send(("answer", (-1, _plain(error))))
        return
    worker.run()


class Worker:
    """The loop: requests first, then a step."""

    def __init__(self, connection: Connection, path: Path, options: EngineOptions) -> None:
        import torch

        from baleen.chat.tokenizer import Tokenizer
        from baleen.engine.engine import Engine
        from baleen.model.checkpoint import load_model

        torch.set_num_threads(options.threads or default_threads())
        self.connection = connection
        self.engine = Engine(load_model(path, getattr(torch, options.dtype)), Tokenizer.load(path), options)
        self.numbers: dict[Sequence, int] = {}
        self.sequences: dict[int, Sequence] = {}
        self.paused = False
        self.pausing: list[int] = []
        """The calls that wait for all that runs to end."""

        self.messages: deque[tuple[Any, ...]] = deque()
        self.arrived = threading.Event()
        self.gone = False
        self.silent_until = 0.0

    def run(self) -> None:
        """Serves until the parent is gone."""
        # A reader of its own always empties the pipe, so that neither side ever waits for the other to read.
        threading.Thread(target=self._listen, daemon=True).start()
        config, engine = self.engine.model.config, self.engine
        self._answer(
            -1,
            ModelInfo(
                max_tokens=engine.capacity,
                vocab_size=config.vocab_size,
                stop_ids=engine.ends,
                memory_bytes=engine.memory_bytes,
                form="compiled loops" if engine.runner.compiled else "torch",
            ),
        )
        while not self.gone:
            if not self.messages and not self._has_work():
                self.arrived.wait()
            self.arrived.clear()
            while self.messages:
                what, number, *values = self.messages.popleft()
                getattr(self, f"_do_{what}")(number, *values)
            if self._has_work():
                self._step()
            if self.pausing and not self._something_runs():
                self.paused = True
                self._answer_pausing(None)

    def _listen(self) -> None:
        try:
            while True:
                self.messages.append(self._prepared(self.connection.recv()))
                self.arrived.set()
        except (EOFError, OSError):
            self.gone = True
            self.arrived.set()

    def _prepared(self, message: tuple[Any, ...]) -> tuple[Any, ...]:
        """A request whose grammar is compiled: here, beside the steps, or everybody's next token would wait for it."""
        what, number, *values = message
        if what == "submit" and values[1].grammar is not None:
            try:
                self.engine.compile(values[1].grammar)
            except Exception as error:  # noqa: BLE001 - one bad request must not end the others
                return "refuse", number, error
        return message

    def _has_work(self) -> bool:
        return self.engine.busy and not self.paused

    def _step(self) -> None:
        ended = self.engine.step()
        if (
            not ended
            and time.perf_counter() < self.silent_until
            and not any(each.is_new for each in self.engine.running)
        ):
            return
        self._tell(ended)

    def _tell(self, ended: list[Sequence]) -> None:
        """Sends what every stream has not got yet."""
        self.silent_until = time.perf_counter() + SEND_SECONDS
        # Not only of those that run: whose pages were taken may wait for long with tokens that nobody was told yet.
        news: list[tuple[int, Chunk | Exception]] = [
            (number, _chunk(sequence))
            for sequence, number in self.numbers.items()
            if sequence.unsent and sequence.finish_reason is None
        ]
        for sequence in ended:
            news.append((self.numbers[sequence], sequence.error or _chunk(sequence)))
            self._drop(sequence)
        if news:
            self._send("step", news)

    def _drop(self, sequence: Sequence) -> None:
        del self.sequences[self.numbers.pop(sequence)]

    def _do_submit(self, number: int, prompt: list[int], params: SamplingParams) -> None:
        try:
            sequence = self.engine.submit(prompt, params)
        except Exception as error:  # noqa: BLE001 - one bad request must not end the others
            self._do_refuse(number, error)
            return
        self.numbers[sequence], self.sequences[number] = number, sequence

    def _do_refuse(self, number: int, error: Exception) -> None:
        self._send("step", [(number, _plain(error))])

    def _do_cancel(self, number: int) -> None:
        sequence = self.sequences.get(number)
        if sequence is not None:
            self.engine.cancel(sequence)
            self._drop(sequence)

    def _do_stats(self, number: int) -> None:
        self._answer(number, {**self.engine.stats(), "paused": float(self.paused)})

    def _do_pause(self, number: int, mode: PauseMode) -> None:
        if mode == "abort":
            for sequence in list(self.numbers):
                self.engine.cancel(sequence)
                self._send("step", [(self.numbers[sequence], _chunk(sequence))])
                self._drop(sequence)
        if mode == "wait" and self._something_runs() and not self.paused:
            self.engine.scheduler.admits = False
            self.pausing.append(number)
            return
        self.paused = True
        self._tell([])
        self._answer(number, None)

    def _do_resume(self, number: int) -> None:
        self.paused, self.engine.scheduler.admits = False, True
        self._answer_pausing(EngineError("resumed before the pause was reached"))
        self._answer(number, None)

    def _do_update_weights(self, number: int, path: Path) -> None:
        from baleen.model.checkpoint import reload_model

        if self.engine.busy and not self.paused:
            self._answer(number, EngineError("requests are running: pause first"))
            return
        try:
            reload_model(self.engine.model, path)
        except Exception as error:  # noqa: BLE001 - a wrong folder must not end the engine
            self._answer(number, _plain(error))
            return
        self.engine.weights_changed()
        self._answer(number, self.engine.version)

    def _something_runs(self) -> bool:
        """Sequences that had to give up their pages count as running."""
        return bool(self.engine.running) or any(sequence.was_admitted for sequence in self.engine.waiting)

    def _answer_pausing(self, value: object) -> None:
        for number in self.pausing:
            self._answer(number, value)
        self.pausing.clear()

    def _do_clear_cache(self, number: int) -> None:
        self.engine.forget_prefixes()
        self._answer(number, None)

    def _answer(self, number: int, value: object) -> None:
        self._send("answer", (number, value))

    def _send(self, kind: str, value: object) -> None:
        try:
            self.connection.send((kind, value))
        except OSError:
            self.gone = True


def _chunk(sequence: Sequence) -> Chunk:
    """What was sampled since the last one."""
    first = sequence.sampled - sequence.unsent
    sequence.unsent = 0
    return Chunk(
        tokens=tuple(sequence.tokens_from(first)),
        logprobs=tuple(sequence.logprobs[first:]),
        top=tuple(sequence.top[first:]),
        finish_reason=sequence.finish_reason,
        generation=sequence.generation,
    )


def _plain(error: Exception) -> Exception:
    """The error as it can cross to another process: its type where that survives, its text in any case."""
    import pickle

    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # noqa: BLE001 - any failure to copy it means the same
        pass
    return EngineError(f"{type(error).__name__}: {error}")
