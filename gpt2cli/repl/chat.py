"""A session as its commands see it: the screen, the prompt, the model as it loads, the conversation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from prompt_toolkit.completion import Completer

from gpt2cli.errors import Gpt2cliError
from gpt2cli.repl.history import History
from gpt2cli.repl.loader import Loader
from gpt2cli.repl.prompt import Prompt, begun_message
from gpt2cli.repl.speaker import as_engine, as_remote
from gpt2cli.repl.status import Status, short_name, status_line
from gpt2cli.repl.tree import Turn
from gpt2cli.repl.tty import Tty
from gpt2cli.repl.typed_ghost import TypedSuggestions
from gpt2cli.repl.view import BOLD, View
from gpt2cli.suggest.ghost import Ghost
from gpt2cli.suggest.worker import Worker
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine
    from gpt2cli.core.results import Chunk
    from gpt2cli.repl.conversation import Conversation
    from gpt2cli.repl.speaker import Speaker

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What is known before the model is loaded.

    ``load`` loads it and makes or resumes the conversation, in a thread;
    ``load_engine`` loads another model, and gives its name as shown and its revision. ``resumed`` names the
    session that goes on, ``turns`` are those that lead to where it stands. What ``load`` has to say
    beside the point it leaves in ``notes``.
    """

    model: str
    context: int | None
    load: Callable[[], Conversation]
    load_engine: Callable[[str], tuple[Speaker, str, str | None]]
    editing_mode: str = "emacs"
    suggest: bool = False
    """Whether ghost text stands behind what is typed."""
    resumed: str | None = None
    turns: Sequence[Turn] = ()
    notes: Sequence[str] = ()


class Cancelled(Exception):
    """The user did not want to wait."""


class Chat:
    """One session: what commands act on."""

    def __init__(
        self, terminal: Terminal, start: Start, tty: Tty, completer: Callable[[Chat], Completer]
    ) -> None:
        self.terminal, self.start, self.tty = terminal, start, tty
        self.view = View(terminal)
        self._warnings: list[str] = []
        """What the history warns of, said when the prompt is gone."""
        self.suggest = start.suggest
        self._worker = Worker("ghost")
        ghost = Ghost(self._worker, self._typed, lambda: suggestions.news())
        suggestions = TypedSuggestions(ghost, self._wants_ghost)
        self.prompt = Prompt(
            terminal,
            tty,
            completer=completer(self),
            status=self._status_line,
            history=History(warn=self._warnings.append),
            warn=self._warnings.append,
            editing_mode=start.editing_mode,
            suggestions=suggestions,
        )
        self.editing_mode = start.editing_mode
        self.draft = ""
        """What stands at the next prompt already."""
        self._loader = Loader(self._load, self._loaded)
        self._loaders: list[Loader[Any]] = [self._loader]
        self._conversation: Conversation | None = None
        self._used: int | None = None

    @property
    def loaded(self) -> Conversation | None:
        """The conversation, if the model is there already."""
        if self._conversation is None and self._loader.done and self._loader.error is None:
            return self._loader.result()
        return self._conversation

    @property
    def conversation(self) -> Conversation:
        """The conversation; waits for the model. Raises `Cancelled`, and what loading raised."""
        if self._conversation is None:
            name = short_name(self.start.model)
            self._conversation = self.wait_for(self._loader, f"loading {name}", f"{name} is still loading")
            self._conversation.warn = self.view.warn
            self._conversation.want_logprobs = True
            for note in self.start.notes:
                self.view.warn(note)
        return self._conversation

    def wait_for(self, loader: Loader[T], what: str, otherwise: str) -> T:
        """What ``loader`` gives; ``otherwise`` is said on Ctrl-C. Raises `Cancelled`, and what it raised."""
        self._loaders = [one for one in self._loaders if not one.done] + [loader]
        if not loader.done:
            self.view.live(f"{what} … (Ctrl-C: do not wait)")
            if not loader.wait(lambda: self.tty.interrupted):
                self.view.note(otherwise)
                raise Cancelled
            self.view.clear_live()
        return loader.result()

    def read(self) -> str:
        """What the user types next, a draft standing there already. Raises `KeyboardInterrupt`, `EOFError`,
        and what loading the model raised.
        """
        self.tty.interrupted = False
        self._count_context()
        draft, self.draft = self.draft, ""
        try:
            return self.prompt.read(draft, self._loader.start)
        finally:
            while self._warnings:
                self.view.warn(self._warnings.pop(0))

    def has_failed(self, error: Exception) -> bool:
        """Whether ``error`` is that of the session's own model, without which it cannot go on."""
        return self._conversation is None and error is self._loader.error

    def say(self, message: str) -> None:
        """Send ``message`` and show the answer. Raises `Gpt2cliError`."""
        if not message.strip():
            self.view.note("nothing to send; /help shows what there is")
            return
        conversation = self.conversation
        self.draw(lambda: conversation.answer(message))

    def draw(self, start: Callable[[], Generator[Chunk, None, None]]) -> None:
        """Show an answer as it is generated. Ctrl-C ends it and keeps its text. Raises `Gpt2cliError`."""
        conversation = self.conversation
        view, reason, empty = self.view, None, True
        with self.tty.interruptible(conversation.engine.interrupt):
            chunks = start()
            if self.tty.interrupted:
                # Ctrl-C came before there was a stream to end.
                conversation.engine.interrupt()
            view.begin()
            try:
                for chunk in chunks:
                    view.more(chunk.text)
                    empty = empty and not chunk.text
                    reason = chunk.finish_reason or reason
            finally:
                chunks.close()
                view.end()
        self._remark(reason, empty=empty)

    def _remark(self, reason: str | None, *, empty: bool) -> None:
        """What the text does not show."""
        last = self.conversation.last
        if last is not None and last.dropped_turns:
            turns = "turn is" if last.dropped_turns == 1 else "turns are"
            self.view.note(f"the context is full: the {last.dropped_turns} oldest {turns} no longer seen")
        if reason == "interrupted":
            self.view.note("stopped; /continue goes on" if not empty else "stopped before the first word")
        elif reason == "context":
            self.view.note("the context is full; your next message drops the oldest turns")
        elif empty:
            self.view.note("the model ended the text at once; /regen draws again")

    def show_turns(self, turns: Sequence[Turn]) -> None:
        """Turns as they once stood on the screen."""
        for turn in turns:
            self.view.text(f"> {turn.user}", BOLD)
            self.view.text(turn.answer)

    def show_place(self) -> None:
        """The turn that one stands on now."""
        turn = self.conversation.tree.current
        if turn is None:
            self.view.note("at the beginning: no turns before the next")
        else:
            self.show_turns([turn])

    def is_loading(self) -> bool:
        """Whether a thread loads a model, so that the interpreter cannot end in an orderly way."""
        return any(loader.running for loader in self._loaders)

    def rest(self) -> None:
        """No ghost text any more: its thread has ended."""
        self._worker.close()

    def _wants_ghost(self, text: str) -> bool:
        """Whether ghost text may stand behind ``text``: no command, and for a model of this machine."""
        if not self.suggest or not text.strip() or (text.startswith("/") and not text.startswith("//")):
            return False
        return self.loaded is not None and as_remote(self.loaded.engine) is None

    def _typed(self, text: str) -> tuple[Engine, list[int]] | None:
        """In the ghost's thread: what the model sees when a message has begun with ``text``."""
        conversation = self.loaded
        engine = None if conversation is None else as_engine(conversation.engine)
        if conversation is None or engine is None:
            return None
        return engine, conversation.typed(begun_message(text))

    def join(self) -> None:
        """Wait for what still loads."""
        for loader in self._loaders:
            loader.join()

    def _load(self) -> Conversation:
        conversation = self.start.load()
        self._used = _tokens_of(conversation)
        return conversation

    def _loaded(self) -> None:
        """In the loader's thread: the bar has news, or there is nothing to prompt for."""
        if self._loader.error is not None:
            self.prompt.abort(self._loader.error)
        else:
            self.prompt.refresh()

    def _count_context(self) -> None:
        """Tokens in use, once a prompt and not at every key."""
        if self.loaded is not None:
            self._used = _tokens_of(self.loaded)

    def _status_line(self, width: int) -> str:
        conversation = self.loaded
        if conversation is None:
            return status_line(Status(short_name(self.start.model), state="loading"), width)
        # Its context is only estimated.
        remote = as_remote(conversation.engine) is not None
        return status_line(
            Status(
                short_name(conversation.model or self.start.model),
                format=conversation.format.name,
                seed=conversation.seed,
                used=0 if remote else self._used or 0,
                context=None if remote else conversation.engine.config.n_positions,
                tokens_per_s=conversation.last.tokens_per_s if conversation.last else None,
            ),
            width,
        )


def _tokens_of(conversation: Conversation) -> int:
    """Tokens of the context in use."""
    if conversation.tree.current is None:
        return 0
    try:
        return len(conversation.context().ids)
    except Gpt2cliError:
        return conversation.engine.config.n_positions
