"""A conversation with a model: turns in a tree, each answer drawn again at will."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.options import DRAFTS, MAX_SEED, GenerateOptions
from gpt2cli.repl.context import Context, Contexts
from gpt2cli.repl.differences import changes, warnings
from gpt2cli.repl.formats import Format
from gpt2cli.repl.options import OPTION_NAMES, as_json, option_name, parse_option, parse_overrides
from gpt2cli.repl.sessions import Saved, Session, turn_event
from gpt2cli.repl.speaker import Speaker, as_engine, format_for
from gpt2cli.repl.tree import Tree, Turn
from gpt2cli.repl.turn_request import TurnRequest, TurnStats, answer_options, answered, turn_seed, turn_stats
from gpt2cli.text.reading import cleaned

if TYPE_CHECKING:
    from gpt2cli.core.results import Choice, Chunk, Stats


class Conversation:
    """Turns with a `Speaker`, in a format, under a system text.

    ``given`` are options over the model's own defaults; ``seed`` the session's, drawn where None.
    ``draft`` is as in `GenerateOptions`; it changes no text, and no session keeps it. ``last`` tells of the
    last draw, ``branches`` are the turns of the last `branch`, ``warn`` is called with what goes wrong beside
    the point: a session file that cannot be written. ``keep`` is called with each draw when it has ended.
    """

    OPTION_NAMES = OPTION_NAMES
    parse_overrides = staticmethod(parse_overrides)

    def __init__(
        self,
        engine: Speaker,
        format: Format,
        *,
        model: str = "",
        revision: str | None = None,
        system: str = "",
        given: Mapping[str, Any] | None = None,
        seed: int | None = None,
        session: Session | None = None,
        saved: Saved | None = None,
        warn: Callable[[str], None] | None = None,
        draft: str = "auto",
    ) -> None:
        self.model, self.revision = model, revision
        self.given = dict(given or {})
        self.seed = secrets.randbelow(MAX_SEED + 1) if seed is None else seed
        self.tree = saved.tree if saved else Tree()
        self.session = session
        self.last: TurnStats | None = None
        self.branches: list[Turn] = []
        self.want_logprobs = False
        self.warn: Callable[[str], None] = warn or (lambda text: None)
        self.keep: Callable[[TurnRequest, Sequence[Choice], Stats | None], None] | None = None
        self._contexts = Contexts(engine, format, cleaned(system))
        self._described: list[Turn] = []
        self.draft = draft
        engine.options(**self.given)
        if saved is not None:
            self._resumed(saved)

    @property
    def engine(self) -> Speaker:
        """The model that answers."""
        return self._contexts.engine

    @property
    def format(self) -> Format:
        """How turns become one text."""
        return self._contexts.format

    @property
    def system(self) -> str:
        """The text above all turns; empty for none."""
        return self._contexts.system

    @property
    def options(self) -> GenerateOptions:
        """The options of the next answer, its seed and stops included."""
        return self._settled_options(self.tree.current, 0, {})

    def context(self, user: str | None = None) -> Context:
        """What the model would see for an answer to ``user``; without, what it has seen up to here.

        Raises `PromptTooLong`, and `UsageError` where a character cannot be tokenised.
        """
        if user is None:
            return self._contexts.so_far(self.tree)
        new = self.options.max_new_tokens or 0
        return self._contexts.fit(self.tree, self.tree.current, cleaned(user), new)

    def typed(self, user: str) -> list[int]:
        """The ids of what the model sees when a message begins with ``user``, and is not complete.

        Raises as `context`.
        """
        new = self.options.max_new_tokens or 0
        return self._contexts.begun(self.tree, self.tree.current, cleaned(user), new)

    def answer(self, user: str, **overrides: Any) -> Generator[Chunk, None, None]:
        """Generate an answer to ``user`` after the current turn, and stand on the new turn.

        Everything is checked now, before the first chunk. However the stream ends, the turn with what
        was generated so far is in the tree and in the session file; one without a token is not, if it
        was interrupted. Raises `UsageError`, `PromptTooLong`, `Gpt2cliError`.
        """
        return self._draw(self._request(self.tree.current, cleaned(user), 0, overrides))

    def regenerate(self, **overrides: Any) -> Generator[Chunk, None, None]:
        """Another answer to the same words, beside the current one. Raises as `answer`."""
        turn = self._needed("there is no answer yet to draw again")
        return self._draw(self._request(self._before(turn), turn.user, self.tree.next_draw(turn), overrides))

    def continue_answer(self, **overrides: Any) -> Generator[Chunk, None, None]:
        """Go on with the current answer; the longer one stands beside it. Raises as `answer`.

        One that was cut off goes on with its own seed, as if it had not been; one that the model had
        ended needs another draw.
        """
        turn = self._needed("there is no answer yet to go on with")
        cut = turn.finish_reason in ("length", "interrupted", "context")
        draw = turn.draw if cut else self.tree.next_draw(turn)
        if cut:
            overrides = {"seed": turn.seed, **overrides}
        ids, text = self._contexts.begun_answer(turn)
        options = self._settled_options(self._before(turn), draw, overrides)
        new = options.max_new_tokens or 0
        context = self._contexts.fit(self.tree, self._before(turn), turn.user, new, turn, ids)
        request = TurnRequest(
            self._before(turn), turn.user, context, options, draw, tuple(ids), text, turn.id
        )
        return self._draw(request)

    def branch(self, n: int, **overrides: Any) -> Generator[Chunk, None, None]:
        """Generate ``n`` other answers to the current turn's words in one batch; then `take` one.

        All are put in the tree; the current turn stays. Raises as `answer`.
        """
        turn = self._needed("there is no answer yet to branch from")
        overrides = {**overrides, "num_return_sequences": n}
        request = self._request(self._before(turn), turn.user, self.tree.next_draw(turn), overrides)
        return self._draw(replace(request, branches=True))

    def take(self, index: int) -> Turn:
        """Stand on one of the `branches`, counted from 0. Raises `UsageError`."""
        if not 0 <= index < len(self.branches):
            raise UsageError(f"there are {len(self.branches)} branches to take one of")
        return self.go(self.branches[index].id)

    def undo(self) -> Turn | None:
        """Step back before the current turn, which stays in the tree; the turn, or None."""
        if (left := self.tree.undo()) is not None:
            self._moved()
        return left

    def redo(self) -> Turn | None:
        """Step to the turn that was left last; None where there is none."""
        if (turn := self.tree.redo()) is not None:
            self._moved()
        return turn

    def go(self, turn_id: int) -> Turn:
        """Stand on a turn. Raises `UsageError` when there is none of that number."""
        if turn_id not in self.tree:
            raise UsageError(f"there is no turn {turn_id}", hint="/tree shows them")
        turn = self.tree.go(turn_id)
        assert turn is not None
        self._moved()
        return turn

    def clear(self) -> None:
        """Stand before the first turn; what was said stays in the tree."""
        self.tree.go(None)
        self._moved()

    def set_option(self, name: str, text: str) -> None:
        """Set an option from what was typed; ``default`` gives it back to the model.

        Raises `UsageError`, `InvalidOption`; then nothing has changed.
        """
        if text.strip().lower() == "default":
            key = option_name(name)
            self.set_options({k: v for k, v in self.given.items() if k != key})
            return
        key, value = parse_option(name, text)
        if key == "seed":
            self.set_seed(value)
        else:
            self.set_options({**self.given, key: value})

    def set_options(self, given: Mapping[str, Any]) -> None:
        """Replace all options that are ``given``. Raises `InvalidOption`."""
        self.engine.options(**given)
        self.given = dict(given)
        self._changed("options", options=as_json(self.given))

    def set_seed(self, seed: int | None) -> int:
        """Set the session's seed, or draw one; the seed."""
        self.seed = secrets.randbelow(MAX_SEED + 1) if seed is None else seed
        self._changed("seed", seed=self.seed)
        return self.seed

    def set_system(self, system: str) -> None:
        """Replace the system text."""
        self._set_contexts(Contexts(self.engine, self.format, cleaned(system)))
        self._changed("system", system=self.system)

    def set_format(self, name: str) -> None:
        """Lay the turns out in another format. Raises `UsageError` when the model cannot do it."""
        self._set_contexts(Contexts(self.engine, format_for(self.engine, name, self.model), self.system))
        self._changed("format", format=name)

    def set_model(self, engine: Speaker, name: str, revision: str | None = None) -> None:
        """Go on with another model: in the same format where it can, else in the one that suits it.

        Raises `InvalidOption` when it cannot take the options; then nothing has changed.
        """
        engine.options(**self.given)
        if self.draft not in DRAFTS:
            self.draft = "auto"
            self.warn("the model that guessed ahead was the other one's; draft is auto again")
        try:
            format = format_for(engine, self.format.name, name)
        except Gpt2cliError:
            format = format_for(engine, None, name)
        self._set_contexts(Contexts(engine, format, self.system))
        for turn in self.tree:
            # They are of tokens of the model that was left.
            turn.logprobs = None
        self.model, self.revision = name, revision
        self._changed("model", model=name, revision=revision, format=format.name)

    def _set_contexts(self, contexts: Contexts) -> None:
        """From here on the model sees other tokens: what fits has to be found out again."""
        self._contexts = contexts
        for turn in self.tree:
            turn.first = None

    def _needed(self, otherwise: str) -> Turn:
        turn = self.tree.current
        if turn is None:
            raise UsageError(otherwise)
        return turn

    def _before(self, turn: Turn) -> Turn | None:
        return None if turn.parent is None else self.tree[turn.parent]

    def _settled_options(
        self, parent: Turn | None, draw: int, overrides: Mapping[str, Any]
    ) -> GenerateOptions:
        given = {**self.given, **overrides}
        seed = turn_seed(self.seed, 0 if parent is None else parent.depth + 1, draw)
        logprobs = 0 if self.want_logprobs else None
        return answer_options(self.engine, given, seed, self.format.stops, logprobs, self.draft)

    def _request(
        self, parent: Turn | None, user: str, draw: int, overrides: Mapping[str, Any]
    ) -> TurnRequest:
        options = self._settled_options(parent, draw, overrides)
        context = self._contexts.fit(self.tree, parent, user, options.max_new_tokens or 0)
        return TurnRequest(parent, user, context, options, draw)

    def _draw(self, request: TurnRequest) -> Generator[Chunk, None, None]:
        return self._stream(request, self.engine.stream(request.context.ids, request.options))

    def _stream(
        self, request: TurnRequest, chunks: Generator[Chunk, None, None]
    ) -> Generator[Chunk, None, None]:
        from gpt2cli.core.results import new_choices

        choices = new_choices(request.options)
        engine, format, stats = self.engine, self.format, None
        begun = [bool(request.start_text) or not format.strips for _ in choices]
        self.branches = []
        try:
            for chunk in chunks:
                choices[chunk.sequence].add(chunk)
                stats = chunk.stats
                if chunk.text and not begun[chunk.sequence]:
                    chunk = replace(chunk, text=chunk.text.lstrip())
                    begun[chunk.sequence] = bool(chunk.text)
                yield chunk
        finally:
            if stats is None:
                # The reader closed the stream: the engine ends it after the token it is at.
                engine.interrupt()
                for chunk in chunks:
                    stats = chunk.stats
            self._finish(request, choices, stats)

    def _finish(self, request: TurnRequest, choices: tuple[Choice, ...], stats: Stats | None) -> None:
        """Put what was generated into the tree and the session file."""
        current = self.tree.current
        self.last = None if stats is None else turn_stats(stats, request)
        turns = []
        for choice in choices:
            if choice.token_ids or choice.finish_reason not in (None, "interrupted"):
                turns.append(self._add(request, choice))
        if turns:
            for turn in self._described:
                turn.logprobs = None
            self._described = turns
        if request.branches and turns:
            self.branches = turns
            self.tree.go(None if current is None else current.id)
            self._moved()
        if self.keep is not None:
            self.keep(request, choices, stats)

    def _add(self, request: TurnRequest, choice: Choice) -> Turn:
        engine = as_engine(self.engine)
        tokenizer = None if engine is None else engine.tokenizer
        turn = answered(request, choice, self.tree.next_id, tokenizer, strips=self.format.strips)
        if engine is None:
            # A server's tokens are not told: whoever answers next has its own for the text.
            turn.answer_ids = []
        self.tree.add(turn)
        self._write(turn_event(turn))
        return turn

    def save(self, name: str) -> None:
        """Give the session's file a name; from now on it is saved. Raises `UsageError`, `Gpt2cliError`."""
        if self.session is None:
            self.session = Session(name)
            turns = [turn_event(turn) for turn in self.tree]
            current = self.tree.current
            self._write(*turns, {"event": "move", "to": current.id if current else None})
        else:
            self.session.rename(name)

    def load(self, name: str) -> None:
        """Go on with another session, with the model that is loaded. Raises as `Session.open` does."""
        if self.session is not None and self.session.name == name:
            raise UsageError(f"{name} is the session you are in")
        session, saved = Session.open(name)
        try:
            self.engine.options(**saved.options)
            format = format_for(self.engine, saved.format, self.model)
        except BaseException:
            session.close()
            raise
        self.close()
        self.session, self.tree = session, saved.tree
        self.given, self.seed = dict(saved.options), saved.seed
        self.last, self.branches, self._described = None, [], []
        self._contexts = Contexts(self.engine, format, saved.system)
        self._resumed(saved)

    def close(self) -> None:
        """Let go of the session's file."""
        if self.session is not None:
            self.session.close()
            self.session = None

    def _resumed(self, saved: Saved) -> None:
        """Note in the file, and to the user, where this conversation is not what the file has."""
        now = (self.model, self.revision, self.format.name, self.system)
        if (saved.model, saved.revision, saved.format, saved.system) != now:
            self._set_contexts(self._contexts)
        for text in warnings(saved, self.model):
            self.warn(text)
        for event in changes(saved, self._header()):
            self._changed(**event)

    def _header(self) -> dict[str, Any]:
        """What the session's file says of the conversation."""
        return {
            "model": self.model,
            "revision": self.revision,
            "format": self.format.name,
            "system": self.system,
            "options": as_json(self.given),
            "seed": self.seed,
        }

    def _moved(self) -> None:
        current = self.tree.current
        self._changed("move", to=None if current is None else current.id)

    def _changed(self, event: str, **fields: Any) -> None:
        """Write an event; before the first turn there is no file, and the header will tell."""
        if self.session is not None and self.session.path is not None:
            self._write({"event": event, **fields})

    def _write(self, *events: Mapping[str, Any]) -> None:
        if self.session is None:
            return
        before = self.session.error
        self.session.write({**self._header(), "time": round(time.time(), 1)}, *events)
        if self.session.error is not None and before is None:
            self.warn(f"the session cannot be saved: {self.session.error}; the chat goes on")
