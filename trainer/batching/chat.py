"""Encoding of conversations: prompts with the tokenizer's chat template, and the responses that continue them."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

from jinja2 import TemplateError

from app.errors import InvalidInput, ModelUnavailable

# Some templates insert today's date. A run that is repeated or resumed on another day must see the same tokens, so
# these templates get a fixed date. A macro with the name of the clock function replaces it.
_DAY = date(2025, 1, 1)
_DIRECTIVES = ("%a", "%A", "%b", "%B", "%d", "%-d", "%e", "%H", "%I", "%j", "%m", "%-m", "%M", "%p", "%S", "%y", "%Y")
STOPPED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{directive}', '{_DAY.strftime(directive)}')" for directive in _DIRECTIVES)
    + " }}{%- endmacro %}\n"
)

PROBE = [{"role": "user", "content": "Plugh"}, {"role": "assistant", "content": "Xyzzy"}]


class TokenSequence(NamedTuple):
    """One prompt with one completion, as token ids."""

    prompt: Sequence[int]
    completion: Sequence[int] = ()

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


class Fitted(NamedTuple):
    """Sequences of one prompt within the length limit, and whether the prompt was cut to fit."""

    sequences: list[TokenSequence]
    cut: bool


class ChatEncoder:
    """Encodes chats with a tokenizer's template.

    The prompt is the rendered chat with the header of the assistant's turn. A finished completion is its text and the
    token that ends the turn, as the model itself would have generated them. If a message or a response contains the
    name of a special token, the name is encoded as text. In messages, so is the name of any added token that the
    template writes. Otherwise a user could end or begin a turn by typing the token.

    Args:
        max_length: maximum tokens of a sequence, capped at the model's own limit; None means the model's limit.

    Attributes:
        end_id: the token that ends the assistant's turn.

    Raises:
        ModelUnavailable: the chat template cannot be rendered.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        reads = tokenizer.model_max_length
        self.tokenizer, self.max_length = tokenizer, reads if max_length is None else min(max_length, reads)
        self.end_id = end_of_turn_id(tokenizer)
        template = tokenizer.get_chat_template()
        self._template = STOPPED_CLOCK + template if "strftime_now" in template else template
        # DeepSeek's role tokens are added tokens, but not special tokens.
        names = [
            re.escape(token.content)
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or (token.content in template and not token.content.isspace())
        ]
        self._control = re.compile("|".join(names) or "(?!)")  # "(?!)" never matches
        answer, prompt = PROBE[1]["content"], self.prompt(PROBE[:1])
        whole = tokenizer.apply_chat_template(PROBE, chat_template=self._template, return_dict=False)
        bare = self._bare(answer)
        self._answers_stand_bare = bare != self._ids(answer) and whole[len(prompt) :][: len(bare)] == bare

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of the conversation, up to the start of the assistant's answer.

        Raises:
            InvalidInput: the conversation lacks roles or contents or ends with the assistant's turn, or the template
                refuses it or renders no token at all, so that there is nothing to predict from.
        """
        if not messages or any(not {"role", "content"} <= message.keys() for message in messages):
            raise InvalidInput(
                f"{_shown(messages)} lacks a message, or a message its role or content.",
                'Write each as {"role": "user", "content": "..."}.',
            )
        if messages[-1]["role"] == "assistant":
            raise InvalidInput(
                f"{_shown(messages)} ends with the assistant's turn, so it asks for nothing.",
                "Take that turn for the response, or leave it out.",
            )
        try:
            ids = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template,
                add_generation_prompt=True,
                return_dict=False,
                sanitize_control_tokens=any(self._control.search(text) for m in messages for text in m.values()),
            )
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"The model's chat template does not accept a conversation: {error}. {_shown(messages)}.",
                "Check the roles and their order.",
            ) from error
        if not ids:
            raise InvalidInput(
                f"The model's chat template makes nothing of a conversation. {_shown(messages)}.",
                "Write a message that says something, or choose a model whose template says whose turn it is.",
            )
        return ids

    def completion(self, text: str, finished: bool = True) -> list[int]:
        """Return the token ids of a response, at least one; they end with the end-of-turn token if it is `finished`."""
        ids = self._bare(text) if self._answers_stand_bare else self._ids(text)
        return [*ids, self.end_id] if finished or not ids else ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _bare(self, text: str) -> list[int]:
        """Return the token ids of a text at the start of a line, without SentencePiece's leading space.

        SentencePiece puts a space before the first word. If a line break ends the header (TinyLlama, Zephyr), answers
        do not have this space.
        """
        newline, ids = self._ids("\n"), self._ids("\n" + text)
        return ids[len(newline) :] if ids[: len(newline)] == newline else self._ids(text)

    def prompt_within(self, messages: Sequence[Mapping[str, str]], room: int) -> tuple[list[int], bool]:
        """Return the token ids of a conversation in at most `room` tokens (at least 1), and whether it was cut.

        Text that the template itself writes stays, including BOS and the assistant's header, and so do system messages.
        The oldest turns are dropped first, as a whole. If the last turn alone is too long, its longest texts lose their
        middle.

        Raises:
            InvalidInput: as `prompt` does.
        """
        whole = self.prompt(messages)
        if len(whole) <= room:
            return whole, False
        always = [message["role"] in ("system", "developer") for message in messages]
        opener = next((m["role"] for m, kept in zip(messages, always, strict=True) if not kept), None)
        # Templates often refuse a conversation that begins with an answer.
        starts = [i for i, message in enumerate(messages) if message["role"] == opener][1:]

        def since(start: int) -> list[Mapping[str, str]]:
            return [message for i, message in enumerate(messages) if i >= start or always[i]]

        if (found := self._first_fit(len(starts), lambda i: since(starts[i]), room)) is not None:
            return found, True
        last = since(starts[-1]) if starts else list(messages)
        longest = max(len(message["content"]) for message in last)

        def with_texts_of(length: int) -> list[Mapping[str, str]]:
            return [{**message, "content": _without_middle(message["content"], length)} for message in last]

        found = self._first_fit(longest + 1, lambda i: with_texts_of(longest - i), room)
        return (found if found is not None else self.prompt(with_texts_of(0))[-room:]), True

    def _first_fit(
        self, count: int, conversation: Callable[[int], list[Mapping[str, str]]], room: int
    ) -> list[int] | None:
        """Return the prompt of the longest conversation that fits, found by bisection; None if none fits.

        `conversation(i)` gives the conversations for i < `count`, from the longest to the shortest.
        """
        low, found = 0, None
        while low < count:
            middle = (low + count) // 2
            ids = self.prompt(conversation(middle))
            if len(ids) <= room:
                found, count = ids, middle
            else:
                low = middle + 1
        return found

    def fit(self, messages: Sequence[Mapping[str, str]], completions: Sequence[Sequence[int]]) -> Fitted | None:
        """Return the sequences of one prompt within `max_length`, or None if a completion would have to be cut.

        All completions get the same cut prompt, so that they stay comparable.
        """
        room = self.max_length - max(len(completion) for completion in completions)
        if room < 1:
            return None
        prompt, cut = self.prompt_within(messages, room)
        return Fitted([TokenSequence(prompt, completion) for completion in completions], cut)

    @property
    def too_long(self) -> str:
        """Description of rows that do not fit, for messages."""
        return f"are longer than {self.max_length} tokens without their prompt"

    @property
    def cut(self) -> str:
        """Description of rows whose prompt was cut, for messages."""
        return f"lost a part of their prompt, to stay within {self.max_length} tokens"


def _without_middle(text: str, length: int) -> str:
    """Return a text's first and last characters, `length` in total, with an ellipsis in place of the removed middle."""
    if len(text) <= length or not length:
        return text[:length]
    end = length // 2
    return f"{text[: length - end]}…{text[len(text) - end :]}"


def _shown(messages: Sequence[Mapping[str, str]]) -> str:
    """Describe a conversation by its roles and its last words, so that the user can find it."""
    roles = ", ".join(message.get("role", "no role") for message in messages) or "no message"
    text = " ".join(messages[-1].get("content", "").split()) if messages else ""
    return f"The conversation ({roles}) that ends with “{text if len(text) <= 60 else f'...{text[-60:]}'}”"


def end_of_turn_id(tokenizer: Any) -> int:
    """Return the token that ends an assistant's turn: the special token that the template puts after it, else EOS.

    Raises:
        ModelUnavailable: the template cannot be rendered.
    """
    try:
        rendered = tokenizer.apply_chat_template(PROBE, tokenize=False)
    except (TemplateError, KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(
            f"The chat template of {tokenizer.name_or_path} does not render a question with its answer: {error}.",
            "Mend chat_template.jinja in the model's folder, or remove it: then a plain one is used.",
        ) from error
    _, answer, behind = rendered.rpartition(PROBE[1]["content"])
    # Some templates render questions only.
    tail = tokenizer(behind if answer else "", add_special_tokens=False)["input_ids"]
    # Some tokenizers list the end-of-turn token only among their added tokens, without a named role.
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((token for token in tail if token in special), tokenizer.eos_token_id)


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a response: the template's, the tokenizer's, and those in the generation config."""
    said = model.generation_config.eos_token_id
    said = said if isinstance(said, list) else [said]
    return sorted({end_of_turn_id(tokenizer), tokenizer.eos_token_id, *said} - {None})
